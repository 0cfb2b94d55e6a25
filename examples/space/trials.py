"""Trials of a dataset or of an uploaded file, and one of them as a model predicts it."""

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch.utils.data import DataLoader, Subset

import neds_hf
from neds_hf.analysis.comparison import BEHAVIOR_UNITS
from neds_hf.analysis.figures import PALETTE, STYLE, behavior_traces, raster_with_rates
from neds_hf.cli.predict import from_arrays
from neds_hf.data.arrays import array_names
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.inference import predict, split_loader
from neds_hf.training.sessions import check_fits

ON_SCREEN = {"figure.dpi": 200}  # sharp where a page enlarges them


class Chosen(NamedTuple):
    """A model, and a dataset or, where there is one, an uploaded file of trial arrays.

    `changed` is what tells folders from the same ones before (`changed_folders`), which are opened anew.
    """

    model: str
    dataset: str
    upload: str | None
    changed: tuple = ()


class Session(NamedTuple):
    """Trials of one session: `trial_index` (B,), `regions` (N,), and batches as the model takes them."""

    session: str
    trial_index: np.ndarray
    regions: np.ndarray
    loader: DataLoader


def changed_folders(*folders: str) -> tuple:
    """The files of folders and when they were written; of what is on the Hub, nothing."""
    return tuple(
        (str(file), file.lstat().st_mtime_ns)
        for folder in filter(os.path.isdir, folders)
        for file in sorted(Path(folder).glob("*"))
    )


@lru_cache(maxsize=2)
def open_model(name: str, changed: tuple) -> tuple[NEDSModel, NEDSProcessor]:
    return neds_hf.load(name)


@lru_cache(maxsize=2)
def open_dataset(name: str, changed: tuple) -> Recordings:
    return open_recordings(name)


def sessions_of(chosen: Chosen) -> list[str]:
    """Sessions that model and dataset share, or that of the file.

    Raises:
        NEDSError: There is none, or model, dataset or file cannot be read.
    """
    if not chosen.model or not (chosen.dataset or chosen.upload):
        raise NEDSError("name a model, and a dataset or a file of trial arrays")
    if chosen.upload:
        return [_open_upload(chosen).session]
    _, processor = open_model(chosen.model, chosen.changed)
    known = [
        name
        for name in open_dataset(chosen.dataset, chosen.changed).session_ids
        if name in processor.session_ids
    ]
    if not known:
        raise NEDSError(f"the model {chosen.model} knows no session of the dataset {chosen.dataset}")
    return known


def open_session(chosen: Chosen, session: str) -> Session:
    """Test trials of a session of the dataset, or all trials of the file.

    Raises:
        NEDSError: There are none, or they do not fit the model.
    """
    return _open_upload(chosen) if chosen.upload else _open_test_trials(chosen, session)


@lru_cache(maxsize=4)
def _open_test_trials(chosen: Chosen, session: str) -> Session:
    _, processor = open_model(chosen.model, chosen.changed)
    recordings = open_dataset(chosen.dataset, chosen.changed).only([session])
    check_fits(processor, recordings)
    regions = recordings.units.sort_values("unit_index")["beryl"].fillna("unknown").to_numpy()
    trial_index = recordings.trials(session, "test").trial_index
    return Session(session, trial_index, regions, split_loader(processor, recordings, "test"))


@lru_cache(maxsize=4)
def _open_upload(chosen: Chosen) -> Session:
    _, processor = open_model(chosen.model, chosen.changed)
    path = Path(chosen.upload)
    try:
        there = array_names(path)
        recorded = {*processor.behaviors, "probability_left"}.intersection(there)
        task = "encoding" if recorded else "decoding"  # spikes alone can be decoded
        session, trial_index, unit_index, loader = from_arrays(processor, path, task, batch_size=1)
    except NEDSError as error:  # where the server keeps uploads is nobody's business
        raise NEDSError(str(error).replace(str(path), path.name)) from error
    regions = np.full(len(unit_index), "unknown")
    if "unit_region" in there:
        with np.load(path) as arrays:
            regions = arrays["unit_region"][unit_index]
    return Session(session, trial_index, regions, loader)


@rc_context(ON_SCREEN)
def view(
    chosen: Chosen, session: str, row: int, task: str
) -> tuple[str, Figure, Figure | None, Figure | None]:
    """One trial.

    Args:
        row: Place of the trial in `open_session(chosen, session)`.
        task: `"encoding"` or `"decoding"`.

    Returns:
        What is to say of it, in Markdown; figures of its spikes (encoding: and of the predicted rates), of its
        continuous behaviours (decoding: recorded and predicted), of its class probabilities (decoding only).

    Raises:
        NEDSError: Its behaviours were to encode from, but it has none.
    """
    model, processor = open_model(chosen.model, chosen.changed)
    trials = open_session(chosen, session)
    number, times_s = int(trials.trial_index[row]), processor.times_s
    loader = DataLoader(Subset(trials.loader.dataset, [row]), collate_fn=trials.loader.collate_fn)
    inputs = next(iter(loader))
    available = [name for name, there in inputs["available"].items() if there]
    if task == "encoding" and not available:
        raise NEDSError(f"trial {number} has no behaviour to encode from: {', '.join(processor.behaviors)}")
    predicted = predict(model, processor, loader, task)

    traces, labels, probabilities = {}, {}, {}
    for name, classes in processor.behaviors.items():
        values = inputs["behaviors"][name].numpy()
        if classes:
            labels |= {name: classes[int(values[0])]} if name in available else {}
            probabilities |= {name: dict(zip(classes, predicted[name][0]))} if name in predicted else {}
        elif name in available:
            traces[name] = processor.unscale(session, name, values)
        elif name in predicted:
            traces[name] = np.full((1, processor.num_bins), np.nan)

    counts = inputs["spike_counts"][0].numpy()
    if task == "encoding":
        rates_hz = np.exp(predicted["log_rates"][0]) / processor.bin_size_s
        spikes = raster_with_rates(counts, rates_hz, times_s, trials.regions, processor.bin_size_s)
    else:
        spikes = _raster(counts, times_s, trials.regions, processor.bin_size_s)
    units = {name: BEHAVIOR_UNITS.get(name, "as recorded") for name in traces}
    methods = {"predicted": predicted} if task == "decoding" else {}
    behavior = behavior_traces(times_s, traces, methods, [number], units) if traces else None
    figures = (spikes, behavior, class_probabilities(probabilities, labels) if probabilities else None)

    where = f"`{Path(chosen.upload).name}`" if chosen.upload else f"test trials of `{chosen.dataset}`"
    said = [f"**Trial {number}** of session `{session}` ({where})", f"model `{chosen.model}`"]
    said += [f"{name}: **{label}**".replace("_", " ") for name, label in labels.items()]
    said += [f"no {name}".replace("_", " ") for name in processor.behaviors if name not in available]
    said += [f"event at 0 s: `{processor.align_event}`"]
    return " · ".join(said), *figures


def _raster(spike_counts: np.ndarray, times_s: np.ndarray, regions: np.ndarray, bin_size_s: float) -> Figure:
    """The left half of `raster_with_rates`, units sorted by their spikes."""
    figure = raster_with_rates(spike_counts, spike_counts.astype(float), times_s, regions, bin_size_s)
    for axes in figure.axes[1:]:
        axes.remove()
    figure.axes[0].set_subplotspec(GridSpec(1, 1, figure)[0])
    return figure


@rc_context(STYLE)
def class_probabilities(probabilities: dict[str, dict[str, float]], recorded: dict[str, str]) -> Figure:
    """A panel a categorical behaviour, a bar a class."""
    heights = [max(1.8, 0.35 * len(classes)) for classes in probabilities.values()]
    figure = Figure(figsize=(4.5, 0.6 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, classes) in zip(panels, probabilities.items()):
        bars = panel.barh(range(len(classes)), list(classes.values()), color=PALETTE[0])
        panel.bar_label(bars, fmt="%.2f", padding=3)
        labels = [f"{label}\n(recorded)" if label == recorded.get(name) else label for label in classes]
        panel.set_yticks(range(len(classes)), labels)
        panel.set(title=name.replace("_", " "), xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
        panel.invert_yaxis()
    panels[-1].set_xlabel("predicted probability")
    return figure
