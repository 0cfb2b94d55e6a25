"""Checkpoints of the published NEDS code (github.com/yzhang511/NEDS) to this package's model.

That code has, for each session and modality, a tokenizer of two layers and a readout, as wide as the session with
the most units; the inputs of units that a session lacks are -1. Here these constant inputs become part of the
first layer's bias, and the rows of units that do not exist are left out: the same function of the same recordings.
"""

import hashlib
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

import torch
import yaml

from neds_hf.cards.model import write_model_card
from neds_hf.data.files import write_json, writing
from neds_hf.errors import NEDSError, one_line
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.models.configuration_neds import IBL_MODALITIES
from neds_hf.training.runs import environment

PADDING = -1.0  # input of a unit that the session does not have

# Modality of the published code to the name here.
NAMES = {"spike": "spikes", "wheel": "wheel_speed", "whisker": "whisker_motion_energy"}

Tensors = Mapping[str, torch.Tensor]


@dataclass
class OriginalSession:
    """What the tensors do not tell of a session.

    Attributes:
        units: Uuid of each unit in the order of the code's arrays; empty for a session that is in the code's list,
            but not in the checkpoint.
        ranges: Continuous behaviour to the smallest and the largest value, by which the published code scales it
            to 0...1.
    """

    units: list[str]
    ranges: dict[str, list[float]]


def read_sessions(path: Path) -> dict[str, OriginalSession]:
    """The sessions of a checkpoint, in the order of the code's session embedding.

    Args:
        path: JSON or YAML file, a mapping of session to its number of units; to null, where the session is in the
            code's list but not in the checkpoint; or to a mapping with `units` (their number, or a list of their
            uuids) and the `[smallest, largest]` value of continuous behaviours by name.

    Raises:
        NEDSError: No such file, or something else in it.
    """
    try:
        content = yaml.safe_load(path.read_text())  # of which JSON is a part
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NEDSError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise NEDSError(f"{path} holds no mapping of session to number of units")
    return {str(session): _session(path, str(session), value) for session, value in content.items()}


def _session(path: Path, session: str, value: object) -> OriginalSession:
    if value is None:
        return OriginalSession([], {})
    ranges = dict(value) if isinstance(value, dict) else {}
    units = ranges.pop("units", None) if isinstance(value, dict) else value
    if type(units) is int and units > 0:
        units = [f"{session}/{index}" for index in range(units)]  # as trial arrays name them
    if not isinstance(units, list) or not units or len(set(map(str, units))) != len(units):
        raise NEDSError(
            f"{path}: session {session} has units {units!r}, expected their number, a list of their uuids, or "
            "null for a session that is not in the checkpoint"
        )
    for name, bounds in ranges.items():
        numbers = isinstance(bounds, list) and all(
            type(bound) in (int, float) and isfinite(bound) for bound in bounds
        )
        if not numbers or len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise NEDSError(f"{path}: session {session} has {name} {bounds!r}, expected [smallest, largest]")
    return OriginalSession(list(map(str, units)), {name: list(map(float, r)) for name, r in ranges.items()})


def read_checkpoint(path: Path) -> Tensors:
    """Tensors of the model in a checkpoint `{"epoch", "model", "optimizer", "lr_sched"}`; nothing is unpickled.

    Raises:
        NEDSError: No such file, or something else in it.
    """
    if not path.is_file():
        raise NEDSError(f"no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = one_line(error).split(". ")[0]
        raise NEDSError(
            f"{path} does not load as tensors alone, and nothing else is loaded: {reason[:200]}. Save the model's "
            'state_dict, as {"model": model.state_dict()}'
        ) from error
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(value, torch.Tensor) for value in tensors.values()
    ):
        raise NEDSError(f'{path} has no "model" with named tensors; the published code saves one')
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): value.float() for name, value in tensors.items()}


def original_config(tensors: Tensors, sessions: Mapping[str, OriginalSession], num_heads: int) -> NEDSConfig:
    """Configuration of a checkpoint; what its tensors do not say is what the published code is run with.

    Raises:
        NEDSError: A checkpoint of encoding or decoding alone, one that is not of the published code, or sessions
            that are not its own.
    """
    found = dict.fromkeys(name.split(".")[1] for name in tensors if name.startswith("encoder_embeddings."))
    if not found:
        raise NEDSError("it has no encoder_embeddings: not a checkpoint of the published multimodal model")
    if "spike" not in found or len(found) == 1:
        task = "decoding" if "spike" in found else "encoding"
        raise NEDSError(
            f"it is of a model of {task} alone (its only inputs: {', '.join(found)}). The published code keeps "
            "the heads of such a model in a plain dictionary, where they are neither trained nor saved: there is "
            "nothing to predict with"
        )
    if next(iter(found)) != "spike":
        raise NEDSError(f"its modalities are {', '.join(found)}, expected spike first")

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise NEDSError(f"it has no {name}")
        return tensors[name].shape

    spike = "encoder_embeddings.spike.embedder"
    stitcher = f"{spike}.mod_stitch_encoder.stitcher_dict."
    trained = dict.fromkeys(
        name[len(stitcher) :].split(".")[0] for name in tensors if name.startswith(stitcher)
    )
    given = {name: len(session.units) for name, session in sessions.items() if session.units}
    if set(given) != set(trained):
        unknown, lacking = sorted(set(given) - set(trained)), sorted(set(trained) - set(given))
        raise NEDSError(
            f"its sessions are not those given: not in the checkpoint {unknown or 'none'}, not given "
            f"{lacking or 'none'}"
        )
    rows = shape(f"{spike}.session_emb.weight")[0]
    if rows != len(sessions):
        raise NEDSError(
            f"its session embedding has {rows} rows, but {len(sessions)} sessions are given: list every session "
            "of the code's list in its order, with null for those that the checkpoint was not trained on"
        )
    width, largest = shape(f"{stitcher}{next(iter(trained))}.weight")
    if max(given.values()) != largest:
        raise NEDSError(
            f"its tokenizers are made for {largest} units, those of its largest session, but the largest count "
            f"given is {max(given.values())}"
        )

    ibl = {modality["name"]: modality for modality in IBL_MODALITIES}
    modalities = []
    for name in found:
        modality = {"name": NAMES.get(name, name), "kind": "spikes" if name == "spike" else "continuous"}
        if any(key.startswith(f"encoder_embeddings.{name}.mod_static_weight_dict.") for key in tensors):
            readout = (
                f"encoder_embeddings.{name}.mod_stitcher_proj_dict.stitch_decoder_dict.{next(iter(given))}"
            )
            classes = [str(place) for place in range(shape(f"{readout}.weight")[0])]
            known = ibl.get(name, {}).get("classes", ())
            modality |= {
                "kind": "categorical",
                "classes": list(known) if len(known) == len(classes) else classes,
            }
        modalities.append(modality)
    numbers = {name.split(".")[1] for name in tensors if name.startswith("encoder.")}
    bins = [name for name in tensors if name.endswith(".embedder.pos_embed.weight")]
    static = [name for name in tensors if ".mod_static_weight_dict." in name]
    if not bins and not static:
        raise NEDSError("it has neither a pos_embed nor a mod_static_weight_dict to tell its number of bins")
    hidden_size = shape("encoder_norm.weight")[0]
    if hidden_size % (2 * num_heads):
        raise NEDSError(f"its hidden size of {hidden_size} does not divide into {num_heads} heads")
    return NEDSConfig.from_preset(
        "small",
        session_ids=list(given),
        unit_counts=list(given.values()),
        modalities=modalities,
        num_bins=shape((bins or static)[0])[0],
        hidden_size=hidden_size,
        intermediate_size=shape("encoder.0.mlp.up_proj.weight")[0],
        num_hidden_layers=len(numbers),
        num_attention_heads=num_heads,
        temporal_embedding=bool(bins),
        tokenizer="mlp",
        tokenizer_width=width,
        loss="published",
        scheme_weights={"encoding": 1.0, "decoding": 1.0, "within_modality": 2.0, "cross_modal": 1.0},
        within_modality_context=True,
        mask_ratio=0.3,
        single_behavior_probability=0.0,
        hidden_dropout=0.4,
    )


def original_shapes(config: NEDSConfig, largest: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published model of this configuration, by its name there."""
    hidden, inner, bins = config.hidden_size, config.intermediate_size, config.num_bins
    shapes = {"mask_token": (1, 1, hidden)}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)})

    for name, classes in {"spikes": 0, **config.behaviors}.items():
        modality = f"encoder_embeddings.{original_name(name)}"
        shapes[f"{modality}.embedder.mod_emb.weight"] = (len(config.modalities), hidden)
        shapes[f"{modality}.embedder.session_emb.weight"] = (rows, hidden)
        if config.temporal_embedding:
            shapes[f"{modality}.embedder.pos_embed.weight"] = (bins, hidden)
        into, out = (largest, largest) if name == "spikes" else (1, classes or 1)
        for session in config.session_ids:
            stitch = f"{modality}.embedder.mod_stitch_encoder"
            linear(f"{stitch}.stitcher_dict.{session}", 2 * into * (bins if classes else 1), into)
            linear(f"{stitch}.project_dict.{session}", hidden, 2 * into)
            linear(f"{modality}.mod_stitcher_proj_dict.stitch_decoder_dict.{session}", out, hidden)
            if classes:
                shapes[f"{modality}.mod_static_weight_dict.{session}"] = (bins,)
    for layer in range(config.num_hidden_layers):
        block = f"encoder.{layer}"
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        for part in ("query", "key", "value", "out_proj"):
            linear(f"{block}.attn.{part}", hidden, hidden)
        linear(f"{block}.mlp.up_proj", inner, hidden)
        linear(f"{block}.mlp.down_proj", hidden, inner)
    norm("encoder_norm")
    return shapes


def original_name(modality: str) -> str:
    """Name of a modality in the published code."""
    return {ours: theirs for theirs, ours in NAMES.items()}.get(modality, modality)


def check_tensors(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that the checkpoint holds these tensors and no others.

    Raises:
        NEDSError: Every tensor that is missing, not expected, or of another shape.
    """
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in tensors]
    problems += [
        f"not expected: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in shapes
    ]
    problems += [
        f"of shape {tuple(tensors[name].shape)}, expected {shape}: {name}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        raise NEDSError("its tensors are not those of the published model:\n  " + "\n  ".join(problems))


def converted_tensors(
    tensors: Tensors, config: NEDSConfig, embedding_rows: list[int]
) -> dict[str, torch.Tensor]:
    """The state of `NEDSModel`.

    Args:
        tensors: Of the checkpoint.
        config: Of the model, from `original_config`.
        embedding_rows: Row of each of the model's sessions in the checkpoint's session embeddings.
    """
    names = [original_name(modality["name"]) for modality in config.modalities]
    sessions, counts = config.session_ids, config.unit_counts

    def of_modalities(name: str) -> list[torch.Tensor]:
        return [tensors[f"encoder_embeddings.{modality}.embedder.{name}.weight"] for modality in names]

    def of_sessions(name: str) -> torch.Tensor:
        return torch.stack([tensors[name.replace("SESSION", session)].flatten() for session in sessions])

    state = {
        "mask_embedding.weight": tensors["mask_token"][0],
        "modality_embedding.weight": torch.stack(
            [w[place] for place, w in enumerate(of_modalities("mod_emb"))]
        ),
        "session_embedding.weight": torch.cat([w[embedding_rows] for w in of_modalities("session_emb")], 1),
    }
    if config.temporal_embedding:
        state["temporal_embedding.weight"] = torch.cat(of_modalities("pos_embed"))

    spike = "encoder_embeddings.spike"
    first, second = (
        f"{spike}.embedder.mod_stitch_encoder.{part}_dict.SESSION" for part in ("stitcher", "project")
    )
    readout = f"{spike}.mod_stitcher_proj_dict.stitch_decoder_dict.SESSION"
    weights = [tensors[f"{first}.weight".replace("SESSION", session)] for session in sessions]
    padding = torch.stack([PADDING * w[:, n:].double().sum(1) for w, n in zip(weights, counts)])
    state["unit_embedding.weight"] = torch.cat([w[:, :n].T for w, n in zip(weights, counts)])
    state["session_spike_bias.weight"] = (of_sessions(f"{first}.bias").double() + padding).float()
    for part in ("weight", "bias"):
        state[f"session_spike_projection.{part}.weight"] = of_sessions(f"{second}.{part}")
        rows = [tensors[f"{readout}.{part}".replace("SESSION", session)] for session in sessions]
        state[f"unit_{'readout' if part == 'weight' else 'bias'}.weight"] = torch.cat(
            [row[:n].reshape(n, -1) for row, n in zip(rows, counts)]
        )
    for name, classes in config.behaviors.items():
        modality = f"encoder_embeddings.{original_name(name)}"
        stitch = f"{modality}.embedder.mod_stitch_encoder"
        for part in ("weight", "bias"):
            for ours, theirs in (
                (f"session_tokenizer.{name}.first", f"{stitch}.stitcher_dict.SESSION"),
                (f"session_tokenizer.{name}.second", f"{stitch}.project_dict.SESSION"),
                (f"session_readout.{name}", f"{modality}.mod_stitcher_proj_dict.stitch_decoder_dict.SESSION"),
            ):
                state[f"{ours}.{part}.weight"] = of_sessions(f"{theirs}.{part}")
        if classes:
            state[f"session_token_weights.{name}.weight"] = of_sessions(
                f"{modality}.mod_static_weight_dict.SESSION"
            )

    for part in ("weight", "bias"):
        state[f"encoder.norm.{part}"] = tensors[f"encoder_norm.{part}"]
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"encoder.blocks.{layer}", f"encoder.{layer}"
            qkv = [tensors[f"{theirs}.attn.{kind}.{part}"] for kind in ("query", "key", "value")]
            state |= {
                f"{ours}.attention_norm.{part}": tensors[f"{theirs}.ln1.{part}"],
                f"{ours}.attention.qkv_proj.{part}": torch.cat(qkv),
                f"{ours}.attention.out_proj.{part}": tensors[f"{theirs}.attn.out_proj.{part}"],
                f"{ours}.feed_forward_norm.{part}": tensors[f"{theirs}.ln2.{part}"],
                f"{ours}.up_proj.{part}": tensors[f"{theirs}.mlp.up_proj.{part}"],
                f"{ours}.down_proj.{part}": tensors[f"{theirs}.mlp.down_proj.{part}"],
            }
    return state


def converted_processor(config: NEDSConfig, sessions: Mapping[str, OriginalSession]) -> NEDSProcessor:
    """The processor of a converted model; the window is that of the published code.

    A continuous behaviour of a session without a range stays in the 0...1 of the checkpoint.

    Raises:
        NEDSError: A range of a behaviour that is not a continuous one of the model.
    """
    continuous = [name for name, classes in config.behaviors.items() if not classes]
    known = []
    for name in config.session_ids:
        session = sessions[name]
        if unknown := sorted(set(session.ranges) - set(continuous)):
            raise NEDSError(
                f"session {name} has a range of {', '.join(unknown)}, the model's continuous behaviours are "
                f"{', '.join(continuous) or 'none'}"
            )
        ranges = {behavior: session.ranges.get(behavior, (0.0, 1.0)) for behavior in continuous}
        known.append(
            {
                "session": name,
                "units": session.units,
                "mean_counts": [None] * len(session.units),
                "scaling": {behavior: [low, high - low] for behavior, (low, high) in ranges.items()},
            }
        )
    return NEDSProcessor(
        modalities=config.modalities, num_bins=config.num_bins, sessions=known, scaling="zero_one"
    )


def convert(
    path: Path, sessions: Mapping[str, OriginalSession], num_heads: int = 8
) -> tuple[NEDSModel, NEDSProcessor]:
    """Model and processor of an original checkpoint.

    Args:
        path: Checkpoint of the published code (`model_best_avg.pt` and the like), also one without a mask token,
            as before March 2026.
        sessions: As `read_sessions` gives them.
        num_heads: Attention heads, which no tensor tells; 8 in every configuration of the published code.

    Raises:
        NEDSError: A file that is no such checkpoint, or does not fit the sessions.
    """
    tensors = dict(read_checkpoint(path))
    try:
        config = original_config(tensors, sessions, num_heads)
        # Until March 2026 the code had no mask token: it set hidden tokens to zero.
        tensors.setdefault("mask_token", torch.zeros(1, 1, config.hidden_size))
        check_tensors(tensors, original_shapes(config, max(config.unit_counts), len(sessions)))
        processor = converted_processor(config, sessions)
    except NEDSError as error:
        raise NEDSError(f"{path} cannot be converted: {error}") from error
    model = NEDSModel(config)
    rows = [list(sessions).index(session) for session in config.session_ids]
    model.load_state_dict(converted_tensors(tensors, config, rows))
    return model.eval(), processor


def write_converted(
    model: NEDSModel,
    processor: NEDSProcessor,
    source: Path,
    sessions: Mapping[str, OriginalSession],
    out: Path,
) -> None:
    """Write a complete model folder: weights, configuration, processor, code, card, `conversion.json`.

    Raises:
        NEDSError: The folder exists, or cannot be written.
    """
    if out.exists():
        raise NEDSError(f"{out} exists; choose another folder")
    conversion = {
        "source": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "bytes": source.stat().st_size,
        "sessions": {name: asdict(session) for name, session in sessions.items()},
        **environment(),
    }
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise NEDSError(f"{out} cannot be written: {error}") from error
    with writing(out):
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    write_json(unfinished / "conversion.json", conversion)
    unfinished.rename(out)
    write_model_card(out)
