"""Metrics on the console."""

import os

from neds_hf.training.sessions import mean_table


def print_scores(scores: dict[str, dict[str, float]]) -> None:
    """A row a session and their mean: bits per spike, R², accuracy. Process zero prints."""
    if not scores or os.environ.get("RANK", "0") != "0":
        return
    rows = {**scores, "mean": mean_table(scores)}
    names = [
        name
        for name in rows["mean"]
        if name == "bits_per_spike" or (name.endswith(("_r2", "_accuracy")) and "balanced" not in name)
        if name != "psth_r2"
    ]
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>{max(len(name), 8)}}" for name in names))
    for row, values in rows.items():
        print(f"{row:<{width}}", *(f"{values[name]:>{max(len(name), 8)}.3f}" for name in names))
