"""Metrics against hand-made arrays, scipy and scikit-learn, and the sums against the plain functions."""

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from sklearn.metrics import balanced_accuracy_score, r2_score

from neds_hf.metrics import functional
from neds_hf.metrics.sums import SessionSums

NAN = np.nan
# What is not defined is NaN, and no warning of NumPy.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture
def spikes():
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 0.3, size=(12, 10, 5))
    counts = rng.poisson(rates).astype(np.uint8)
    counts[:, :, 3] = 0
    return np.log(rates).astype(np.float32), counts


@pytest.fixture
def wheel():
    rng = np.random.default_rng(1)
    real = (rng.normal(size=(12, 10)) + np.linspace(0, 3, 10)).astype(np.float32)
    real[[2, 7]] = NAN
    return np.nan_to_num(real) + 0.4 * rng.normal(size=(12, 10)).astype(np.float32), real


def test_bits_per_spike_of_a_perfectly_timed_unit_is_the_log_of_how_much_rarer_spikes_are_on_average():
    counts = np.array([[[1], [0], [0], [0]]], np.uint8)  # one spike in four bins
    with np.errstate(divide="ignore"):
        sure = np.log(counts)  # rate 1 in that bin, 0 elsewhere
    # model: ln 1 - 1 = -1;  null: ln(1/4) - 4/4;  difference ln 4
    np.testing.assert_allclose(functional.bits_per_spike(sure, counts), [2.0])


def test_bits_per_spike_is_zero_for_the_mean_rate_and_minus_where_the_rate_is_wrong():
    counts = np.array([[[1, 2], [0, 2]], [[0, 0], [1, 0]]], np.uint8)
    mean = np.broadcast_to(np.log(counts.mean((0, 1))), counts.shape)
    np.testing.assert_allclose(functional.bits_per_spike(mean, counts), [0, 0], atol=1e-12)
    assert (functional.bits_per_spike(mean + 1, counts) < 0).all()


@pytest.mark.parametrize("null", ["these trials", "training"])
def test_bits_per_spike_equals_the_difference_of_scipy_log_likelihoods(spikes, null):
    log_rates, counts = spikes
    log_rates, counts = log_rates[..., :3], counts[..., :3]
    rates = None if null == "these trials" else np.array([0.2, 0.3, 0.4])
    constant = counts.mean((0, 1)) if rates is None else rates
    gain = poisson.logpmf(counts, np.exp(log_rates)).sum((0, 1)) - poisson.logpmf(counts, constant).sum(
        (0, 1)
    )
    expected = gain / counts.sum((0, 1)) / np.log(2)
    np.testing.assert_allclose(functional.bits_per_spike(log_rates, counts, rates), expected, rtol=1e-6)


def test_bits_per_spike_does_not_overflow_uint8_counts():
    counts = np.full((4, 100, 1), 3, np.uint8)  # 1200 spikes
    log_rates = np.full(counts.shape, np.log(3.0))
    np.testing.assert_allclose(functional.bits_per_spike(log_rates, counts), [0], atol=1e-12)


def test_undefined_bits_per_spike_are_nan():
    counts = np.array([[[0, 1], [0, 1]]], np.uint8)
    log_rates = np.array([[[0.0, -np.inf], [0.0, 0.0]]])  # silent unit; a spike where none was possible
    assert np.isnan(functional.bits_per_spike(log_rates, counts)).all()
    assert np.isnan(functional.bits_per_spike(np.zeros((1, 2, 2)), counts, np.array([0.5, 0.0]))).all()
    assert np.isnan(functional.bits_per_spike(np.zeros((0, 2, 2)), np.zeros((0, 2, 2)))).all()


def test_r2_pooled_and_beyond_the_average_of_a_hand_made_variable():
    real = np.array([[0.0, 4.0], [2.0, 6.0]])
    predicted = np.array([[1.0, 5.0], [1.0, 5.0]])  # the average trial
    assert functional.r2(predicted, real) == 1 - 4 / 20  # residual 4; around the mean 3: 9 + 1 + 1 + 9
    assert functional.r2_beyond_average(predicted, real) == 0
    assert functional.r2(real, real) == functional.r2_beyond_average(real, real) == 1


def test_r2_equals_scikit_learn_without_the_missing_trials(wheel):
    predicted, real = wheel
    kept = ~np.isnan(real[:, 0])
    assert functional.r2(predicted, real) == pytest.approx(
        r2_score(real[kept].ravel(), predicted[kept].ravel()), rel=1e-5
    )
    beyond = real[kept] - real[kept].mean(0)
    assert functional.r2_beyond_average(predicted, real) == pytest.approx(
        1 - ((predicted - real)[kept] ** 2).sum() / (beyond**2).sum(), rel=1e-5
    )


@pytest.mark.parametrize("metric", [functional.r2, functional.r2_beyond_average])
@pytest.mark.parametrize(
    "real",
    [
        np.full((3, 4), 0.1, np.float32),
        np.full((3, 4), NAN),
        np.zeros((0, 4)),
        # constant up to rounding
        np.array([[1e6, 1e6], [1e6, np.nextafter(np.float32(1e6), 2e6)]], np.float32),
        np.array([[0.001, 0.001], [0.001, np.nextafter(np.float32(0.001), 1)]], np.float32),
    ],
)
def test_r2_of_a_constant_or_absent_variable_is_nan(metric, real):
    assert np.isnan(metric(np.ones(real.shape), real))


def test_r2_beyond_the_average_of_one_trial_is_nan():
    assert np.isnan(functional.r2_beyond_average(np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])))


def test_single_precision_is_summed_in_double_precision(spikes, wheel):
    (log_rates, counts), (predicted, real) = spikes, wheel
    for metric in (functional.bits_per_spike, functional.psth_r2):
        np.testing.assert_array_equal(metric(log_rates, counts), metric(log_rates.astype(float), counts))
    for metric in (functional.r2, functional.r2_beyond_average):
        assert metric(predicted, real) == metric(predicted.astype(float), real.astype(float))


@pytest.mark.parametrize("form", [torch.from_numpy, np.ndarray.tolist])
def test_tensors_and_lists_of_more_trials_than_a_byte_counts_are_scored_as_arrays(form):
    rng = np.random.default_rng(3)
    real = rng.normal(size=(300, 4))
    predicted, counts = real + 0.5 * rng.normal(size=(300, 4)), rng.poisson(1.0, (300, 4, 2))
    real[5] = NAN
    log_rates, classes = rng.normal(size=(300, 4, 2)), rng.integers(-1, 3, (2, 300))
    for metric, arrays in (
        (functional.r2, (predicted, real)),
        (functional.r2_beyond_average, (predicted, real)),
        (functional.bits_per_spike, (log_rates, counts, np.array([0.9, 1.1]))),
        (functional.psth_r2, (log_rates, counts)),
        (functional.accuracy, classes),
        (functional.balanced_accuracy, classes),
    ):
        np.testing.assert_array_equal(metric(*map(form, arrays)), metric(*arrays))


def test_predictions_that_are_not_finite_give_nan_not_infinity():
    real = np.array([[0.0, 1.0], [1.0, 3.0]])
    for bad in (NAN, np.inf):
        assert np.isnan(functional.r2(real + bad, real))


def test_psth_r2_compares_averages_over_trials(spikes):
    log_rates, counts = spikes
    expected = r2_score(counts.mean(0), np.exp(log_rates.astype(float)).mean(0), multioutput="raw_values")
    result = functional.psth_r2(log_rates, counts)
    np.testing.assert_allclose(result[[0, 1, 2, 4]], expected[[0, 1, 2, 4]], rtol=1e-6)
    assert np.isnan(result[3])  # silent
    # both trials wrong, their average right
    counts = np.array([[[2], [0]], [[0], [0]]], np.uint8)
    rates = np.array([[[1e-9], [0.0]], [[2 - 1e-9], [0.0]]])
    with np.errstate(divide="ignore"):
        assert functional.psth_r2(np.log(rates), counts)[0] == pytest.approx(1)
    assert np.isnan(functional.psth_r2(np.zeros((0, 2, 3)), np.zeros((0, 2, 3)))).all()


def test_accuracies_leave_missing_trials_out_and_match_scikit_learn():
    real = np.array([0, 0, 0, 2, -1, 2])  # class 1 does not occur
    predicted = np.array([0, 0, 1, 2, 0, 0])
    kept = real >= 0
    assert functional.accuracy(predicted, real) == 3 / 5
    assert functional.balanced_accuracy(predicted, real) == pytest.approx((2 / 3 + 1 / 2) / 2)
    with pytest.warns(UserWarning):  # y_pred contains classes not in y_true
        expected = balanced_accuracy_score(real[kept], predicted[kept])
    assert functional.balanced_accuracy(predicted, real) == pytest.approx(expected)
    for metric in (functional.accuracy, functional.balanced_accuracy):
        assert np.isnan(metric([0, 1], [-1, -1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: functional.bits_per_spike(np.zeros((2, 3, 4)), np.zeros((2, 3, 5))),
            r"\(2, 3, 4\).*\(2, 3, 5\)",
        ),
        (
            lambda: functional.bits_per_spike(np.zeros((2, 3, 4)), np.ones((2, 3, 4)), np.ones(3)),
            r"\(3,\).*\(4,\)",
        ),
        (lambda: functional.psth_r2(np.zeros((2, 3, 4)), np.zeros((2, 3))), r"\(2, 3, 4\).*\(2, 3\)"),
        (lambda: functional.r2(np.zeros((2, 3)), np.zeros((2, 4))), r"\(2, 3\).*\(2, 4\)"),
        (lambda: functional.r2_beyond_average(np.zeros(3), np.zeros((1, 3))), r"\(3,\).*\(1, 3\)"),
        (lambda: functional.accuracy(np.zeros(3), np.zeros(4)), r"\(3,\).*\(4,\)"),
        (lambda: functional.balanced_accuracy(np.zeros(3), np.zeros(4)), r"\(3,\).*\(4,\)"),
        (
            lambda: SessionSums(3, 4, [], {}).add_spikes(np.zeros((1, 3, 4)), np.zeros((1, 3, 5))),
            r"spike_counts is \(1, 3, 5\), expected \(1, 3, 4\)",
        ),
        (
            lambda: SessionSums(3, 4, [], {}).add_spikes(np.zeros((2, 3, 4)), np.zeros((1, 3, 4))),
            r"log_rates is \(2, 3, 4\), expected \(1, 3, 4\)",
        ),
        (
            lambda: SessionSums(3, 4, ["w"], {}).add_continuous("w", np.zeros((1, 3)), np.zeros((1, 4))),
            "w is",
        ),
        (lambda: SessionSums(3, 4, [], {"c": 2}).add_categorical("c", np.zeros(2), np.zeros(3, int)), "c is"),
        (
            lambda: SessionSums(3, 4, [], {"c": 2}).add_categorical("c", np.zeros(1), np.array([2])),
            "2 classes",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_an_error_that_says_both_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def session(spikes, wheel):
    """Predictions and reality of 12 trials with a silent unit and missing trials."""
    rng = np.random.default_rng(2)
    real_block = rng.choice([0, 2], size=12)
    real_block[4] = -1
    return {
        "spikes": spikes,
        "wheel": wheel,
        "whisker": (rng.normal(size=(12, 10)), 1000 + rng.normal(size=(12, 10))),
        "block": (rng.integers(0, 3, size=12), real_block),
    }


def sums_of(session, *batches):
    sums = SessionSums(10, 5, ["wheel", "whisker"], {"block": 3})
    for trials in batches:
        sums.add_spikes(*(values[trials] for values in session["spikes"]))
        for name in ("wheel", "whisker"):
            sums.add_continuous(name, *(values[trials] for values in session[name]))
        sums.add_categorical("block", *(values[trials] for values in session["block"]))
    return sums


def test_sums_give_the_same_metrics_as_the_plain_functions(session):
    null = np.array([0.1, 0.2, 0.3, 0.1, 0.0])
    metrics = sums_of(session, slice(None)).metrics(null)
    bits = functional.bits_per_spike(*session["spikes"])
    expected = {
        "bits_per_spike": np.nanmean(bits),
        "silent_units": 1,
        "bits_per_spike_train_null": np.nanmean(functional.bits_per_spike(*session["spikes"], null)),
        "psth_r2": np.nanmean(functional.psth_r2(*session["spikes"])),
        "block_accuracy": functional.accuracy(*session["block"]),
        "block_balanced_accuracy": functional.balanced_accuracy(*session["block"]),
    }
    for name in ("wheel", "whisker"):
        expected[f"{name}_r2"] = functional.r2(*session[name])
        expected[f"{name}_r2_beyond_average"] = functional.r2_beyond_average(*session[name])
    selected = ("bits_per_spike", "wheel_r2", "whisker_r2", "block_accuracy")
    expected["mean"] = np.mean([expected[name] for name in selected])
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name


def test_sums_do_not_depend_on_batches_or_on_their_order_or_process(session):
    whole = sums_of(session, slice(None))
    batched = sums_of(session, slice(9, 12), slice(0, 0), slice(0, 1), slice(1, 9))
    np.testing.assert_allclose(batched.vector, whole.vector, rtol=1e-12)
    first, second = sums_of(session, slice(0, 5)), sums_of(session, slice(5, 12))
    first.vector += second.vector
    assert first.metrics() == pytest.approx(whole.metrics(), rel=1e-6)
    restored = SessionSums(10, 5, ["wheel", "whisker"], {"block": 3})
    restored.vector[:] = whole.vector
    assert restored.metrics() == whole.metrics()
    restored.vector += 1
    assert restored.metrics() != whole.metrics()  # a copy


def test_sums_of_nothing_are_nan():
    metrics = SessionSums(10, 5, ["wheel"], {"block": 3}).metrics(np.ones(5))
    assert metrics.pop("silent_units") == 5
    assert all(np.isnan(value) for value in metrics.values())


def test_the_mean_leaves_out_what_the_session_does_not_have_but_not_what_the_model_got_wrong(session):
    sums = SessionSums(10, 5, ["wheel", "whisker"], {"block": 3, "choice": 2})
    sums.add_spikes(*session["spikes"])
    sums.add_continuous("whisker", np.zeros((2, 10)), np.full((2, 10), NAN))
    sums.add_categorical("block", *session["block"])
    metrics = sums.metrics()
    assert metrics["mean"] == pytest.approx((metrics["bits_per_spike"] + metrics["block_accuracy"]) / 2)
    predicted, real = session["wheel"]
    sums.add_continuous("wheel", predicted + NAN, real)
    assert np.isnan(sums.metrics()["mean"])


def test_the_mean_of_a_session_without_a_spike_is_of_its_behaviours():
    sums = SessionSums(2, 1, ["wheel"], {})
    sums.add_spikes(np.zeros((1, 2, 1)), np.zeros((1, 2, 1), np.uint8))
    sums.add_continuous("wheel", np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))
    metrics = sums.metrics()
    assert np.isnan(metrics["bits_per_spike"]) and metrics["mean"] == metrics["wheel_r2"] == 0.5


def test_only_the_class_that_is_predicted_right_counts_as_right():
    sums = SessionSums(2, 1, [], {"block": 3})
    sums.add_categorical("block", np.array([0, 1]), np.array([0, 2]))
    metrics = sums.metrics()
    assert metrics["block_accuracy"] == metrics["block_balanced_accuracy"] == 1 / 2


def test_a_constant_variable_has_no_r2_in_the_sums_either():
    sums = SessionSums(10, 5, ["wheel"], {})
    for _ in range(30):
        sums.add_continuous("wheel", np.zeros((7, 10)), np.full((7, 10), 0.1, np.float32))
    assert np.isnan(sums.metrics()["wheel_r2"]) and np.isnan(sums.metrics()["wheel_r2_beyond_average"])


def test_means_go_over_the_sessions_that_define_them():
    scores = {"a": {"r2": 0.5, "x": np.nan}, "b": {"r2": np.nan, "x": np.nan}, "c": {"r2": 0.1}}
    assert functional.mean_table(scores) == pytest.approx({"r2": 0.3, "x": np.nan}, nan_ok=True)
