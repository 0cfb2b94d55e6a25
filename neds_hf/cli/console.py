"""Metrics on the console."""

import os

import pandas as pd

from neds_hf.analysis.report import text_table
from neds_hf.analysis.summary import is_headline
from neds_hf.metrics.functional import mean_table


def print_scores(scores: dict[str, dict[str, float]]) -> None:
    """A row a session and their mean: bits per spike, R², accuracy; – is not defined. Process zero prints."""
    if not scores or os.environ.get("RANK", "0") != "0":
        return
    table = pd.DataFrame.from_dict({**scores, "mean": mean_table(scores)}, orient="index")
    print(text_table(table[[name for name in table if is_headline(name)]]))
