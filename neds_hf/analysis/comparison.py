"""Several methods on the same test trials of some sessions: their metrics side by side."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.sums import SessionSums

# What is predicted of a session's test trials: `log_rates` (B, T, N), ln expected counts per bin; every continuous
# behaviour (B, T); every categorical one, class probabilities (B, C). NaN: could not be predicted.
Predictions = dict[str, np.ndarray]

# Heading of each column of the table, and its metric.
COLUMNS = {
    "bits/spike": "bits_per_spike",
    "wheel R²": "wheel_speed_r2",
    "whisker R²": "whisker_motion_energy_r2",
    "choice accuracy": "choice_accuracy",
    "block accuracy": "block_accuracy",
}
UNKNOWN = "not in the dataset"
BEHAVIOR_UNITS = {"wheel_speed": "rad/s", "whisker_motion_energy": "a.u."}


def score_predictions(
    predictions: Predictions, trials: SessionTrials, null_rates: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of predictions of one session's trials, as `SessionSums.metrics` names them.

    Args:
        predictions: A categorical behaviour that is all NaN was not predicted. What is not there has no metrics.
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
    """Trials of one session and what each method predicts of them.

    Attributes:
        trials: The trials, of one split.
        predictions: Method to its predictions, none, or only some of them; the rates of the last are shown that
            has any.
        regions: (N,) regions of the units.
        times_s: (T,) centres of the bins in seconds from the event.
        bin_size_s: Bin width in seconds.
    """

    trials: SessionTrials
    predictions: dict[str, Predictions]
    regions: np.ndarray
    times_s: np.ndarray
    bin_size_s: float

    @property
    def encoding(self) -> str | None:
        """The method whose rates are shown."""
        encoding = [method for method, predicted in self.predictions.items() if "log_rates" in predicted]
        return encoding[-1] if encoding else None

    def decoded(self, method: str) -> list[str]:
        """Continuous behaviours that some trial has and the method predicts."""
        predicted = self.predictions[method]
        return [
            name
            for name, values in self.trials.continuous.items()
            if name in predicted and np.isfinite(values).any() and np.isfinite(predicted[name]).any()
        ]

    def confusions(self, method: str) -> dict[str, pd.DataFrame]:
        """Categorical behaviour to its number of trials of each class, a row each, by the class that the method
        predicts (`UNKNOWN`: one that the dataset has not); of behaviours that some trial has and it predicts."""
        tables = {}
        for name, recorded in self.trials.categorical.items():
            probabilities, kept = self.predictions[method].get(name, np.array(np.nan)), recorded >= 0
            if kept.any() and np.isfinite(probabilities).all():
                classes = [*self.trials.classes[name]]
                predicted = probabilities[kept].argmax(1).clip(max=len(classes))
                table = np.zeros((len(classes), len(classes) + 1), int)
                np.add.at(table, (recorded[kept], predicted), 1)
                columns = len(classes) + table[:, -1].any()
                tables[name] = pd.DataFrame(table[:, :columns], classes, [*classes, UNKNOWN][:columns])
        return tables
