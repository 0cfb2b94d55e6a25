"""Figures of reports, regions and searches. Every function returns a `Figure` of its own: no global state."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neds_hf.analysis.comparison import BEHAVIOR_UNITS, ShownSession
from neds_hf.analysis.summary import Estimate, is_headline, metric_label

# Okabe & Ito's colours, told apart also by colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
AS_WRITTEN = {"text.parse_math": False}  # names of runs, units and classes, whatever is in them
SHOWN_UNITS = 8
SHOWN_TRIALS = 5
LEGEND_LINE = 0.3  # inches, which every figure has room for
SMALLEST_REGION = 0.04  # of the units; smaller regions are drawn together, for their names to be legible


@rc_context(STYLE | AS_WRITTEN)
def training_curves(histories: dict[str, list[dict]]) -> Figure:
    """Loss and validation metrics against epochs.

    Args:
        histories: Name of a run to its `log_history` as in `trainer_state.json`. Metrics are the keys `eval_…`,
            means over sessions; those of single sessions (`eval_<session>/…`) are left out.
    """
    keys = {key: None for history in histories.values() for entry in history for key in entry}
    metrics = [
        key
        for key in keys
        if key == "eval_mean"
        or (key.startswith("eval_") and "/" not in key and is_headline(key.removeprefix("eval_")))
    ]
    width = 2.4 if metrics else 6.0  # without validation the loss is alone
    figure, panels = _grid(1 + len(metrics), num_columns=4, panel_size=(width, 2.0))
    for color, history in zip(_colors(len(histories)), histories.values()):
        for key, style in (("loss", "-"), ("eval_loss", "--")):
            _line(panels[0], *_curve(history, key), color, style)
        for panel, key in zip(panels[1:], metrics):
            _line(panel, *_curve(history, key), color)
    panels[0].set(title="loss", xlabel="epoch")
    for panel, key in zip(panels[1:], metrics):
        label = fill(metric_label(key.removeprefix("eval_")), 24)
        panel.set(title=f"validation\n{label}", xlabel="epoch")
    lines = [Line2D([], [], color=color) for color in _colors(len(histories))]
    names = list(histories)
    if "eval_loss" in keys:
        lines += [Line2D([], [], color="gray"), Line2D([], [], color="gray", linestyle="--")]
        names += ["loss: training", "loss: validation"]
    _legend(figure, lines, names)
    return figure


@rc_context(STYLE | AS_WRITTEN)
def raster_with_rates(
    spike_counts: np.ndarray,
    rates_hz: np.ndarray,
    times_s: np.ndarray,
    regions: np.ndarray,
    bin_size_s: float,
) -> Figure:
    """Spikes of one trial beside the predicted rates, units sorted by region, then by predicted rate.

    Args:
        spike_counts: (T, N) spikes per bin.
        rates_hz: (T, N) predicted rates in Hz.
        times_s: (T,) centres of the bins in seconds from the event.
        regions: (N,) names of the units' regions.
        bin_size_s: Bin width in seconds.
    """
    num_units = spike_counts.shape[1]
    regions = np.asarray(regions, object)
    names, counts = np.unique(regions.astype(str), return_counts=True)
    small = names[counts < SMALLEST_REGION * num_units]
    if len(small) > 1:
        regions = np.where(np.isin(regions.astype(str), small), "other", regions)
    order = np.lexsort((rates_hz.mean(0), regions.astype(str), regions == "other"))
    spike_counts, rates_hz, regions = spike_counts[:, order], rates_hz[:, order], regions[order]
    starts = np.flatnonzero(np.concatenate([[True], regions[1:] != regions[:-1]]))
    ends = np.append(starts[1:], num_units)

    figure = Figure(figsize=(9, float(np.clip(1.5 + 0.04 * num_units, 3.5, 8))), layout="constrained")
    raster, image = figure.subplots(1, 2, sharex=True, sharey=True)
    bins, units = np.nonzero(spike_counts)
    height = figure.get_figheight() * 72 / max(num_units, 1)
    raster.scatter(times_s[bins], units, s=np.clip(height, 2, 6) ** 2, marker="|", c="black", linewidths=0.8)
    shown = image.imshow(
        rates_hz.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="viridis",
        extent=(times_s[0] - bin_size_s / 2, times_s[-1] + bin_size_s / 2, -0.5, num_units - 0.5),
        # A few units fire ten times as much as most: a square root keeps both in sight.
        norm=PowerNorm(0.5, vmin=0, vmax=max(float(np.percentile(rates_hz, 99.5)), 1e-3)),
    )
    figure.colorbar(shown, ax=image, label="predicted rate (Hz)", extend="max", extendfrac=0.02, aspect=30)
    for panel, title in ((raster, "spikes"), (image, "predicted rates")):
        panel.set(title=title, xlabel="time from event (s)", ylim=(-0.5, num_units - 0.5))
        panel.axvline(0, color="gray", linewidth=0.8, linestyle=":")
        for start in starts[1:]:
            panel.axhline(start - 0.5, color=PALETTE[1], linewidth=0.8)
    raster.set(ylabel="units by region", yticks=(starts + ends - 1) / 2, yticklabels=regions[starts])
    raster.tick_params(axis="y", length=0)
    return figure


@rc_context(STYLE | AS_WRITTEN)
def psths(
    spike_counts: np.ndarray,
    log_rates: np.ndarray,
    times_s: np.ndarray,
    unit_labels: list[str],
    bin_size_s: float,
    conditions: np.ndarray,
) -> Figure:
    """Average trial of every unit, recorded against predicted, a panel a unit.

    Args:
        spike_counts: (B, T, N) spikes per bin of the units to show.
        log_rates: (B, T, N) ln expected counts per bin.
        times_s: (T,) centres of the bins in seconds from the event.
        unit_labels: N titles.
        bin_size_s: Bin width in seconds.
        conditions: (B,) labels such as choices: trials are averaged apart.
    """
    names = np.unique(conditions)
    figure, panels = _grid(len(unit_labels), num_columns=4, panel_size=(2.3, 1.7))
    for color, name in zip(_colors(len(names)), names):
        real = spike_counts[conditions == name].mean(0) / bin_size_s
        predicted = np.exp(log_rates[conditions == name]).mean(0) / bin_size_s
        for unit, panel in enumerate(panels):
            _line(panel, times_s, real[:, unit], color, linewidth=0.8, alpha=0.7)
            _line(panel, times_s, predicted[:, unit], color, linewidth=2)
    for panel, label in zip(panels, unit_labels):
        panel.set(title=label, ylim=(0, None))
        panel.axvline(0, color="gray", linewidth=0.8, linestyle=":")
    figure.supxlabel("time from event (s)", fontsize=9)
    figure.supylabel("firing rate (Hz)", fontsize=9)
    lines = [Line2D([], [], color=color, linewidth=2) for color in _colors(len(names))]
    styles = [Line2D([], [], color="gray", linewidth=0.8), Line2D([], [], color="gray", linewidth=2)]
    _legend(figure, lines + styles, [*map(str, names), "recorded", "predicted"])
    return figure


@rc_context(STYLE | AS_WRITTEN)
def behavior_traces(
    times_s: np.ndarray,
    real: dict[str, np.ndarray],
    predicted: dict[str, dict[str, np.ndarray]],
    trial_numbers: list[int],
    units: dict[str, str],
) -> Figure:
    """Recorded and predicted behaviour of single trials: a row a variable, a column a trial.

    Args:
        times_s: (T,) centres of the bins in seconds from the event.
        real: Name of each variable to its (B, T) values in the trials to show.
        predicted: Name of each method to the like.
        trial_numbers: B numbers for the titles.
        units: Name of a variable to its unit, such as "rad/s".
    """
    num_trials = len(trial_numbers)
    figure = Figure(figsize=(max(4.5, 2.3 * num_trials), 0.6 + 1.8 * len(real)), layout="constrained")
    panels = figure.subplots(len(real), num_trials, sharex=True, sharey="row", squeeze=False)
    for row, (name, values) in zip(panels, real.items()):
        for trial, panel in enumerate(row):
            _line(panel, times_s, values[trial], "black", linewidth=1)
            for color, method in zip(_colors(len(predicted)), predicted.values()):
                _line(panel, times_s, method[name][trial], color, linewidth=1.3)
            panel.axvline(0, color="gray", linewidth=0.8, linestyle=":")
        unit = f"\n({units[name]})" if name in units else ""
        row[0].set_ylabel(fill(name.replace("_", " "), 24) + unit)
    for panel, number in zip(panels[0], trial_numbers):
        panel.set_title(f"trial {number}")
    figure.supxlabel("time from event (s)", fontsize=9)
    figure.align_ylabels(panels[:, 0])
    lines = [Line2D([], [], color=color) for color in ("black", *_colors(len(predicted)))]
    _legend(figure, lines, ["recorded", *predicted])
    return figure


def raster_of_first_trial(shown: ShownSession) -> Figure:
    """Spikes of the first trial, and the rates that are predicted."""
    rates_hz = np.exp(shown.predictions[shown.encoding]["log_rates"][0]) / shown.bin_size_s
    return raster_with_rates(
        shown.trials.spike_counts[0], rates_hz, shown.times_s, shown.regions, shown.bin_size_s
    )


def psths_of_busiest_units(shown: ShownSession) -> Figure:
    """Average trial of the units with the most spikes; trials are averaged apart by choice where there is one."""
    trials = shown.trials
    busiest = np.argsort(-trials.spike_counts.sum((0, 1), dtype=np.int64), kind="stable")[:SHOWN_UNITS]
    log_rates = shown.predictions[shown.encoding]["log_rates"]
    kept, conditions = np.ones(len(log_rates), bool), np.full(len(log_rates), "all trials")
    chosen = trials.categorical.get("choice", np.array([-1]))
    if (chosen >= 0).any():
        labels = np.array([f"choice {name}" for name in trials.classes["choice"]])
        kept, conditions = chosen >= 0, labels[chosen]
    return psths(
        trials.spike_counts[kept][..., busiest],
        log_rates[kept][..., busiest],
        shown.times_s,
        [f"{shown.regions[unit]}, unit {unit}" for unit in busiest],
        shown.bin_size_s,
        conditions[kept],
    )


def behavior_of_first_trials(shown: ShownSession) -> Figure | None:
    """Continuous behaviours of the first trials that have them, recorded and by every method that decodes; None
    where none does."""
    decoded = {method: names for method in shown.predictions if (names := shown.decoded(method))}
    real = {name: shown.trials.continuous[name] for names in decoded.values() for name in names}
    if not real:
        return None
    recorded = np.any([np.isfinite(values).all(1) for values in real.values()], 0)
    rows = np.flatnonzero(recorded)[:SHOWN_TRIALS]
    nothing = np.full(shown.trials.spike_counts.shape[:2], np.nan)
    return behavior_traces(
        shown.times_s,
        {name: values[rows] for name, values in real.items()},
        {
            method: {name: shown.predictions[method].get(name, nothing)[rows] for name in real}
            for method in decoded
        },
        shown.trials.trial_index[rows].tolist(),
        BEHAVIOR_UNITS,
    )


@rc_context(STYLE | AS_WRITTEN)
def classes_of_trials(shown: ShownSession) -> Figure | None:
    """Number of trials of each class by predicted class, colour their share; None where no class is decoded. A row
    is a behaviour, a column a method."""
    tables = {method: confusions for method in shown.predictions if (confusions := shown.confusions(method))}
    sizes = {name: len(table) for confusions in tables.values() for name, table in confusions.items()}
    if not sizes:
        return None
    heights = [1.0 + 0.4 * size for size in sizes.values()]
    figure = Figure(
        figsize=(max(4.5, len(tables) * max(heights) + 1.5), sum(heights) + 0.8), layout="constrained"
    )
    panels = figure.subplots(len(sizes), len(tables), squeeze=False, height_ratios=heights)
    for row, name in zip(panels, sizes):
        for panel, (method, confusions) in zip(row, tables.items()):
            if name in confusions:
                image = _shares(panel, confusions[name])
                panel.set_title(f"{name.replace('_', ' ')}\n{fill(method, 24, break_on_hyphens=False)}")
            else:
                panel.set_axis_off()
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("recorded", fontsize=9)
    figure.colorbar(image, ax=panels, label="share of the class's trials", shrink=0.8)
    return figure


@rc_context(STYLE | AS_WRITTEN)
def metric_bars(table: pd.DataFrame) -> Figure:
    """Metrics of several models: a panel a column of `table`, a bar a row."""
    figure, panels = _grid(table.shape[1], num_columns=5, panel_size=(1.9, 2.2))
    colors = _colors(len(table))
    for panel, (name, values) in zip(panels, table.items()):
        bars = panel.bar(range(len(table)), values.fillna(0), color=colors)
        labels = ["–" if np.isnan(value) else f"{value:.2f}" for value in values]
        panel.bar_label(bars, labels, fontsize=8, padding=1)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.margins(y=0.12)
        panel.set(title=fill(metric_label(name), 18), xticks=[])
    _legend(figure, [Line2D([], [], color=color, linewidth=6) for color in colors], list(table.index))
    return figure


@rc_context(STYLE | AS_WRITTEN)
def paired_sessions(tables: dict[str, pd.DataFrame]) -> Figure:
    """Every session under several methods: a panel a metric, a row a method, a line a session.

    Args:
        tables: Metric to its values, a row a session and a column a method. A method that has no value in a
            session has no dot there. Black: mean and standard error over the sessions.
    """
    methods = list(dict.fromkeys(method for table in tables.values() for method in table))
    num_columns = 5
    figure, panels = _grid(len(tables), num_columns, panel_size=(2.2, 0.7 + 0.3 * len(methods)))
    for place, (panel, (name, table)) in enumerate(zip(panels, tables.items())):
        table = table.reindex(columns=methods)
        for values in table.to_numpy(float):
            known = np.flatnonzero(np.isfinite(values))
            panel.plot(values[known], known, "o-", color=PALETTE[0], markersize=3, linewidth=0.8, alpha=0.5)
        for row, method in enumerate(methods):
            mean = Estimate(table[method])
            panel.errorbar(mean, row, xerr=mean.standard_error, fmt="D", color="black", markersize=5)
        panel.set(
            title=fill(metric_label(name), 18), ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods))
        )
        panel.set_yticklabels([] if place % num_columns else methods)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    return figure


@rc_context(STYLE | AS_WRITTEN)
def draw_confusion(confusion: pd.DataFrame, title: str) -> Figure:
    """Number of units of each region, a row each, by predicted region; colour is the share of the row."""
    size = 2.2 + 0.55 * max(len(confusion), 4)  # of fewer regions the title would not fit
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    panel = figure.subplots()
    image = _shares(panel, confusion)
    panel.set(title=title, xlabel="predicted", ylabel="region")
    figure.colorbar(image, ax=panel, label="share of the region's units", shrink=0.8)
    return figure


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


def _grid(num_panels: int, num_columns: int, panel_size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels, row by row; places left over stay empty."""
    num_columns = min(num_panels, num_columns)
    num_rows = -(-num_panels // num_columns)
    size = (max(4.5, panel_size[0] * num_columns), 0.5 + panel_size[1] * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel in panels[num_panels:]:
        panel.set_axis_off()
    return figure, list(panels[:num_panels])


def _shares(panel: Axes, counts: pd.DataFrame) -> AxesImage:
    """A table of counts, as shares of their rows."""
    shares = counts.to_numpy() / counts.sum(axis=1).clip(lower=1).to_numpy()[:, None]
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        color = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, counts.iat[row, column], ha="center", va="center", color=color)
    rows, columns = map(range, counts.shape)
    panel.set_xticks(columns, counts.columns, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(rows, counts.index)
    return image


def _colors(number: int) -> list[str]:
    """Each another one."""
    if number <= len(PALETTE):
        return list(PALETTE[:number])
    return [to_hex(color) for color in colormaps["turbo"](np.linspace(0.05, 0.95, number))]


def _legend(figure: Figure, handles: list[Line2D], labels: list[str]) -> None:
    """Above the panels, where it covers nothing, in as many columns as there is room for; its lines add height."""
    for num_columns in range(min(len(labels), 5), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=num_columns, frameon=False, handlelength=1.5
        )
        if num_columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            break
        legend.remove()
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + max(height - LEGEND_LINE, 0))


def _line(panel: Axes, x: Sequence[float], y: Sequence[float], color: str, style: str = "-", **looks) -> None:
    """A line, or of a single point a whole dot, as there is no line to see: larger where the line is thicker."""
    size = 4 * looks.get("linewidth", 1.5)
    dot = {"marker": "o", "markersize": size, "clip_on": False} if len(x) == 1 else {"marker": ""}
    panel.plot(x, y, style, color=color, **dot, **looks)


def _curve(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
    return [epoch for epoch, _ in points], [value for _, value in points]
