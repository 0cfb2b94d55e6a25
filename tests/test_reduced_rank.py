"""Reduced-rank regression against closed forms, and on sessions whose low-rank truth is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_grids import use_small_grids

from neds_hf.analysis import reduced_rank as module
from neds_hf.analysis.decoding import decode_continuous
from neds_hf.analysis.encoding import encode_linear
from neds_hf.analysis.reduced_rank import decode, encode, fit_decoding, fit_encoding, reduced_rank
from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.functional import accuracy, bits_per_spike, r2_beyond_average

NUM_BINS, NUM_UNITS = 20, 40
# How two latents that all animals share drive the wheel: their own shape in time.
SHAPES = np.exp(-0.5 * ((np.arange(NUM_BINS) - np.array([[6], [13]])) / 2) ** 2)


def planted(num_trials: int, seed: int, animal: int = 0) -> tuple[SessionTrials, np.ndarray]:
    """Two numbers a trial are the sizes of the wheel's two bumps and drive all units at their times, by weights
    that are the animal's own; which one is greater is the choice. Also the true rates."""
    of_animal, rng = np.random.default_rng(100 + animal), np.random.default_rng(seed)
    weights = of_animal.normal(size=(2, NUM_UNITS)) * 0.35
    latents = rng.normal(size=(num_trials, 2))
    rates = 0.6 + np.einsum("bl,ln,lt->btn", latents, weights, SHAPES)
    wheel = latents @ SHAPES
    return SessionTrials(
        session=f"animal {animal}",
        trial_index=np.arange(num_trials),
        spike_counts=rng.poisson(np.maximum(rates, 0.02)).astype(np.uint8),
        continuous={"wheel": (3 + wheel + 0.3 * rng.normal(size=wheel.shape)).astype(np.float32)},
        categorical={"choice": (latents[:, 0] > latents[:, 1]).astype(np.int64)},
        classes={"choice": ("right", "left")},
    ), np.maximum(rates, 0.02)


def decoded(trains, tests, name):
    features = [module._decoding_features(train, test) for train, test in zip(trains, tests)]
    return decode(name, features, trains, seed=0)


def test_without_penalty_encoding_is_the_closed_form():
    """Rank r: the fit of full rank, projected on its first r principal directions (Izenman 1975)."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(300, 6)), rng.normal(size=(300, 9))
    y = x @ rng.normal(size=(6, 3)) @ rng.normal(size=(3, 9)) + noise
    full = np.linalg.lstsq(x, y)[0]
    _, _, directions = np.linalg.svd(x @ full)
    for rank in (1, 2, 6):
        expected = full @ directions[:rank].T @ directions[:rank]
        (found,) = fit_encoding([(300, x.T @ x / 300, x.T @ y / 300)], rank, 1e-8, seed=0)
        np.testing.assert_allclose(found, expected, atol=1e-2)
        assert np.linalg.matrix_rank(found, tol=1e-6) == rank


def test_without_penalty_and_with_full_rank_decoding_is_least_squares():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(200, 2, 3)))
    y = (
        x.flatten(1) @ torch.from_numpy(rng.normal(size=(6, 4)))
        + 5
        + torch.from_numpy(rng.normal(size=(200, 4)))
    )
    design = np.concatenate([x.flatten(1), np.ones((200, 1))], axis=1)
    expected = design @ np.linalg.lstsq(design, y.numpy())[0]
    (decoder,) = fit_decoding([x.float()], [y.float()], 4, 3, 1e-7, seed=0)
    np.testing.assert_allclose(decoder(x.float()), expected, atol=0.02)


def test_without_activity_classes_have_their_share():
    classes = torch.tensor([0] * 6 + [2] * 2)
    (decoder,) = fit_decoding([torch.zeros(8, 2, 3)], [classes], 3, 2, 0.01, seed=0)
    np.testing.assert_allclose(decoder(torch.zeros(1, 2, 3)).softmax(1), [[0.75, 0, 0.25]], atol=0.01)


PENALIZED = ([-1.0, 1.0] * 4, [-3.0, 3.0] * 4)  # a regressor of variance 1, and what is 3 times it


@pytest.mark.parametrize("num_sessions", [1, 3])
def test_the_penalty_of_encoding_is_that_of_its_formula_for_any_number_of_sessions(num_sessions):
    """Of one weight w = v u, a (v² + u²) is least 2 a |w|: the lasso, (3 − a) of 3 where the variance is 1."""
    x, y = (np.array(values)[:, None] for values in PENALIZED)
    found = fit_encoding([(8, x.T @ x / 8, x.T @ y / 8)] * num_sessions, 1, 0.5, seed=0)
    assert np.ravel(found) == pytest.approx([2.5] * num_sessions, abs=1e-3)


@pytest.mark.parametrize("num_sessions", [1, 3])
def test_the_penalty_of_decoding_is_that_of_its_formula_for_any_number_of_sessions(num_sessions):
    """The same lasso; and of two classes, 1 / (1 + e^2w) = √2 a is the share of the wrong one."""
    x, y = (torch.tensor(values)[:, None] for values in PENALIZED)
    inputs = [x[:, None]] * num_sessions
    for decoder in fit_decoding(inputs, [y + 5] * num_sessions, 1, 1, 0.5, seed=0):
        np.testing.assert_allclose(decoder(x[:2, None]), [[2.5], [7.5]], atol=2e-3)
    classes = [torch.tensor([0, 1] * 4)] * num_sessions
    for decoder in fit_decoding(inputs, classes, 2, 1, 0.1 / 2**0.5, seed=0):
        probabilities = decoder(x[:2, None]).softmax(1)
        np.testing.assert_allclose(probabilities, [[0.9, 0.1], [0.1, 0.9]], atol=2e-3)


def test_the_same_seed_gives_the_same_weights():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
    one, other = (fit_encoding([(40, x.T @ x / 40, x.T @ y / 40)], 2, 0.01, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    inputs, targets = torch.from_numpy(x.reshape(40, 2, 3)).float(), torch.from_numpy(y).float()
    one, other = (fit_decoding([inputs], [targets], 5, 2, 0.01, seed=3)[0](inputs) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_what_never_changes_is_predicted_so_and_too_few_trials_predict_nothing(monkeypatch):
    """The wheel stands still, no unit spikes; two trials with a choice are too few, three are enough."""
    use_small_grids(monkeypatch)
    train, test = planted(9, 0)[0], planted(2, 1)[0]
    still = replace(
        train,
        spike_counts=np.zeros_like(train.spike_counts),
        continuous={"wheel": np.full_like(train.continuous["wheel"], 3.3)},
        categorical={"choice": np.array([0, 1, -1, -1, -1, -1, -1, -1, -1])},
    )
    (predicted,) = reduced_rank([still], [test], 0)
    np.testing.assert_allclose(predicted["wheel"], np.full((2, NUM_BINS), 3.3), rtol=1e-5)
    assert np.isfinite(predicted["log_rates"]).all() and np.isnan(predicted["choice"]).all()
    still.categorical["choice"][2] = 0
    (choice,) = decoded([still], [test], "choice")
    np.testing.assert_allclose(choice, [[2 / 3, 1 / 3]] * 2, atol=0.01)


def test_a_behaviour_in_small_units_is_decoded_as_in_large_ones(monkeypatch):
    """As of currents in amperes."""
    use_small_grids(monkeypatch)
    (train, _), (test, _) = planted(30, 0), planted(10, 1)
    small = replace(train, continuous={"wheel": train.continuous["wheel"] * np.float32(2**-40)})
    (expected,), (found,) = (decoded([trials], [test], "wheel") for trials in (train, small))
    np.testing.assert_allclose(found * 2**40, expected, rtol=1e-5)


def test_a_planted_low_rank_is_found_in_few_trials_better_than_by_ridge():
    train, (test, true_rates) = planted(30, 0)[0], planted(200, 1)
    wheel = test.continuous["wheel"]
    (low_rank,) = decoded([train], [test], "wheel")
    ridge = decode_continuous(train, test, 0)["wheel"]
    assert r2_beyond_average(low_rank, wheel) > r2_beyond_average(ridge, wheel) + 0.02
    (choice,) = decoded([train], [test], "choice")
    assert accuracy(choice.argmax(1), test.categorical["choice"]) > 0.8
    (log_rates,) = encode([train], [test], 0)
    bits, linear, attainable = (
        bits_per_spike(values, test.spike_counts).mean()
        for values in (log_rates, encode_linear(train, test, 0), np.log(true_rates))
    )
    assert bits > linear + 0.05 * attainable


def test_what_animals_share_is_learned_from_all_of_them(monkeypatch):
    """A dozen trials of each of four animals: too few to know the wheel's two bumps from one, but from all."""
    use_small_grids(monkeypatch)
    trains = [planted(14, animal, animal)[0] for animal in range(4)]
    tests = [planted(150, 50 + animal, animal)[0] for animal in range(4)]
    together = decoded(trains, tests, "wheel")
    alone = [decoded([train], [test], "wheel")[0] for train, test in zip(trains, tests)]
    gains = [
        r2_beyond_average(one, test.continuous["wheel"]) - r2_beyond_average(other, test.continuous["wheel"])
        for one, other, test in zip(together, alone, tests)
    ]
    assert np.mean(gains) > 0.02
    encoded, encoded_alone = encode(trains, tests, 0), [encode([t], [e], 0)[0] for t, e in zip(trains, tests)]
    gains = [
        np.mean(bits_per_spike(one, test.spike_counts) - bits_per_spike(other, test.spike_counts))
        for one, other, test in zip(encoded, encoded_alone, tests)
    ]
    assert np.mean(gains) > 0.001


def test_each_session_has_its_own_units_trials_and_missing_behavior(monkeypatch):
    """The second has no wheel and five units; predictions of the first do not become those of the second."""
    use_small_grids(monkeypatch)
    (one, _), (other, _) = planted(20, 0), planted(15, 1, 1)
    other = replace(
        other,
        spike_counts=other.spike_counts[..., :5],
        continuous={"wheel": np.full_like(other.continuous["wheel"], np.nan)},
        categorical={"choice": np.where(np.arange(15) % 3, other.categorical["choice"], -1)},
    )
    predictions = reduced_rank([one, other], [one, other], 0)
    assert [p["log_rates"].shape for p in predictions] == [(20, 20, 40), (15, 20, 5)]
    assert [p["wheel"].shape for p in predictions] == [(20, 20), (15, 20)]
    assert np.isfinite(predictions[0]["wheel"]).all() and np.isnan(predictions[1]["wheel"]).all()
    for session, predicted in zip((one, other), predictions):
        assert np.isfinite(predicted["log_rates"]).all()
        np.testing.assert_allclose(predicted["choice"].sum(1), 1, rtol=1e-5)
        known = session.categorical["choice"] >= 0
        right = predicted["choice"].argmax(1)[known] == session.categorical["choice"][known]
        assert right.mean() > 0.7


@pytest.mark.parametrize("in_training", [np.nan, 3.3])
def test_a_behavior_whose_scale_training_does_not_tell_encodes_nothing_whatever_other_sessions_learn(
    in_training, monkeypatch
):
    """The second has no wheel in training, or one that never changes, and a wheel in test trials."""
    use_small_grids(monkeypatch)
    trains, tests = ([planted(n, seed + a, a)[0] for a in (0, 1)] for n, seed in ((20, 0), (6, 5)))
    wheel = {"wheel": np.full_like(trains[1].continuous["wheel"], in_training)}
    trains[1] = replace(trains[1], continuous=wheel)
    unknown = replace(tests[1], continuous={"wheel": np.full_like(tests[1].continuous["wheel"], np.nan)})
    with_wheel = encode(trains, tests, 0)[1]
    without = encode(trains, [tests[0], unknown], 0)[1]
    np.testing.assert_array_equal(with_wheel, without)


def test_trials_of_the_test_reach_only_their_own_predictions(monkeypatch):
    use_small_grids(monkeypatch)
    train, test = planted(20, 0)[0], planted(6, 1)[0]
    (first,) = reduced_rank([train], [test], 0)
    wild = replace(
        test,
        spike_counts=np.where(np.arange(6)[:, None, None], 9, test.spike_counts),
        continuous={"wheel": np.where(np.arange(6)[:, None], 50, test.continuous["wheel"])},
    )
    (other,) = reduced_rank([train], [wild], 0)
    for name, values in first.items():
        np.testing.assert_allclose(other[name][0], values[0], rtol=1e-5, atol=1e-6)
        assert name == "choice" or not np.allclose(other[name][1:], values[1:], rtol=1e-3)
