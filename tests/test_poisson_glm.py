"""The Poisson GLM against scikit-learn's, and on spikes whose true rates are known."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor

from neds_hf.analysis.encoding import encode_linear
from neds_hf.analysis.poisson_glm import STRENGTHS, encode_poisson, fit_poisson
from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.functional import bits_per_spike

NUM_BINS = 20


def multiplicative(num_trials: int, seed: int) -> tuple[SessionTrials, np.ndarray]:
    """Units whose rates are multiplied, up or down, by wheel and choice (the last two by neither); their rates."""
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, 2, num_trials)
    onset = rng.integers(4, 16, num_trials)[:, None]
    wheel = np.exp(-0.5 * ((np.arange(NUM_BINS) - onset) / 3) ** 2) * rng.uniform(0.3, 1, (num_trials, 1))
    log_gains = wheel[..., None] * np.array([2.5, 2, 1.5, -2, -2.5, 2, 0, 0])
    log_gains += (choice[:, None, None] - 0.5) * np.array([2, -2, 1.5, 2, -1.5, 2, 0, 0])
    rates = 0.25 * np.exp(log_gains)
    return SessionTrials(
        session="made-up",
        trial_index=np.arange(num_trials),
        spike_counts=rng.poisson(rates).astype(np.uint8),
        continuous={"wheel": wheel.astype(np.float32)},
        categorical={"choice": choice},
        classes={"choice": ("right", "left")},
    ), rates


@pytest.fixture(scope="module")
def session():
    return multiplicative(150, 0)[0], *multiplicative(100, 1)


def test_the_weights_are_those_of_scikit_learn_for_every_penalty():
    rng = np.random.default_rng(0)
    design = np.concatenate([rng.normal(size=(40, 10, 3)) * [1, 2, 0.3], np.ones((40, 10, 1))], axis=2)
    design[..., 2] += design[..., 0]
    counts = rng.poisson(np.exp(design @ [[0.4, 0], [-0.2, 0.3], [1, -0.5], [-1, 0]]))
    for weights, strength in zip(fit_poisson(design, counts, np.zeros((10, 2))), STRENGTHS, strict=True):
        for unit in range(2):
            of_unit = counts[..., unit].ravel()
            theirs = PoissonRegressor(
                alpha=strength * of_unit.sum() / of_unit.size, fit_intercept=False, tol=1e-8, max_iter=1000
            ).fit(design.reshape(-1, 4), of_unit)
            np.testing.assert_allclose(weights[:, unit], theirs.coef_, atol=1e-3)


def test_an_offset_is_what_is_predicted_without_regressors():
    """Twice the offset's rate, in spikes: the weight of a constant regressor is ln 2, but for the penalty."""
    offset = np.log([[0.5], [2.0]])
    weights = list(fit_poisson(np.ones((500, 2, 1)), np.tile([[1], [4]], (500, 1, 1)), offset))[-1]
    assert weights == pytest.approx(np.log(2), abs=0.05)


def test_rates_that_multiply_are_found_better_than_by_linear_regression(session):
    train, test, true_rates = session
    attainable = bits_per_spike(np.log(true_rates), test.spike_counts)
    bits = bits_per_spike(encode_poisson(train, test, 0), test.spike_counts)
    linear = bits_per_spike(encode_linear(train, test, 0), test.spike_counts)
    assert bits[:6].sum() > 0.9 * attainable[:6].sum()
    assert (abs(bits[6:]) < 0.02).all()
    assert (bits[:6] > linear[:6] + 0.02).all()


def test_the_average_prediction_is_the_average_count(session):
    train = session[0]
    rates = np.exp(encode_poisson(train, train, 0))
    np.testing.assert_allclose(rates.mean((0, 1)), train.spike_counts.mean((0, 1)), rtol=0.03)


def test_a_trial_unlike_any_in_training_does_not_run_away(session):
    train, test, _ = session
    wild = replace(test, continuous={"wheel": 100 * test.continuous["wheel"]})
    highest = np.exp(encode_poisson(train, train, 0)).max()
    assert np.exp(encode_poisson(train, wild, 0)).max() < 2 * highest


def test_test_trials_do_not_reach_the_fit(session):
    train, test, _ = session
    first = encode_poisson(train, test, 3)
    other = replace(
        test,
        spike_counts=np.zeros_like(test.spike_counts),
        continuous={"wheel": test.continuous["wheel"].copy()},
    )
    other.continuous["wheel"][1:] = 7
    np.testing.assert_array_equal(encode_poisson(train, other, 3)[0], first[0])


def test_missing_behavior_and_silent_units_have_finite_rates(session):
    train, test, _ = session
    counts = train.spike_counts.copy()
    counts[..., 5] = 0
    wheel = {"wheel": np.where(np.arange(150)[:, None] % 4, train.continuous["wheel"], np.nan)}
    log_rates = encode_poisson(replace(train, spike_counts=counts, continuous=wheel), test, 0)
    assert np.isfinite(log_rates).all() and np.exp(log_rates[..., 5]).max() < 1e-3
    none = {"continuous": {}, "categorical": {}, "classes": {}}
    nothing = encode_poisson(replace(train, **none), replace(test, **none), 0)
    np.testing.assert_array_equal(nothing, np.broadcast_to(nothing[:1], nothing.shape))
