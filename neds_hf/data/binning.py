"""Spike times and sampled signals into the bins of trials.

A trial starts at `starts_s` and holds `num_bins` bins of `bin_size_s`; trials may overlap. Bin k covers
start + k * bin_size_s up to, not including, start + (k + 1) * bin_size_s.
"""

import numpy as np

from neds_hf.errors import NEDSError

# Interpolating over a longer pause between two samples would invent data.
MAX_GAP_S = 0.1
# A longer recording of the wheel is a wrong timestamp; at 1000 Hz it would not fit into memory.
MAX_WHEEL_S = 86_400


def bin_spikes(
    spike_times: np.ndarray,
    spike_clusters: np.ndarray,
    starts_s: np.ndarray,
    num_bins: int,
    bin_size_s: float,
    num_clusters: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Spikes per bin and cluster.

    Args:
        spike_times: (spikes,) in seconds, in any order.
        spike_clusters: (spikes,) cluster of each spike, 0 ... num_clusters - 1.
        starts_s: (trials,) start of each trial, in seconds.
        num_bins: Bins a trial.
        bin_size_s: Width of a bin.
        num_clusters: Size of the last axis of the result.
        out: Array of the result's shape and type to count into, such as a part of a larger one.

    Returns:
        (trials, num_bins, num_clusters) uint8.

    Raises:
        NEDSError: Lengths differ, a time is not finite, a cluster is no integer or out of range, or more
            than 255 spikes of a cluster fall into one bin.
    """
    spike_times, spike_clusters = np.asarray(spike_times), np.asarray(spike_clusters)
    starts_s = np.asarray(starts_s, dtype=float)
    if spike_times.ndim != 1 or spike_times.shape != spike_clusters.shape:
        raise NEDSError(f"spike times are {spike_times.shape}, their clusters {spike_clusters.shape}")
    in_order = (spike_times[1:] >= spike_times[:-1]).all()
    # In order they are no NaN, and only the first and the last can be infinite.
    ends = spike_times[[0, -1]] if in_order and len(spike_times) else spike_times
    if not (np.isfinite(ends).all() and np.isfinite(starts_s).all()):
        raise NEDSError("spike times and trial starts must be finite, but some are not")
    if len(spike_clusters) and spike_clusters.dtype.kind not in "iu":
        raise NEDSError(f"clusters of spikes must be integers, but are {spike_clusters.dtype}")
    if len(spike_clusters) and not 0 <= spike_clusters.min() <= spike_clusters.max() < num_clusters:
        raise NEDSError(
            f"spikes come from clusters {spike_clusters.min()} to {spike_clusters.max()}, "
            f"expected 0 to {num_clusters - 1}"
        )
    if not in_order:
        order = np.argsort(spike_times, kind="stable")
        spike_times, spike_clusters = spike_times[order], spike_clusters[order]

    edges_s = starts_s[:, None] + bin_size_s * np.arange(num_bins + 1)
    first_spike = np.searchsorted(spike_times, edges_s)
    first_cell = num_clusters * np.arange(num_bins)
    counts = np.empty((len(starts_s), num_bins, num_clusters), dtype=np.uint8) if out is None else out
    most = np.iinfo(np.uint8).max
    # One trial at a time: its int64 counts stay in the processor's cache.
    for trial, first in enumerate(first_spike):
        in_bin = np.diff(first)
        cell = np.repeat(first_cell, in_bin)
        cell += spike_clusters[first[0] : first[-1]].astype(np.int64)
        of_trial = np.bincount(cell, minlength=num_bins * num_clusters)
        if in_bin.max() > most and of_trial.max() > most:  # the former is much faster, and rarely true
            worst = of_trial.argmax()
            raise NEDSError(
                f"cluster {worst % num_clusters} fires {of_trial[worst]} times in one bin of "
                f"{bin_size_s} s; counts above 255 cannot be stored, use smaller bins"
            )
        counts[trial] = of_trial.reshape(num_bins, num_clusters)
    return counts


def bin_continuous(
    times_s: np.ndarray, values: np.ndarray, starts_s: np.ndarray, num_bins: int, bin_size_s: float
) -> np.ndarray:
    """A sampled signal, linearly interpolated at the right edge of every bin.

    A trial is all NaN if the samples do not reach all its right edges, pause for more than `MAX_GAP_S`
    around one of them, or are NaN there.

    Args:
        times_s: (samples,) in seconds, not decreasing.
        values: (samples,).
        starts_s: (trials,) start of each trial, in seconds.
        num_bins: Bins a trial.
        bin_size_s: Width of a bin.

    Returns:
        (trials, num_bins) float32.

    Raises:
        NEDSError: Lengths differ, there are no samples, or the times are not finite or go back.
    """
    times_s, values = np.asarray(times_s, dtype=float), np.asarray(values, dtype=float)
    if times_s.ndim != 1 or times_s.shape != values.shape or not len(times_s):
        raise NEDSError(f"sample times are {times_s.shape}, values {values.shape}, expected as many of both")
    if not np.isfinite(times_s).all() or (times_s[1:] < times_s[:-1]).any():
        raise NEDSError("sample times must be finite and in order, but are not")
    right_edges_s = np.asarray(starts_s, dtype=float)[:, None] + bin_size_s * np.arange(1, num_bins + 1)
    after = np.searchsorted(times_s, right_edges_s)
    inside = (right_edges_s >= times_s[0]) & (right_edges_s <= times_s[-1])
    after = after.clip(0, len(times_s) - 1)
    on_sample = times_s[after] == right_edges_s
    gap_s = times_s[after] - times_s[after - 1]
    usable = inside & (on_sample | (gap_s <= MAX_GAP_S))
    binned = np.interp(right_edges_s, times_s, values)
    usable &= np.isfinite(binned)
    binned[~usable.all(axis=1)] = np.nan
    return binned.astype(np.float32)


def wheel_speed(timestamps_s: np.ndarray, position_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute wheel velocity as the IBL computes it (ibllib's ``SessionLoader.load_wheel``).

    The encoder reports only changes of position. Position is interpolated linearly at 1000 Hz, low-pass
    filtered forwards and backwards (8th-order Butterworth, 20 Hz) and differentiated.

    Args:
        timestamps_s: (samples,) in seconds, not decreasing.
        position_rad: (samples,) unwrapped, in radians.

    Returns:
        Times in seconds and speed in rad/s, both (samples at 1000 Hz,).

    Raises:
        NEDSError: Lengths differ, values are not finite, times go back, or less than 0.1 s or more than
            `MAX_WHEEL_S` is recorded.
    """
    from scipy.signal import butter, sosfiltfilt  # slow to import, and `neds predict` imports this file

    sampling_rate_hz, corner_hz, order = 1000, 20, 8
    timestamps_s, position_rad = np.asarray(timestamps_s, float), np.asarray(position_rad, float)
    if timestamps_s.ndim != 1 or timestamps_s.shape != position_rad.shape:
        raise NEDSError(f"wheel timestamps are {timestamps_s.shape}, positions {position_rad.shape}")
    if not (np.isfinite(timestamps_s).all() and np.isfinite(position_rad).all()):
        raise NEDSError("wheel timestamps and positions must be finite, but some are not")
    if (timestamps_s[1:] < timestamps_s[:-1]).any():
        raise NEDSError("wheel timestamps go back in time")
    if len(timestamps_s) < 2 or timestamps_s[-1] - timestamps_s[0] < 0.1:
        raise NEDSError("the wheel is recorded for less than 0.1 s")
    if timestamps_s[-1] - timestamps_s[0] > MAX_WHEEL_S:
        raise NEDSError(
            f"wheel timestamps go from {timestamps_s[0]:g} to {timestamps_s[-1]:g} s, expected at most a day"
        )
    times_s = np.arange(timestamps_s[0], timestamps_s[-1], 1 / sampling_rate_hz)
    position = np.interp(times_s, timestamps_s, position_rad)
    low_pass = butter(order, corner_hz, fs=sampling_rate_hz, output="sos")
    smooth = sosfiltfilt(low_pass, position)
    velocity = np.diff(smooth, prepend=smooth[0]) * sampling_rate_hz
    # ibllib keeps these times in single precision (a step of 0.1 ms after 17 minutes). Without the same
    # rounding the binned speed would differ from the published one by 0.1 % of its range.
    return times_s.astype(np.float32).astype(float), np.abs(velocity)
