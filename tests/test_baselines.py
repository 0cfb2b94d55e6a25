"""The baselines on made-up sessions whose answer is known, and on a real recording."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from small_grids import use_small_grids

from neds_hf.analysis.baselines import METHODS, MULTI_SESSION, predict_tests
from neds_hf.analysis.decoding import decode_continuous
from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError
from neds_hf.metrics import functional

DY016 = Path(__file__).resolve().parents[2] / "shared/data/ibl_dy016/dy016.npz"
NUM_BINS, NUM_UNITS = 30, 12


def simulated(num_trials, seed=0):
    """Units that fire with the wheel (0-3), for one choice (4-7), or at random (8-11), and their true rates."""
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, 2, num_trials)
    onset = rng.integers(8, 20, num_trials)[:, None]
    wheel = np.exp(-0.5 * ((np.arange(NUM_BINS) - onset) / 3) ** 2) * rng.uniform(0.5, 1.5, (num_trials, 1))
    rates = np.full((num_trials, NUM_BINS, NUM_UNITS), 0.2)
    rates[..., :4] += wheel[..., None]
    rates[..., 4:8] += 0.4 * choice[:, None, None]
    return SessionTrials(
        session="made-up",
        trial_index=np.arange(num_trials),
        spike_counts=rng.poisson(rates).astype(np.uint8),
        continuous={"wheel": wheel.astype(np.float32)},
        categorical={"choice": choice},
        classes={"choice": ("right", "left")},
    ), rates


def linear_baseline(train, test, seed=0):
    (predictions,) = predict_tests("linear", [train], [test], seed)
    return predictions


@pytest.fixture(scope="module")
def session():
    return simulated(120)[0], *simulated(60, seed=1)


def test_the_baseline_finds_what_the_neurons_say_and_what_drives_them(session):
    train, test, true_rates = session
    predictions = linear_baseline(train, test)
    assert predictions["log_rates"].shape == test.spike_counts.shape
    assert predictions["choice"].shape == (60, 2)
    np.testing.assert_allclose(predictions["choice"].sum(1), 1)
    assert functional.accuracy(predictions["choice"].argmax(1), test.categorical["choice"]) > 0.95
    assert functional.r2_beyond_average(predictions["wheel"], test.continuous["wheel"]) > 0.6
    bits = functional.bits_per_spike(predictions["log_rates"], test.spike_counts)
    attainable = functional.bits_per_spike(np.log(true_rates), test.spike_counts)
    assert (bits[:8] > 0.7 * attainable[:8]).all()
    assert (abs(bits[8:]) < 0.02).all()


def test_the_seed_repeats_the_baseline_and_test_trials_do_not_reach_the_fit(session):
    train, test, _ = session
    first = linear_baseline(train, test, seed=3)
    other = replace(
        test,
        spike_counts=test.spike_counts[:1],
        continuous={"wheel": test.continuous["wheel"][:1]},
        categorical={"choice": test.categorical["choice"][:1]},
    )
    for name, values in linear_baseline(train, other, seed=3).items():
        np.testing.assert_allclose(values, first[name][:1], rtol=1e-6)


def test_missing_behavior_is_left_out_and_costs_only_what_it_would_have_told(session):
    train, test, _ = session
    train = replace(
        train,
        continuous={"wheel": train.continuous["wheel"].copy()},
        categorical={"choice": train.categorical["choice"].copy()},
    )
    train.continuous["wheel"][::4] = np.nan
    train.categorical["choice"][1::4] = -1
    unknown = replace(
        test,
        continuous={"wheel": np.full_like(test.continuous["wheel"], np.nan)},
        categorical={"choice": np.full_like(test.categorical["choice"], -1)},
    )
    known, unknown = linear_baseline(train, test), linear_baseline(train, unknown)
    assert functional.r2(known["wheel"], test.continuous["wheel"]) > 0.6
    np.testing.assert_array_equal(known["wheel"], unknown["wheel"])
    assert functional.bits_per_spike(known["log_rates"], test.spike_counts)[:8].min() > 0.03
    # nothing known of any trial: all are predicted to be the average trial
    np.testing.assert_allclose(unknown["log_rates"], np.broadcast_to(unknown["log_rates"][:1], (60, 30, 12)))


def test_where_trials_lack_a_behavior_its_average_is_still_that_of_those_that_have_it(session):
    """Units fire otherwise in the trials without wheel, as they do when the animal is tired."""
    train, _, _ = session
    wheel, counts = train.continuous["wheel"].copy(), train.spike_counts.copy()
    wheel[:60], counts[:60] = np.nan, 3 * counts[:60]
    train = replace(train, spike_counts=counts, continuous={"wheel": wheel}, categorical={}, classes={})
    having = replace(train, spike_counts=counts[60:], continuous={"wheel": wheel[60:]})
    predicted = decode_continuous(train, having, 0)["wheel"].mean(0)
    np.testing.assert_allclose(predicted, gaussian_filter1d(wheel[60:].mean(0), 1), atol=1e-5)


def test_behavior_that_never_occurs_in_training_is_nan_and_a_single_class_is_certain(session):
    train, test, _ = session
    train = replace(
        train,
        continuous={"wheel": np.full_like(train.continuous["wheel"], np.nan)},
        categorical={"choice": np.full_like(train.categorical["choice"], -1)},
    )
    predictions = linear_baseline(train, test)
    assert np.isnan(predictions["wheel"]).all() and np.isnan(predictions["choice"]).all()
    assert np.isfinite(predictions["log_rates"]).all()
    train.categorical["choice"][:20] = 1
    train.categorical["choice"][20] = 0  # once: cannot be cross-validated
    np.testing.assert_array_equal(linear_baseline(train, test)["choice"], np.tile([0, 1], (60, 1)))


def test_silent_units_and_sessions_without_behavior_still_have_finite_rates(session):
    train, test, _ = session
    counts = train.spike_counts.copy()
    counts[..., 5] = 0
    nothing = {"continuous": {}, "categorical": {}, "classes": {}}
    predictions = linear_baseline(replace(train, spike_counts=counts, **nothing), replace(test, **nothing))
    assert predictions.keys() == {"log_rates"} and np.isfinite(predictions["log_rates"]).all()
    silent = linear_baseline(replace(train, spike_counts=np.zeros_like(counts)), test)
    assert all(np.isfinite(values).all() for values in silent.values())


def test_the_average_trial_is_that_of_training_whatever_the_test_trial(session):
    train, test, _ = session
    wheel = train.continuous["wheel"].copy()
    wheel[:3] = np.nan
    choice = np.array([0] * 30 + [1] * 60 + [-1] * 30)
    train = replace(train, continuous={"wheel": wheel}, categorical={"choice": choice})
    (predictions,) = predict_tests("trial_average", [train], [test], 0)
    np.testing.assert_allclose(predictions["wheel"], np.tile(wheel[3:].mean(0), (60, 1)), rtol=1e-6)
    np.testing.assert_allclose(predictions["choice"], np.tile([1 / 3, 2 / 3], (60, 1)))
    rates = np.exp(predictions["log_rates"])
    np.testing.assert_array_equal(rates, np.broadcast_to(rates[:1], (60, NUM_BINS, NUM_UNITS)))
    np.testing.assert_allclose(rates[0].mean(0), train.spike_counts.mean((0, 1)), rtol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_every_session_as_it_would_alone_but_for_the_multi_session_one(
    method, monkeypatch
):
    """Sessions of 12 and of 3 units."""
    use_small_grids(monkeypatch)
    one, other = simulated(40)[0], simulated(30, seed=2)[0]
    other = replace(other, session="other", spike_counts=other.spike_counts[..., 3:6])
    together = predict_tests(method, [one, other], [one, other], 0)
    assert [p["log_rates"].shape for p in together] == [(40, NUM_BINS, 12), (30, NUM_BINS, 3)]
    (alone,) = predict_tests(method, [other], [other], 0)
    assert alone.keys() == together[1].keys()
    same = [np.allclose(alone[name], together[1][name], rtol=1e-4) for name in alone]
    assert all(same) == (method != MULTI_SESSION)


def test_too_few_training_trials_are_an_error_that_names_the_session():
    with pytest.raises(NEDSError, match="made-up: a baseline needs 5 training trials, found 3"):
        linear_baseline(simulated(3)[0], simulated(3)[0])


@pytest.mark.skipif(not DY016.exists(), reason="the shared recordings are not here")
def test_on_a_real_recording_the_baselines_reach_what_simple_models_are_known_to_reach():
    with np.load(DY016) as arrays:
        arrays = dict(arrays)
    counts = arrays["spike_counts"]
    counts = counts[..., counts.mean((0, 1)) > 2 * 0.02]
    order = np.random.default_rng(0).permutation(len(counts))

    def trials(rows):
        return SessionTrials(
            session="DY_016",
            trial_index=arrays["trial_index"][rows],
            spike_counts=counts[rows],
            continuous={name: arrays[name][rows] for name in ("wheel_speed", "whisker_motion_energy")},
            categorical={
                "choice": (arrays["choice"][rows] > 0).astype(int),
                "block": np.digitize(arrays["probability_left"][rows], [0.35, 0.65]),
            },
            classes={"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")},
        )

    num_train = round(0.8 * len(counts))
    train, test = trials(order[:num_train]), trials(order[num_train:])
    predictions = linear_baseline(train, test)
    # Known: 0.643, 0.528, 0.81, 0.81, 0.115; 59 test trials leave a standard error near 0.05.
    assert functional.r2(predictions["wheel_speed"], test.continuous["wheel_speed"]) > 0.62
    whisker = "whisker_motion_energy"
    assert functional.r2(predictions[whisker], test.continuous[whisker]) > 0.5
    for name in ("choice", "block"):
        assert functional.accuracy(predictions[name].argmax(1), test.categorical[name]) > 0.76
    (glm,) = predict_tests("poisson_glm", [train], [test], 0)
    for log_rates in (predictions["log_rates"], glm["log_rates"]):
        assert functional.bits_per_spike(log_rates, test.spike_counts).mean() > 0.12
    (average,) = predict_tests("trial_average", [train], [test], 0)
    bits = functional.bits_per_spike(average["log_rates"], test.spike_counts).mean()
    assert bits == pytest.approx(0.065, abs=0.02)  # known
