"""What is hidden from the model, trial by trial (arXiv 2504.08201).

Four schemes, one drawn for each trial:

- `encoding`: all spikes are hidden; all behaviours are shown, or in training one behaviour alone.
- `decoding`: all behaviours are hidden, whether or not the trial has them, so that what is decoded depends on the
  spikes alone.
- `within_modality`: random tokens of the spikes, or of the behaviours, are hidden and must be predicted from
  the rest of the same; the other is left out of attention (`config.within_modality_context` shows it).
- `cross_modal`: random tokens of everything are hidden.
"""

import torch

from .configuration_neds import SCHEMES, NEDSConfig


def num_uniform(config: NEDSConfig) -> int:
    """Random numbers that `sample_masks` uses for one trial."""
    return 3 + sum(config.tokens_per_trial.values())


def sample_masks(
    config: NEDSConfig,
    available: dict[str, torch.Tensor],
    uniform: torch.Tensor | None = None,
    scheme: str | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Masks of a batch.

    Args:
        config: The model's configuration.
        available: Behaviour to (B,) bool, True where the trial has it.
        uniform: (B, `num_uniform(config)`) random numbers in [0, 1); a trial's masks depend on its own row
            only, with `config.masks_per` `"batch"` on the first row. Needed unless `scheme` is `"encoding"` or
            `"decoding"`.
        scheme: One scheme for all trials, with all behaviours shown in `"encoding"`; None draws one for
            each trial by `config.scheme_weights`.

    Returns:
        `hidden`, modality to (B, T) bool, True where it is to be predicted, and `available` less the modalities
        that the scheme leaves out of attention, with an entry for `spikes`. What is not available is hidden in
        `decoding` only.

    Raises:
        ValueError: An unknown scheme, or random numbers missing.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"no masking scheme {scheme!r}; there are: {', '.join(SCHEMES)}")
    if uniform is None and scheme not in ("encoding", "decoding"):
        raise ValueError(f"masking scheme {scheme or 'drawn for each trial'} needs random numbers")

    names = list(config.behaviors)
    shown = torch.stack([available[name] for name in names], 1)  # (B, behaviours)
    batch_size, device = shown.shape[0], shown.device
    if uniform is None:
        uniform = torch.zeros(batch_size, num_uniform(config), device=device)
    if config.masks_per == "batch":
        uniform = uniform[:1].expand_as(uniform)

    if scheme is None:
        weights = torch.tensor([config.scheme_weights.get(name, 0.0) for name in SCHEMES], device=device)
        bounds = weights.cumsum(0)
        drawn = torch.bucketize(uniform[:, 0] * bounds[-1], bounds, right=True)
        alone = uniform[:, 1] < config.single_behavior_probability
    else:
        drawn = torch.full((batch_size,), SCHEMES.index(scheme), device=device)
        alone = torch.zeros(batch_size, dtype=torch.bool, device=device)
    encoding, decoding, within, cross = (drawn == place for place in range(len(SCHEMES)))

    # One behaviour alone: the k-th of those that the trial has.
    count = shown.sum(1)
    chosen = (uniform[:, 2] * count).long()
    is_chosen = shown & (shown.cumsum(1) - 1 == chosen[:, None])
    attended = torch.where((encoding & alone)[:, None], is_chosen, shown)
    # Within spikes or within behaviours; a trial without behaviours has only spikes.
    within_spikes = within & ((uniform[:, 1] < 0.5) | (count == 0))
    within_behavior = within & ~within_spikes
    left_out = torch.zeros_like(within) if config.within_modality_context else within
    attended = attended & ~(left_out & within_spikes)[:, None]

    tokens = config.tokens_per_trial
    random = dict(zip(tokens, (uniform[:, 3:] < config.mask_ratio).split(list(tokens.values()), 1)))
    some = {"spikes": cross | within_spikes} | dict.fromkeys(names, cross | within_behavior)
    whole = {"spikes": encoding} | dict.fromkeys(names, decoding)
    kept = {"spikes": ~(left_out & within_behavior)} | {
        name: attended[:, place] for place, name in enumerate(names)
    }
    hidden = {}
    for name in tokens:
        mask = whole[name][:, None] | ((some[name] & kept[name])[:, None] & random[name])
        hidden[name] = mask.repeat_interleave(config.num_bins // tokens[name], 1)
    return hidden, kept


def count_targets(
    hidden: dict[str, torch.Tensor], available: dict[str, torch.Tensor], unit_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Values of the batch that are hidden: units x bins of the spikes, bins of each behaviour; a scalar each.

    Args:
        hidden: Modality to (B, T) bool.
        available: Behaviour to (B,) bool; a missing one is no target.
        unit_mask: (B, N) bool, True for a real unit.
    """
    per_bin = {name: available[name] for name in hidden if name != "spikes"} | {"spikes": unit_mask.sum(1)}
    return {name: (mask.sum(1) * per_bin[name]).sum() for name, mask in hidden.items()}
