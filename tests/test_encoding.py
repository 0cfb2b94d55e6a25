"""What the encoding baselines are made of, on arrays of a few trials."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.stats import poisson

from neds_hf.analysis.encoding import (
    LAGS,
    average_trial,
    behavior_design,
    each_units,
    log_likelihoods_of,
    temporal_basis,
    with_floor,
)
from neds_hf.data.trials import SessionTrials

NAN = np.nan
UNSMOOTHED = 0.1  # bins: a kernel of one
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def trials(num_bins=3, **behaviors):
    """Trials without units; behaviours (B,) of two classes or (B, T)."""
    behaviors = {name: np.array(values) for name, values in behaviors.items()}
    categorical = {name: values for name, values in behaviors.items() if values.ndim == 1}
    size = len(next(iter(behaviors.values())))
    return SessionTrials(
        session="made-up",
        trial_index=np.arange(size),
        spike_counts=np.zeros((size, num_bins, 0), np.uint8),
        continuous={name: values for name, values in behaviors.items() if values.ndim == 2},
        categorical=categorical,
        classes={name: ("no", "yes") for name in categorical},
    )


def test_the_average_trial_has_a_tenth_of_the_mean_or_of_one_spike_at_least():
    counts = np.array(
        [[[4, 0], [0, 0], [2, 0]], [[2, 0], [0, 0], [0, 0]]]
    )  # a unit of 8 spikes, a silent one
    average = average_trial(counts, np.full(2, UNSMOOTHED))
    np.testing.assert_allclose(average[:, 0], [3, 0.1 * 4 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(average[:, 1], [0.1 / 6] * 3, rtol=1e-6)


def test_each_unit_is_smoothed_by_its_own_width():
    counts = np.zeros((1, 9, 3))
    counts[0, 4] = 1
    average = average_trial(counts, np.array([UNSMOOTHED, 1, 1]))
    assert average[4, 0] == 1 and average[3, 0] == np.float32(0.1 / 9)
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    for unit in (1, 2):
        np.testing.assert_allclose(average[2:7, unit], (kernel / kernel.sum())[2:7], rtol=1e-5)


def test_a_floor_is_each_units_own():
    assert with_floor(np.array([[0.1, 0.1], [2, 2]]), np.array([0.5, 0.05])).tolist() == [
        [0.5, np.float32(0.1)],
        [2, 2],
    ]


def test_log_likelihoods_are_those_of_scipy():
    counts = np.array([[[0, 2], [1, 0]], [[3, 1], [0, 0]]], np.float32)
    of_trials, of_average = counts + 0.5, np.array([[1.0, 2.0], [0.5, 0.25]])
    found = log_likelihoods_of([of_trials, of_average], counts)
    for rates, values in zip((of_trials, of_average), found):
        expected = (poisson.logpmf(counts, rates) - poisson.logpmf(counts, 1) - 1).sum((0, 1))  # less ln k!
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_each_unit_has_the_candidate_chosen_for_it():
    candidates = (np.full((1, 2, 3), value) for value in (0.0, 1.0, 2.0))
    assert each_units(candidates, np.array([2, 0, 1])).tolist() == [[[2, 0, 1], [2, 0, 1]]]


@pytest.mark.parametrize("num_bins, num_functions", [(33, 3), (100, 7), (10, 2)])
def test_raised_cosines_sum_to_one_and_peak_in_equal_steps(num_bins, num_functions):
    basis = temporal_basis(num_bins)
    assert basis.shape == (num_bins, num_functions)
    np.testing.assert_allclose(basis.sum(1), 1)
    assert basis[0].tolist() == [1] + [0] * (num_functions - 1) and basis[-1, -1] == 1
    peaks = np.linspace(0, num_bins - 1, num_functions)
    assert (abs(basis.argmax(0) - peaks) <= 0.5).all()


def test_a_trial_of_one_bin_has_a_basis():
    assert np.isfinite(temporal_basis(1)).all()


@pytest.mark.parametrize("unit", [0.001, 1, 1000])
def test_regressors_of_a_continuous_behaviour_are_its_values_and_their_ranks_in_training(unit):
    """Of trials in which it does not move, so that lags and smoothing change nothing."""
    train = trials(wheel=unit * np.repeat([[2.0], [1.0], [6.0], [NAN]], 3, axis=1))
    test = trials(wheel=unit * np.repeat([[3.0], [NAN]], 3, axis=1))
    design, test_design = behavior_design(train, test)
    values, ranks = np.array([2, 1, 6]) - 3, (np.array([1, 0, 2]) - 1) / 3
    for place, expected, new in ((0, values, 0), (len(LAGS), ranks, 1 / 3)):
        spread = np.sqrt((expected**2).sum() / 4)
        for lag in range(len(LAGS)):
            column = place + lag
            np.testing.assert_allclose(
                design[..., column], np.outer([*expected / spread, 0], np.ones(3)), atol=1e-7
            )
            np.testing.assert_allclose(
                test_design[..., column], np.outer([new / spread, 0], np.ones(3)), atol=1e-7
            )
    assert design.shape == (4, 3, 2 * len(LAGS))


@pytest.mark.parametrize("moved", [0, 30, 59])
def test_a_lagged_regressor_is_the_smoothed_behaviour_that_much_later(moved):
    moves = np.zeros((2, 60))
    moves[0, moved] = 1
    design, _ = behavior_design(trials(60, wheel=moves), trials(60, wheel=moves))
    smooth = gaussian_filter1d(moves[0], 1.5)
    for place, lag in enumerate(LAGS):
        later = np.array([smooth[min(max(bin_ + lag, 0), 59)] for bin_ in range(60)])
        np.testing.assert_allclose(design[0, :, place] * np.sqrt((later**2).mean()), later, atol=1e-9)


def test_regressors_of_classes_are_raised_cosines_and_nothing_where_missing():
    train = trials(33, choice=[0, 0, 0, 1, -1])
    design, _ = behavior_design(train, train)
    of_choice = np.outer([0.25, 0.25, 0.25, -0.75, 0], temporal_basis(33)[:, 1]).reshape(5, 33)
    np.testing.assert_allclose(design[..., 1], of_choice / of_choice.std(), atol=1e-7)
    np.testing.assert_allclose(design[..., 4], -of_choice / of_choice.std(), atol=1e-7)
    assert design.shape == (5, 33, 6)


@pytest.mark.parametrize("wheel", [0.1, -0.1, NAN])
def test_what_never_changes_in_training_or_is_not_there_is_no_regressor(wheel):
    train, test = (
        trials(choice=[1] * 3, wheel=np.full((3, 3), wheel)),
        trials(choice=[0], wheel=[[1.0, 2, 3]]),
    )
    for design in behavior_design(train, test):
        assert not design.any()
