"""One simulated mouse: the IBL decision task, and what the mouse does. Times are in seconds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.signal import lfilter
from scipy.special import expit
from scipy.stats import lognorm, loguniform

GRID_S = 0.01  # neurons fire at a constant rate within one step of this grid
WHEEL_STEP_S = 0.002

CONTRASTS = np.array([1.0, 0.25, 0.125, 0.0625, 0.0])
P_CONTRAST = np.array([2, 2, 2, 2, 1]) / 9  # as in the IBL task, 0 % is half as likely as any other
UNBIASED_TRIALS = 90
BLOCK_TRIALS = (20, 100)
RESPONSE_TURN_RAD = 0.28  # 35 degrees of the visual field at 4 degrees per mm, on a wheel of 31 mm radius
NO_GO_S = 60.0
ODD_REACTION = 0.06  # fraction of trials whose reaction time says nothing of the stimulus
ODD_REACTION_TIME = loguniform(0.02, 5.0)


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


def contrast_gain(contrast: np.ndarray) -> np.ndarray:
    """How well a stimulus of this contrast, 0 to 1, is seen."""
    return contrast / (contrast + 0.12)


def p_left_choice(mouse: dict, side: np.ndarray, contrast: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probability of a left choice: psychometric curve with lapses, shifted by the block.

    Args:
        mouse: Its `slope`, `bias` and `lapse`.
        side: +1 left, -1 right.
        contrast: 0 to 1.
        prior: Probability of a left stimulus; all three of one shape, or broadcast to one.
    """
    evidence = mouse["slope"] * side * contrast_gain(contrast) + mouse["bias"] * (prior - 0.5) / 0.3
    return mouse["lapse"] + (1 - 2 * mouse["lapse"]) * expit(evidence)


def _reaction_time(contrast: np.ndarray):
    """Distribution of the usual reaction time: slower for a weaker stimulus."""
    return lognorm(s=0.4, scale=0.16 + 0.14 * (1 - contrast_gain(contrast)))


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
    return (0.04 + envelope) * np.exp(0.3 * fluctuation(rng, steps, 1, 0.08)[:, 0])


def fluctuation(rng: np.random.Generator, steps: int, count: int, time_constant_s: float) -> np.ndarray:
    """(steps, count) stationary Gaussian AR(1) processes of unit variance, float32."""
    keep = np.exp(-GRID_S / time_constant_s)
    noise = rng.standard_normal((steps, count), np.float32)
    noise[1:] *= np.sqrt(1 - keep**2)
    return lfilter([1.0], [1.0, -keep], noise, axis=0).astype(np.float32)
