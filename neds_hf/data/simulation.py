"""Folders of simulated mice in ALF layout with ONE cache tables, and the rates their neurons truly had.

Under the output folder:

- `simlab/Subjects/<subject>/<date>/001/alf/...`: one session a mouse, the files of an IBL session;
- `sessions.pqt`, `datasets.pqt`: ONE cache tables, for `One(cache_dir=folder, mode="local")`;
- `ground_truth/<eid>.npz`: true rates, outside of anything that ONE lists, read by `read_true_rates`;
- `simulation.json`: the options, so that a run can be resumed but not mixed with another.
"""

import datetime
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from neds_hf.data.files import read_json, write_json
from neds_hf.data.one_cache import make_cache_tables, uuid_of
from neds_hf.data.schema import SIMULATED_LAB
from neds_hf.data.simulated_mouse import GRID_S, WHEEL_STEP_S, Behavior, behave
from neds_hf.data.simulated_neurons import BIN_SIZE_S, NUM_BINS, REGIONS, WINDOW_START_S, fire
from neds_hf.data.workers import outcomes
from neds_hf.errors import NEDSError, require

TRIALS_TABLE = (
    "intervals_0",
    "intervals_1",
    "stimOn_times",
    "goCue_times",
    "firstMovement_times",
    "response_times",
    "feedback_times",
    "choice",
    "feedbackType",
    "rewardVolume",
    "contrastLeft",
    "contrastRight",
    "probabilityLeft",
)
CAMERAS_HZ = {"leftCamera": 60.0, "rightCamera": 150.0}
WHEEL_TICK_RAD = 2 * np.pi / 4096

# Allen ids from the tip of the probe upwards (CCF 2017), and how much of the probe each region takes.
ALLEN_IDS = {
    "PO": (1020,),
    "LP": (218,),
    "DG": (10703, 632, 10704),  # molecular layer, granule cell layer, polymorph layer
    "CA1": (382,),
    "VISa": (312782566, 312782562, 312782558, 312782554),  # layers 6a, 5, 4, 2/3
}
THICKNESS_UM = {"PO": 900, "LP": 900, "DG": 600, "CA1": 700, "VISa": 740}
NUM_CHANNELS = 384
PROBE_TIP_UM = np.array([-1700, -2620, -4050])  # ml, ap, dv
PROBE_TOP_UM = np.array([-2210, -2200, 100])


@dataclass(frozen=True)
class SimulationOptions:
    """What makes one simulation different from another.

    Attributes:
        trials: Trials per session.
        units: Neurons per session, over all its probes.
        probes: 1 or 2 per session.
        seed: Same seed, same arrays. Session k depends on the seed and k only.
        without: Session number to what its folder lacks (`"leftCamera"`, `"rightCamera"`, `"probe00"`,
            `"probe01"`), as in recordings where something failed.
    """

    trials: int = 300
    units: int = 80
    probes: int = 1
    seed: int = 0
    without: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.probes not in (1, 2):
            raise NEDSError(f"a session has 1 or 2 probes, not {self.probes}")
        if self.trials < 10 or self.units < self.probes or self.seed < 0:
            raise NEDSError(
                "a simulation needs at least 10 trials, a unit a probe and a seed of 0 or more, but is asked "
                f"for {self.trials} trials, {self.units} units on {self.probes} probe(s), seed {self.seed}"
            )
        known = {*CAMERAS_HZ, *_probe_names(self.probes)}
        unknown = {name for names in self.without.values() for name in names} - known
        if unknown:
            raise NEDSError(f"a session cannot be without {sorted(unknown)}; there are {sorted(known)}")


def simulate(out: str | Path, sessions: int = 10, workers: int = 1, **options) -> list[str]:
    """Simulate mice as ALF session folders; sessions that are already there are kept.

    Args:
        out: Folder to write to: new, empty, or holding a simulation with the same options.
        sessions: Number of mice, a session each.
        workers: Processes to use.
        **options: `SimulationOptions`.

    Returns:
        Session ids, in order of session number.

    Raises:
        NEDSError: Unusable options; `out` cannot be written to, or holds something else, or a simulation with
            other options or more sessions; ONE-api is not installed.
    """
    if sessions < 1 or workers < 1:
        raise NEDSError(f"at least 1 session and 1 worker are needed, not {sessions} and {workers}")
    require("a simulation, which has ONE cache tables,", "ibl", "one")

    out, options = Path(out), SimulationOptions(**options)
    _claim_folder(out, options)
    present = len(list(out.glob(f"{SIMULATED_LAB}/Subjects/*/*/001")))
    missing = [
        number for number in range(sessions) if not (out / session_path(options.seed, number)).exists()
    ]
    if present + len(missing) > sessions:
        raise NEDSError(f"{out} already holds {present} sessions, more than the {sessions} asked for")
    task = partial(_write_session, out, options)
    try:
        with tqdm(
            total=sessions, initial=sessions - len(missing), unit="session", desc="simulate"
        ) as progress:
            for _ in outcomes(task, missing, workers):
                progress.update()
    except OSError as error:  # such as a full disc
        raise NEDSError(f"{out}: cannot be written to ({error}); run again to go on") from error
    make_cache_tables(out)
    return [session_id(options.seed, number) for number in range(sessions)]


def session_path(seed: int, number: int) -> Path:
    """Folder of a session, relative to the output folder."""
    date = datetime.date(2024, 1, 1) + datetime.timedelta(days=number)
    return Path(SIMULATED_LAB, "Subjects", f"sim{seed}_{number:03d}", date.isoformat(), "001")


def session_id(seed: int, number: int) -> str:
    """The session's eid, the one that `make_cache_tables` gives its folder."""
    lab, _, subject, date, session_number = session_path(seed, number).parts
    return uuid_of(f"{lab}/{subject}/{date}/{session_number}")


def read_true_rates(path: str | Path, trial_index: np.ndarray, uuids: Sequence[str]) -> dict[str, np.ndarray]:
    """True rates of some trials and units, ln of expected spikes per 20 ms bin, -0.5 to 1.5 s from stimOn.

    Args:
        path: `ground_truth/<eid>.npz`.
        trial_index: (B,) rows of the session's trials table.
        uuids: (N,) cluster uuids.

    Returns:
        `log_rates_full`, given everything, and `log_rates_behavior`, given only choice, block, wheel and
        whiskers of the trial (`simulated_neurons.fire` says how): (B, T, N) float32.

    Raises:
        NEDSError: No such file, trial or unit.
    """
    path, trial_index = Path(path), np.asarray(trial_index)
    if not path.is_file():
        raise NEDSError(f"there is no file of true rates {path}")
    with np.load(path) as file:
        row = {name: k for k, name in enumerate(file["uuids"].tolist())}
        unknown = [name for name in uuids if name not in row]
        if unknown:
            raise NEDSError(f"{path}: no unit {unknown[0]} among its {len(row)} ({len(unknown)} unknown)")
        rates = {name: file[name] for name in ("log_rates_full", "log_rates_behavior")}
    num_trials = len(rates["log_rates_full"])
    if trial_index.size and not (0 <= trial_index.min() and trial_index.max() < num_trials):
        raise NEDSError(
            f"{path}: holds trials 0 to {num_trials - 1}, not {trial_index.min()} to {trial_index.max()}"
        )
    units = np.array([row[name] for name in uuids], int)
    return {name: values[trial_index][:, :, units].astype(np.float32) for name, values in rates.items()}


def _claim_folder(out: Path, options: SimulationOptions) -> None:
    """Make the folder this simulation's, or raise where it is another's; remove what an interruption left."""
    wanted = json.loads(json.dumps(asdict(options)))
    file = out / "simulation.json"
    if file.exists():
        if (found := read_json(file)) != wanted:
            raise NEDSError(f"{out} holds a simulation with other options: {found}, asked for {wanted}")
    elif out.exists() and (not out.is_dir() or any(out.glob("[!.]*"))):
        raise NEDSError(f"{out} is neither empty nor a simulation (it has no simulation.json)")
    try:
        shutil.rmtree(out / ".partial", ignore_errors=True)
        (out / ".partial").mkdir(parents=True)
        write_json(file, wanted)
        (out / "ground_truth").mkdir(exist_ok=True)
    except OSError as error:
        raise NEDSError(f"{out}: expected a folder that can be written to ({error})") from error


def _probe_names(probes: int) -> list[str]:
    return [f"probe{k:02d}" for k in range(probes)]


def _write_session(out: Path, options: SimulationOptions, number: int) -> None:
    """Simulate one session; its folder appears under its name only when it is complete."""
    random = [np.random.default_rng(seed) for seed in np.random.SeedSequence([options.seed, number]).spawn(4)]
    behavior = behave(random[0], options.trials)
    probes = dict(zip(_probe_names(options.probes), np.array_split(np.arange(options.units), options.probes)))
    layouts = {name: _probe_layout(random[1], len(units)) for name, units in probes.items()}
    neurons = fire(random[2], behavior, np.concatenate([layout["region"] for layout in layouts.values()]))

    folder = out / ".partial" / str(number)
    alf = folder / "alf"
    alf.mkdir(parents=True)
    without = options.without.get(number, ())
    _write_behavior(random[3], alf, behavior, [name for name in CAMERAS_HZ if name not in without])
    for name, units in probes.items():
        if name not in without:
            spike_times = [neurons.spike_times[unit] for unit in units]
            _write_probe(random[3], alf / name / "pykilosort", layouts[name], spike_times)
    description = [
        {"label": name, "model": "3B2", "serial": 0, "raw_file_name": ""}
        for name in probes
        if name not in without
    ]
    (alf / "probes.description.json").write_text(json.dumps(description))

    truth = folder / "truth.npz"
    np.savez(
        truth,
        log_rates_full=neurons.log_rates_full.astype(np.float16),
        log_rates_behavior=neurons.log_rates_behavior.astype(np.float16),
        uuids=np.concatenate([layout["uuids"] for layout in layouts.values()]),
        bin_edges_s=WINDOW_START_S + BIN_SIZE_S * np.arange(NUM_BINS + 1),
    )
    os.replace(truth, out / "ground_truth" / f"{session_id(options.seed, number)}.npz")
    target = out / session_path(options.seed, number)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, target)


def _write_behavior(rng: np.random.Generator, alf: Path, behavior: Behavior, cameras: Sequence[str]) -> None:
    """Trials table, wheel and cameras."""
    behavior.trials[list(TRIALS_TABLE)].to_parquet(alf / "_ibl_trials.table.pqt")

    # The encoder says something only when the wheel passes a tick.
    position = np.cumsum(behavior.wheel_velocity) * WHEEL_STEP_S
    ticks = np.round(position / WHEEL_TICK_RAD)
    changed = np.flatnonzero(np.diff(ticks, prepend=np.nan))  # the first step counts as a change
    changed = np.union1d(changed, len(ticks) - 1)
    timestamps = (changed + rng.uniform(0.9, 1.1, len(changed))) * WHEEL_STEP_S
    np.save(alf / "_ibl_wheel.timestamps.npy", timestamps)
    np.save(alf / "_ibl_wheel.position.npy", ticks[changed] * WHEEL_TICK_RAD)

    duration_s = len(behavior.whisking) * GRID_S
    middles = (np.arange(len(behavior.whisking)) + 0.5) * GRID_S
    for name in cameras:
        rate_hz = CAMERAS_HZ[name]
        times = 0.3 + np.arange(int((duration_s - 0.6) * rate_hz)) / rate_hz
        times += rng.uniform(-5e-4, 5e-4, len(times))
        whisking = np.interp(times, middles, behavior.whisking)
        energy = 1 + 6 * whisking * (1 + 0.05 * rng.standard_normal(len(times)))
        energy += 0.05 * rng.standard_normal(len(times))
        np.save(alf / f"_ibl_{name}.times.npy", times)
        np.save(alf / f"{name}.ROIMotionEnergy.npy", energy.clip(0))


def _probe_layout(rng: np.random.Generator, num_units: int) -> dict[str, np.ndarray]:
    """Where a probe and its clusters are: channels' Allen ids and coordinates, clusters' channels, uuids."""
    across = np.tile([43.0, 11.0, 59.0, 27.0], NUM_CHANNELS // 4)
    along = 20.0 * (1 + np.arange(NUM_CHANNELS) // 2)
    thickness = np.array([THICKNESS_UM[name] for name in REGIONS]) * rng.uniform(0.8, 1.2, len(REGIONS))
    top = np.cumsum(thickness) / thickness.sum() * along[-1]
    region = np.searchsorted(top, along - 1e-6)
    within = (along - 1e-6 - (top - np.diff(top, prepend=0))[region]) / np.diff(top, prepend=0)[region]
    allen = [ALLEN_IDS[REGIONS[r]][int(w * len(ALLEN_IDS[REGIONS[r]]))] for r, w in zip(region, within)]
    tip, end = (point + rng.normal(0, 60, 3) for point in (PROBE_TIP_UM, PROBE_TOP_UM))
    fraction = ((along - along[0]) / (along[-1] - along[0]))[:, None]
    channels = np.sort(rng.choice(NUM_CHANNELS, num_units, replace=num_units > NUM_CHANNELS))
    return {
        "local": np.stack([across, along], 1).astype(np.float32),
        "allen": np.array(allen, np.int32),
        "mlapdv": np.round(tip + fraction * (end - tip)).astype(np.int32),
        "channels": channels.astype(np.int32),
        "region": np.array(REGIONS)[region[channels]],
        "uuids": np.array([str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(num_units)]),
    }


def _write_probe(
    rng: np.random.Generator, folder: Path, layout: dict[str, np.ndarray], spike_times: list[np.ndarray]
) -> None:
    """Spikes, clusters with quality metrics, and channels of one probe."""
    folder.mkdir(parents=True)
    clusters = np.repeat(np.arange(len(spike_times)), [len(times) for times in spike_times])
    times = np.concatenate(spike_times)
    order = np.argsort(times, kind="stable")
    times, clusters = times[order], clusters[order].astype(np.int32)
    depths = layout["local"][layout["channels"], 1]
    amplitude_v = np.exp(rng.normal(np.log(1e-4), 0.5, len(depths)))
    amplitudes_v = amplitude_v[clusters] * np.exp(0.15 * rng.standard_normal(len(times)))
    arrays = {
        "spikes.times": times,
        "spikes.clusters": clusters,
        "spikes.amps": amplitudes_v,
        "spikes.depths": (depths[clusters] + 8 * rng.standard_normal(len(times))).astype(np.float32),
        "clusters.channels": layout["channels"],
        "clusters.depths": depths,
        "channels.localCoordinates": layout["local"],
        "channels.mlapdv": layout["mlapdv"],
        "channels.brainLocationIds_ccf_2017": layout["allen"],
        "channels.rawInd": np.arange(NUM_CHANNELS),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "clusters.uuids.csv").write_text("\n".join(["uuids", *layout["uuids"]]) + "\n")
    _cluster_metrics(rng, clusters, times, amplitudes_v, len(depths)).to_parquet(
        folder / "clusters.metrics.pqt"
    )


def _cluster_metrics(
    rng: np.random.Generator, clusters: np.ndarray, times: np.ndarray, amplitudes_v: np.ndarray, count: int
) -> pd.DataFrame:
    """Quality metrics of IBL's sorter output; `label` is the fraction of three tests passed."""
    spikes = pd.DataFrame({"cluster": clusters, "amplitude": amplitudes_v})
    amplitude = spikes.groupby("cluster")["amplitude"].agg(["max", "min", "median"]).reindex(range(count))
    decibel = (20 * np.log10(spikes["amplitude"])).groupby(spikes["cluster"]).std().reindex(range(count))
    spike_count = np.bincount(clusters, minlength=count)
    num_minutes = int(times.max(initial=0) // 60) + 1
    minute = clusters * num_minutes + (times // 60).astype(int)
    present = np.bincount(minute, minlength=count * num_minutes).reshape(count, num_minutes) > 0
    viol = (rng.random(count) < 0.75).astype(float)
    noise_cutoff = np.exp(rng.normal(np.log(5), 1.5, count))
    passed = [viol == 1, noise_cutoff < 20, amplitude["median"].to_numpy() > 50e-6]
    return pd.DataFrame(
        {
            "cluster_id": np.arange(count),
            "amp_max": amplitude["max"].to_numpy(),
            "amp_min": amplitude["min"].to_numpy(),
            "amp_median": amplitude["median"].to_numpy(),
            "amp_std_dB": decibel.to_numpy(),
            "contamination": rng.exponential(0.3, count),
            "contamination_alt": rng.exponential(0.2, count),
            "drift": np.exp(rng.normal(np.log(5e4), 1.0, count)),
            "missed_spikes_est": rng.uniform(0, 0.5, count),
            "noise_cutoff": noise_cutoff,
            "presence_ratio": present.mean(1),
            "presence_ratio_std": rng.exponential(5, count),
            "slidingRP_viol": viol,
            "spike_count": spike_count.astype(float),
            "firing_rate": spike_count / (60 * num_minutes),
            "label": np.mean(passed, axis=0),
        }
    )
