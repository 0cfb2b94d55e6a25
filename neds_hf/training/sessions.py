"""Models and their sessions: opening a model, and bringing it new animals."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import find_adapter_config_file

from neds_hf.data.collator import class_indices
from neds_hf.data.files import read_json
from neds_hf.data.recordings import Recordings
from neds_hf.data.schema import SPLITS, Behaviors, behaviors_of
from neds_hf.errors import NEDSError, one_line, require
from neds_hf.models.configuration_neds import CHECKPOINTS, IBL_MODALITIES, NEDSConfig
from neds_hf.models.modeling_neds import NEDSModel
from neds_hf.models.processing_neds import NEDSProcessor, check_processor
from neds_hf.training.runs import RUN_FILE, fingerprint_of, read_run

# What a model is loaded from.
MODEL_FILES = ["*config.json", RUN_FILE, "*.safetensors", "*.safetensors.index.json"]
# What is read of `processor_config.json`, for `check_content`.
PROCESSOR = {
    "modalities": [{"name": str, "kind": str, "classes?": [str]}],
    "num_bins": int,
    "bin_size_s": (int, float),
    "window_start_s": (int, float),
    "align_event": str,
    "sessions": [
        {
            "session": str,
            "units": [str],
            "mean_counts": [(int, float, type(None))],
            "scaling": {"*": [(int, float)]},
        }
    ],
}


def model_folder(source: str, revision: str | None = None) -> str:
    """The folder `source`, or that of a model repository on the Hub, downloaded unless it is there already.

    Raises:
        NEDSError: There is neither.
    """
    if Path(source).exists():
        return source
    if source.count("/") != 1:
        raise NEDSError(f"no model folder {source}; {CHECKPOINTS}")
    try:  # asks an unreachable Hub once, where `from_pretrained` goes on for up to minutes
        return snapshot_download(source, revision=revision, allow_patterns=MODEL_FILES)
    except (HTTPError, OSError, ValueError) as error:
        raise NEDSError(
            f"{source} is no model folder and no model on the Hub: {one_line(error)}; {CHECKPOINTS}"
        ) from error


def load_model(source: str, settings: dict | None = None) -> tuple[NEDSModel, NEDSProcessor]:
    """A model, on the GPU where there is one, and its processor.

    Args:
        source: Model folder, or the id of a model repository on the Hub; of an adapter, too, which is merged into
            the model that it was made from.
        settings: Values of NEDSConfig instead of the model's; they must leave its weights as they are.

    Raises:
        NEDSError: There is no such model, it is another model than NEDS, or a setting is not possible; of an
            adapter also: peft is not installed, or the model that it was made from is not there.
    """
    folder = model_folder(source)
    if adapter := find_adapter_config_file(folder):
        base = read_json(Path(adapter), {"base_model_name_or_path": str})["base_model_name_or_path"]
        return _load_adapter(folder, base, settings)
    try:
        read_json(Path(folder, "config.json"))
        config = NEDSConfig.from_pretrained(folder)
        if settings:
            config = NEDSConfig.from_dict(config.to_dict() | settings)
        if (kind := (config.architectures or ["NEDSModel"])[0]) != "NEDSModel":
            raise ValueError(f"it is a {kind}, not a NEDSModel; its own from_pretrained opens it")
        model, loading = NEDSModel.from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
        processor = _load_processor(folder)
        check_processor(processor, config)
    except (OSError, ValueError, SafetensorError) as error:
        raise NEDSError(f"{source} is no model folder: {one_line(error)}") from error
    except StrictDataclassError as error:
        raise NEDSError(
            f"the model {source} cannot be configured so: {one_line(error.__cause__ or error)}"
        ) from error
    if any(loading.values()):  # weights that are missing, of another shape, or left over
        raise NEDSError(f"{source} is no NEDS model: its weights are not those of its config.json")
    # What an adapter of it says that it was made from.
    model.name_or_path = str(Path(source).absolute()) if Path(source).exists() else source
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _load_adapter(source: str, base: str, settings: dict | None) -> tuple[NEDSModel, NEDSProcessor]:
    require(f"{source} is an adapter, which", "lora", "peft")
    from peft import PeftModel

    try:
        model, known = load_model(base, settings)
    except NEDSError as error:
        moved = f"; where that was moved, write its place as base_model_name_or_path of {source}/"
        hint = "" if Path(base).exists() else f"{moved}adapter_config.json"
        raise NEDSError(f"{source} is an adapter of {base}: {error}{hint}") from error
    made_from = read_run(source)["configuration"].get("model_fingerprint")
    if made_from and made_from != fingerprint_of(model):
        raise NEDSError(f"{source} is an adapter of {base}, whose weights are no longer the same")
    try:
        processor = _load_processor(source)
        new = processor.sessions[len(known.sessions) :]
        model.add_sessions({session["session"]: len(session["units"]) for session in new})
        model = PeftModel.from_pretrained(model, source).merge_and_unload()
        model.requires_grad_()  # which peft has taken from all weights
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise NEDSError(
            f"{source} does not fit {base}, which it says it is an adapter of: {one_line(error)}"
        ) from error
    return model, processor


def _load_processor(folder: str) -> NEDSProcessor:
    if (file := Path(folder, "processor_config.json")).exists():  # else the next line says what writes it
        read_json(file, PROCESSOR)
    return NEDSProcessor.from_pretrained(folder)


def trained_behaviors(recordings: Recordings) -> Behaviors:
    """The behaviours that some training trial has."""
    behaviors = behaviors_of(recordings.features)
    train = recordings.split("train").select_columns(list(behaviors)).with_format("arrow")[:]
    return {name: c for name, c in behaviors.items() if train[name].null_count < len(train)}


def new_processor(recordings: Recordings, scaling: str = "z_score") -> NEDSProcessor:
    """A processor for these sessions, its statistics from their training trials; `scaling` as in `NEDSProcessor`.

    Modalities are the spikes and every behaviour that a session has; those of the IBL come first, in their
    order.

    Raises:
        NEDSError: No session has a behaviour, or one never changes.
    """
    behaviors = trained_behaviors(recordings)
    if not behaviors:
        raise NEDSError(
            f"{recordings.source} has no behaviour in its training trials, expected one at least; those of trial "
            "arrays are named by `neds build --behaviors`"
        )
    ibl = [modality["name"] for modality in IBL_MODALITIES]
    modalities = [dict(IBL_MODALITIES[0])]
    for name in sorted(behaviors, key=lambda name: ibl.index(name) if name in ibl else len(ibl)):
        modality = {"name": name, "kind": "continuous"}
        if behaviors[name] is not None:
            modality = {"name": name, "kind": "categorical", "classes": list(behaviors[name])}
        modalities.append(modality)
    first = recordings.sessions.iloc[0]
    processor = NEDSProcessor(
        modalities=modalities,
        num_bins=int(first["num_bins"]),
        bin_size_s=float(first["bin_size_s"]),
        window_start_s=float(first["window_start_s"]),
        align_event=str(first["align_event"]),
        scaling=scaling,
    )
    for session in recordings.session_ids:
        _add_statistics(processor, recordings, session)
    return processor


def new_model(processor: NEDSProcessor, preset: str, settings: Mapping) -> NEDSModel:
    """A model of the processor's sessions; the readout of every unit starts from its mean rate.

    Args:
        settings: Values of NEDSConfig instead of the preset's.

    Raises:
        NEDSError: There is no such model.
    """
    try:
        config = NEDSConfig.from_preset(
            preset,
            session_ids=processor.session_ids,
            unit_counts=[len(session["units"]) for session in processor.sessions],
            modalities=processor.modalities,
            num_bins=processor.num_bins,
            **settings,
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise NEDSError(f"the model cannot be configured so: {one_line(error.__cause__ or error)}") from error
    model = NEDSModel(config)
    for session in processor.session_ids:
        model.set_mean_counts(session, processor.mean_counts(session))
    return model


def check_bins(processor: NEDSProcessor, found: tuple[int, float, float, str], whose: str) -> None:
    """Make sure that trials are cut into the bins of those that the model was trained with.

    Args:
        found: Their number of bins, bin size and start of the window in seconds, and event.
        whose: How the error begins, such as "session 7 has".

    Raises:
        NEDSError: They are not.
    """
    expected = (processor.num_bins, processor.bin_size_s, processor.window_start_s, processor.align_event)
    if not np.allclose(found[:3], expected[:3]) or found[3] != expected[3]:
        raise NEDSError(f"{whose} (bins, bin size, window start, event) {found}, the model {expected}")


def check_fits(processor: NEDSProcessor, recordings: Recordings) -> None:
    """Make sure that the recordings mean what the model was trained on.

    Raises:
        NEDSError: They have other bins, a class of a behaviour that the model does not know, or other units of a
            session.
    """
    for row in recordings.sessions.itertuples():
        found = (row.num_bins, row.bin_size_s, row.window_start_s, row.align_event)
        check_bins(processor, found, f"session {row.session} has")
    try:
        class_indices(processor, recordings.features)
    except NEDSError as error:
        raise NEDSError(f"{recordings.source}: {error}") from None
    for session in recordings.session_ids:
        if session in processor.session_ids:
            found, expected = recordings.unit_ids(session), processor.session(session)["units"]
            if found != expected:
                raise NEDSError(
                    f"session {session} has other units in {recordings.source} than in the model: "
                    f"{len(found)} there, {len(expected)} in the model, {len(set(found) & set(expected))} of both"
                )


def trained_on_others(processor: NEDSProcessor, recordings: Recordings, split: str) -> list[str]:
    """Sessions whose mean counts in the model, where known, are those of no trials to train on in the dataset.

    To train on are the train split, alone or with the validation split, where these are not what is scored.
    """
    return [
        session
        for session in recordings.session_ids
        if split != "train"
        and not _trained_on_these(processor.mean_counts(session), recordings, session, split)
    ]


def _trained_on_these(mean_counts: np.ndarray, recordings: Recordings, session: str, split: str) -> bool:
    if np.isnan(mean_counts).all():  # of a converted model: not known
        return True
    counts = []
    for name in SPLITS[: SPLITS.index(split)]:
        try:
            counts.append(recordings.trials(session, name).spike_counts)
        except NEDSError:  # the dataset has none
            break
        if np.allclose(np.concatenate(counts).mean((0, 1)), mean_counts, rtol=0, atol=1e-6):
            return True
    return False


def known_recordings(
    recordings: Recordings, processor: NEDSProcessor, model: str, sessions: list[str] | None
) -> Recordings:
    """Those sessions that a model knows: of all, or every one of these.

    Args:
        model: Its name, for errors.

    Raises:
        NEDSError: The dataset does not have one of these, the model does not know it or knows none of all, or the
            recordings do not fit the model (`check_fits`).
    """
    asked = recordings.only(sessions) if sessions else recordings
    known = [session for session in asked.session_ids if session in processor.session_ids]
    unknown = [session for session in asked.session_ids if session not in known]
    if not known or (sessions and unknown):
        raise NEDSError(
            f"{model} does not know session {', '.join(unknown)} of {recordings.source}; `neds finetune` adapts it"
        )
    recordings = asked.only(known)
    check_fits(processor, recordings)
    return recordings


def add_sessions(model: NEDSModel, processor: NEDSProcessor, recordings: Recordings) -> list[str]:
    """Bring the sessions of `recordings` that are new to model and processor; return their ids.

    Raises:
        NEDSError: The recordings do not fit the model (`check_fits`), or a behaviour never changes.
    """
    check_fits(processor, recordings)
    new = [session for session in recordings.session_ids if session not in processor.session_ids]
    for session in new:
        _add_statistics(processor, recordings, session)
        model.add_sessions(
            {session: len(processor.session(session)["units"])},
            mean_counts={session: processor.mean_counts(session)},
        )
    return new


def _add_statistics(processor: NEDSProcessor, recordings: Recordings, session: str) -> None:
    trials = recordings.trials(session, "train")
    try:
        processor.add_session(session, recordings.unit_ids(session), trials.spike_counts, trials.continuous)
    except ValueError as error:
        raise NEDSError(f"{recordings.source}: {error}") from error
