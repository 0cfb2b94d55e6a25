"""Configuration of NEDS (Zhang, Wang et al., ICML 2025, arXiv 2504.08201)."""

import copy
import math
import os
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

KINDS = ("spikes", "continuous", "categorical")
SCHEMES = ("encoding", "decoding", "within_modality", "cross_modal")
POSITIVE = (
    "num_bins",
    "bins_per_token",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "tokenizer_width",
    "rope_theta",
    "layer_norm_eps",
    "initial_mean_count",
)
CHOICES = {
    "categorical_tokens": ("bin", "trial"),
    "tokenizer": ("linear", "mlp"),
    "masks_per": ("trial", "batch"),
    "loss": ("per_trial", "published"),
}

PIPELINES = {
    "neural-encoding": "pipelines_neds.NeuralEncodingPipeline",
    "neural-decoding": "pipelines_neds.NeuralDecodingPipeline",
}

IBL_MODALITIES = (
    {"name": "spikes", "kind": "spikes"},
    {"name": "choice", "kind": "categorical", "classes": ["right", "left"]},
    {"name": "block", "kind": "categorical", "classes": ["0.2", "0.5", "0.8"]},
    {"name": "wheel_speed", "kind": "continuous"},
    {"name": "whisker_motion_energy", "kind": "continuous"},
)

# For demonstrations and tests on two CPU cores: tokens of ten bins and one token a categorical behaviour,
# 32 tokens a trial.
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bins_per_token": 10,
    "categorical_tokens": "trial",
    "tied_units": True,
    "spike_smoothing": 2.0,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,
    "unit_dropout": 0.2,
    "scheme_weights": {"encoding": 1.0, "decoding": 1.0, "within_modality": 0.0, "cross_modal": 0.25},
    "single_behavior_probability": 0.25,
    "loss_weights": {"spikes": 4.0},
}
# The paper's 3M single-session model.
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "hidden_dropout": 0.2,
    "attention_dropout": 0.4,
}
# `compact` predicted best of what was tried on recorded sessions of some hundred trials (RESULTS.md); `base` is
# the paper's 12M 74-session model.
PRESETS = {
    "tiny": TINY,
    "compact": TINY
    | {
        "bins_per_token": 2,
        "stabilized_counts": True,
        "unit_dropout": 0.4,
        "loss_weights": {"spikes": 8.0},
        "prediction_smoothing": 1.5,
    },
    "small": SMALL,
    "base": SMALL | {"num_hidden_layers": 22},
}


# Said wherever a model is asked for by a name that no folder has.
CHECKPOINTS = (
    "three ways to a checkpoint: `make demo` or `neds demo DIR` trains one on simulated mice, DIR/neds-ibl; "
    "'USER/neds-ibl' loads one that USER has pushed to the Hub; `neds convert` makes one of a checkpoint of the "
    "published code"
)


class Checkpoint:
    """Names of models on the Hub have a user: a bare name is a folder, or nothing that is worth asking for."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers.

        Raises:
            OSError: There is no such folder, repository or file.
        """
        source = pretrained_model_name_or_path
        if source is not None and "/" not in str(source) and not os.path.exists(source):
            raise OSError(f"there is no folder {str(source)!r}; {CHECKPOINTS}")
        return super().from_pretrained(source, *args, **kwargs)


# Why `usable_name` says no.
UNUSABLE_NAME = (
    "with a dot, a round or square bracket or a backslash, or like an attribute of torch's modules, no weights "
    "can be named; rename it"
)


def usable_name(behavior: str) -> bool:
    """Whether a behaviour may be named so: weights are, and transformers reads weights' names as patterns."""
    return not set(".()[]\\").intersection(behavior) and not hasattr(nn.ModuleDict(), behavior)


def _custom_pipelines() -> dict[str, dict]:
    return {task: {"impl": impl, "pt": ["AutoModel"]} for task, impl in PIPELINES.items()}


@strict
class NEDSConfig(Checkpoint, PreTrainedConfig):
    r"""
    session_ids (`list[str]`):
        Sessions the model knows; `session_index` in `forward` counts in this order.
    unit_counts (`list[int]`):
        Number of units of each session, in the same order.
    modalities (`list[dict]`):
        `spikes` first, then the behaviours, each `{"name", "kind"}` with kind `"continuous"` or
        `"categorical"`, the latter with `"classes"`, its class names in order. Default: those of the IBL.
    num_bins (`int`, defaults to 100):
        Bins T of a trial.
    bins_per_token (`int`, defaults to 1):
        Consecutive bins that make one token of spikes or of a continuous behaviour; divides `num_bins`.
    categorical_tokens (`str`, defaults to `"bin"`):
        `"bin"`: a categorical behaviour has as many tokens as a continuous one (paper); `"trial"`: one token.
    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads (`int`):
        Sizes of the encoder; the defaults are the paper's single-session model.
    hidden_dropout, attention_dropout (`float`):
        Dropout on the embeddings and residual branches, and on the attention probabilities.
    unit_dropout (`float`, defaults to 0.0):
        Share of the units that a trial's input loses in training (they stay targets).
    tokenizer (`str`, defaults to `"linear"`):
        `"linear"` (paper): a row a unit, and one tokenizer and readout a behaviour for all sessions. `"mlp"`: the
        published code's, a two-layer tokenizer and a readout of every modality for each session, with that
        code's initial weights.
    tokenizer_width (`int`, *optional*):
        Inner width of the spikes' `"mlp"` tokenizer. Default: twice the largest unit count, as published.
    spike_smoothing (`float`, defaults to 0.0):
        Standard deviation, in bins, of the Gaussian by which the spikes that go in are smoothed; what is to be
        predicted stays as it is, and what is hidden leaks into no other bin.
    prediction_smoothing (`float`, defaults to 0.0):
        Standard deviation, in bins, of the Gaussian by which predicted log rates and continuous behaviours are
        smoothed, in training as well.
    tied_units (`bool`, defaults to `False`):
        Read spikes in by the rows of the readout, instead of rows of their own (paper): what encoding learns of
        a unit then serves decoding, and a unit has half the parameters.
    stabilized_counts (`bool`, defaults to `False`):
        With `tied_units`: even out the variance of the counts that are read in, by their square root, after they
        are smoothed. Rows of their own read roots in any case.
    temporal_embedding (`bool`, defaults to `True`):
        Learned embedding of the token's place in the trial, for every modality, beside the rotary one.
    rope_theta (`float`, defaults to 10000.0):
        Base of the rotary embedding of the bin.
    layer_norm_eps (`float`, defaults to 1e-5):
        Added to the variance in the encoder's LayerNorms.
    scheme_weights (`dict[str, float]`):
        How often training draws each of `"encoding"`, `"decoding"`, `"within_modality"`, `"cross_modal"`
        (equally in the paper).
    mask_ratio (`float`, defaults to 0.1):
        Share of hidden tokens in `"within_modality"` and `"cross_modal"`.
    single_behavior_probability (`float`, defaults to 0.5):
        How often `"encoding"` in training shows one behaviour alone instead of all.
    within_modality_context (`bool`, defaults to `False`):
        Whether `"within_modality"` shows the other modality (published code) or leaves it out of attention.
    masks_per (`str`, defaults to `"trial"`):
        `"trial"` draws masks for each trial; `"batch"` uses the first trial's for the whole batch, as the
        published code did until March 2026.
    loss (`str`, defaults to `"per_trial"`):
        `"per_trial"`: every trial counts the same; `"published"`: the published code's, over the hidden targets
        of the batch, or of the part of it that a process or a step of gradient accumulation sees.
    loss_weights (`dict[str, float]`, *optional*):
        Weight of a modality's loss in the total; 1 where not named.
    label_smoothing (`float`, defaults to 0.0):
        Share of its probability that the class to be predicted gives, in training, to all classes evenly.
    initial_mean_count (`float`, defaults to 0.1):
        Expected spikes a bin that the readout of a new unit starts from when its own mean is not given.
    """

    model_type = "neds"
    # The plain Trainer gathers everything that is not ignored, and the number of units differs by batch.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "losses",
        "log_rates",
        "predictions",
        "last_hidden_state",
        "hidden_states",
        "attentions",
    ]

    session_ids: list[str] | tuple[str, ...] = ()
    unit_counts: list[int] | tuple[int, ...] = ()
    modalities: list[dict] | tuple[dict, ...] = IBL_MODALITIES
    num_bins: int = 100
    bins_per_token: int = 1
    categorical_tokens: str = "bin"
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    hidden_dropout: float | int = 0.2
    attention_dropout: float | int = 0.4
    unit_dropout: float | int = 0.0
    tokenizer: str = "linear"
    tokenizer_width: int | None = None
    spike_smoothing: float | int = 0.0
    prediction_smoothing: float | int = 0.0
    tied_units: bool = False
    stabilized_counts: bool = False
    temporal_embedding: bool = True
    rope_theta: float | int = 10000.0
    layer_norm_eps: float = 1e-5
    scheme_weights: dict | None = None
    mask_ratio: float | int = 0.1
    single_behavior_probability: float | int = 0.5
    within_modality_context: bool = False
    masks_per: str = "trial"
    loss: str = "per_trial"
    loss_weights: dict | None = None
    label_smoothing: float | int = 0.0
    initial_mean_count: float = 0.1

    def __post_init__(self, **kwargs):
        kwargs.pop("custom_pipelines", None)  # the property below
        self.session_ids = list(self.session_ids)
        self.unit_counts = list(self.unit_counts)
        self.modalities = copy.deepcopy(list(self.modalities))
        self.scheme_weights = self.scheme_weights or dict.fromkeys(SCHEMES, 1.0)
        self.loss_weights = self.loss_weights or {}
        if self.tokenizer == "mlp" and self.tokenizer_width is None and self.unit_counts:
            self.tokenizer_width = 2 * max(self.unit_counts)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation, which wraps the error; its message names the field at fault."""
        names = [modality.get("name") for modality in self.modalities]
        if len(self.session_ids) != len(self.unit_counts):
            raise ValueError(f"{len(self.session_ids)} session_ids, but {len(self.unit_counts)} unit_counts")
        if len(set(self.session_ids)) != len(self.session_ids):
            raise ValueError("session_ids holds a session twice")
        if names[:1] != ["spikes"] or len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"modalities must be 'spikes' and then distinct behaviours, not {names}")
        for name in names[1:]:
            if not name or not usable_name(name):
                raise ValueError(f"a behaviour cannot be named {name!r}: {UNUSABLE_NAME}")
        for place, modality in enumerate(self.modalities):
            if modality.get("kind") not in KINDS or (modality["kind"] == "spikes") != (place == 0):
                raise ValueError(f"modality {modality.get('name')!r} has kind {modality.get('kind')!r}")
            classes = modality.get("classes", ())
            if modality["kind"] != "categorical":
                if classes:
                    raise ValueError(f"modality {modality['name']!r} is {modality['kind']}, but has classes")
            elif (
                not isinstance(classes, list | tuple)
                or not all(isinstance(one, str) for one in classes)
                or len(set(classes)) != len(classes)
                or len(classes) < 2
            ):
                raise ValueError(
                    f"categorical modality {modality['name']!r} needs at least two classes, a list of distinct "
                    f"names, not {classes!r}"
                )
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, not {value}")
        if min(self.unit_counts, default=1) < 1:
            raise ValueError(f"unit_counts must be positive, not {min(self.unit_counts)}")
        for name in ("hidden_dropout", "attention_dropout", "unit_dropout", "mask_ratio", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.single_behavior_probability <= 1:
            raise ValueError(
                f"single_behavior_probability must be from 0 to 1, not {self.single_behavior_probability}"
            )
        for name in ("spike_smoothing", "prediction_smoothing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, but is {getattr(self, name)}")
        if self.num_bins % self.bins_per_token:
            raise ValueError(
                f"num_bins {self.num_bins} is not a multiple of bins_per_token {self.bins_per_token}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of twice the {self.num_attention_heads} heads"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, not {getattr(self, name)!r}")
        if self.tokenizer == "mlp":
            if self.bins_per_token > 1 or self.categorical_tokens != "bin" or self.tied_units:
                raise ValueError(
                    "tokenizer 'mlp' goes with bins_per_token 1, categorical_tokens 'bin' and tied_units False"
                )
            if self.tokenizer_width is None:
                raise ValueError(
                    "tokenizer_width is None, expected a positive number where there are no sessions to derive it "
                    "from"
                )
        for name in ("scheme_weights", "loss_weights"):
            for key, weight in getattr(self, name).items():
                if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                    raise ValueError(f"{name} must be numbers, none negative, but {key!r} has {weight!r}")
        if set(self.scheme_weights) - set(SCHEMES) or not any(self.scheme_weights.values()):
            raise ValueError(
                f"scheme_weights {self.scheme_weights} must be weights of {SCHEMES}, not all zero"
            )
        if set(self.loss_weights) - set(names):
            raise ValueError(f"loss_weights {self.loss_weights} names a modality that is not in {names}")

    @classmethod
    def from_preset(cls, preset: str, **kwargs) -> "NEDSConfig":
        """The settings of `"tiny"`, `"compact"`, `"small"` or `"base"`; `kwargs` override and complete them.

        Raises:
            ValueError: There is no such preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[preset], **kwargs})

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """Where `transformers.pipeline` finds the pipelines in a model folder."""
        return _custom_pipelines()

    def to_diff_dict(self) -> dict:
        """What is written to `config.json`."""
        return super().to_diff_dict() | {"custom_pipelines": _custom_pipelines()}

    @property
    def behaviors(self) -> dict[str, int]:
        """Behaviour to its number of classes, 0 for a continuous one, in order."""
        return {modality["name"]: len(modality.get("classes", ())) for modality in self.modalities[1:]}

    @property
    def tokens_per_trial(self) -> dict[str, int]:
        """Modality to its number of tokens, in the order of the sequence."""
        tokens = self.num_bins // self.bins_per_token
        return {
            modality["name"]: 1
            if modality["kind"] == "categorical" and self.categorical_tokens == "trial"
            else tokens
            for modality in self.modalities
        }


__all__ = ["NEDSConfig"]
