"""What runs predict of one session's trials: as a baseline wrote it, or as a model predicts it anew."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neds_hf.analysis.comparison import Predictions, ShownSession
from neds_hf.analysis.runs import VARIES, Run
from neds_hf.data.recordings import Recordings
from neds_hf.data.schema import behaviors_of
from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError
from neds_hf.training.inference import TASKS, Ensemble, load_models, predict, split_loader
from neds_hf.training.runs import write_arrays
from neds_hf.training.sessions import known_recordings, trained_on_others

# A folder with one of these is a model's, not a baseline's.
OF_A_MODEL = ("config.json", "adapter_config.json")
# Name of a categorical behaviour to its classes in order.
Classes = Mapping[str, Sequence[str]]


def file_of(folder: Path, session: str) -> Path:
    """Where a baseline's folder has the predictions of a session."""
    return folder / "predictions" / f"{session}.npz"


def write_predictions(folder: Path, trials: SessionTrials, predictions: Predictions) -> None:
    """Write `predictions/<session>.npz` into a baseline's folder."""
    classes = {
        f"{name}_classes": np.array(given) for name, given in trials.classes.items() if name in predictions
    }
    arrays = {name: np.asarray(values, np.float32) for name, values in predictions.items()}
    write_arrays(file_of(folder, trials.session), trial_index=trials.trial_index, **classes, **arrays)


def read_predictions(folder: Path, trials: SessionTrials) -> Predictions:
    """What `write_predictions` wrote of these trials.

    Raises:
        NEDSError: The file cannot be read, or is of other trials, bins, units or classes.
    """
    file = file_of(folder, trials.session)
    try:
        with np.load(file) as arrays:
            stored = dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise NEDSError(f"{file} cannot be read: {error}; without it `neds baselines` fits anew") from error
    expected = {"trial_index": trials.trial_index.shape, "log_rates": trials.spike_counts.shape}
    expected |= {name: values.shape for name, values in trials.continuous.items()}
    expected |= {name: (len(trials.trial_index), len(given)) for name, given in trials.classes.items()}
    found = {name: stored[name].shape for name in expected if name in stored}
    wrong = [name for name, shape in found.items() if shape != expected[name]]
    if not np.array_equal(stored.get("trial_index"), trials.trial_index):
        raise NEDSError(f"{file}: its trials are not the {len(trials.trial_index)} of the dataset")
    if wrong:
        raise NEDSError(f"{file}: {wrong[0]} is {found[wrong[0]]}, the dataset's {expected[wrong[0]]}")
    predictions = {name: stored[name] for name in found if name != "trial_index"}
    ours = {
        name: stored.get(f"{name}_classes", np.array([])).tolist() for name in trials.classes if name in found
    }
    return _in_order(predictions, trials.classes, ours, file)


def predict_session(
    models: Sequence[str], recordings: Recordings, split: str
) -> tuple[Predictions, list[str]]:
    """What a model, or several together, encode and decode of a split of the only session of `recordings`.

    Returns:
        The predictions of the tasks that the model was trained for, classes in the order of the dataset, those
        that only the model has after them; and the session, where the model did not learn from its training trials
        in the dataset (`trained_on_others`).

    Raises:
        NEDSError: A model cannot be loaded, or does not know the session with these units and bins.
    """
    model, processor = load_models(models)
    recordings = known_recordings(recordings, processor, models[0], recordings.session_ids)
    loader = split_loader(processor, recordings, split)
    schemes = (model.models[0] if isinstance(model, Ensemble) else model).config.scheme_weights
    predictions = {}
    for task in TASKS:
        if schemes.get(task) or schemes.get("cross_modal"):
            predictions |= predict(model, processor, loader, task)
    there = {name: given for name, given in behaviors_of(recordings.features).items() if given}
    ours = {name: list(processor.behaviors[name]) for name in there if name in predictions}
    return _in_order(predictions, there, ours, models[0]), trained_on_others(processor, recordings, split)


def _in_order(predictions: Predictions, there: Classes, ours: Classes, whose: Path | str) -> Predictions:
    """Probabilities of classes `ours` in the order of those of the dataset, and others after them.

    Raises:
        NEDSError: A class of the dataset is not among ours.
    """
    predictions = dict(predictions)
    for name, given in ours.items():
        if lacking := [one for one in there[name] if one not in given]:
            raise NEDSError(f"{whose}: {name} is of the classes {given}, without {lacking[0]} of the dataset")
        order = [*there[name], *(one for one in given if one not in there[name])]
        predictions[name] = predictions[name][:, [given.index(one) for one in order]]
    return predictions


def show_session(
    recordings: Recordings, trials: SessionTrials, predictions: dict[str, Predictions]
) -> ShownSession:
    """What figures show of the only session of `recordings`.

    Args:
        trials: Of the session.
        predictions: Method to what it predicts of them.
    """
    session = recordings.sessions.iloc[0]
    times_s = session["window_start_s"] + session["bin_size_s"] * (np.arange(session["num_bins"]) + 0.5)
    regions = recordings.units.sort_values("unit_index")["beryl"].fillna("").replace("", "unknown")
    return ShownSession(trials, predictions, regions.to_numpy(str), times_s, session["bin_size_s"])


def show_runs(runs: Sequence[Run], recordings: Recordings, session: str) -> tuple[ShownSession, list[str]]:
    """What runs predict of a session's trials, of the split that they were scored on.

    Returns:
        It, and the names of the runs that had other data, or other training trials, of the session than this
        dataset, as far as that can be told. Runs that left the session out, as `neds_encoding` one without
        behaviours, predict nothing.

    Raises:
        NEDSError: The runs are of several splits, or one's predictions cannot be had (`read_predictions`,
            `predict_session`).
    """
    splits = {run.name: run.split for run in runs}
    if len({*splits.values()}) > 1 or VARIES in splits.values():
        of_runs = ", ".join(f"{name} of {split}" for name, split in splits.items())
        raise NEDSError(f"figures are of the trials of one split, but the runs are not: {of_runs}")
    split, only = runs[0].split, recordings.only([session])
    trials = only.trials(session, split)
    predictions, others = {}, []
    for run in runs:
        part = run.parts[session]
        if not run.scores[session]:
            continue
        if file_of(part, session).parent.is_dir() and not any((part / name).exists() for name in OF_A_MODEL):
            predictions[run.name] = read_predictions(part, trials)
            others += [run.name] * _had_other_data(run, recordings, session)
            continue
        models = run.settings.get("models", []) if part.is_file() else [str(part)]
        try:
            if not models:
                raise NEDSError("no model is named")
            predictions[run.name], learned = predict_session(models, only, split)
        except NEDSError as error:
            whose = f"{part}, of {', '.join(models)}: " if part.is_file() else ""  # by `neds evaluate`
            raise NEDSError(f"{whose}{error}") from error
        others += [run.name] * bool(learned)
    return show_session(only, trials, predictions), others


def _had_other_data(run: Run, recordings: Recordings, session: str) -> bool:
    there = {*recordings.session_ids}
    return any(
        recordings.only([*sessions]).fingerprint != fingerprint
        for sessions, fingerprint in run.fingerprints.items()
        if session in sessions and sessions <= there
    )
