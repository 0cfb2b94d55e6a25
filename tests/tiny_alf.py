"""The smallest ALF session that converts: 12 trials, one probe of three units, a wheel, no camera."""

from pathlib import Path

import numpy as np
import pandas as pd

TRIALS = 12
UNITS = 3  # of which the last is silent


def write_session(cache: Path, subject: str) -> Path:
    """Write one session, different for every subject; return its folder."""
    rng = np.random.default_rng(len(subject) + ord(subject[-1]))
    session = cache / "tinylab" / "Subjects" / subject / "2020-01-01" / "001"
    probe = session / "alf" / "probe00" / "pykilosort"
    probe.mkdir(parents=True)
    onset = 2.0 + 4.0 * np.arange(TRIALS)
    trials = {
        "stimOn_times": onset,
        "firstMovement_times": onset + 0.3,
        "feedback_times": onset + 1.0,
        "choice": np.resize([-1.0, 1.0], TRIALS),
        "probabilityLeft": np.resize([0.5, 0.2, 0.8], TRIALS),
    }
    pd.DataFrame(trials).to_parquet(session / "alf" / "_ibl_trials.table.pqt")
    times = np.arange(0.0, 60.0, 0.01)
    np.save(session / "alf" / "_ibl_wheel.timestamps.npy", times)
    np.save(session / "alf" / "_ibl_wheel.position.npy", np.sin(times))
    np.save(probe / "spikes.times.npy", np.sort(rng.uniform(0, 60, 2000)))
    np.save(probe / "spikes.clusters.npy", rng.integers(0, UNITS - 1, 2000))
    np.save(probe / "clusters.channels.npy", np.arange(UNITS))
    return session
