"""Models of the sizes that are timed, random trials for them, and a training step."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from neds_hf.models import NEDSConfig, NEDSModel
from neds_hf.models.configuration_neds import PRESETS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of `compact`: its own, and those of the preset `small`, the paper's.
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = {"of its own": {}, "of `small`": {name: PRESETS["small"][name] for name in NAMES}}


def encoder_operations(config: NEDSConfig, trials: int, tokens: int) -> float:
    """Of the encoder's matrix products in a training step: those of the pass forward, and twice as many back."""
    hidden = config.hidden_size
    linear = 2 * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    return 3.0 * config.num_hidden_layers * trials * tokens * (linear + 4 * tokens * hidden)


def make_config(preset: str, units: Sequence[int], **settings) -> NEDSConfig:
    """Of sessions with so many units each."""
    ids = [f"session {place}" for place in range(len(units))]
    return NEDSConfig.from_preset(preset, session_ids=ids, unit_counts=list(units), **settings)


def random_batch(config: NEDSConfig, trials: int) -> dict:
    """Inputs of `NEDSModel.forward`, the sessions in turns."""
    bins, units = config.num_bins, max(config.unit_counts)
    index = torch.arange(trials) % len(config.session_ids)
    mask = torch.arange(units) < torch.tensor(config.unit_counts)[index][:, None]
    return {
        "session_index": index,
        "spike_counts": torch.poisson(torch.full((trials, bins, units), 0.1)).to(torch.uint8) * mask[:, None],
        "unit_mask": mask,
        "behaviors": {
            name: torch.randint(classes, (trials,)) if classes else torch.randn(trials, bins)
            for name, classes in config.behaviors.items()
        },
    }


def training_step(
    model: NEDSModel, optimizer: torch.optim.Optimizer, batch: dict, dtype: torch.dtype
) -> Callable[[], None]:
    """A step as the Trainer does it: masks drawn, forward (bf16: autocast), backward, clipped, AdamW."""
    device = next(model.parameters()).device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_step(config: NEDSConfig, trials: int, dtype: torch.dtype) -> Callable[[], None]:
    """A step of a new model on random trials, on the CPU, with the attention that is the default there."""
    model = NEDSModel(config).train()
    model.set_attn_implementation("eager" if dtype == torch.bfloat16 else "sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return training_step(model, optimizer, random_batch(config, trials), dtype)


def operations(config: NEDSConfig, train: bool = True) -> float:
    """Of all matrix products for one trial: of a training step, or of a decoding pass."""
    model = NEDSModel(copy.deepcopy(config)).train(train)
    model.set_attn_implementation("eager")  # the counter does not know all of sdpa's kernels
    batch = random_batch(config, 1)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        if train:
            model(**batch).loss.backward()
        else:
            model(**batch, scheme="decoding", return_loss=False)
    return float(counter.get_total_flops())
