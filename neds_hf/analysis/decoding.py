"""Linear decoding of one session: ridge regression for continuous behaviours, logistic for categorical ones.

Everything (smoothing, windows, penalties, which of two regressions) is chosen on left-out training trials.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from neds_hf.analysis.ridge import ridge_path, rotated
from neds_hf.data.trials import SessionTrials

FOLDS = 5
SMOOTHINGS = (1, 2, 4)  # standard deviation of a Gaussian, in bins

# The regression that is the same in every bin.
LAGS = range(-12, 13, 3)  # bins
NUM_COMPONENTS = 60

# Categorical behaviours.
NUM_WINDOWS = (1, 2, 5, 10)
INVERSE_PENALTIES = np.logspace(0, 4, 9)


def smooth_roots(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """√counts (B, T, N), which have an even variance, smoothed over bins."""
    return gaussian_filter1d(np.sqrt(counts, dtype=np.float64), smoothing, axis=1)


def principal_components(
    values: np.ndarray, test_values: np.ndarray, num_components: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is beyond the average trial, in the first principal components of the units.

    Args:
        values, test_values: (B, T, N) of training and test trials; the first alone give average and components.

    Returns:
        (B, T, K) and (B of the test, T, K) with K components, or N where that is less.
    """
    average = values.mean(0)
    values, test_values = values - average, test_values - average
    flat = values.reshape(-1, values.shape[2])
    _, axes = np.linalg.eigh(flat.T @ flat)
    axes = axes[:, ::-1][:, :num_components]
    return values @ axes, test_values @ axes


def decode_continuous(train: SessionTrials, test: SessionTrials, seed: int) -> dict[str, np.ndarray]:
    """Ridge regression of every continuous behaviour: name to (B, T).

    There are two: from smoothed √counts of all bins and units to every bin, with a penalty for each bin; and,
    beyond the average trial, from the units around a bin to it, the same in all bins. The first, the second or
    their mean is used, whichever has the least error on left-out training trials. A behaviour of fewer than
    `FOLDS` training trials is NaN.
    """
    both = (train.spike_counts, test.spike_counts)
    all_bins = [
        rotated(*(smooth_roots(counts, smoothing).reshape(len(counts), -1) for counts in both))
        for smoothing in SMOOTHINGS
    ]
    components = principal_components(*(smooth_roots(counts, 2) for counts in both), NUM_COMPONENTS)
    bins_around = np.clip(np.arange(both[0].shape[1])[:, None] + np.array(LAGS), 0, both[0].shape[1] - 1)
    lagged = [values[:, bins_around].reshape(*values.shape[:2], -1) for values in components]
    predictions = {}
    for name, values in train.continuous.items():
        present = ~np.isnan(values).any(1)
        predictions[name] = np.full((len(both[1]), values.shape[1]), np.nan)
        if present.sum() < FOLDS:
            continue
        values = values[present].astype(np.float64)
        # Noise of single bins cannot be predicted, and hides how much penalty each bin needs.
        smooth = gaussian_filter1d(values, 1, axis=1)
        folds = list(KFold(FOLDS, shuffle=True, random_state=seed).split(values))
        candidates = [_from_all_bins(*_centered(x[present], test_x), smooth, folds) for x, test_x in all_bins]
        left_out, predicted = min(candidates, key=lambda both: _error(both[0], smooth))
        left_out_lagged, predicted_lagged = _from_bins_around(
            *_centered(lagged[0][present], lagged[1]), values, folds
        )
        errors = {
            share: _error(share * left_out + (1 - share) * left_out_lagged, smooth) for share in (1, 0.5, 0)
        }
        share = min(errors, key=errors.get)
        predictions[name] = share * predicted + (1 - share) * predicted_lagged
    return predictions


def _centered(features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less the mean of the training trials that have the behaviour."""
    center = features.mean(0)
    return features - center, test_features - center


def _error(predicted: np.ndarray, real: np.ndarray) -> float:
    return ((predicted - real) ** 2).sum()


def _from_all_bins(
    features: np.ndarray, test_features: np.ndarray, values: np.ndarray, folds: list
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of left-out training trials, and of test trials."""
    left_out = []
    for fitted, rest in folds:
        mean = values[fitted].mean(0)
        center = features[fitted].mean(0)
        path = ridge_path(features[fitted] - center, values[fitted] - mean, features[rest] - center)
        left_out.append([mean + predicted for predicted in path])
    rows = np.concatenate([rest for _, rest in folds])
    left_out = np.concatenate(left_out, axis=1)
    best = ((left_out - values[rows]) ** 2).sum(1).argmin(0)  # of every bin
    mean, bins = values.mean(0), np.arange(values.shape[1])
    predicted = np.array([mean + p for p in ridge_path(features, values - mean, test_features)])
    return left_out[best, :, bins].T[np.argsort(rows)], predicted[best, :, bins].T


def _from_bins_around(
    features: np.ndarray, test_features: np.ndarray, values: np.ndarray, folds: list
) -> tuple[np.ndarray, np.ndarray]:
    """The same, from features (B, T, F) of each bin, with the same weights in all."""
    left_out = []
    for fitted, rest in folds:
        mean = values[fitted].mean(0)
        path = ridge_path(features[fitted], values[fitted] - mean, features[rest])
        left_out.append([gaussian_filter1d(mean, 1) + predicted[..., 0] for predicted in path])
    rows = np.concatenate([rest for _, rest in folds])
    left_out = np.concatenate(left_out, axis=1)
    best = ((left_out - values[rows]) ** 2).sum((1, 2)).argmin()
    mean = values.mean(0)
    predicted = list(ridge_path(features, values - mean, test_features))[best][..., 0]
    return left_out[best][np.argsort(rows)], gaussian_filter1d(mean, 1) + predicted


def decode_categorical(train: SessionTrials, test: SessionTrials, seed: int) -> dict[str, np.ndarray]:
    """Logistic regression from √counts in a few windows of the trial: name to class probabilities (B, C).

    The windows and the penalty are those with the best likelihood on left-out training trials. A class with a
    single training trial cannot be cross-validated: its probability is 0. Without training trials all is NaN.
    """
    return {
        name: _class_probabilities(
            train.spike_counts, train.categorical[name], test.spike_counts, len(classes), seed
        )
        for name, classes in train.classes.items()
    }


def _class_probabilities(
    train_counts: np.ndarray, train_classes: np.ndarray, test_counts: np.ndarray, num_classes: int, seed: int
) -> np.ndarray:
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
        features, test_features = rotated(
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
    windows = np.array_split(counts, min(num_windows, counts.shape[1]), axis=1)
    summed = np.stack([window.sum(1, dtype=np.float64) for window in windows], 1)
    return np.sqrt(summed).reshape(len(counts), -1)
