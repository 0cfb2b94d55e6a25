"""One simulated mouse: the IBL decision task, what the mouse does, and the neurons that follow it.

All animals share one dictionary of responses (`BEHAVIOR_FEATURES`, `HIDDEN_FEATURES`): nonlinear functions of
the task, the wheel and the whiskers. A neuron is a sparse weighting of them, drawn by region, so animals share
the structure of their responses but no neurons. Times are in seconds, arrays are in the order (time, units) or
(trials, bins, units).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter1d
from scipy.signal import lfilter
from scipy.special import expit
from scipy.stats import lognorm, loguniform

GRID_S = 0.01  # neurons fire at a constant rate within one step of this grid
WHEEL_STEP_S = 0.002
WINDOW_START_S = -0.5
BIN_SIZE_S = 0.02
NUM_BINS = 100

CONTRASTS = np.array([1.0, 0.25, 0.125, 0.0625, 0.0])
P_CONTRAST = np.array([2, 2, 2, 2, 1]) / 9  # as in the IBL task, 0 % is half as likely as any other
UNBIASED_TRIALS = 90
BLOCK_TRIALS = (20, 100)
RESPONSE_TURN_RAD = 0.28  # 35 degrees of the visual field at 4 degrees per mm, on a wheel of 31 mm radius
NO_GO_S = 60.0
ODD_REACTION = 0.06  # fraction of trials whose reaction time says nothing of the stimulus
ODD_REACTION_TIME = loguniform(0.02, 5.0)

REGIONS = ("PO", "LP", "DG", "CA1", "VISa")


@dataclass
class Behavior:
    """What the mouse does, on the common time axis of the session.

    Attributes:
        trials: One row a trial: the columns of the ALF trials table, and `side` (+1 left, -1 right), `contrast`,
            `movement_times` (when the wheel really starts; infinite where it does not).
        p_state: (trials, 10) probability of every (side, contrast) given block, choice and reaction time.
        wheel_velocity: (steps of `WHEEL_STEP_S`,) rad/s.
        whisking: (steps of `GRID_S`,) envelope of the whisker movements.
    """

    trials: pd.DataFrame
    p_state: np.ndarray
    wheel_velocity: np.ndarray
    whisking: np.ndarray


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


# ---------------------------------------------------------------------------------------------- the task


def block_priors(rng: np.random.Generator, num_trials: int) -> np.ndarray:
    """(trials,) prior probability of a left stimulus: 90 unbiased trials, then blocks of 0.2 and 0.8.

    Block lengths are exponential (mean 60) within 20-100 trials (IBL, eLife 10:e63711, 2021).
    """
    priors = [np.full(UNBIASED_TRIALS, 0.5)]
    prior = rng.choice([0.2, 0.8])
    while sum(map(len, priors)) < num_trials:
        length = 0
        while not BLOCK_TRIALS[0] <= length <= BLOCK_TRIALS[1]:
            length = int(rng.exponential(60))
        priors.append(np.full(length, prior))
        prior = 0.2 if prior == 0.8 else 0.8
    return np.concatenate(priors)[:num_trials]


def states() -> tuple[np.ndarray, np.ndarray]:
    """Side and contrast of the 10 stimuli that a trial can have."""
    return np.repeat([1, -1], len(CONTRASTS)), np.tile(CONTRASTS, 2)


def _contrast_gain(contrast: np.ndarray) -> np.ndarray:
    return contrast / (contrast + 0.12)


def p_left_choice(mouse: dict, side: np.ndarray, contrast: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probability of a left choice: psychometric curve with lapses, shifted by the block.

    Args:
        mouse: Its `slope`, `bias` and `lapse`.
        side: +1 left, -1 right.
        contrast: 0 to 1.
        prior: Probability of a left stimulus; all three of one shape, or broadcast to one.
    """
    evidence = mouse["slope"] * side * _contrast_gain(contrast) + mouse["bias"] * (prior - 0.5) / 0.3
    return mouse["lapse"] + (1 - 2 * mouse["lapse"]) * expit(evidence)


def _reaction_time(contrast: np.ndarray):
    """Distribution of the usual reaction time: slower for a weaker stimulus."""
    return lognorm(s=0.4, scale=0.16 + 0.14 * (1 - _contrast_gain(contrast)))


def p_state_given_behavior(
    mouse: dict, prior: np.ndarray, choice: np.ndarray, reaction_s: np.ndarray
) -> np.ndarray:
    """(trials, 10) probability of every stimulus given block, choice and reaction time, by Bayes' rule.

    Args:
        mouse: As in `p_left_choice`.
        prior, choice, reaction_s: (trials,) probability of a left stimulus; -1, 0 or +1; seconds.
    """
    side, contrast = states()
    prior, left, reaction_s = prior[:, None], (choice == 1)[:, None], reaction_s[:, None]
    p_side = np.where(side == 1, prior, 1 - prior)
    p_left = p_left_choice(mouse, side, contrast, prior)
    p_reaction = (1 - ODD_REACTION) * _reaction_time(contrast).pdf(
        reaction_s
    ) + ODD_REACTION * ODD_REACTION_TIME.pdf(reaction_s)
    # A trial without a choice tells nothing of its stimulus.
    likelihood = np.where((choice == 0)[:, None], 1.0, np.where(left, p_left, 1 - p_left) * p_reaction)
    joint = p_side * np.tile(P_CONTRAST, 2) * likelihood
    return joint / joint.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------ the behaviour


def _turn_velocity(x: np.ndarray) -> np.ndarray:
    """Speed profile of one smooth turn (minimum jerk) at the fraction x of its duration; integrates to 1."""
    x = np.clip(x, 0, 1)
    return 30 * (x * (1 - x)) ** 2


def _turned(x: np.ndarray) -> np.ndarray:
    """Fraction turned at the fraction x of the duration: the integral of `_turn_velocity`."""
    x = np.clip(x, 0, 1)
    return x**3 * (10 - 15 * x + 6 * x**2)


def _choice_turns(rng: np.random.Generator, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns of the wheel that make each choice: start after movement onset, angle, duration; all (trials, 5).

    In order: a false start the other way (few trials), the main turn, up to two re-accelerations, and what is
    still missing to reach the response angle. A turn that does not happen has the angle 0.
    """
    shape = (len(choice), 5)
    duration = rng.uniform(0.12, 0.4, shape)
    angle = np.exp(rng.normal(np.log(0.34), 0.5, shape))
    angle[:, 0] = np.where(rng.random(shape[0]) < 0.1, -rng.uniform(0.04, 0.12, shape[0]), 0)
    duration[:, 0] = np.where(angle[:, 0] < 0, rng.uniform(0.1, 0.2, shape[0]), 0)
    angle[:, 2:4] *= rng.uniform(0.3, 1, (shape[0], 2)) * (rng.random((shape[0], 2)) < (0.5, 0.3))
    missing = RESPONSE_TURN_RAD - angle[:, :4].sum(1)
    angle[:, 4] = np.where(missing > -0.02, missing.clip(0) + rng.uniform(0.05, 0.3, shape[0]), 0)
    pause = duration * rng.uniform(0.6, 1.5, shape)
    pause[:, 0] = duration[:, 0]
    start = np.cumsum(pause, 1) - pause
    return start, angle * choice[:, None], np.where(angle == 0, 0.1, duration)


def _turn_time(start: np.ndarray, angle: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """(trials,) time from movement onset to the response angle."""
    time = np.arange(0, 4, WHEEL_STEP_S)
    turned = np.zeros((len(start), len(time)))
    for k in range(start.shape[1]):
        turned += angle[:, k, None] * _turned((time - start[:, k, None]) / duration[:, k, None])
    return time[np.argmax(np.abs(turned) >= RESPONSE_TURN_RAD, 1)]


def _sum_of_events(onset: np.ndarray, shape: np.ndarray, step_s: float, num_steps: int) -> np.ndarray:
    """Sum of event time courses `shape` (events, steps), each from the first step after its onset."""
    index = np.ceil(onset / step_s).astype(int)[:, None] + np.arange(shape.shape[1])
    inside = (index >= 0) & (index < num_steps)
    return np.bincount(index[inside], shape[inside], minlength=num_steps)


def _since_onset(onset: np.ndarray, step_s: float, length_s: float) -> np.ndarray:
    """(events, steps) time since each event, on the steps that `_sum_of_events` adds to."""
    first = np.ceil(onset / step_s) * step_s - onset
    return first[:, None] + np.arange(0, length_s, step_s)


def behave(rng: np.random.Generator, num_trials: int) -> Behavior:
    """A session of the task: trials, wheel and whiskers."""
    mouse = {
        "slope": rng.uniform(4, 6),
        "bias": rng.uniform(0.6, 1.1),
        "lapse": rng.uniform(0.02, 0.06),
    }
    prior = block_priors(rng, num_trials)
    side = np.where(rng.random(num_trials) < prior, 1, -1)
    contrast = rng.choice(CONTRASTS, num_trials, p=P_CONTRAST)
    choice = np.where(rng.random(num_trials) < p_left_choice(mouse, side, contrast, prior), 1, -1)
    reaction_s = np.where(
        rng.random(num_trials) < ODD_REACTION,
        ODD_REACTION_TIME.rvs(num_trials, random_state=rng),
        _reaction_time(contrast).rvs(num_trials, random_state=rng),
    )
    no_go = rng.random(num_trials) < 0.008
    choice[no_go] = 0
    p_state = p_state_given_behavior(mouse, prior, choice, reaction_s)
    reaction_s[no_go] = np.inf

    start, angle, duration = _choice_turns(rng, choice)
    response_s = np.where(no_go, NO_GO_S, reaction_s + _turn_time(start, angle, duration))
    correct = choice == side
    # The quiescent period of 0.4-0.7 s, after what it took the mouse to hold still.
    before_s = (
        0.15 + rng.exponential(0.4, num_trials) + np.minimum(0.4 + rng.exponential(0.15, num_trials), 0.7)
    )
    after_s = np.where(correct, 1.55, 2.55)
    pause_s = rng.uniform(0.4, 0.6, num_trials)
    interval_s = before_s + response_s + after_s
    trial_start = 5 + np.cumsum(interval_s + pause_s) - (interval_s + pause_s)
    stim_on = trial_start + before_s
    feedback = stim_on + response_s
    movement = stim_on + reaction_s
    undetected = rng.random(num_trials) < 0.02
    trials = pd.DataFrame(
        {
            "intervals_0": trial_start,
            "intervals_1": trial_start + interval_s,
            "stimOn_times": stim_on,
            "goCue_times": stim_on + rng.uniform(0.0005, 0.0015, num_trials),
            "firstMovement_times": np.where(no_go | undetected, np.nan, movement),
            "response_times": feedback,
            "feedback_times": feedback + rng.uniform(0, 0.0002, num_trials),
            "choice": choice.astype(float),
            "feedbackType": np.where(correct, 1.0, -1.0),
            "rewardVolume": np.where(correct, 1.5, 0.0),
            "contrastLeft": np.where(side == 1, contrast, np.nan),
            "contrastRight": np.where(side == -1, contrast, np.nan),
            "probabilityLeft": prior,
            "side": side,
            "contrast": contrast,
            "movement_times": movement,
        }
    )
    end_s = np.ceil(trials["intervals_1"].iloc[-1] + 3)
    turn_onset, wheel_velocity = _wheel(rng, trials, start, angle, duration, end_s)
    return Behavior(trials, p_state, wheel_velocity, _whisking(rng, trials, *turn_onset, end_s))


def _wheel(rng, trials, start, angle, duration, end_s):
    """Onsets and durations of all turns, and the wheel's velocity: choices, and small turns after feedback.

    The small turns do not depend on the reward, and end before the next quiescent period.
    """
    made = (angle != 0) & np.isfinite(trials["movement_times"].to_numpy())[:, None]
    onset = (trials["movement_times"].to_numpy()[:, None] + start)[made]
    after = np.repeat(trials["feedback_times"].to_numpy(), rng.poisson(0.5, len(trials)))
    small = np.exp(rng.normal(np.log(0.08), 0.6, len(after))) * rng.choice([-1, 1], len(after))
    onset = np.concatenate([onset, after + rng.uniform(0.2, 1.7, len(after))])
    angle = np.concatenate([angle[made], small.clip(-0.3, 0.3)])
    duration = np.concatenate([duration[made], rng.uniform(0.1, 0.3, len(after))])
    time = _since_onset(onset, WHEEL_STEP_S, 0.42)
    velocity = (angle / duration)[:, None] * _turn_velocity(time / duration[:, None])
    steps = round(end_s / WHEEL_STEP_S)
    return (onset, duration), _sum_of_events(onset, velocity, WHEEL_STEP_S, steps)


def _whisking(rng, trials, turn_onset, turn_duration, end_s):
    """Envelope of the whisker movements: bouts around most turns, after stimulus and feedback, and by themselves.

    Nothing here depends on the side or contrast of the stimulus or on the reward.
    """
    stim_on, feedback = trials["stimOn_times"].to_numpy(), trials["feedback_times"].to_numpy()
    alone = rng.uniform(0, end_s, rng.poisson(0.2 * end_s))
    onset = [
        turn_onset + rng.normal(-0.05, 0.06, len(turn_onset)),
        stim_on + rng.uniform(0.03, 0.12, len(trials)),
        feedback + rng.uniform(0.05, 0.15, len(trials)),
        alone,
    ]
    length = [
        turn_duration * rng.uniform(0.8, 2, len(turn_onset)),
        np.full(len(trials), 0.2),
        rng.uniform(0.3, 0.9, len(trials)),
        rng.uniform(0.2, 0.8, len(alone)),
    ]
    size = [np.full(len(turn_onset), 1.0), np.full(len(trials), 0.6), np.full(len(trials), 0.8)]
    happens = [np.full(len(turn_onset), 0.75), np.full(len(trials), 0.25), np.full(len(trials), 0.7)]
    size, happens = (
        np.concatenate([*size, np.ones(len(alone))]),
        np.concatenate([*happens, np.ones(len(alone))]),
    )
    onset, length = np.concatenate(onset), np.concatenate(length)
    size = size * np.exp(rng.normal(-0.1, 0.5, len(size))) * (rng.random(len(size)) < happens)
    time = _since_onset(onset, GRID_S, 1.6)
    over = (time - length[:, None]).clip(0)
    bouts = size[:, None] * (1 - np.exp(-time / 0.04)) * np.exp(-over / 0.08)
    steps = round(end_s / GRID_S)
    envelope = _sum_of_events(onset, bouts, GRID_S, steps)
    return (0.04 + envelope) * np.exp(0.3 * _fluctuation(rng, steps, 1, 0.08)[:, 0])


def _fluctuation(rng: np.random.Generator, steps: int, count: int, time_constant_s: float) -> np.ndarray:
    """(steps, count) stationary Gaussian AR(1) processes of unit variance, float32."""
    keep = np.exp(-GRID_S / time_constant_s)
    noise = rng.standard_normal((steps, count), np.float32)
    noise[1:] *= np.sqrt(1 - keep**2)
    return lfilter([1.0], [1.0, -keep], noise, axis=0).astype(np.float32)


# -------------------------------------------------------------------------------------------- the neurons

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
    gain, correct = _contrast_gain(contrast), side == choice
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
        log_rates += _fluctuation(rng, steps, 1, time_constant_s) * loading
    time_constant_s, deviation = PRIVATE_FLUCTUATION
    log_rates += deviation * _fluctuation(rng, steps, units, time_constant_s)
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
