"""What runs predict of one session's trials: as a baseline wrote it, or as a model predicts it anew."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neds_hf.analysis.comparison import Predictions, ShownSession
from neds_hf.analysis.runs import Run
from neds_hf.data.recordings import Recordings
from neds_hf.data.schema import behaviors_of
from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError
from neds_hf.training.inference import TASKS, load_models, predict, split_loader
from neds_hf.training.runs import write_arrays
from neds_hf.training.sessions import known_recordings


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
        NEDSError: The file cannot be read, or is of other trials or units.
    """
    file = file_of(folder, trials.session)
    try:
        with np.load(file) as arrays:
            known = ("log_rates", *trials.continuous, *trials.classes)
            predictions = {name: arrays[name] for name in known if name in arrays}
            trial_index = arrays["trial_index"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise NEDSError(f"{file} cannot be read: {error}; without it `neds baselines` fits anew") from error
    units = trials.spike_counts.shape[2]
    if not np.array_equal(trial_index, trials.trial_index) or (
        "log_rates" in predictions and predictions["log_rates"].shape[2] != units
    ):
        raise NEDSError(
            f"{file} is of other trials or units than the dataset's {len(trial_index)} and {units}"
        )
    return predictions


def predict_session(models: Sequence[str], recordings: Recordings, split: str) -> Predictions:
    """What a model, or several together, encode and decode of a split of the only session of `recordings`.

    Classes are in the order of the dataset, those that only the model has after them.

    Raises:
        NEDSError: A model cannot be loaded, or does not know the session with these units and bins.
    """
    model, processor = load_models(models)
    recordings = known_recordings(recordings, processor, models[0], recordings.session_ids)
    loader = split_loader(processor, recordings, split)
    predictions = {
        name: values for task in TASKS for name, values in predict(model, processor, loader, task).items()
    }
    for name, there in behaviors_of(recordings.features).items():
        if there and name in predictions:
            ours = list(processor.behaviors[name])
            order = [*there, *(given for given in ours if given not in there)]
            predictions[name] = predictions[name][:, [ours.index(given) for given in order]]
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
    regions = recordings.units.sort_values("unit_index")["beryl"].fillna("unknown").to_numpy(str)
    return ShownSession(trials, predictions, regions, times_s, session["bin_size_s"])


def of_other_data(runs: Sequence[Run], recordings: Recordings, session: str) -> list[str]:
    """The paths of the runs that had other data of a session than this dataset, where that can be told."""
    there = {*recordings.session_ids}
    return [
        str(run.path)
        for run in runs
        for sessions, fingerprint in run.fingerprints.items()
        if session in sessions
        and sessions <= there
        and recordings.only([*sessions]).fingerprint != fingerprint
    ]


def show_runs(runs: Sequence[Run], recordings: Recordings) -> ShownSession:
    """What runs predict of the trials that they were scored on, of the only session of `recordings`.

    Raises:
        NEDSError: The runs are of several splits, or one's predictions cannot be had (`read_predictions`,
            `predict_session`).
    """
    (session,) = recordings.session_ids
    split = runs[0].split
    for run in runs:
        if run.split != split:
            raise NEDSError(
                f"figures are of the trials of one split, but {runs[0].name} is of {split} trials, {run.name} "
                f"of {run.split}"
            )
    trials = recordings.trials(session, split)
    predictions = {}
    for run in runs:
        folder = run.parts[session]
        if file_of(folder, session).exists():
            predictions[run.name] = read_predictions(folder, trials)
        else:
            models = run.settings.get("models") or [str(folder)]  # those of a file of `neds evaluate`
            predictions[run.name] = predict_session(models, recordings, split)
    return show_session(recordings, trials, predictions)
