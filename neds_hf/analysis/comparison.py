"""Several methods on the same test trials of some sessions: their metrics side by side, and a report's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.sums import SessionSums

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

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


def raster_of_first_trial(shown: ShownSession) -> Figure:
    """Spikes of the first test trial, and the rates that the last method predicts."""
    from neds_hf.analysis.figures import raster_with_rates

    log_rates = list(shown.predictions.values())[-1]["log_rates"]
    return raster_with_rates(
        shown.trials.spike_counts[0], np.exp(log_rates[0]) / shown.bin_size_s, shown.times_s, shown.regions
    )


def psths_of_busiest_units(shown: ShownSession) -> Figure:
    """Average test trial by choice of the units with the most spikes in them, by the last method."""
    from neds_hf.analysis.figures import psths

    trials = shown.trials
    busiest = np.argsort(-trials.spike_counts.sum((0, 1), dtype=np.int64), kind="stable")[:SHOWN_UNITS]
    log_rates = list(shown.predictions.values())[-1]["log_rates"]
    chosen = trials.categorical["choice"]
    labels = np.array([f"choice {name}" for name in trials.classes["choice"]])
    return psths(
        trials.spike_counts[chosen >= 0][..., busiest],
        log_rates[chosen >= 0][..., busiest],
        shown.times_s,
        [f"{shown.regions[unit]}, unit {unit}" for unit in busiest],
        shown.bin_size_s,
        labels[chosen[chosen >= 0]],
    )


def behavior_of_first_trials(shown: ShownSession) -> Figure:
    """Wheel speed and whisker motion energy of the first test trials, recorded and by every method."""
    from neds_hf.analysis.figures import behavior_traces

    return behavior_traces(
        shown.times_s,
        {name: shown.trials.continuous[name][:SHOWN_TRIALS] for name in BEHAVIOR_UNITS},
        {
            method: {name: predicted[name][:SHOWN_TRIALS] for name in BEHAVIOR_UNITS}
            for method, predicted in shown.predictions.items()
        },
        shown.trials.trial_index[:SHOWN_TRIALS].tolist(),
        BEHAVIOR_UNITS,
    )
