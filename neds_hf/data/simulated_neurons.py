"""The neurons of a simulated mouse, which follow what it does (`simulated_mouse`).

All animals share one dictionary of responses (`BEHAVIOR_FEATURES`, `HIDDEN_FEATURES`): nonlinear functions of
the task, the wheel and the whiskers. A neuron is a sparse weighting of them, drawn by region, so animals share
the structure of their responses but no neurons. Times are in seconds, arrays are in the order (time, units) or
(trials, bins, units).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import lfilter
from scipy.special import expit

from neds_hf.data.simulated_mouse import GRID_S, Behavior, contrast_gain, fluctuation, states

# The trial window whose true rates are kept.
WINDOW_START_S = -0.5
BIN_SIZE_S = 0.02
NUM_BINS = 100

REGIONS = ("PO", "LP", "DG", "CA1", "VISa")

# Response: the group that says how likely a neuron of a region has it, and its gain on the log rate.
BEHAVIOR_FEATURES = {
    "block_left": ("block", 0.23),
    "block_right": ("block", 0.23),
    "block_unbiased": ("block", 0.23),
    "ramp_left": ("choice", 0.5),
    "ramp_right": ("choice", 0.5),
    "ramp": ("choice", 0.6),
    "ramp_expected_choice": ("choice", 0.5),
    "turn_left_until_feedback": ("choice", 0.22),
    "turn_right_until_feedback": ("choice", 0.22),
    "vigour_ramp": ("choice", 0.8),
    "rebound": ("choice", 0.6),
    "speed": ("movement", 0.4),
    "slow_turn": ("movement", 0.9),
    "middle_speed": ("movement", 0.9),
    "fast_turn": ("movement", 0.9),
    "first_turn": ("movement", 0.9),
    "later_turn": ("movement", 0.9),
    "acceleration": ("movement", 0.8),
    "stop": ("movement", 0.9),
    "speed_left": ("movement", 0.25),
    "speed_right": ("movement", 0.25),
    "whisking_slow": ("whisking", 0.4),
    "middle_whisking": ("whisking", 0.8),
    "strong_whisking": ("whisking", 0.7),
    "whisking_turning": ("whisking", 0.8),
    "whisking_still": ("whisking", 0.7),
}
HIDDEN_FEATURES = {
    "stimulus_left_fast": ("stimulus_fast", 1.1),
    "stimulus_right_fast": ("stimulus_fast", 1.1),
    "stimulus_left_slow": ("stimulus_slow", 0.5),
    "stimulus_right_slow": ("stimulus_slow", 0.5),
    "strong_stimulus": ("stimulus_slow", 1.0),
    "unexpected_stimulus": ("stimulus_slow", 0.7),
    "reward": ("reward", 0.9),
    "error": ("reward", 0.9),
    "reward_slow": ("reward", 0.6),
}
GROUPS = ("stimulus_fast", "stimulus_slow", "block", "choice", "movement", "whisking", "reward")
# Probability that a neuron of the region has a given response of the group.
P_RESPONSE = {
    "PO": (0.12, 0.25, 0.25, 0.22, 0.35, 0.50, 0.20),
    "LP": (0.30, 0.35, 0.25, 0.22, 0.30, 0.30, 0.15),
    "DG": (0.03, 0.08, 0.15, 0.10, 0.15, 0.20, 0.20),
    "CA1": (0.03, 0.08, 0.20, 0.12, 0.18, 0.25, 0.40),
    "VISa": (0.40, 0.25, 0.30, 0.30, 0.25, 0.30, 0.15),
}
P_EXCITED = {"PO": 0.75, "LP": 0.7, "DG": 0.45, "CA1": 0.55, "VISa": 0.65}

# Unobserved fluctuations: time constant in seconds, mean and standard deviation of the neurons' loadings.
SHARED_FLUCTUATIONS = ((20.0, 0.10, 0.08), (2.0, 0.0, 0.15), (0.25, 0.08, 0.12))
PRIVATE_FLUCTUATION = (0.3, 0.12)  # time constant in seconds, standard deviation


@dataclass
class Neurons:
    """The neurons of a mouse, and how they fire.

    Attributes:
        spike_times: One sorted array a neuron, in seconds.
        log_rates_full: (trials, bins, N) ln of the expected spikes per bin given everything.
        log_rates_behavior: The same given only the choice, block, wheel and whiskers of the trial.
    """

    spike_times: list[np.ndarray]
    log_rates_full: np.ndarray
    log_rates_behavior: np.ndarray


def _pulse(time: np.ndarray, peak_s: float) -> np.ndarray:
    """Alpha function: 0 before time 0, 1 at the peak."""
    time = (time / peak_s).clip(0)
    return time * np.exp(1 - time)


def _shifted(values: np.ndarray, delay_s: float) -> np.ndarray:
    """Values of `delay_s` ago; a negative delay looks ahead."""
    steps = round(delay_s / GRID_S)
    return values[np.clip(np.arange(len(values)) - steps, 0, len(values) - 1)]


def _smoothed(values: np.ndarray, time_constant_s: float) -> np.ndarray:
    keep = np.exp(-GRID_S / time_constant_s)
    return lfilter([1 - keep], [1, -keep], values)


def _tuned(values: np.ndarray, preferred: float, width: float) -> np.ndarray:
    """Gaussian tuning curve."""
    return np.exp(-(((values - preferred) / width) ** 2) / 2)


def _since(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Time since the event of the trial; -10 s stands for an event that never comes."""
    return np.where(np.isfinite(event), time - np.where(np.isfinite(event), event, 0), -10.0)


def behavior_features(behavior: Behavior, time: np.ndarray, trial: np.ndarray) -> np.ndarray:
    """(steps, features) responses that the behaviours determine, in the order of `BEHAVIOR_FEATURES`.

    Args:
        behavior: Of the session.
        time: (steps,) seconds, on the grid.
        trial: (steps,) row of the trial that each step belongs to.
    """
    trials = behavior.trials
    choice, prior = trials["choice"].to_numpy()[trial], trials["probabilityLeft"].to_numpy()[trial]
    from_stimulus = time - trials["stimOn_times"].to_numpy()[trial]
    from_movement = _since(time, trials["movement_times"].to_numpy()[trial])
    from_feedback = time - trials["response_times"].to_numpy()[trial]
    speed = np.abs(behavior.wheel_velocity).reshape(len(time), -1).mean(1)
    change = np.gradient(speed, GRID_S)
    past_speed = _shifted(_smoothed(speed, 0.4), 0.1)
    coming_speed = _shifted(maximum_filter1d(speed, 41), -0.2)  # the highest of the next 0.4 s
    whisking = behavior.whisking

    expecting = 0.35 + 0.65 * np.exp(-from_movement.clip(0) / 0.2)
    early, late = from_movement.clip(max=0), from_movement.clip(min=0)
    ramp = (from_stimulus > 0) * np.exp(early / 0.1 - late / 0.08)
    slow_ramp = (from_stimulus > 0) * np.exp(early / 0.25 - late / 0.15)
    turning = expit(from_movement / 0.03) * expit((0.3 - from_feedback) / 0.1)
    steering = from_movement > -0.05
    leading_speed = np.tanh(_shifted(speed, -0.03) / 1.2)
    expected_choice = choice * (prior - 0.5) > 0
    features = {
        "block_left": (prior == 0.8) * expecting,
        "block_right": (prior == 0.2) * expecting,
        "block_unbiased": (prior == 0.5) * expecting,
        "ramp_left": (choice == 1) * ramp,
        "ramp_right": (choice == -1) * ramp,
        "ramp": slow_ramp,
        "ramp_expected_choice": expected_choice * slow_ramp,
        "turn_left_until_feedback": (choice == 1) * turning,
        "turn_right_until_feedback": (choice == -1) * turning,
        "vigour_ramp": slow_ramp * np.tanh(coming_speed / 3),
        "rebound": _pulse(from_movement - 0.3, 0.15),
        "speed": np.tanh(speed / 0.8),
        "slow_turn": _tuned(_shifted(speed, 0.04), 0.5, 0.2),
        "middle_speed": _tuned(_shifted(speed, 0.02), 1.5, 0.4),
        "fast_turn": expit((_shifted(speed, -0.05) - 2.5) / 0.4),
        "first_turn": np.tanh(speed / 0.8) * np.exp(-past_speed / 0.3),
        "later_turn": np.tanh(speed / 0.8) * (1 - np.exp(-past_speed / 0.3)),
        "acceleration": np.tanh(_shifted(change, -0.06).clip(0) / 12),
        "stop": np.tanh(_smoothed(speed, 0.1) / 0.5) * np.exp(-speed / 0.15),
        "speed_left": (choice == 1) * steering * leading_speed,
        "speed_right": (choice == -1) * steering * leading_speed,
        "whisking_slow": np.tanh(_smoothed(whisking, 0.3) / 0.6),
        "middle_whisking": _tuned(_shifted(whisking, -0.04), 0.7, 0.2),
        "strong_whisking": expit((_shifted(whisking, 0.02) - 1.4) / 0.2),
        "whisking_turning": np.tanh(_shifted(whisking, -0.02) / 0.5) * np.tanh(speed / 0.8),
        "whisking_still": np.tanh(whisking / 0.5) * np.exp(-_smoothed(speed, 0.05) / 0.2),
    }
    return np.stack([features[name] for name in BEHAVIOR_FEATURES], 1).astype(np.float32)


def hidden_features(
    from_stimulus: np.ndarray,
    from_feedback: np.ndarray,
    side: np.ndarray,
    contrast: np.ndarray,
    choice: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """(..., features) responses to stimulus and reward, in the order of `HIDDEN_FEATURES`.

    Args:
        from_stimulus, from_feedback: Seconds since them, of any shape; what follows is of the same or broadcast.
        side, contrast: Of the stimulus: +1 left or -1 right; 0 to 1.
        choice: -1, 0 or +1.
        prior: Probability of a left stimulus.
    """
    gain, correct = contrast_gain(contrast), side == choice
    fast, slow = gain * _pulse(from_stimulus - 0.04, 0.03), gain * _pulse(from_stimulus - 0.06, 0.1)
    features = {
        "stimulus_left_fast": (side == 1) * fast,
        "stimulus_right_fast": (side == -1) * fast,
        "stimulus_left_slow": (side == 1) * slow,
        "stimulus_right_slow": (side == -1) * slow,
        "strong_stimulus": gain**3 * _pulse(from_stimulus - 0.05, 0.06),
        "unexpected_stimulus": (side * (prior - 0.5) < 0) * gain * _pulse(from_stimulus - 0.08, 0.12),
        "reward": correct * _pulse(from_feedback - 0.05, 0.12),
        "error": ~correct * _pulse(from_feedback - 0.08, 0.2),
        "reward_slow": correct * _pulse(from_feedback - 0.1, 0.5),
    }
    return np.stack([features[name] for name in HIDDEN_FEATURES], -1).astype(np.float32)


def _weights(rng: np.random.Generator, region: np.ndarray, features: dict) -> np.ndarray:
    """(features, N) sparse weights: which responses a neuron has, how strong, and of which sign."""
    group, gain = zip(*features.values())
    p_response = np.array([P_RESPONSE[name] for name in region])[:, [GROUPS.index(name) for name in group]]
    p_excited = np.array([P_EXCITED[name] for name in region])[:, None]
    shape = p_response.shape
    sign = np.where(rng.random(shape) < p_excited, 1, -1)
    weights = (rng.random(shape) < p_response) * sign * rng.gamma(4, 0.25, shape) * gain
    return weights.T.astype(np.float32)


def _per_bin(rates: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """(trials, bins, N) expected spikes per bin from rates per grid step (trials, steps, N).

    The window starts `fraction` (trials,) of a step after its first step begins, and the rate is constant
    within a step, so that the sum is exact.
    """
    per_bin = round(BIN_SIZE_S / GRID_S)
    first = np.arange(NUM_BINS) * per_bin
    fraction = fraction[:, None, None].astype(np.float32)
    inner = sum(rates[:, first + k] for k in range(1, per_bin))
    return (1 - fraction) * rates[:, first] + inner + fraction * rates[:, first + per_bin]


def fire(rng: np.random.Generator, behavior: Behavior, region: np.ndarray) -> Neurons:
    """Draw neurons of these regions, (N,) acronyms out of `REGIONS`, and their spikes.

    The log rate is a baseline, the weighted responses, and Gaussian fluctuations that nobody observes. Spikes
    are Poisson. `log_rates_behavior` is the log of the exact expectation of the rate given the trial's choice,
    block, wheel and whiskers. A fluctuation with loading w contributes its mean exp(w^2 / 2), and the stimulus
    (with the reward that follows from it and the choice) is summed out with its probability given block,
    choice and reaction time. Trials are independent given the block, wheel turns and whiskers depend on the
    stimulus through choice and reaction time only, and time of response is read off the wheel, so that nothing
    else is to be learned from the behaviours.
    """
    trials, steps, units = behavior.trials, len(behavior.whisking), len(region)
    time = (np.arange(steps) + 0.5) * GRID_S
    trial = (np.searchsorted(trials["intervals_0"].to_numpy(), time, side="right") - 1).clip(0)
    column = {name: trials[name].to_numpy() for name in trials}

    behavior_weights = _weights(rng, region, BEHAVIOR_FEATURES)
    hidden_weights = _weights(rng, region, HIDDEN_FEATURES)
    mean_rate_hz = np.exp(rng.normal(np.log(5.0), 0.75, units)).clip(0.3, 35)
    loadings = np.stack([rng.normal(mean, sd, units) for _, mean, sd in SHARED_FLUCTUATIONS]).astype(
        np.float32
    )

    given_behavior = behavior_features(behavior, time, trial) @ behavior_weights
    from_stimulus, from_feedback = (
        time - column["stimOn_times"][trial],
        time - column["response_times"][trial],
    )
    task = [column[name][trial] for name in ("side", "contrast", "choice", "probabilityLeft")]
    log_rates = given_behavior + hidden_features(from_stimulus, from_feedback, *task) @ hidden_weights
    # With this baseline every neuron fires at its mean rate on average over the fluctuations.
    half_variance = (np.square(loadings).sum(0) + PRIVATE_FLUCTUATION[1] ** 2) / 2
    baseline = np.log(mean_rate_hz * GRID_S) - np.log(np.exp(log_rates).mean(0)) - half_variance
    log_rates += baseline.astype(np.float32)
    for loading, (time_constant_s, _, _) in zip(loadings, SHARED_FLUCTUATIONS):
        log_rates += fluctuation(rng, steps, 1, time_constant_s) * loading
    time_constant_s, deviation = PRIVATE_FLUCTUATION
    log_rates += deviation * fluctuation(rng, steps, units, time_constant_s)
    rates = np.exp(log_rates)

    spike_times = []
    edges = np.arange(steps + 1) * GRID_S
    for unit in range(units):
        expected = np.concatenate([[0.0], np.cumsum(rates[:, unit], dtype=np.float64)])
        drawn = np.sort(rng.uniform(0, expected[-1], rng.poisson(expected[-1])))
        spike_times.append(np.interp(drawn, expected, edges))

    first, fraction = np.divmod((column["stimOn_times"] + WINDOW_START_S) / GRID_S, 1)
    window = first.astype(int)[:, None] + np.arange(NUM_BINS * round(BIN_SIZE_S / GRID_S) + 1)
    marginal = np.zeros((*window.shape, units), np.float32)
    for state, (side, contrast) in enumerate(zip(*states())):
        hidden = hidden_features(
            from_stimulus[window],
            from_feedback[window],
            np.full((1, 1), side),
            np.full((1, 1), contrast),
            column["choice"][:, None],
            column["probabilityLeft"][:, None],
        )
        p_state = behavior.p_state[:, state, None, None].astype(np.float32)
        marginal += p_state * np.exp(hidden @ hidden_weights)
    constant = (baseline + half_variance).astype(np.float32)
    marginal *= np.exp(given_behavior[window] + constant)
    return Neurons(
        spike_times=spike_times,
        log_rates_full=np.log(_per_bin(rates[window], fraction)),
        log_rates_behavior=np.log(_per_bin(marginal, fraction)),
    )
