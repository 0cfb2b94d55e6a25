import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from neds_hf.data.binning import bin_continuous, bin_spikes, wheel_speed
from neds_hf.errors import NEDSError


def test_spikes_are_counted_per_trial_bin_and_cluster():
    times = np.array([0.99, 1.0, 1.01, 1.05, 1.15, 1.19, 1.2, 5.11])
    clusters = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    counts = bin_spikes(times, clusters, np.array([1.0, 5.0]), 2, 0.1, 3)
    assert counts.dtype == np.uint8
    assert counts.tolist() == [[[2, 1, 0], [0, 2, 0]], [[0, 0, 0], [0, 0, 1]]]


def test_overlapping_trials_both_get_a_spike():
    counts = bin_spikes(np.array([1.25]), np.array([0]), np.array([1.0, 1.2, 1.2]), 4, 0.1, 1)
    assert counts[:, :, 0].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_spikes_out_of_order_give_the_same_counts_as_a_histogram():
    rng = np.random.default_rng(0)
    times, clusters = rng.uniform(0, 50, 5000), rng.integers(0, 7, 5000).astype(np.uint64)
    starts = np.sort(rng.uniform(0, 48, 30))
    counts = bin_spikes(times, clusters, starts, 40, 0.05, 7)
    for trial, start in enumerate(starts):
        expected, _, _ = np.histogram2d(
            times, clusters.astype(int), bins=(start + 0.05 * np.arange(41), np.arange(8) - 0.5)
        )
        np.testing.assert_array_equal(counts[trial], expected)


def test_spikes_are_counted_into_a_part_of_a_larger_array():
    counts = np.full((1, 2, 5), 9, dtype=np.uint8)
    bin_spikes(np.array([1.05, 1.15, 1.16]), np.array([0, 1, 1]), [1.0], 2, 0.1, 3, out=counts[:, :, 1:4])
    assert counts.tolist() == [[[9, 1, 0, 0, 9], [9, 0, 2, 0, 9]]]


def test_a_bin_of_more_than_255_spikes_of_several_clusters_is_counted():
    counts = bin_spikes(np.full(400, 0.05), np.repeat([0, 2], 200), [0.0], 2, 0.1, 3)
    assert counts.tolist() == [[[200, 0, 200], [0, 0, 0]]]


def test_no_spikes_and_no_trials_give_empty_counts():
    assert bin_spikes(np.array([]), np.array([]), np.array([0.0]), 2, 0.1, 3).tolist() == [[[0] * 3] * 2]
    assert bin_spikes(np.array([1.0]), np.array([0]), np.array([]), 2, 0.1, 3).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("times", "clusters", "starts", "message"),
    [
        (np.full(256, 0.05), np.zeros(256, int), [0.0], "cluster 0 fires 256 times"),
        ([0.1, 0.2], [0], [0.0], r"\(2,\), their clusters \(1,\)"),
        ([[0.1]], [[0]], [0.0], r"\(1, 1\), their clusters \(1, 1\)"),
        ([0.1], [3], [0.0], "clusters 3 to 3, expected 0 to 2"),
        ([0.1], [-1], [0.0], "clusters -1 to -1"),
        ([0.1], [0.0], [0.0], "must be integers, but are float64"),
        ([np.nan], [0], [0.0], "finite"),
        ([0.1, np.nan, 0.2], [0, 0, 0], [0.0], "finite"),
        ([0.1, 0.2, np.inf], [0, 0, 0], [0.0], "finite"),
        ([-np.inf, 0.1, 0.2], [0, 0, 0], [0.0], "finite"),
        ([0.1], [0], [np.nan], "finite"),
    ],
)
def test_spikes_that_cannot_be_counted_are_refused(times, clusters, starts, message):
    with pytest.raises(NEDSError, match=message):
        bin_spikes(times, clusters, starts, 2, 0.1, 3)


def test_255_spikes_still_fit():
    assert bin_spikes(np.full(255, 0.05), np.zeros(255, int), [0.0], 2, 0.1, 1)[0, 0, 0] == 255


def test_a_signal_is_interpolated_at_the_right_edge_of_each_bin():
    times = np.array([0.0, 0.04, 0.08, 0.12])
    binned = bin_continuous(times, np.array([0.0, 4.0, 0.0, 8.0]), np.array([0.0]), 4, 0.02)
    assert binned.dtype == np.float32
    np.testing.assert_allclose(binned, [[2, 4, 2, 0]], atol=1e-6)


def test_a_trial_not_wholly_covered_is_missing():
    times = np.arange(1.0, 2.0, 0.01)  # last sample at 1.99
    binned = bin_continuous(times, times, np.array([0.985, 1.0, 1.96, 1.98, 5.0]), 2, 0.01)
    assert np.isnan(binned).tolist() == [[True] * 2, [False] * 2, [False] * 2, [True] * 2, [True] * 2]


def test_a_trial_that_ends_with_the_last_sample_is_covered():
    times = np.array([0.0, 0.0625, 0.125])
    assert bin_continuous(times, np.array([1.0, 2.0, 4.0]), np.array([0.0]), 2, 0.0625).tolist() == [[2, 4]]


def test_a_trial_with_a_long_pause_or_a_nan_is_missing():
    times = np.r_[np.arange(0, 1, 0.01), np.arange(1.2, 3, 0.01)]  # nothing between 0.99 and 1.2
    values = np.ones(len(times))
    values[150] = np.nan  # at 1.7 s
    starts = np.array([0.5, 0.95, 1.05, 1.3, 1.6, 2.0])
    missing = np.isnan(bin_continuous(times, values, starts, 10, 0.02))
    assert missing.all(axis=1).tolist() == [False, True, True, False, True, False]
    assert missing.any(axis=1).tolist() == missing.all(axis=1).tolist()


def test_a_pause_may_be_a_tenth_of_a_second_and_is_over_with_the_next_sample():
    assert bin_continuous([0.0, 0.1], [0.0, 2.0], [0.0], 2, 0.05).tolist() == [[1, 2]]
    after = bin_continuous([0.0, 0.5, 0.5625], [0.0, 3.0, 5.0], [0.375, 0.4375], 2, 0.0625)
    np.testing.assert_array_equal(after, [[np.nan, np.nan], [3, 5]])


def test_samples_at_the_same_time_are_taken():
    assert bin_continuous([0.0, 0.05, 0.05, 0.1], [0.0, 1.0, 1.0, 2.0], [0.0], 1, 0.1).tolist() == [[2]]


@pytest.mark.parametrize(
    ("times", "values", "message"),
    [
        ([0.0, 1.0], [1.0], "as many of both"),
        ([[0.0], [1.0]], [[1.0], [1.0]], "as many of both"),
        ([], [], "as many of both"),
        ([0.0, 0.2, 0.1], [1.0, 1.0, 1.0], "in order"),
        ([0.0, np.nan], [1.0, 1.0], "finite"),
    ],
)
def test_samples_that_cannot_be_interpolated_are_refused(times, values, message):
    with pytest.raises(NEDSError, match=message):
        bin_continuous(times, values, np.array([0.0]), 2, 0.1)


def test_wheel_speed_of_a_slow_turn_is_its_analytic_speed():
    times = np.sort(np.random.default_rng(0).uniform(0, 20, 20_000))
    sampled_s, speed = wheel_speed(times, np.sin(times))
    middle = (sampled_s > 1) & (sampled_s < 19)
    np.testing.assert_allclose(np.diff(sampled_s), 1e-3, atol=3e-6)
    np.testing.assert_allclose(speed[middle], np.abs(np.cos(sampled_s[middle])), atol=5e-3)
    assert (speed >= 0).all()
    np.testing.assert_array_equal(sampled_s, sampled_s.astype(np.float32))  # as ibllib's


@pytest.mark.parametrize("times", [[0.0, 0.1], [0.0, 0.05, 0.05, 0.1]])
def test_a_tenth_of_a_second_of_the_wheel_is_enough(times):
    sampled_s, speed = wheel_speed(np.array(times), np.zeros(len(times)))
    assert len(sampled_s) == len(speed) == 100 and not speed.any()


def test_wheel_speed_is_filtered_before_it_is_differentiated():
    times = np.arange(0, 4, 0.001)
    position = np.sin(2 * np.pi * 3 * times) + 0.1 * np.sin(2 * np.pi * 100 * times)
    _, speed = wheel_speed(times, position)
    smooth = sosfiltfilt(butter(8, 20, fs=1000, output="sos"), position[: len(speed)])
    np.testing.assert_allclose(speed[1:], np.abs(np.diff(smooth)) * 1000, atol=1e-6)
    assert speed[0] == 0
    assert speed[1000:3000].max() < 2 * np.pi * 3 * 1.01  # nothing is left of the 100 Hz, 63 rad/s


@pytest.mark.parametrize(
    ("times", "position", "message"),
    [
        ([0.0, 1.0], [0.0], "positions"),
        ([[0.0], [1.0]], [[0.0], [0.0]], "positions"),
        ([0.0, 2.0, 1.0], [0.0, 0.0, 0.0], "go back"),
        ([0.0, np.nan], [0.0, 0.0], "finite"),
        ([0.0, 0.05], [0.0, 0.0], "less than 0.1 s"),
        ([0.0, 1.0, 1e9], [0.0, 0.0, 0.0], r"timestamps go from 0 to 1e\+09 s, expected at most a day"),
        ([], [], "less than 0.1 s"),
    ],
)
def test_a_broken_wheel_is_refused(times, position, message):
    with pytest.raises(NEDSError, match=message):
        wheel_speed(np.array(times), np.array(position))
