"""Write predicted spikes or behaviours of one session."""

import argparse
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from neds_hf.data.arrays import array_names, read_arrays
from neds_hf.data.recordings import open_recordings
from neds_hf.data.schema import IBL_BEHAVIORS, SPLITS
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSProcessor
from neds_hf.training.inference import TASKS, load_models, predict, split_loader
from neds_hf.training.runs import check_output, write_arrays
from neds_hf.training.sessions import check_bins, known_recordings


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="neds predict", description=__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="model folder, or a model id on the Hub; of several (seeds) the predictions are averaged",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="folder written by `neds build`, or a dataset id on the Hub")
    source.add_argument(
        "--arrays",
        type=Path,
        help=".npz trial arrays of a session that the model knows",
    )
    parser.add_argument("--split", choices=SPLITS, help="of the dataset (default: test)")
    parser.add_argument("--session", help="session of the dataset; needed where it has several")
    parser.add_argument("--task", required=True, choices=TASKS, help="encoding: spikes; decoding: behaviours")
    parser.add_argument("--output", type=Path, required=True, help=".npz file to write")
    parser.add_argument("--batch-size", type=int, default=64, help="trials a step (default: 64)")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise NEDSError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    check_output(arguments.output)

    model, processor = load_models(arguments.model)
    if arguments.arrays:
        if arguments.split or arguments.session:
            raise NEDSError(
                "--split and --session are of a --dataset; --arrays are one session, predicted whole"
            )
        session, trial_index, unit_index, loader = from_arrays(
            processor, arguments.arrays, arguments.task, arguments.batch_size
        )
    else:
        session, trial_index, unit_index, loader = from_dataset(processor, arguments)
    predictions = predict(model, processor, loader, arguments.task, progress="predict")
    arrays = {"session": np.array(session), "trial_index": trial_index, "times_s": processor.times_s}
    if arguments.task == "encoding":
        arrays["unit_index"] = unit_index
    for name, classes in processor.behaviors.items():
        if name in predictions and classes is not None:
            arrays[f"{name}_classes"] = np.array(classes)
    write_arrays(arguments.output, **arrays, **predictions)
    print(f"{arguments.output}: " + ", ".join(f"{k} {v.shape}" for k, v in predictions.items()))


def from_dataset(processor: NEDSProcessor, arguments) -> tuple[str, np.ndarray, np.ndarray, DataLoader]:
    """Session, trial indices (B,), unit indices (N,), and batches of a dataset's split.

    Raises:
        NEDSError: No session is named where there are several, or the model does not know it (`known_recordings`).
    """
    recordings = open_recordings(arguments.dataset)
    if arguments.session is None and len(recordings.session_ids) > 1:
        raise NEDSError(
            f"{arguments.dataset} has {len(recordings.session_ids)} sessions; say which with --session: "
            f"{recordings.listed_sessions}"
        )
    session = arguments.session or recordings.session_ids[0]
    recordings = known_recordings(recordings, processor, arguments.model[0], [session])
    split = arguments.split or "test"
    trials = recordings.trials(session, split)
    units = np.arange(trials.spike_counts.shape[2], dtype=np.int32)
    loader = split_loader(processor, recordings, split, arguments.batch_size)
    return session, trials.trial_index, units, loader


def from_arrays(
    processor: NEDSProcessor, path: Path, task: str, batch_size: int
) -> tuple[str, np.ndarray, np.ndarray, DataLoader]:
    """The same of trial arrays, with the units that the model knows, in its order.

    Raises:
        NEDSError: A file that is no such arrays, of an unknown session, of other bins, without a trial, a unit of
            the model or, for `"encoding"`, any behaviour.
    """
    there = array_names(path)
    named = [name for name in processor.behaviors if name in there and name not in IBL_BEHAVIORS]
    classes = {name: tuple(given) for name, given in processor.behaviors.items() if given is not None}
    recording = read_arrays(path, None, named, classes)
    if recording.session not in processor.session_ids:
        raise NEDSError(f"the model does not know session {recording.session}; `neds finetune` adapts it")
    num_bins, start_s = recording.spike_counts.shape[1], recording.window_s[0]
    check_bins(processor, (num_bins, recording.bin_size_s, start_s, recording.align_event), f"{path} has")
    if len(recording.trial_index) == 0:
        raise NEDSError(f"{path} has no trial")
    places = {uuid: place for place, uuid in enumerate(recording.units["uuid"])}
    wanted = processor.session(recording.session)["units"]
    missing = [uuid for uuid in wanted if uuid not in places]
    if missing:
        raise NEDSError(
            f"{path} lacks {len(missing)} of the model's {len(wanted)} units: {missing[0]}, ...; its array "
            f"'unit_uuid' is to name them, without which they are {recording.session}/0, ..."
        )
    unit_index = np.array([places[uuid] for uuid in wanted], np.int32)
    behaviors = {}
    if task == "encoding":
        recorded = {**recording.continuous, **recording.categorical}
        scaling = processor.session(recording.session)["scaling"]  # without a scale it is missing
        usable = {name for name, classes in processor.behaviors.items() if classes or name in scaling}
        behaviors = {name: values for name, values in recorded.items() if name in usable}
        if not behaviors:
            raise NEDSError(
                f"{path} has none of the behaviours to encode from: {', '.join(processor.behaviors)}"
            )

    def collate(trials: list[int]) -> dict:
        try:
            return dict(
                processor(
                    recording.session,
                    recording.spike_counts[trials][:, :, unit_index],
                    {name: values[trials] for name, values in behaviors.items()},
                )
            )
        except ValueError as error:
            raise NEDSError(f"{path}: {error}") from error

    rows = range(len(recording.trial_index))
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    return recording.session, recording.trial_index, unit_index, loader
