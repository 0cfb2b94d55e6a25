"""What the linear decoding baseline is made of, against scikit-learn and on arrays of a few trials."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from neds_hf.analysis.decoding import (
    _from_all_bins,
    _from_bins_around,
    _window_features,
    principal_components,
    smooth_roots,
)
from neds_hf.analysis.ridge import STRENGTHS


def ridge(features, values, new, strength):
    """scikit-learn's, with the penalty in its units."""
    centred = features - features.mean(0)
    alpha = strength * (centred**2).sum() / features.shape[1]
    return Ridge(alpha=alpha).fit(features, values).predict(new)


def test_roots_are_smoothed_over_bins():
    counts = np.zeros((1, 9, 2), np.uint8)
    counts[0, 4] = 9, 1
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    np.testing.assert_allclose(smooth_roots(counts, 1)[0], np.outer(kernel / kernel.sum(), [3, 1]), atol=1e-6)


def test_counts_of_windows_are_summed_before_their_root():
    counts = np.array([[[1, 0], [2, 0], [1, 4], [9, 200], [0, 200]]], np.uint8)
    assert _window_features(counts, 2).tolist() == [[2, 2, 3, 20]]
    assert _window_features(counts, 1) ** 2 == pytest.approx(np.array([[13, 404]]))
    assert _window_features(counts, 10).shape == (1, 5 * 2)  # there are five bins


def test_principal_components_are_of_what_is_beyond_the_average_training_trial():
    rng = np.random.default_rng(0)
    average, size = rng.normal(size=(4, 3)), rng.normal(size=(50, 4, 1))
    values = average + size * [3, 0, 4] + 0.01 * rng.normal(size=(50, 4, 3))
    new = average + np.array([[[3.0, 0, 4]] * 4])
    first, of_new = principal_components(values, new, 1)
    assert first.shape == (50, 4, 1)
    np.testing.assert_allclose(np.abs(first), 5 * np.abs(size - size.mean(0)), atol=0.1)
    np.testing.assert_allclose(np.abs(of_new[..., 0]), 5 * np.abs(1 - size.mean(0)).T, atol=0.1)
    every, _ = principal_components(values, new, 7)
    beyond = values - values.mean(0)
    np.testing.assert_allclose((every**2).sum(2), (beyond**2).sum(2))


@pytest.fixture
def folds():
    return list(KFold(4, shuffle=True, random_state=0).split(np.empty(20)))


def test_every_bin_has_the_penalty_that_predicts_left_out_trials_best(folds):
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(20, 6)), rng.normal(size=(3, 6))
    features -= features.mean(0)
    values = features @ rng.normal(size=(6, 3)) * [0.1, 1, 10] + rng.normal(size=(20, 3)) + 5
    left_out = np.zeros((len(STRENGTHS), 20, 3))
    for place, strength in enumerate(STRENGTHS):
        for fitted, rest in folds:
            left_out[place, rest] = ridge(features[fitted], values[fitted], features[rest], strength)
    best = ((left_out - values) ** 2).sum(1).argmin(0)
    assert len(set(best)) > 1
    found, predicted = _from_all_bins(features, new, values, folds)
    for bin_, place in enumerate(best):
        np.testing.assert_allclose(found[:, bin_], left_out[place, :, bin_])
        expected = ridge(features, values, new, STRENGTHS[place])[:, bin_]
        np.testing.assert_allclose(predicted[:, bin_], expected)


def test_the_same_weights_serve_all_bins_beyond_the_smoothed_average(folds):
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(20, 5, 2)), rng.normal(size=(3, 5, 2))
    values = features @ [1.0, -2.0] + rng.normal(size=(20, 5)) + [5, 0, 0, 5, 0]

    def fitted_to(trials, x, strength):
        """What is beyond the average, without an intercept."""
        rows, mean = features[trials].reshape(-1, 2), values[trials].mean(0)
        model = Ridge(alpha=strength * (rows**2).sum() / 2, fit_intercept=False)
        model.fit(rows, (values[trials] - mean).ravel())
        return gaussian_filter1d(mean, 1) + model.predict(x.reshape(-1, 2)).reshape(len(x), 5)

    left_out = np.zeros((len(STRENGTHS), 20, 5))
    for place, strength in enumerate(STRENGTHS):
        for fitted, rest in folds:
            left_out[place, rest] = fitted_to(fitted, features[rest], strength)
    best = ((left_out - values) ** 2).sum((1, 2)).argmin()
    found, predicted = _from_bins_around(features, new, values, folds)
    np.testing.assert_allclose(found, left_out[best])
    np.testing.assert_allclose(predicted, fitted_to(slice(None), new, STRENGTHS[best]))
