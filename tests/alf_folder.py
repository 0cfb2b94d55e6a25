"""Small ALF sessions with visible contents, for tests that read them.

Stimuli come at 10, 13, 16, ... s, movements 0.3 s and feedback 0.6 s later; choices alternate +1, -1, the
block prior goes 0.5, 0.2, 0.8. Cluster k of every probe fires once a trial, 0.1 * (k + 1) + 0.005 s after the
stimulus. Motion energy is the time of the frame, so that it interpolates to the time of the bin edge.
"""

from pathlib import Path

import numpy as np
import pandas as pd

CLUSTERS = 3
ALLEN_IDS = np.array([382, 1020, 218, 215])  # CA1, PO, LP, APN


def trials_table(num_trials: int = 12) -> pd.DataFrame:
    stim_on = 10 + 3.0 * np.arange(num_trials)
    return pd.DataFrame(
        {
            "intervals_0": stim_on - 0.6,
            "intervals_1": stim_on + 1.6,
            "stimOn_times": stim_on,
            "goCue_times": stim_on + 0.001,
            "firstMovement_times": stim_on + 0.3,
            "response_times": stim_on + 0.6,
            "feedback_times": stim_on + 0.6,
            "choice": np.resize([1.0, -1.0], num_trials),
            "feedbackType": 1.0,
            "probabilityLeft": np.resize([0.5, 0.2, 0.8], num_trials),
        }
    )


def write_trials(alf: Path, trials: pd.DataFrame, separate: bool = False) -> None:
    alf.mkdir(parents=True, exist_ok=True)
    if separate:
        for name in trials:
            np.save(alf / f"_ibl_trials.{name}.npy", trials[name].to_numpy())
    else:
        trials.to_parquet(alf / "_ibl_trials.table.pqt")


def write_spikes(folder: Path, trials: pd.DataFrame) -> None:
    """Spikes in order; the first at 0 s and the last at 100 s, both of cluster 0, outside the trials."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = np.arange(CLUSTERS)
    times = trials["stimOn_times"].to_numpy()[:, None] + 0.1 * (cluster + 1) + 0.005
    np.save(folder / "spikes.times.npy", np.r_[0.0, times.ravel(), 100.0])
    np.save(folder / "spikes.clusters.npy", np.r_[0, np.tile(cluster, len(trials)), 0].astype(np.uint32))
    np.save(folder / "clusters.channels.npy", cluster[::-1])
    np.save(folder / "clusters.depths.npy", 20.0 * cluster)
    np.save(folder / "channels.brainLocationIds_ccf_2017.npy", ALLEN_IDS)
    np.save(folder / "channels.mlapdv.npy", np.arange(12).reshape(4, 3) - 5)
    uuids = [f"{folder.parent.name}-{folder.name}-{k}" for k in cluster]
    pd.DataFrame({"uuids": uuids}).to_csv(folder / "clusters.uuids.csv", index=False)
    metrics = pd.DataFrame({"cluster_id": cluster[1:], "label": cluster[1:] / 3})
    metrics.to_parquet(folder / "clusters.metrics.pqt")


def write_wheel(alf: Path) -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 100, 5000))
    times[[0, -1]] = 0, 100
    np.save(alf / "_ibl_wheel.timestamps.npy", times)
    np.save(alf / "_ibl_wheel.position.npy", np.sin(times))


def write_camera(alf: Path, side: str) -> None:
    times = np.arange(0, 100, 1 / {"left": 60, "right": 150}[side])
    np.save(alf / f"_ibl_{side}Camera.times.npy", times)
    np.save(alf / f"{side}Camera.ROIMotionEnergy.npy", times)


def write_session(
    root: Path,
    subject: str = "mouse",
    probes: tuple[str, ...] = ("probe00/pykilosort",),
    num_trials: int = 12,
) -> Path:
    """A complete session; returns its `alf` folder, from which a test may take something away."""
    alf = Path(root) / "somelab" / "Subjects" / subject / "2024-01-31" / "001" / "alf"
    trials = trials_table(num_trials)
    write_trials(alf, trials)
    for probe in probes:
        write_spikes(alf / probe, trials)
    write_wheel(alf)
    write_camera(alf, "left")
    write_camera(alf, "right")
    return alf
