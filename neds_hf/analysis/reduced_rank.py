"""Reduced-rank regression of one session, or of several that share what does not depend on their units.

- Decoding: behaviour is Σ over ranks and bins of U[unit, rank] · V[bin, rank, bin or class of the behaviour] ·
  activity. After Zhang et al. 2024, "Exploiting correlations across trials and behavioral sessions to improve
  neural decoding".
- Encoding: activity is Σ over ranks of U[rank, unit] · V[regressor, rank] · regressor. After Posani et al., whom
  the paper cites; the regressors are those of the other baselines.

U is each session's own, V is shared by all sessions. Rank and penalty are those with the least error on left-out
training trials.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch.nn.functional import cross_entropy

from neds_hf.analysis.decoding import principal_components, smooth_roots
from neds_hf.analysis.encoding import (
    FLOORS,
    average_trial,
    behavior_design,
    best_smoothing,
    each_units,
    log_likelihoods_of,
    split_trials,
    with_floor,
)
from neds_hf.data.trials import SessionTrials

MAX_ITERATIONS = 100

# Decoding
DECODING_RANKS = (2, 4, 8)
# Of |U|² and |V|², activity and behaviour having norm one a trial.
DECODING_PENALTIES = (0.001, 0.003, 0.01, 0.03)
SMOOTHING, STEP = 2, 2  # bins
NUM_COMPONENTS = 60  # principal components of the units that stand for them
DECODING_FOLDS = 3

# Encoding
ENCODING_RANKS = (3, 6, 12)
ENCODING_PENALTIES = (0.01, 0.03, 0.1)  # of |U|² and |V|², regressors and units having variance one
GAINS = (0, 0.5, 1)  # share of what is beyond the average trial that a unit is predicted to have


def reduced_rank(
    trains: Sequence[SessionTrials], tests: Sequence[SessionTrials], seed: int
) -> list[dict[str, np.ndarray]]:
    """Fit sessions together, predict each one's test trials.

    Args:
        trains, tests: Training and test trials of each session, all of the same number of bins and behaviours.
        seed: Of the folds and of the initial weights.

    Returns:
        Each session's `log_rates` (B, T, N), continuous behaviours (B, T) and class probabilities (B, C) of
        categorical ones. A behaviour of fewer than `DECODING_FOLDS` training trials is NaN.
    """
    predictions = [{"log_rates": log_rates} for log_rates in encode(trains, tests, seed)]
    features = [_decoding_features(train, test) for train, test in zip(trains, tests)]
    for name in (*trains[0].continuous, *trains[0].classes):
        for predicted, decoded in zip(predictions, decode(name, features, trains, seed)):
            predicted[name] = decoded
    return predictions


def encode(trains: Sequence[SessionTrials], tests: Sequence[SessionTrials], seed: int) -> list[np.ndarray]:
    """The average trial and what behaviour adds to it: ln expected counts per bin (B, T, N) of each session.

    Each unit's smoothing of the average, floor of the rate and gain are those with the best Poisson likelihood of
    left-out training trials.
    """
    sessions = [_Encoding(train, test, seed) for train, test in zip(trains, tests)]
    grid = list(product(ENCODING_RANKS, ENCODING_PENALTIES))
    errors, weights = np.zeros(len(grid)), []
    for fold in range(len(sessions[0].folds)):
        fitted = [session.sums(session.folds[fold][0]) for session in sessions]
        left_out = [session.sums(session.folds[fold][1]) for session in sessions]
        weights.append([fit_encoding(fitted, rank, penalty, seed) for rank, penalty in grid])
        for place, of_sessions in enumerate(weights[-1]):
            for w, (num_rows, scatter, covariance) in zip(of_sessions, left_out):
                errors[place] += num_rows * ((w * (scatter @ w)).sum() - 2 * (w * covariance).sum())
    best = errors.argmin()
    final = fit_encoding([session.sums(slice(None)) for session in sessions], *grid[best], seed)
    return [
        session.log_rates([of_fold[best][place] for of_fold in weights], final[place])
        for place, session in enumerate(sessions)
    ]


class _Encoding:
    """One session's regressors and counts."""

    def __init__(self, train: SessionTrials, test: SessionTrials, seed: int) -> None:
        self.counts = train.spike_counts.astype(np.float32)
        self.design, self.test_design = behavior_design(train, test)
        self.folds = split_trials(len(self.counts), seed)
        self.smoothing = best_smoothing(self.counts, seed)
        # The variance of counts is near their mean.
        self.spread = np.sqrt(np.maximum(self.counts.mean((0, 1)), 1 / self.counts[..., 0].size))

    def sums(self, trials: np.ndarray | slice) -> tuple[int, np.ndarray, np.ndarray]:
        """Number of bins, mean scatter (F, F) of the regressors, and their mean products with the units (F, N)."""
        design, counts = self.design[trials], self.counts[trials]
        beyond = (counts - counts.mean(0)) / self.spread
        num_rows = design.shape[0] * design.shape[1]  # of regressors there may be none
        design, beyond = (values.reshape(num_rows, -1) for values in (design, beyond))
        return (
            num_rows,
            (design.T @ design / num_rows).astype(float),
            (design.T @ beyond / num_rows).astype(float),
        )

    def log_rates(self, of_folds: list[np.ndarray], final: np.ndarray) -> np.ndarray:
        """Of test trials, by the weights `final` (F, N); those of each fold choose floor and gain."""
        log_likelihoods = sum(
            log_likelihoods_of(self._candidates(self.counts[fitted], self.design[rest], w), self.counts[rest])
            for (fitted, rest), w in zip(self.folds, of_folds)
        )
        candidates = self._candidates(self.counts, self.test_design, final)
        return np.log(each_units(candidates, log_likelihoods.argmax(0)))

    def _candidates(
        self, counts: np.ndarray, design: np.ndarray, weights: np.ndarray
    ) -> Iterator[np.ndarray]:
        average = average_trial(counts, self.smoothing)
        beyond = design @ (weights * self.spread).astype(np.float32)
        for gain, floor in product(GAINS, FLOORS):
            yield with_floor(average + gain * beyond, floor * average.mean(0))


def fit_encoding(
    sums: Sequence[tuple[int, np.ndarray, np.ndarray]], rank: int, penalty: float, seed: int
) -> list[np.ndarray]:
    """Weights V U (F, N) of each session with the least squared error from its `_Encoding.sums`."""
    generator = torch.Generator().manual_seed(seed)
    sums = [tuple(map(torch.from_numpy, of_session[1:])) for of_session in sums]
    num_regressors = len(sums[0][0])

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)

    shared = random(num_regressors, rank)
    own = [random(rank, covariance.shape[1]) for _, covariance in sums]

    def loss() -> torch.Tensor:
        total = len(own) * penalty * (shared**2).sum()
        for u, (scatter, covariance) in zip(own, sums):
            total = total + ((shared.T @ scatter @ shared @ u) * u).sum() + penalty * (u**2).sum()
            total = total - 2 * ((shared.T @ covariance) * u).sum()
        return total

    _minimize([shared, *own], loss)
    return [(shared @ u).numpy() for u in own]


def decode(
    name: str,
    features: Sequence[tuple[torch.Tensor, torch.Tensor]],
    trains: Sequence[SessionTrials],
    seed: int,
) -> list[np.ndarray]:
    """One behaviour of each session: (B, T), or class probabilities (B, C).

    Args:
        name: The behaviour.
        features: Each session's `_decoding_features`.
        trains: Each session's training trials.
        seed: Of the folds and of the initial weights.
    """
    categorical = name in trains[0].classes
    inputs, targets, scales, known = [], [], [], []
    for place, train in enumerate(trains):
        values = train.categorical[name] if categorical else train.continuous[name]
        present = values >= 0 if categorical else ~np.isnan(values).any(1)
        if present.sum() < DECODING_FOLDS:
            continue
        known.append(place)
        values = values[present]
        inputs.append(features[place][0][torch.from_numpy(present)])
        if not categorical:
            values = gaussian_filter1d(values, 1, axis=1)  # noise of single bins cannot be predicted
            spread = np.sqrt(((values - values.mean(0)) ** 2).sum(1).mean())
            scales.append(max(spread, 1e-6 * np.abs(values).max()) or 1.0)
            values = values / scales[-1]
        targets.append(torch.from_numpy(values))
    size = len(trains[0].classes[name]) if categorical else trains[0].spike_counts.shape[1]
    decoded = [np.full((len(test_features), size), np.nan) for _, test_features in features]
    decoders = _best_decoders(inputs, targets, size, seed) if known else []
    for number, (place, decoder) in enumerate(zip(known, decoders)):
        predicted = decoder(features[place][1])
        decoded[place] = predicted.softmax(1).numpy() if categorical else predicted.numpy() * scales[number]
    return decoded


def _decoding_features(train: SessionTrials, test: SessionTrials) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T', K) activity of training and test trials, of mean squared norm one a training trial."""
    features, test_features = principal_components(
        *(smooth_roots(trials.spike_counts, SMOOTHING)[:, ::STEP] for trials in (train, test)), NUM_COMPONENTS
    )
    norm = max(np.sqrt((features**2).sum((1, 2)).mean()), 1e-6)
    return tuple(torch.from_numpy((values / norm).astype(np.float32)) for values in (features, test_features))


Decoder = Callable[[torch.Tensor], torch.Tensor]  # (B, T', K) to (B, D)


def _best_decoders(
    inputs: list[torch.Tensor], targets: list[torch.Tensor], size: int, seed: int
) -> list[Decoder]:
    """Each session's decoder, of the rank and penalty that have the least error on left-out trials of all."""
    orders = [torch.randperm(len(real), generator=torch.Generator().manual_seed(seed)) for real in targets]
    grid = list(product(DECODING_RANKS, DECODING_PENALTIES))
    errors = np.zeros(len(grid))
    for fold in range(DECODING_FOLDS):
        left_out = [order[fold::DECODING_FOLDS] for order in orders]
        fitted = [
            torch.ones(len(order), dtype=torch.bool).index_fill(0, rows, False)
            for order, rows in zip(orders, left_out)
        ]
        some_inputs, some_targets = (
            [values[rows] for values, rows in zip(of_sessions, fitted)] for of_sessions in (inputs, targets)
        )
        for place, (rank, penalty) in enumerate(grid):
            decoders = fit_decoding(some_inputs, some_targets, size, rank, penalty, seed)
            errors[place] += sum(
                float(_error(decoder(x[rows]), real[rows]))
                for decoder, x, real, rows in zip(decoders, inputs, targets, left_out)
            )
    return fit_decoding(inputs, targets, size, *grid[errors.argmin()], seed)


def fit_decoding(
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    size: int,
    rank: int,
    penalty: float,
    seed: int,
) -> list[Decoder]:
    """Decoders with the least error and penalty, whose V (T' x rank, D) all sessions share.

    Args:
        inputs: (B, T', K) of each session.
        targets: (B, D) of each session: squared error; or class indices (B,): cross-entropy.
        size: D, or the number of classes.
        rank: Columns of each session's U (K, rank).
        penalty: α of mean error of a trial + α (|V|² + mean over sessions of |U|²).
        seed: Of the initial weights.
    """
    generator = torch.Generator().manual_seed(seed)
    num_bins = inputs[0].shape[1]
    shared = 0.1 * torch.randn(num_bins * rank, size, generator=generator) / (num_bins * rank) ** 0.5
    own = [torch.randn(x.shape[2], rank, generator=generator) / x.shape[2] ** 0.5 for x in inputs]
    biases = [_bias(real, size) for real in targets]
    num_trials = sum(map(len, targets))

    def loss() -> torch.Tensor:
        error = sum(
            _error((x @ u).flatten(1) @ shared + bias, real)
            for x, u, bias, real in zip(inputs, own, biases, targets)
        )
        decay = (shared**2).sum() + sum((u**2).sum() for u in own) / len(own)
        return error / num_trials + penalty * decay

    _minimize([shared, *own, *biases], loss)

    def decoder(u: torch.Tensor, bias: torch.Tensor) -> Decoder:
        return lambda x: (x @ u).flatten(1) @ shared + bias

    return [decoder(u, bias) for u, bias in zip(own, biases)]


def _error(predicted: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Squared error or, of classes, cross-entropy, summed over trials."""
    if real.dtype == torch.long:
        return cross_entropy(predicted, real, reduction="sum")
    return ((predicted - real) ** 2).sum()


def _bias(real: torch.Tensor, size: int) -> torch.Tensor:
    """(D,) what is predicted without activity, to begin with."""
    if real.dtype == torch.long:
        return torch.log(torch.bincount(real, minlength=size) + 0.5)
    return real.mean(0)


def _minimize(weights: list[torch.Tensor], loss: Callable[[], torch.Tensor]) -> None:
    """Change the weights to a minimum of the loss."""
    for tensor in weights:
        tensor.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        weights,
        max_iter=MAX_ITERATIONS,
        history_size=10,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    for tensor in weights:
        tensor.requires_grad_(False)
