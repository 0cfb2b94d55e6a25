"""Mixing pairs of trials in training (mixup: Zhang et al., ICLR 2018, arXiv 1710.09412)."""

import numpy as np
import torch
from torch.nn import functional as F

from neds_hf.models.configuration_neds import NEDSConfig


def mix_trials(config: NEDSConfig, inputs: dict, alpha: float, rng: np.random.Generator) -> dict:
    """Every trial of a batch mixed with another, spikes and behaviours by the same share.

    Only trials of one session can be mixed, whose units are the same, and only such as have the same behaviours;
    a trial without such another stays as it is.

    Args:
        config: Of the model.
        inputs: A batch from `NEDSCollator`.
        alpha: The larger share is that of a beta distribution with both parameters `alpha`: the smaller, the
            less is mixed.
        rng: Chooses the other trial, and the shares.

    Returns:
        The batch with fractional `spike_counts` (B, T, N), and probabilities (B, classes) of categorical
        behaviours.
    """
    session_index, available = inputs["session_index"], inputs["available"]
    alike = session_index[:, None] == session_index
    for there in available.values():
        alike = alike & (there[:, None] == there)
    size = len(session_index)
    partner = (torch.from_numpy(rng.random((size, size))).to(alike.device) * alike).argmax(1)
    share = rng.beta(alpha, alpha, size).astype(np.float32)
    share = torch.from_numpy(np.maximum(share, 1 - share)).to(alike.device)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        ours = share.view(-1, *[1] * (values.dim() - 1))
        return ours * values + (1 - ours) * values[partner]

    behaviors = {
        name: mixed(F.one_hot(values, config.behaviors[name]).float() if config.behaviors[name] else values)
        for name, values in inputs["behaviors"].items()
    }
    return {**inputs, "spike_counts": mixed(inputs["spike_counts"].float()), "behaviors": behaviors}
