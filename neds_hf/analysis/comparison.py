"""Several methods on the same test trials of some sessions: their metrics side by side."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.sums import SessionSums

# Heading of each column of the table, and its metric.
COLUMNS = {
    "bits/spike": "bits_per_spike",
    "wheel R²": "wheel_speed_r2",
    "whisker R²": "whisker_motion_energy_r2",
    "choice accuracy": "choice_accuracy",
    "block accuracy": "block_accuracy",
}
SHOWN_UNITS = 8
SHOWN_TRIALS = 5
BEHAVIOR_UNITS = {"wheel_speed": "rad/s", "whisker_motion_energy": "a.u."}


def score_predictions(
    predictions: dict[str, np.ndarray], trials: SessionTrials, null_rates: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of predictions of one session's trials, as `SessionSums.metrics` names them.

    Args:
        predictions: `log_rates` (B, T, N); of continuous behaviours (B, T), of categorical ones class
            probabilities (B, C). A categorical behaviour that is all NaN was not predicted. What is not there has
            no metrics.
        trials: What really happened in these trials, in the same order.
        null_rates: (N,) expected counts per bin in training trials.
    """
    _, num_bins, num_units = trials.spike_counts.shape
    continuous = [name for name in trials.continuous if name in predictions]
    classes = {name: len(c) for name, c in trials.classes.items() if name in predictions}
    sums = SessionSums(num_bins, num_units, continuous, classes)
    if "log_rates" in predictions:
        sums.add_spikes(predictions["log_rates"], trials.spike_counts)
    for name in continuous:
        sums.add_continuous(name, predictions[name], trials.continuous[name])
    for name in classes:
        if not np.isnan(predictions[name]).any():
            sums.add_categorical(name, predictions[name].argmax(-1), trials.categorical[name])
    metrics = sums.metrics(null_rates)
    if "log_rates" not in predictions:
        decoded = tuple(f"{name}_" for name in (*continuous, *classes))
        metrics = {
            name: value for name, value in metrics.items() if name.startswith(decoded) or name == "mean"
        }
    return metrics


def comparison_table(means: dict[str, dict[str, float]]) -> pd.DataFrame:
    """A row a method, the metrics of `COLUMNS` as columns.

    Args:
        means: Method to its metrics; one that is not known is NaN in the table.
    """
    rows = {method: [mean.get(name) for name in COLUMNS.values()] for method, mean in means.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS), dtype=float)


@dataclass
class ShownSession:
    """One session's test trials and what each method predicts of them.

    Attributes:
        trials: The test trials.
        predictions: Method to its predictions (`score_predictions`); the last one's rates are shown.
        regions: (N,) regions of the units.
        times_s: (T,) centres of the bins in seconds from the event.
        bin_size_s: Bin width in seconds.
    """

    trials: SessionTrials
    predictions: dict[str, dict[str, np.ndarray]]
    regions: np.ndarray
    times_s: np.ndarray
    bin_size_s: float
