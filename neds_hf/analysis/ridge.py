"""Ridge regression for a row of penalties at once."""

from collections.abc import Iterator
from math import prod

import numpy as np

STRENGTHS = np.logspace(-2, 2, 9)  # penalties, relative to the mean eigenvalue of the features' scatter


def ridge_path(features: np.ndarray, targets: np.ndarray, test_features: np.ndarray) -> Iterator[np.ndarray]:
    """Predictions of ridge regression without intercept, for every penalty of `STRENGTHS`.

    Args:
        features: (n, F) regressors, centred; (B, T, F) are B x T rows.
        targets: (n, D) centred, or (B, T, D).
        test_features: (..., F).

    Yields:
        (..., D) predictions from `test_features`.
    """
    features = features.reshape(prod(features.shape[:-1]), features.shape[-1])  # there may be none
    targets = targets.reshape(len(features), -1)
    variances, axes = np.linalg.eigh(features.T @ features)
    projected = axes.T @ (features.T @ targets)
    test_features = test_features @ axes
    for strength in STRENGTHS:
        penalty = max(strength * variances.mean(), 1e-9) if len(variances) else 1  # all may be zero
        yield test_features @ (projected / (np.maximum(variances, 0) + penalty)[:, None])


def rotated(features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred features in the coordinates of the training rows' principal axes, of mean norm one.

    A penalised regression is the same in any rotation, and trials are fewer than features: this is the fast one.

    Args:
        features, test_features: (n, F), (m, F).

    Returns:
        (n, min(n, F)) and (m, min(n, F)).
    """
    mean = features.mean(0)
    features, test_features = features - mean, test_features - mean
    left, singular, axes = np.linalg.svd(features, full_matrices=False)
    norm = max(np.linalg.norm(singular) / np.sqrt(len(features)), 1e-12)
    return left * singular / norm, test_features @ axes.T / norm
