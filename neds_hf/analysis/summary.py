"""Metrics of several sessions: their means and standard errors, their names and their order in tables."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from neds_hf.metrics.functional import mean_table


class Estimate(float):
    """A mean over sessions; formatted, it is followed by its standard error (NaN of fewer than two sessions).

    Args:
        values: One a session; NaN where it is not defined.
    """

    def __new__(cls, values: Iterable[float]):
        values = np.array([value for value in values if np.isfinite(value)])
        estimate = super().__new__(cls, values.mean() if len(values) else math.nan)
        estimate.standard_error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
        estimate.num_sessions = len(values)
        return estimate

    def __format__(self, spec: str) -> str:
        mean = format(float(self), spec)
        return (
            mean
            if math.isnan(self.standard_error)
            else f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{format(self.standard_error, spec)}"
        )


def summary(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What is written beside the metrics of sessions.

    Returns:
        `mean`, `standard_error` (NaN of fewer than two sessions) and `num_sessions` of every metric, each over
        the sessions where it is defined.
    """
    mean = mean_table(scores)
    estimates = {name: Estimate(row.get(name, math.nan) for row in scores.values()) for name in mean}
    return {
        "mean": mean,
        "standard_error": {name: float(estimate.standard_error) for name, estimate in estimates.items()},
        "num_sessions": {name: estimate.num_sessions for name, estimate in estimates.items()},
    }


def score_table(scores: dict[str, dict[str, float]], names: list[str]) -> pd.DataFrame:
    """These metrics, a row a session, then their mean and its standard error.

    Columns are labelled for a table of one group (`grouped`): what follows "bits/spike" there is of it.
    """
    of_all = summary(scores)
    rows = {**scores, "mean": of_all["mean"], "± s.e.": of_all["standard_error"]}
    labels = [metric_label(name).removeprefix("bits/spike ") for name in names]
    return (
        pd.DataFrame.from_dict(rows, orient="index").reindex(columns=names).set_axis(labels, axis="columns")
    )


def metric_label(name: str) -> str:
    """A metric's name for a reader: `wheel_speed_r2` is "wheel speed R²"."""
    if name == "mean":
        return "mean of metrics"
    label = name.replace("bits_per_spike", "bits/spike").replace("_r2", "_R²").replace("psth", "PSTH")
    return label.replace("_", " ")


def is_headline(name: str) -> bool:
    """Whether a metric is one of those that the paper's tables have: bits/spike, every R², every accuracy."""
    return name == "bits_per_spike" or (
        name.endswith(("_r2", "_accuracy")) and name != "psth_r2" and not name.endswith("_balanced_accuracy")
    )


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of `"encoding"` and of `"decoding"`; what is neither (`mean`, counts) is left out."""
    groups = {"encoding": [], "decoding": []}
    for name in names:
        if "bits_per_spike" in name or name in ("psth_r2", "share_of_attainable"):
            groups["encoding"].append(name)
        elif name.endswith(("_r2", "_r2_beyond_average", "_accuracy")):
            groups["decoding"].append(name)
    return groups
