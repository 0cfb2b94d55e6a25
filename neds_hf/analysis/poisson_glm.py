"""Encoding of one session by a Poisson generalised linear model (Truccolo et al. 2005, J. Neurophysiol. 93).

ln rate = ln average trial + linear in the regressors of `encoding.behavior_design` (raised cosines over the trial
for classes, lagged filters for continuous behaviours) and in raised cosines over the trial alone: the mean of an
exponential is not the exponential of the mean.
"""

from collections.abc import Iterator

import numpy as np
import torch

from neds_hf.analysis.encoding import (
    average_trial,
    behavior_design,
    best_smoothing,
    each_units,
    log_likelihoods_of,
    split_trials,
    temporal_basis,
)
from neds_hf.data.trials import SessionTrials

# Penalties, relative to the information about a regressor of variance one.
STRENGTHS = np.logspace(1.5, -1.5, 7)
TIME_SCALE = 10  # of the cosines over the trial alone: so large, they are hardly penalised
MAX_ITERATIONS = 30
MAX_LOG_COUNT = 4.0  # e⁴ spikes a bin: no bin has as many


def encode_poisson(train: SessionTrials, test: SessionTrials, seed: int) -> np.ndarray:
    """ln expected counts per bin (B, T, N).

    The smoothing of the average trial and the ridge penalty are, for each unit, those with the best likelihood of
    left-out training trials.
    """
    counts = train.spike_counts.astype(np.float32)
    time = TIME_SCALE * temporal_basis(counts.shape[1])
    design, test_design = (
        np.concatenate(
            [regressors, np.broadcast_to(time, (len(regressors), *time.shape))], 2, dtype=np.float32
        )
        for regressors in behavior_design(train, test)
    )
    smoothing = best_smoothing(counts, seed)

    def candidates(design: np.ndarray, counts: np.ndarray, predicted: np.ndarray) -> Iterator[np.ndarray]:
        log_average = np.log(average_trial(counts, smoothing))
        for weights in fit_poisson(design, counts, log_average):
            beyond = design @ weights
            # What no training trial had: an exponential would run away with it.
            yield np.exp(log_average + np.clip(predicted @ weights, beyond.min((0, 1)), beyond.max((0, 1))))

    log_likelihoods = sum(
        log_likelihoods_of(candidates(design[fitted], counts[fitted], design[rest]), counts[rest])
        for fitted, rest in split_trials(len(counts), seed)
    )
    return np.log(each_units(candidates(design, counts, test_design), log_likelihoods.argmax(0)))


def fit_poisson(design: np.ndarray, counts: np.ndarray, offset: np.ndarray) -> Iterator[np.ndarray]:
    """Weights that maximise the penalised likelihood of each unit, for every penalty of `STRENGTHS`.

    Args:
        design: (B, T, F) regressors.
        counts: (B, T, N) spike counts.
        offset: (T, N) of the log rate.

    Yields:
        (F, N): the maximum of Σ(k ln λ − λ) − ½ α |w|² with ln λ = offset + design · w, where α is the strength
        times the unit's spikes (at least one).
    """
    flat = torch.from_numpy(np.ascontiguousarray(design.reshape(-1, design.shape[2]), np.float32))
    offset = torch.from_numpy(np.tile(offset.astype(np.float32), (len(counts), 1)))
    counts = torch.from_numpy(np.ascontiguousarray(counts.reshape(len(flat), -1), np.float32))
    # Along the principal axes, scaled by the information along them, all directions are alike: L-BFGS is quick.
    # In double precision, and by NumPy: torch's does not converge on every processor.
    scatter = flat.T.double() @ flat.double()
    variances, axes = (torch.from_numpy(part).float() for part in np.linalg.eigh(scatter.numpy()))
    variances = variances.clamp(min=0)
    flat = flat @ axes
    drive = flat.T @ counts
    spikes = counts.sum(0).clamp(min=1)
    weights = torch.zeros_like(drive)
    for strength in STRENGTHS:
        penalty = strength * spikes
        scale = 1 / torch.sqrt(spikes / len(flat) * variances[:, None] + penalty)
        scaled = weights / scale
        optimizer = torch.optim.LBFGS(
            [scaled], max_iter=MAX_ITERATIONS, tolerance_grad=1e-3, line_search_fn="strong_wolfe"
        )

        def loss(scaled=scaled, scale=scale, penalty=penalty) -> torch.Tensor:
            weights = scaled * scale
            rates = torch.addmm(offset, flat, weights).clamp_(max=MAX_LOG_COUNT).exp_()
            scaled.grad = (flat.T @ rates - drive + penalty * weights) * scale
            return rates.sum() - (drive * weights).sum() + (penalty * weights**2).sum() / 2

        optimizer.step(loss)
        weights = scaled * scale
        yield (axes @ weights).numpy()
