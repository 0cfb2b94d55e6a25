"""Noise of the size of IBL recordings: a whole session as an ALF folder, and datasets of many sessions."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from neds_hf.data.schema import IBL_BEHAVIORS, IBL_CLASSES, ConversionOptions, Recording
from neds_hf.data.storage import Source, convert

PROBES = ("probe00", "probe01")
TRIAL_S = 6.0
CHANNELS = 384
FRAMES_HZ = {"left": 60, "right": 150}
WHEEL_HZ = 120  # mean rate of the encoder's changes


def write_session(cache: Path, subject: str, spikes: int, clusters: int, trials: int) -> Path:
    """Write a session with two probes, a wheel and two cameras into a ONE cache; return its folder.

    As in a full one, there is more of every spike than a conversion reads.

    Args:
        cache: The folder of the cache.
        subject: Name of the mouse; the session's id follows from it.
        spikes, clusters: Of both probes together; clusters' rates are log-normal, as in the brain.
        trials: Of 6 s each.
    """
    rng = np.random.default_rng(0)
    session = cache / "noiselab" / "Subjects" / subject / "2024-01-31" / "001"
    alf = session / "alf"
    duration_s = TRIAL_S * (trials + 2)
    for probe in PROBES:
        folder = alf / probe / "pykilosort"
        folder.mkdir(parents=True)
        _write_probe(folder, rng, spikes // len(PROBES), clusters // len(PROBES), duration_s)
    onset = TRIAL_S * np.arange(1, trials + 1)
    movement = onset + rng.uniform(0.1, 0.8, trials)
    table = {
        "stimOn_times": onset,
        "goCue_times": onset,
        "firstMovement_times": movement,
        "feedback_times": movement + 0.3,
        "choice": rng.choice([-1.0, 1.0], trials),
        "probabilityLeft": np.repeat(rng.choice([0.2, 0.8], trials // 50 + 1), 50)[:trials],
    }
    pd.DataFrame(table).to_parquet(alf / "_ibl_trials.table.pqt")
    turns = np.sort(rng.uniform(0, duration_s, int(WHEEL_HZ * duration_s)))
    np.save(alf / "_ibl_wheel.timestamps.npy", turns)
    np.save(alf / "_ibl_wheel.position.npy", rng.choice([-1.0, 1.0], len(turns)).cumsum() * 2 * np.pi / 4096)
    for side, frames_hz in FRAMES_HZ.items():
        times = np.arange(0, duration_s, 1 / frames_hz)
        np.save(alf / f"_ibl_{side}Camera.times.npy", times)
        np.save(alf / f"{side}Camera.ROIMotionEnergy.npy", rng.gamma(2.0, 3.0, len(times)))
    return session


def _write_probe(
    folder: Path, rng: np.random.Generator, spikes: int, clusters: int, duration_s: float
) -> None:
    times = rng.exponential(size=spikes).cumsum()
    rates = rng.lognormal(sigma=1.2, size=clusters)
    np.save(folder / "spikes.times.npy", times * (duration_s / times[-1]))
    spike_clusters = rng.choice(clusters, spikes, p=rates / rates.sum())
    np.save(folder / "spikes.clusters.npy", spike_clusters.astype(np.uint32))
    np.save(folder / "spikes.templates.npy", spike_clusters.astype(np.uint32))
    np.save(folder / "spikes.samples.npy", np.arange(spikes))
    np.save(folder / "spikes.amps.npy", times)
    np.save(folder / "spikes.depths.npy", times)
    channels = rng.integers(0, CHANNELS, clusters)
    np.save(folder / "clusters.channels.npy", channels)
    np.save(folder / "clusters.depths.npy", 10.0 * channels)
    np.save(folder / "channels.brainLocationIds_ccf_2017.npy", rng.choice([382, 1020, 218, 215], CHANNELS))
    np.save(folder / "channels.mlapdv.npy", rng.integers(-5000, 5000, (CHANNELS, 3)))
    uuids = [f"{folder.parent.name}-{cluster}" for cluster in range(clusters)]
    pd.DataFrame({"uuids": uuids}).to_csv(folder / "clusters.uuids.csv", index=False)
    labels = {"cluster_id": np.arange(clusters), "label": rng.integers(0, 4, clusters) / 3}
    pd.DataFrame(labels).to_parquet(folder / "clusters.metrics.pqt")


def write_dataset(out: Path, sessions: int, units: int, trials: int, num_bins: int = 100) -> Path:
    """Write a dataset folder of sessions of that many units and trials, 70 % of them for training; return it.

    All sessions hold the same counts, in turned order of trials.
    """
    options = ConversionOptions(window_s=(0.0, num_bins * ConversionOptions.bin_size_s), min_rate_hz=0)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.1, (trials, num_bins, units)).astype(np.uint8)
    signals = rng.gamma(2.0, size=(2, trials, num_bins)).astype(np.float32)
    sources = [
        Source(f"session-{turn:02d}", "", partial(_recording, turn, counts, signals, options))
        for turn in range(sessions)
    ]
    convert(out, sources, options, IBL_BEHAVIORS)
    return out


def _recording(turn: int, counts: np.ndarray, signals: np.ndarray, options: ConversionOptions) -> Recording:
    session, (trials, _, units) = f"session-{turn:02d}", counts.shape
    rng = np.random.default_rng(turn)
    return Recording(
        session=session,
        spike_counts=np.roll(counts, turn, axis=0),
        trial_index=np.arange(trials, dtype=np.int32),
        units=pd.DataFrame({"uuid": [f"{session}/{unit}" for unit in range(units)]}),
        window_s=options.window_s,
        bin_size_s=options.bin_size_s,
        align_event=options.align_event,
        continuous=dict(zip(("wheel_speed", "whisker_motion_energy"), np.roll(signals, turn, axis=1))),
        categorical={name: rng.integers(0, len(classes), trials) for name, classes in IBL_CLASSES.items()},
        classes=IBL_CLASSES,
    )
