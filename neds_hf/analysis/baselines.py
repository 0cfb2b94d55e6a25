"""What linear models of one session reach: ridge and logistic regression, strengths by cross-validation.

They see the same trials as NEDS. Decoding uses all bins of all units; encoding uses the behaviour from before
and after a bin. All choices (smoothing, penalties, floors) are made on training trials.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter1d
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError

FOLDS = 5
SMOOTHINGS = (1, 2, 4)  # standard deviation of a Gaussian, in bins
STRENGTHS = np.logspace(-2, 2, 7)  # penalty relative to the total variance (decoding) or to trials x bins

# Encoding
LAGS = range(-12, 25, 4)  # bins; movement at positive lags is still to come
BASIS_SPACING = 10  # bins between the temporal basis functions of a categorical behaviour
FLOORS = (0.1, 0.2, 0.4)  # lowest predicted rate, as a fraction of the unit's mean

# Decoding of categorical behaviours
NUM_WINDOWS = (1, 2, 5)
INVERSE_PENALTIES = np.logspace(0, 4, 5)


def linear_baseline(train: SessionTrials, test: SessionTrials, seed: int = 0) -> dict[str, np.ndarray]:
    """Fit the linear models on `train` and predict `test`, trials of the same session.

    Args:
        train, test: Trials; a behaviour that is missing in a trial is neither used nor predicted from there.
        seed: Shuffles the trials into folds.

    Returns:
        `log_rates` (B, T, N): ln expected counts per bin, from all behaviours;
        every continuous behaviour: (B, T); every categorical one: class probabilities (B, C).
        A behaviour without training trials is NaN.

    Raises:
        NEDSError: Fewer training trials than folds.
    """
    if len(train.spike_counts) < FOLDS:
        raise NEDSError(
            f"{train.session}: the linear baseline needs {FOLDS} training trials, found {len(train.spike_counts)}"
        )
    predictions = {"log_rates": encode(train, test, seed)}
    predictions |= decode_continuous(train, test)
    for name, classes in train.classes.items():
        predictions[name] = decode_categorical(
            train.spike_counts, train.categorical[name], test.spike_counts, len(classes), seed
        )
    return predictions


def decode_continuous(train: SessionTrials, test: SessionTrials) -> dict[str, np.ndarray]:
    """Ridge regression from smoothed √counts of all bins and units to every bin: name to (B, T).

    √ makes the variance of Poisson counts even. The smoothing of counts, and a penalty for every predicted bin,
    are those with the least error on left-out training trials. What is fitted is the behaviour smoothed by one
    bin: noise of single bins cannot be predicted, and hides how much penalty the rest needs.
    """
    best_score = dict.fromkeys(train.continuous, -np.inf)
    predictions = {
        name: np.full((len(test.spike_counts), values.shape[1]), np.nan)
        for name, values in train.continuous.items()
    }
    for smoothing in SMOOTHINGS:
        features, test_features = (
            gaussian_filter1d(np.sqrt(trials.spike_counts, dtype=np.float64), smoothing, axis=1).reshape(
                len(trials.spike_counts), -1
            )
            for trials in (train, test)
        )
        penalties = STRENGTHS * max(features.var(0).sum(), 1e-6)  # never zero, should all units be silent
        for name, values in train.continuous.items():
            present = ~np.isnan(values).any(1)
            if present.sum() < 2:
                continue
            smooth = gaussian_filter1d(values[present].astype(np.float64), 1, axis=1)
            ridge = RidgeCV(penalties, alpha_per_target=True).fit(features[present], smooth)
            if np.mean(ridge.best_score_) > best_score[name]:
                best_score[name] = np.mean(ridge.best_score_)
                predictions[name] = ridge.predict(test_features).reshape(predictions[name].shape)
    return predictions


def decode_categorical(
    train_counts: np.ndarray, train_classes: np.ndarray, test_counts: np.ndarray, num_classes: int, seed: int
) -> np.ndarray:
    """Logistic regression from √counts in a few windows of the trial: class probabilities (B, C).

    The windows and the penalty are those with the best likelihood on left-out training trials. A class with a
    single training trial cannot be cross-validated: its probability is 0.
    """
    occurrences = np.bincount(train_classes[train_classes >= 0], minlength=num_classes)
    usable = np.flatnonzero(occurrences >= 2)
    probabilities = np.full((len(test_counts), num_classes), 0.0 if len(usable) else np.nan)
    if len(usable) < 2:
        probabilities[:, usable] = 1
        return probabilities
    present = np.isin(train_classes, usable)
    folds = StratifiedKFold(min(FOLDS, occurrences[usable].min()), shuffle=True, random_state=seed)
    searches = []
    for num_windows in NUM_WINDOWS:
        features, test_features = _rotated(
            _window_features(train_counts[present], num_windows), _window_features(test_counts, num_windows)
        )
        search = GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": INVERSE_PENALTIES},
            scoring="neg_log_loss",
            cv=folds,
        ).fit(features, train_classes[present])
        searches.append((search.best_score_, search.predict_proba(test_features)))
    probabilities[:, usable] = max(searches, key=lambda scored: scored[0])[1]
    return probabilities


def _window_features(counts: np.ndarray, num_windows: int) -> np.ndarray:
    """√counts of every unit in equal windows of the trial: (B, windows x N)."""
    windows = np.array_split(counts, num_windows, axis=1)
    summed = np.stack([window.sum(1, dtype=np.float64) for window in windows], 1)
    return np.sqrt(summed).reshape(len(counts), -1)


def _rotated(features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features in the coordinates of the training trials' principal axes, of mean norm one.

    A penalised regression is the same in any rotation, and trials are fewer than features: this is the fast one.
    """
    mean, spread = features.mean(0), features.std(0)
    spread[spread == 0] = 1
    features, test_features = (features - mean) / spread, (test_features - mean) / spread
    left, singular, axes = np.linalg.svd(features, full_matrices=False)
    norm = max(np.linalg.norm(singular) / np.sqrt(len(features)), 1e-12)
    return left * singular / norm, test_features @ axes.T / norm


def encode(train: SessionTrials, test: SessionTrials, seed: int) -> np.ndarray:
    """Each unit's average trial plus ridge regression from behaviour: ln expected counts per bin (B, T, N).

    The smoothing of the average trial, the penalty and the floor of the rate are, for each unit, those with the
    best Poisson likelihood on left-out training trials.
    """
    counts = train.spike_counts.astype(np.float32)
    design, test_design = behavior_design(train), behavior_design(test)
    log_likelihood = np.zeros((len(SMOOTHINGS) * len(STRENGTHS) * len(FLOORS), counts.shape[2]))
    for fitted, left_out in KFold(FOLDS, shuffle=True, random_state=seed).split(counts):
        candidates = _candidate_rates(design[fitted], counts[fitted], design[left_out])
        for index, rates in enumerate(candidates):
            log_likelihood[index] += (counts[left_out] * np.log(rates) - rates).sum((0, 1))
    best = log_likelihood.argmax(0)
    log_rates = np.empty((len(test.spike_counts), *counts.shape[1:]), np.float32)
    for index, rates in enumerate(_candidate_rates(design, counts, test_design)):
        log_rates[..., best == index] = np.log(rates[..., best == index])
    return log_rates


def behavior_design(trials: SessionTrials) -> np.ndarray:
    """Regressors of spikes: (B, T, features), NaN where a trial lacks the behaviour.

    Classes times raised cosines over the trial, and continuous behaviours at `LAGS`, the trial's first and last
    value standing for what came before and after.
    """
    num_bins = trials.spike_counts.shape[1]
    bins = np.arange(num_bins)
    num_bases = max(2, round(num_bins / BASIS_SPACING) + 1)
    centers = np.linspace(0, num_bins - 1, num_bases)
    distance = np.clip((bins[:, None] - centers) / max(centers[1], 1), -1, 1)
    basis = (1 + np.cos(np.pi * distance)) / 2
    columns = []
    for name, classes in trials.classes.items():
        values = trials.categorical[name][:, None]
        one_hot = np.where(values < 0, np.nan, values == np.arange(len(classes)))
        columns.append(np.einsum("bc,tk->btck", one_hot, basis).reshape(len(values), num_bins, -1))
    for values in trials.continuous.values():
        smooth = gaussian_filter1d(values.astype(np.float64), 1.5, axis=1)
        lagged = np.clip(bins[:, None] + np.array(LAGS), 0, num_bins - 1)
        columns.append(smooth[:, lagged])
    return np.concatenate([np.zeros((*trials.spike_counts.shape[:2], 0)), *columns], axis=2)


def _candidate_rates(design: np.ndarray, counts: np.ndarray, test_design: np.ndarray) -> Iterator[np.ndarray]:
    """Rates of test trials (B, T, N) for every smoothing, penalty and floor, in this fixed order."""
    num_trials, num_bins, num_units = counts.shape
    average_design, average_counts = _mean_of_present(design), counts.mean(0, dtype=np.float64)
    # A missing behaviour says what the average of the others says: nothing beyond the average trial.
    design, test_design = np.nan_to_num(design - average_design), np.nan_to_num(test_design - average_design)
    design = design.reshape(num_trials * num_bins, -1)
    spread = design.std(0)
    spread[spread == 0] = 1
    design, test_design = design / spread, test_design / spread
    variances, axes = np.linalg.eigh(design.T @ design)
    projected = axes.T @ (design.T @ (counts - average_counts).reshape(-1, num_units))
    test_design = (test_design @ axes).astype(np.float32)
    # No unit is taken to be more silent than one spike in all training trials.
    mean = np.maximum(average_counts.mean(0), 1 / (num_trials * num_bins))
    for strength in STRENGTHS:
        penalty = strength * num_trials * num_bins
        beyond = test_design @ (projected / (variances + penalty)[:, None]).astype(np.float32)
        for smoothing, floor in product(SMOOTHINGS, FLOORS):
            rates = gaussian_filter1d(average_counts, smoothing, axis=0).astype(np.float32) + beyond
            yield np.maximum(rates, (floor * mean).astype(np.float32))


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; 0 where all is."""
    present = ~np.isnan(values)
    return np.nansum(values, axis=0) / np.maximum(present.sum(0), 1)
