"""Figure of a search for settings."""

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neds_hf.analysis.figures import PALETTE, STYLE


@rc_context(STYLE)
def search_figure(table: pd.DataFrame, logarithmic: dict[str, bool | None], best: int, metric: str) -> Figure:
    """The metric on validation against each setting, a point a model.

    Args:
        table: A row a model: `state` (`complete`, `pruned`, `failed`), `value`, and a column a setting.
        logarithmic: Setting to whether its scale is; None where it was chosen among values.
        best: Place of the best model in the table.
        metric: Name of the value.
    """
    figure = Figure(figsize=(max(4.5, 2.1 * len(logarithmic)), 2.8), layout="constrained")
    panels = figure.subplots(1, len(logarithmic), sharey=True, squeeze=False)[0]
    for panel, (name, log) in zip(panels, logarithmic.items()):
        places = table[name]
        panel.set(xlabel=name.replace("_", " "), xscale="log" if log else "linear")
        if log is None:
            choices = sorted(places.unique(), key=lambda choice: (len(choice), choice))
            places = places.map(choices.index)
            crowded = (len(choices) - 1) * max(map(len, choices)) > 15  # letters that side by side have room
            slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            panel.set_xticks(range(len(choices)), choices, **slanted)
            panel.margins(x=0.3)
        elif places.dtype.kind == "i" and not log:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for state, filled in (("complete", PALETTE[0]), ("pruned", "none")):
            rows = table["state"] == state
            panel.scatter(places[rows], table["value"][rows], 18, filled, edgecolors=PALETTE[0])
        panel.scatter(places[best], table["value"][best], 60, PALETTE[1], marker="*", zorder=3)
    panels[0].set_ylabel(metric)
    figure.suptitle("filled: whole trainings, hollow: stopped early, star: the best", fontsize=9)
    return figure
