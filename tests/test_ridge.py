"""Ridge regression against scikit-learn's, and the coordinates that make it fast."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from neds_hf.analysis.ridge import STRENGTHS, ridge_path, rotated


@pytest.fixture
def regression():
    """Features and targets of 20 trials of 3 bins, and features of 4 more."""
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(20, 3, 4)) * [1, 2, 0.1, 1], rng.normal(size=(4, 3, 4))
    return features, features @ rng.normal(size=(4, 2)) + rng.normal(size=(20, 3, 2)), new


def test_the_predictions_are_those_of_scikit_learn_for_every_penalty(regression):
    features, targets, new = regression
    x, y = features.reshape(60, 4), targets.reshape(60, 2)
    mean_eigenvalue = (x**2).sum() / 4
    for predicted, strength in zip(ridge_path(features, targets, new), STRENGTHS, strict=True):
        theirs = Ridge(alpha=strength * mean_eigenvalue, fit_intercept=False).fit(x, y)
        np.testing.assert_allclose(predicted, theirs.predict(new.reshape(12, 4)).reshape(4, 3, 2))


@pytest.mark.parametrize(
    "features, new", [(np.zeros((5, 3)), np.ones((2, 3))), (np.zeros((5, 0)), np.ones((2, 0)))]
)
def test_features_that_say_nothing_predict_nothing(features, new):
    for predicted in ridge_path(features, np.ones((5, 1)), new):
        assert predicted.tolist() == [[0], [0]]


@pytest.mark.parametrize("num_features", [3, 12])
def test_rotated_features_keep_the_angles_of_centred_ones_and_have_mean_norm_one(num_features):
    rng = np.random.default_rng(0)
    features, test_features = 5 + rng.normal(size=(8, num_features)), rng.normal(size=(3, num_features))
    ours, test_ours = rotated(features, test_features)
    assert ours.shape == (8, min(8, num_features)) and test_ours.shape == (3, min(8, num_features))
    centred, test_centred = features - features.mean(0), test_features - features.mean(0)
    size = (centred**2).sum(1).mean()
    np.testing.assert_allclose(ours @ ours.T, centred @ centred.T / size, atol=1e-12)
    np.testing.assert_allclose(test_ours @ ours.T, test_centred @ centred.T / size, atol=1e-12)


def test_rotated_features_that_never_change_are_zero():
    ours, test_ours = rotated(np.full((4, 2), 3.0), np.full((1, 2), 3.0))
    assert not ours.any() and not test_ours.any()
