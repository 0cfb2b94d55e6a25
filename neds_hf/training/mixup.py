"""Mixing pairs of trials in training (mixup: Zhang et al., ICLR 2018, arXiv 1710.09412)."""

import torch
from torch.nn import functional as F

from neds_hf.models.configuration_neds import NEDSConfig


def mix_trials(config: NEDSConfig, inputs: dict, partners: dict, share: torch.Tensor) -> dict:
    """Every trial of a batch mixed with its partner, spikes and behaviours by the same share.

    A trial whose partner has not the same behaviours stays as it is.

    Args:
        config: Of the model.
        inputs, partners: Batches from `NEDSCollator`, row by row of the same session.
        share: (B,) of the trial itself, from 0 to 1; the rest is its partner's.

    Returns:
        `inputs` with fractional `spike_counts` (B, T, N), and probabilities (B, classes) of categorical
        behaviours.
    """
    alike = torch.ones_like(share, dtype=torch.bool)
    for name, there in inputs["available"].items():
        alike = alike & (there == partners["available"][name])
    share = share.where(alike, 1.0)

    def mixed(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        part = share.view(-1, *[1] * (ours.dim() - 1))
        return part * ours + (1 - part) * theirs

    behaviors = {}
    for name, ours in inputs["behaviors"].items():
        theirs = partners["behaviors"][name]
        if classes := config.behaviors[name]:
            ours, theirs = (F.one_hot(values, classes) for values in (ours, theirs))
        behaviors[name] = mixed(ours, theirs)
    counts = mixed(inputs["spike_counts"], partners["spike_counts"])
    return {**inputs, "spike_counts": counts, "behaviors": behaviors}
