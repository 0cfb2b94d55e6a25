"""NEDS: one transformer from neural activity to behaviour and back (arXiv 2504.08201).

Read top to bottom: output, attention, block, encoder, then `NEDSModel` with its tokenizer, readout and loss.
Shapes: trials of the batch B, bins T, units N, tokens L, hidden size H.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, is_torchdynamo_exporting, torch_compilable_check

from .configuration_neds import Checkpoint, NEDSConfig
from .masking_neds import count_targets, num_uniform, sample_masks
from .pipelines_neds import NEDSPipeline  # noqa: F401  so that it is saved with the model


@dataclass
class NEDSOutput(ModelOutput):
    """What `NEDSModel` returns.

    Attributes:
        loss: Weighted sum of `losses`; None where no modality was hidden or none of them has a target, and
            without `return_loss`.
        losses: Modality to its loss, a scalar each; None without `return_loss`.
        log_rates: (B, T, N) natural logarithm of the expected spikes per bin; meaningless where `unit_mask` is
            False.
        predictions: Behaviour to (B, T) in the processor's scale, or (B, classes) logits.
        last_hidden_state: (B, L, H), the tokens of the modalities one after the other.
        hidden_states: `num_hidden_layers + 1` of (B, L, H), on request.
        attentions: `num_hidden_layers` of (B, heads, L, L), on request (eager attention only).
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    log_rates: torch.Tensor | None = None
    predictions: dict[str, torch.Tensor] | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def rotary(positions: torch.Tensor, dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, (L, dim) each, of the rotary embedding of `positions` (L,); the sine of the first half is
    negative, as `rotate` wants it."""
    frequencies = theta ** -(torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the last axis of `states` (B, heads, L, dim), as in Llama, by what `rotary` gives."""
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)


def gaussian_smooth(values: torch.Tensor, std: float) -> torch.Tensor:
    """`values` (B, T, ...) averaged over bins with Gaussian weights, which sum to one at the edges too."""
    bins = torch.arange(values.shape[1], device=values.device, dtype=torch.float32)
    kernel = torch.exp(-((bins[:, None] - bins) ** 2) / (2 * std**2))
    return (kernel / kernel.sum(1, keepdim=True)).to(values.dtype) @ values


def stabilized(deviations: torch.Tensor, means: torch.Tensor, offset: float = 0.05) -> torch.Tensor:
    """Deviations y - μ (B, T, N) of counts from their means μ (B, 1, N), spikes a bin, with a more even variance.

    A root evens out the variance of Poisson counts (Anscombe, Biometrika 1948): 2√(μ + c) (√(y + c) - √(μ + c)),
    which is y - μ where that is small. The `offset` c keeps the slope finite where counts are zero. Computed
    without the difference of the roots, which would lose digits in bf16.
    """
    root = (means + offset).sqrt()
    return deviations * 2 * root / (root + ((means + deviations).clamp(min=0) + offset).sqrt())


def drop(values: torch.Tensor, share: float) -> torch.Tensor:
    """Dropout in training: zero for a share of the values, the others larger for it.

    On a CPU 16 random bits decide on a value: torch's own draws a number for each, one after the other, and takes
    six times as long.
    """
    if not share:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, share)
    size, steps = values.numel(), 2**16
    dropped = min(round(steps * share), steps - 1)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[:size].view(values.shape) >= dropped - steps // 2
    return values * (kept.to(values.dtype) * (steps / (steps - dropped)))


class Dropout(nn.Dropout):
    """`drop` in training."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return drop(values, self.p) if self.training else values


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: (B, heads, L, dim) in, (B, L, heads, dim) and the probabilities out."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = drop(probabilities, dropout)
    return (probabilities @ value).transpose(1, 2), probabilities


def check_values(fit: torch.Tensor, wrong: Callable[[], str]) -> None:
    """Raise a ValueError that says what is `wrong` unless all of `fit` is True; `torch.export` keeps the check."""
    if torch.compiler.is_compiling() and not is_torchdynamo_exporting():
        if not fit.all():  # as a check of torch it would come without its message
            raise ValueError(wrong())
    else:
        torch_compilable_check(fit, wrong)


class Table(nn.Embedding):
    """Learned rows, drawn from a normal distribution, that can become more."""

    def __init__(self, num_rows: int, width: int, std: float, mean: float = 0.0):
        self.std, self.mean = std, mean
        super().__init__(num_rows, width)

    def forward(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """These rows, or the table. Weights that are offloaded are there only while it is called."""
        return self.weight if rows is None else super().forward(rows)

    def append(self, rows: torch.Tensor) -> None:
        """Add `rows` (n, width) at the end."""
        weight = torch.cat((self.weight, rows.to(self.weight)))
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.num_embeddings = len(weight)

    def append_random(self, num_rows: int) -> None:
        """Add rows that are spread as the present ones are, or as at the start where there are none."""
        std = float(self.weight.std()) if self.num_embeddings > 1 else self.std
        self.append(torch.empty(num_rows, self.embedding_dim).normal_(self.mean, std))


class SessionLinear(nn.Module):
    """A linear layer of each session's own: a row of weights and a row of biases a session."""

    def __init__(self, num_sessions: int, in_features: int, out_features: int):
        super().__init__()
        self.shape = (out_features, in_features)
        std = (3 * in_features) ** -0.5  # as spread as what torch.nn.Linear starts from
        self.weight = Table(num_sessions, out_features * in_features, std)
        self.bias = Table(num_sessions, out_features, std)

    def forward(self, states: torch.Tensor, session_index: torch.Tensor) -> torch.Tensor:
        """(B, L, in_features) to (B, L, out_features)."""
        weight = self.weight(session_index).view(-1, *self.shape)
        return torch.baddbmm(self.bias(session_index)[:, None], states, weight.mT)


class SessionTokenizer(nn.Module):
    """The published code's tokenizer of a behaviour: two features a token, softsign, and a second layer.

    A continuous value gives one token; a class, as a number, gives all tokens of the trial.
    """

    def __init__(self, num_sessions: int, tokens_per_value: int, hidden_size: int):
        super().__init__()
        self.first = SessionLinear(num_sessions, 1, 2 * tokens_per_value)
        self.second = SessionLinear(num_sessions, 2, hidden_size)

    def forward(self, values: torch.Tensor, session_index: torch.Tensor) -> torch.Tensor:
        """(B, L) values to (B, L * tokens_per_value, H)."""
        features = F.softsign(self.first(values[..., None], session_index))
        return self.second(features.reshape(values.shape[0], -1, 2), session_index)


class NEDSAttention(nn.Module):
    """Multi-head attention over all tokens of a trial, rotary by bin."""

    def __init__(self, config: NEDSConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states, cos, sin, attention_mask):
        """`states` (B, L, H), what `rotary` gives, mask (True: attended); to (B, L, H) and the probabilities."""
        batch_size, length, _ = states.shape
        qkv = self.qkv_proj(states).view(batch_size, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, probabilities = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.out_proj(attended.reshape(batch_size, length, -1)), probabilities


class NEDSBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention, then GELU feed-forward."""

    def __init__(self, config: NEDSConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = NEDSAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, states, cos, sin, attention_mask):
        attended, probabilities = self.attention(self.attention_norm(states), cos, sin, attention_mask)
        states = states + self.dropout(attended)
        fed = self.down_proj(F.gelu(self.up_proj(self.feed_forward_norm(states))))
        return states + self.dropout(fed), probabilities


class NEDSEncoder(nn.Module):
    """Blocks and the last LayerNorm. Knows nothing of sessions; fine-tuning may freeze it as a whole."""

    def __init__(self, config: NEDSConfig):
        super().__init__()
        self.blocks = nn.ModuleList(NEDSBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    @property
    def residuals(self) -> list[nn.Linear]:
        """Layers that write to the residual stream; they start small, the deeper the model the smaller."""
        return [linear for block in self.blocks for linear in (block.attention.out_proj, block.down_proj)]

    def forward(self, states, cos, sin, attention_mask):
        """The last states (B, L, H), those before and after each block, and each block's attention."""
        hidden_states, attentions = [states], []
        for block in self.blocks:
            states, probabilities = block(states, cos, sin, attention_mask)
            hidden_states.append(states)
            attentions.append(probabilities)
        return self.norm(states), tuple(hidden_states), tuple(attentions)


class NEDSModel(Checkpoint, PreTrainedModel):
    """The one model class; `AutoModel` gives it.

    Every unit of every session has one row in `unit_embedding` and one in `unit_readout` (with
    `config.tied_units` only the latter), so that a new animal is new rows (`add_sessions`) and the neuron
    embedding of unit k of a session is row k of its rows.
    Behaviours are variables that animals share: their tokenizers and readouts belong to no session. What is a
    session's own besides its units is an embedding added to its tokens; with `config.tokenizer` `"mlp"` (the
    published code's) also the modules whose names begin with `session_`, and `unit_embedding` is then the first
    of two layers.
    """

    config_class = NEDSConfig
    base_model_prefix = "neds"
    main_input_name = "spike_counts"
    supports_gradient_checkpointing = True
    _no_split_modules: Sequence[str] = ("NEDSBlock",)
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: NEDSConfig):
        config = copy.deepcopy(config)  # add_sessions changes it, and only this model has the rows
        config.validate()  # `from_pretrained` sets what it is given without looking
        super().__init__(config)
        hidden_size, patch = config.hidden_size, config.bins_per_token
        num_modalities, num_units = len(config.modalities), sum(config.unit_counts)
        num_sessions, mlp = len(config.session_ids), config.tokenizer == "mlp"
        # Tokenizer
        if mlp:
            width = config.tokenizer_width
            std = (1.5 * width) ** -0.5  # of a linear layer from half the width
            self.unit_embedding = Table(num_units, width, std)
            self.session_spike_bias = Table(num_sessions, width, std)
            self.session_spike_projection = SessionLinear(num_sessions, width, hidden_size)
            self.session_tokenizer = nn.ModuleDict(
                {
                    name: SessionTokenizer(num_sessions, config.num_bins if classes else 1, hidden_size)
                    for name, classes in config.behaviors.items()
                }
            )
        else:
            if not config.tied_units:
                self.unit_embedding = Table(num_units, hidden_size, std=0.1)
            mixes = patch > 1 or config.tied_units
            self.spike_patch = nn.Linear(patch * hidden_size, hidden_size) if mixes else nn.Identity()
            self.behavior_embedding = nn.ModuleDict(
                {
                    name: Table(classes, hidden_size, std=0.1) if classes else nn.Linear(patch, hidden_size)
                    for name, classes in config.behaviors.items()
                }
            )
        std = 1.0 if mlp else 0.1
        self.mask_embedding = Table(1, hidden_size, std=0.0 if mlp else std)
        self.modality_embedding = Table(num_modalities, hidden_size, std)
        self.session_embedding = Table(num_sessions, num_modalities * hidden_size, std=std if mlp else 0.01)
        if config.temporal_embedding:
            self.temporal_embedding = Table(num_modalities * config.num_bins // patch, hidden_size, std)
        self.dropout = Dropout(config.hidden_dropout)
        self.encoder = NEDSEncoder(config)
        # Readout
        self.spike_unpatch = nn.Linear(hidden_size, patch * hidden_size) if patch > 1 else nn.Identity()
        self.unit_readout = Table(num_units, hidden_size, std=(3 * hidden_size) ** -0.5 if mlp else 0.02)
        self.unit_bias = Table(num_units, 1, std=0.0, mean=math.log(config.initial_mean_count))
        if mlp:
            self.session_token_weights = nn.ModuleDict(
                {
                    name: Table(num_sessions, config.num_bins, std=12**-0.5, mean=0.5)
                    for name, classes in config.behaviors.items()
                    if classes
                }
            )
            self.session_readout = nn.ModuleDict(
                {
                    name: SessionLinear(num_sessions, hidden_size, classes or 1)
                    for name, classes in config.behaviors.items()
                }
            )
        else:
            self.behavior_readout = nn.ModuleDict(
                {name: nn.Linear(hidden_size, classes or patch) for name, classes in config.behaviors.items()}
            )
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in transformers, which leaves an older `model.safetensors` beside new shards, and would load it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if any(Path(save_directory).glob("model-*-of-*.safetensors")):
            Path(save_directory, "model.safetensors").unlink(missing_ok=True)

    def get_input_embeddings(self) -> None:
        """There is no vocabulary; FSDP asks."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if self.config.tokenizer == "mlp":
                self._init_as_published(module)
            else:
                scale = (
                    (2 * self.config.num_hidden_layers) ** -0.5 if module in self.encoder.residuals else 1.0
                )
                init.normal_(module.weight, std=scale * module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Table):
            init.normal_(module.weight, mean=module.mean, std=module.std)

    def _init_as_published(self, linear: nn.Linear) -> None:
        """The published code's spread: values and what leaves a layer start smaller, the deeper the model."""
        std = (3 * linear.in_features) ** -0.5
        scale = 0.67 * self.config.num_hidden_layers**-0.25
        if linear in [block.attention.qkv_proj for block in self.encoder.blocks]:
            query_key, value = torch.randn_like(linear.weight).split(
                [2 * linear.in_features, linear.in_features]
            )
            init.copy_(linear.weight, torch.cat((std * query_key, 2**0.5 * scale * std * value)))
        else:
            init.normal_(linear.weight, std=scale * std)

    # --- sessions ---

    def unit_rows(self, session: str) -> slice:
        """Rows of the units of `session` in `unit_embedding`, `unit_readout` and `unit_bias`.

        Raises:
            ValueError: The model does not know the session.
        """
        if session not in self.config.session_ids:
            raise ValueError(
                f"session {session!r} is not one of the {len(self.config.session_ids)} sessions of this model"
            )
        place = self.config.session_ids.index(session)
        start = sum(self.config.unit_counts[:place])
        return slice(start, start + self.config.unit_counts[place])

    @torch.no_grad()
    def add_sessions(
        self, sessions: Mapping[str, int], mean_counts: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Give the model new animals: new rows for their units, and a session embedding to start from.

        The tables are new parameters, with the rows of all animals: an optimizer made before trains none of them.

        Args:
            sessions: Session id to number of units N.
            mean_counts: Session id to (N,) mean spikes per bin on training trials; the readout then starts from
                every unit's mean rate. `NEDSProcessor.mean_counts` has them.

        Raises:
            ValueError: A session that the model already has, no units, means that do not fit, or rows held by an
                adapter; the model is then as before.
        """
        if not isinstance(self.unit_readout, Table):  # wrapped, by peft
            raise ValueError("an adapter holds the model's rows: merge it (merge_and_unload) to add sessions")
        biases = {}
        for session, num_units in sessions.items():
            if session in self.config.session_ids:
                raise ValueError(f"session {session!r} is already in this model")
            if num_units < 1:
                raise ValueError(f"session {session!r} has {num_units} units, expected at least one")
            if mean_counts is None:
                biases[session] = torch.full((num_units, 1), self.unit_bias.mean)
            else:
                biases[session] = self._log_means(session, num_units, mean_counts.get(session, ()))
        for session, num_units in sessions.items():
            if not self.config.tied_units:
                self.unit_embedding.append_random(num_units)
            # Nothing is known of how a new unit responds: it starts at its mean rate.
            self.unit_readout.append(torch.zeros(num_units, self.config.hidden_size))
            self.unit_bias.append(biases[session])
            if self.config.session_ids:  # the average animal
                self.session_embedding.append(self.session_embedding.weight.mean(0, keepdim=True))
            else:
                self.session_embedding.append_random(1)
            for table in self._own_tables:
                table.append_random(1)
            self.config.session_ids.append(session)
            self.config.unit_counts.append(int(num_units))

    @property
    def _own_tables(self) -> list[Table]:
        """Tables of the published tokenizers and readouts, with a row a session."""
        names = ("session_spike_", "session_tokenizer.", "session_token_weights.", "session_readout.")
        return [
            module
            for name, module in self.named_modules()
            if isinstance(module, Table) and name.startswith(names)
        ]

    @torch.no_grad()
    def set_mean_counts(self, session: str, mean_counts: np.ndarray) -> None:
        """Start the readout of a session's units from their (N,) mean spikes per bin; a silent unit from 1e-4.

        Raises:
            ValueError: An unknown session, or means that do not fit it.
        """
        rows = self.unit_rows(session)
        log_means = self._log_means(session, rows.stop - rows.start, mean_counts)
        self.unit_bias.weight[rows] = log_means.to(self.unit_bias.weight)

    @staticmethod
    def _log_means(session, num_units, mean_counts):
        """(N, 1) rows of `unit_bias`."""
        means = torch.as_tensor(np.asarray(mean_counts), dtype=torch.float32)
        if means.shape != (num_units,):
            raise ValueError(f"session {session!r} has {num_units} units, but {len(means)} means were given")
        if not bool((means >= 0).all()):
            raise ValueError(f"session {session!r}: mean counts must be numbers from 0, found {means.min()}")
        return means.clamp(min=1e-4).log()[:, None]

    # --- the model ---

    @can_return_tuple
    def forward(
        self,
        session_index: torch.Tensor,
        spike_counts: torch.Tensor,
        unit_mask: torch.Tensor | None = None,
        behaviors: dict[str, torch.Tensor] | None = None,
        available: dict[str, torch.Tensor] | None = None,
        hidden: dict[str, torch.Tensor] | None = None,
        scheme: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_loss: bool = True,
    ) -> NEDSOutput:
        """Predict what is hidden.

        Args:
            session_index: (B,) place of each trial's session in `config.session_ids`.
            spike_counts: (B, T, N), any integer or float dtype; N is the largest unit count of the batch.
            unit_mask: (B, N) bool, True for a real unit. Default: the first `unit_counts` of each session.
            behaviors: Name to (B, T) scaled values, or (B,) class indices, or (B, classes) probabilities (not with
                the `"mlp"` tokenizer). What is missing by `available` may hold anything.
            available: Name to (B,) bool, True where the trial has the behaviour. Default: those of `behaviors`.
            hidden: Modality to (B, T) bool, or (B,) for all its bins: what is to be predicted. A token of
                several bins is hidden when one of them is. Default: in training drawn by
                `config.scheme_weights`, else nothing.
            scheme: A masking scheme for all trials, instead of `hidden`, not beside it.
            output_hidden_states: Return `hidden_states`.
            output_attentions: Return `attentions`; needs eager attention.
            return_loss: Compute the loss. Outside training, with neither `hidden` nor `scheme`, it is that of
                two further passes, one encoding and one decoding; the other outputs are of the pass with
                nothing hidden.

        Raises:
            ValueError: Shapes that do not fit the configuration, a session or a unit that the model does not
                have, a class that there is not, values that are not finite, or both `hidden` and `scheme`.
        """
        config, behaviors = self.config, behaviors or {}
        unit_mask = self._checked_unit_mask(session_index, spike_counts, unit_mask)
        batch_size, device = unit_mask.shape[0], spike_counts.device
        available = self._checked_behaviors(batch_size, device, behaviors, available)
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError("output_attentions needs attn_implementation='eager'")

        if hidden is not None and scheme is not None:
            raise ValueError(f"hidden and scheme {scheme!r} are both given, expected one of them")
        two_passes = False
        if hidden is None:
            if self.training or scheme is not None:
                uniform = None
                if scheme not in ("encoding", "decoding"):
                    uniform = torch.rand(batch_size, num_uniform(config), device=device)
                hidden, available = sample_masks(config, available, uniform, scheme)
            else:
                two_passes, hidden = return_loss and bool(behaviors), {}
        else:
            hidden = self._checked_hidden(batch_size, hidden)

        rows = self._unit_indices(session_index, unit_mask)
        states, attention_mask = self._tokenize(
            session_index, spike_counts, unit_mask, rows, behaviors, available, hidden
        )
        cos, sin = rotary(
            self._positions(states.device),
            config.hidden_size // config.num_attention_heads,
            config.rope_theta,
        )
        states, hidden_states, attentions = self.encoder(
            states, cos.to(states.dtype), sin.to(states.dtype), attention_mask
        )
        log_rates, predictions = self._read_out(session_index, rows, states)

        losses = None
        if two_passes:
            # Not `self(...)`: what a subclass does to the inputs, it has done.
            passes = [
                NEDSModel.forward(
                    self,
                    session_index,
                    spike_counts,
                    unit_mask,
                    behaviors,
                    available,
                    scheme=one,
                    return_dict=True,
                )
                for one in ("encoding", "decoding")
            ]
            losses = {name: sum(one.losses[name] for one in passes) for name in passes[0].losses}
        elif return_loss:
            compute = self._published_losses if config.loss == "published" else self._losses
            losses = compute(log_rates, predictions, spike_counts, unit_mask, behaviors, available, hidden)
        loss = None
        if losses:
            loss = sum(config.loss_weights.get(name, 1.0) * value for name, value in losses.items())
        return NEDSOutput(
            loss=loss,
            losses=losses,
            log_rates=log_rates,
            predictions=predictions,
            last_hidden_state=states,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def _checked_unit_mask(self, session_index, spike_counts, unit_mask):
        if spike_counts.dim() != 3 or session_index.shape != spike_counts.shape[:1]:
            raise ValueError(
                f"spike_counts is {tuple(spike_counts.shape)}, session_index {tuple(session_index.shape)}; "
                "expected (trials, bins, units) and (trials,)"
            )
        if session_index.dtype not in (torch.int64, torch.int32):  # torch takes bytes for a mask
            raise ValueError(f"session_index is of type {session_index.dtype}, expected torch.int64")
        batch_size, num_bins, num_units = spike_counts.shape
        if num_bins != self.config.num_bins:
            raise ValueError(f"spike_counts has {num_bins} bins, the model {self.config.num_bins}")
        num_sessions = len(self.config.session_ids)
        known = (session_index >= 0) & (session_index < num_sessions)
        # One more, without units, as on a GPU no check would be reached after an index that there is not.
        counts = torch.tensor([*self.config.unit_counts, 0], device=session_index.device)
        counts = counts[session_index.where(known, num_sessions)]
        exists = torch.arange(num_units, device=counts.device) < counts[:, None]
        if unit_mask is None:
            unit_mask, fits = exists, counts <= num_units
        elif unit_mask.shape != (batch_size, num_units):
            raise ValueError(f"unit_mask is {tuple(unit_mask.shape)}, expected {(batch_size, num_units)}")
        else:
            unit_mask = unit_mask.bool()
            fits = (exists | ~unit_mask).all(1)

        def wrong() -> str:
            if bool((session_index < 0).any()):
                return "session_index holds a negative number"
            if not bool(known.all()):
                return (
                    f"session_index goes up to {int(session_index.max())}, but this model has {num_sessions} "
                    "sessions; add_sessions gives it new ones"
                )
            if unit_mask is exists:
                return (
                    f"spike_counts has {num_units} units, but a session of the batch {int(counts.max())}; "
                    "give unit_mask for a part of the units"
                )
            return "unit_mask holds more units than the trial's session has in this model"

        # All at once, as every check of values waits for the GPU.
        check_values(known & fits, wrong)
        return unit_mask

    def _checked_behaviors(self, batch_size, device, behaviors, available):
        available = available or {}
        unknown = set(behaviors) | set(available) - {"spikes"}
        unknown -= set(self.config.behaviors)
        if unknown:
            raise ValueError(f"behaviours {sorted(unknown)} are not among {list(self.config.behaviors)}")
        for name, values in behaviors.items():
            classes = self.config.behaviors[name]
            expected = (batch_size,) if classes else (batch_size, self.config.num_bins)
            probabilities = (
                (batch_size, classes) if classes and self.config.tokenizer == "linear" else expected
            )
            if tuple(values.shape) not in (expected, probabilities):
                raise ValueError(f"{name} is {tuple(values.shape)}, expected {expected}")
        for name, values in available.items():
            if tuple(values.shape) != (batch_size,):
                raise ValueError(f"available {name} is {tuple(values.shape)}, expected {(batch_size,)}")
        filled = {"spikes": available["spikes"].bool()} if "spikes" in available else {}
        for name in self.config.behaviors:
            if name in behaviors and name in available:
                filled[name] = available[name].bool()
            else:
                filled[name] = torch.full((batch_size,), name in behaviors, device=device)
        fits, wrong = {}, {}
        for name, values in behaviors.items():
            if values.dim() == 1:
                classes = self.config.behaviors[name]
                if values.is_floating_point():
                    raise ValueError(f"{name} is of type {values.dtype}, expected class indices, torch.int64")
                right = (values >= 0) & (values < classes)
                wrong[name] = f"{name} holds a class that is not of 0 to {classes - 1}"
            else:
                right, wrong[name] = values.isfinite().all(1), f"{name} holds values that are not finite"
            fits[name] = right | ~filled[name]
        if fits:
            check_values(
                torch.stack(list(fits.values())),
                lambda: (
                    next(wrong[name] for name in fits if not bool(fits[name].all()))
                    + "; `available` says which trials are without it"
                ),
            )
        return filled

    def _checked_hidden(self, batch_size, hidden):
        """`hidden` with (B, T) for every modality."""
        unknown = set(hidden) - set(self.config.tokens_per_trial)
        if unknown:
            raise ValueError(
                f"modalities {sorted(unknown)} are not among {list(self.config.tokens_per_trial)}"
            )
        checked = {}
        for name, mask in hidden.items():
            if tuple(mask.shape) not in ((batch_size,), (batch_size, self.config.num_bins)):
                raise ValueError(
                    f"hidden {name} is {tuple(mask.shape)}, expected {(batch_size, self.config.num_bins)}"
                )
            mask = mask[:, None] if mask.dim() == 1 else mask
            checked[name] = mask.expand(-1, self.config.num_bins).bool()
        return checked

    def _positions(self, device) -> torch.Tensor:
        """(L,) bin at which each token starts; 0 for a behaviour of one token."""
        return torch.cat(
            [
                torch.arange(tokens, device=device) * self.config.bins_per_token
                for tokens in self.config.tokens_per_trial.values()
            ]
        )

    def _unit_indices(self, session_index, unit_mask):
        """(B, N) row of each unit in the tables; 0 where there is no unit."""
        starts = torch.tensor([0, *self.config.unit_counts], device=unit_mask.device).cumsum(0)[session_index]
        rows = starts[:, None] + torch.arange(unit_mask.shape[1], device=unit_mask.device)
        return rows.masked_fill(~unit_mask, 0)

    def _tokenize(self, session_index, spike_counts, unit_mask, rows, behaviors, available, hidden):
        """Tokens (B, L, H) of all modalities, and the attention mask: None where every token is attended."""
        config, dtype = self.config, self.unit_readout.weight.dtype
        batch_size, tokens = spike_counts.shape[0], config.tokens_per_trial
        hidden_tokens = {
            name: mask.reshape(batch_size, tokens[name], -1).any(-1) for name, mask in hidden.items()
        }
        counts = spike_counts.to(dtype).masked_fill(~unit_mask[:, None], 0.0)
        if config.tokenizer == "mlp":
            weights = self.unit_embedding(rows)
        elif config.tied_units:
            # What a unit says beyond its mean rate: with its readout row as weights, the sum over units is the
            # gradient of the Poisson log-likelihood with respect to the token that the readout sees.
            weights = self.unit_readout(rows)
            means = self.unit_bias(rows).transpose(1, 2).exp() * unit_mask[:, None]
            counts = counts - means
        else:
            weights = self.unit_embedding(rows)
            counts = counts.sqrt()  # evens out the variance of Poisson counts
        if config.spike_smoothing:
            counts = self._smoothed(counts, hidden_tokens.get("spikes"))
        if config.tied_units and config.stabilized_counts:
            counts = stabilized(counts, means)
        if self.training and config.unit_dropout:
            counts = counts * F.dropout(torch.ones_like(counts[:, :1]), config.unit_dropout)
        spikes = counts @ weights
        if config.tokenizer == "mlp":
            spikes = F.softsign(spikes + self.session_spike_bias(session_index)[:, None])
            spikes = self.session_spike_projection(spikes, session_index)
        else:
            spikes = spikes.reshape(batch_size, tokens["spikes"], config.bins_per_token * config.hidden_size)
            spikes = self.spike_patch(spikes)
        features = {"spikes": spikes}
        for name, classes in config.behaviors.items():
            values = behaviors.get(name)
            if values is None:
                features[name] = spikes.new_zeros(batch_size, tokens[name], config.hidden_size)
                continue
            values = values.reshape(batch_size, -1).masked_fill(~available[name][:, None], 0)
            if config.tokenizer == "mlp":
                features[name] = self.session_tokenizer[name](values.to(dtype), session_index)
            elif classes:
                table = self.behavior_embedding[name]
                single = values.shape[1] == 1
                value = table(values.long()) if single else (values.to(dtype) @ table())[:, None]
                features[name] = value.expand(-1, tokens[name], -1)
            else:
                values = values.to(dtype).reshape(batch_size, tokens[name], config.bins_per_token)
                features[name] = self.behavior_embedding[name](values)

        lengths = list(tokens.values())
        nothing = torch.zeros(batch_size, 1, dtype=torch.bool, device=spikes.device)
        is_hidden = torch.cat(
            [hidden_tokens.get(name, nothing.expand(-1, length)) for name, length in tokens.items()], 1
        )
        is_available = torch.cat(
            [
                available.get(name, ~nothing[:, 0])[:, None].expand(-1, length)
                for name, length in tokens.items()
            ],
            1,
        )
        # What is missing is predicted from a mask token too, but only what is to be predicted is attended.
        is_shown = is_available & ~is_hidden
        states = torch.cat(list(features.values()), 1)
        states = torch.where(is_shown[..., None], states, self.mask_embedding()[0])
        session = self.session_embedding(session_index).view(batch_size, len(tokens), config.hidden_size)
        kinds = (self.modality_embedding() + session).split(1, 1)
        states = states + torch.cat([kind.expand(-1, length, -1) for kind, length in zip(kinds, lengths)], 1)
        if config.temporal_embedding:
            times = self.temporal_embedding().split(tokens["spikes"])
            one = times[0].new_zeros(1, config.hidden_size)  # of the whole trial
            times = [time if length == len(time) else one for time, length in zip(times, lengths)]
            states = states + torch.cat(times)
        attended = is_available | is_hidden
        attention_mask = None
        # What is exported has to serve any trials.
        if is_torchdynamo_exporting() or not bool(attended.all()):
            flash = "flash" in config._attn_implementation
            attention_mask = attended if flash else attended[:, None, None]
        return self.dropout(states), attention_mask

    def _smoothed(self, counts, hidden_tokens):
        """(B, T, N) smoothed over bins; those of hidden tokens count as zero, so that they leak nowhere."""
        if hidden_tokens is not None:
            hidden = hidden_tokens.repeat_interleave(self.config.bins_per_token, 1)
            counts = counts.masked_fill(hidden[..., None], 0.0)
        return gaussian_smooth(counts, self.config.spike_smoothing)

    def _read_out(self, session_index, rows, states):
        """`log_rates` (B, T, N) and `predictions`, in float32."""
        config = self.config
        tokens = config.tokens_per_trial
        states = dict(zip(tokens, states.split(list(tokens.values()), 1)))
        spikes = self.spike_unpatch(states["spikes"]).reshape(-1, config.num_bins, config.hidden_size)
        if config.prediction_smoothing:
            spikes = gaussian_smooth(spikes, config.prediction_smoothing)
        log_rates = spikes @ self.unit_readout(rows).transpose(1, 2) + self.unit_bias(rows).transpose(1, 2)
        predictions = {}
        for name, classes in config.behaviors.items():
            if config.tokenizer == "mlp":
                read = states[name]
                if classes:
                    weights = self.session_token_weights[name](session_index)
                    read = (read * weights[..., None]).sum(1, keepdim=True)
                read = self.session_readout[name](read, session_index)
            else:
                read = self.behavior_readout[name](states[name].mean(1) if classes else states[name])
            read = read.flatten(1)
            if config.prediction_smoothing and not classes:
                read = gaussian_smooth(read[..., None], config.prediction_smoothing)[..., 0]
            predictions[name] = read.float()
        return log_rates.float(), predictions

    def _losses(self, log_rates, predictions, spike_counts, unit_mask, behaviors, available, hidden):
        """Loss of each modality, every trial counting the same, so that it does not matter how trials are
        spread over batches and processes.

        Within a trial: Poisson negative log-likelihood per spike (nats; the trial's spikes times the hidden
        share of its bins), mean squared error over hidden bins, cross-entropy. In these units the modalities
        are of one order, whatever the number of units, bins and spikes.
        """
        losses = {}
        if "spikes" in hidden:
            counts = spike_counts.float().masked_fill(~unit_mask[:, None], 0.0)
            mask = hidden["spikes"].float()
            nll = (log_rates.exp() - counts * log_rates).masked_fill(~unit_mask[:, None], 0.0).sum(-1)
            spikes = counts.sum((1, 2)) * mask.mean(1)
            losses["spikes"] = ((nll * mask).sum(1) / spikes.clamp(min=1)).mean()
        for name, classes in self.config.behaviors.items():
            if name not in hidden or name not in behaviors:
                continue
            target = behaviors[name]
            # Targets that do not count may hold anything, also what has no gradient.
            if classes:
                mask = hidden[name].any(1) & available[name]
                losses[name] = (self._cross_entropy(predictions[name], target, mask) * mask).mean()
            else:
                mask = hidden[name] & available[name][:, None]
                error = (predictions[name] - target.float().masked_fill(~mask, 0.0)).square() * mask
                losses[name] = (error.sum(1) / mask.sum(1).clamp(min=1)).mean()
        return losses

    def _cross_entropy(self, logits, target, mask):
        """(B,), of class indices or of probabilities; finite whatever they are where `mask` is False."""
        if target.dim() == 1:
            target = target.masked_fill(~mask, 0).long()
        else:
            target = target.to(logits.dtype).masked_fill(~mask[:, None], 0.0)
        smoothing = self.config.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    def _published_losses(
        self, log_rates, predictions, spike_counts, unit_mask, behaviors, available, hidden
    ):
        """Loss of each modality as in the published code: summed over the batch, divided by the number of hidden
        targets (units x bins of spikes, bins of a behaviour). Of a categorical behaviour the cross-entropy of
        every trial is summed, hidden or not, and divided by the number of hidden bins.
        """
        losses = {}
        for name, number in count_targets(hidden, available, unit_mask).items():
            target = spike_counts if name == "spikes" else behaviors.get(name)
            if target is None:
                continue
            if name == "spikes":
                error = log_rates.exp() - target.float() * log_rates
                error = error.masked_fill(~unit_mask[:, None], 0.0).sum(-1) * hidden[name]
            elif self.config.behaviors[name]:
                error = self._cross_entropy(predictions[name], target, available[name]) * available[name]
                error = error * (number > 0)
            else:
                mask = hidden[name] & available[name][:, None]
                error = (predictions[name] - target.float().masked_fill(~mask, 0.0)).square() * mask
            losses[name] = error.sum() / number.clamp(min=1)
        return losses


__all__ = ["NEDSModel"]
