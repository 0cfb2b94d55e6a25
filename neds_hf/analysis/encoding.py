"""Encoding of one session: the average trial, and what linear regression from behaviour adds to it.

Everything (smoothing, penalties, floors) is chosen for each unit, by the Poisson likelihood of left-out training
trials.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter1d
from sklearn.model_selection import KFold

from neds_hf.analysis.ridge import ridge_path
from neds_hf.data.trials import SessionTrials

FOLDS = 5
SMOOTHINGS = (1, 2, 4, 8)  # of the average trial: standard deviation of a Gaussian, in bins
FLOORS = (0.1, 0.2, 0.4)  # lowest predicted rate, as a fraction of the unit's mean

# Regressors
LAGS = range(-12, 25, 4)  # bins; movement at positive lags is still to come
BASIS_SPACING = 16  # bins between the temporal basis functions of a categorical behaviour


def split_trials(num_trials: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fitted and left-out trials of every fold."""
    return list(KFold(FOLDS, shuffle=True, random_state=seed).split(np.empty(num_trials)))


def encode_linear(train: SessionTrials, test: SessionTrials, seed: int) -> np.ndarray:
    """The average trial plus ridge regression from behaviour: ln expected counts per bin (B, T, N)."""
    counts = train.spike_counts.astype(np.float32)
    design, test_design = behavior_design(train, test)
    smoothing = best_smoothing(counts, seed)

    def candidates(design: np.ndarray, counts: np.ndarray, predicted: np.ndarray) -> Iterator[np.ndarray]:
        average = average_trial(counts, smoothing)
        for beyond in ridge_path(design, counts - counts.mean(0), predicted):
            for floor in FLOORS:
                yield with_floor(average + beyond, floor * average.mean(0))

    log_likelihoods = sum(
        log_likelihoods_of(candidates(design[fitted], counts[fitted], design[rest]), counts[rest])
        for fitted, rest in split_trials(len(counts), seed)
    )
    return np.log(each_units(candidates(design, counts, test_design), log_likelihoods.argmax(0)))


def best_smoothing(counts: np.ndarray, seed: int) -> np.ndarray:
    """(N,) of `SMOOTHINGS`, with which the average of some training trials predicts the others best."""
    log_likelihoods = 0
    for fitted, rest in split_trials(len(counts), seed):
        averages = (average_trial(counts[fitted], np.full(counts.shape[2], s)) for s in SMOOTHINGS)
        log_likelihoods += log_likelihoods_of(averages, counts[rest])
    return np.array(SMOOTHINGS)[log_likelihoods.argmax(0)]


def average_trial(counts: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
    """Expected counts per bin (T, N): the average of trials (B, T, N), smoothed by each unit's (N,).

    Nowhere less than a tenth of the unit's mean, which is taken to be at least one spike in all trials.
    """
    average = counts.mean(0, dtype=np.float64)
    for s in np.unique(smoothing):
        average[:, smoothing == s] = gaussian_filter1d(average[:, smoothing == s], s, axis=0)
    mean = np.maximum(average.mean(0), 1 / (counts.shape[0] * counts.shape[1]))
    return np.maximum(average, FLOORS[0] * mean).astype(np.float32)


def with_floor(rates: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Rates (B, T, N), none below its unit's floor (N,), as float32."""
    return np.maximum(rates, floor, dtype=np.float32)


def log_likelihoods_of(candidates: Iterable[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """(candidates, N) Poisson log-likelihood, less ln k!, of counts (B, T, N) under rates (T, N) or (B, T, N)."""
    return np.array(
        [
            np.einsum("btn,btn->n", counts, np.log(np.broadcast_to(rates, counts.shape)))
            - np.broadcast_to(rates, counts.shape).sum((0, 1), dtype=np.float64)
            for rates in candidates
        ]
    )


def each_units(candidates: Iterable[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Of rates (B, T, N), for every unit those of the candidate with the number `chosen` (N,)."""
    rates = None
    for number, candidate in enumerate(candidates):
        rates = np.empty_like(candidate) if rates is None else rates
        rates[..., chosen == number] = candidate[..., chosen == number]
    return rates


def behavior_design(train: SessionTrials, test: SessionTrials) -> tuple[np.ndarray, np.ndarray]:
    """Regressors of spikes in training and test trials: (B, T, F) each, of zero mean in every bin, variance one.

    Classes times raised cosines over the trial; continuous behaviours, and their ranks among the values of
    training trials, at `LAGS`, the trial's first and last value standing for what came before and after. What a
    trial lacks is zero: it says nothing beyond the average trial. So is, in all trials, what never changes in the
    training trials, or is in none of them. These alone give means, variances and ranks.
    """
    design, test_design = _regressors(train, train), _regressors(test, train)
    present = ~np.isnan(design)
    mean = np.nansum(design, axis=0) / np.maximum(present.sum(0), 1)
    design, test_design = np.nan_to_num(design - mean), np.nan_to_num(test_design - mean)
    spread = design.std((0, 1))
    spread[spread <= 1e-5 * np.abs(mean).max(0)] = np.inf  # the scale is not known
    return design / spread, test_design / spread


def temporal_basis(num_bins: int) -> np.ndarray:
    """(T, K) raised cosines that span a trial, one everywhere in sum."""
    centers = np.linspace(0, num_bins - 1, max(2, round(num_bins / BASIS_SPACING) + 1))
    distance = (np.arange(num_bins)[:, None] - centers) / max(centers[1], 1)
    return (1 + np.cos(np.pi * np.clip(distance, -1, 1))) / 2


def _regressors(trials: SessionTrials, train: SessionTrials) -> np.ndarray:
    """(B, T, F), NaN where a trial lacks the behaviour."""
    num_bins = trials.spike_counts.shape[1]
    basis = temporal_basis(num_bins)
    lagged = np.clip(np.arange(num_bins)[:, None] + np.array(LAGS), 0, num_bins - 1)
    columns = [np.zeros((*trials.spike_counts.shape[:2], 0), np.float32)]
    for name, classes in trials.classes.items():
        values = trials.categorical[name][:, None]
        one_hot = np.where(values < 0, np.nan, values == np.arange(len(classes)))
        columns.append(np.einsum("bc,tk->btck", one_hot, basis).reshape(len(values), num_bins, -1))
    for name, values in trials.continuous.items():
        known = np.sort(train.continuous[name], axis=None)
        known = known[~np.isnan(known)]
        ranks = np.searchsorted(known, values) / max(len(known), 1)
        for regressor in (values, np.where(np.isnan(values), np.nan, ranks)):
            columns.append(gaussian_filter1d(regressor.astype(np.float64), 1.5, axis=1)[:, lagged])
    return np.concatenate(columns, axis=2, dtype=np.float32)
