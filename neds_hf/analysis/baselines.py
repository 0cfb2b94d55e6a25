"""The baselines by name: what a lab would use instead of NEDS, on the same trials.

Everything is chosen on training trials; of the test trials, decoding reads the spikes and encoding the behaviour.
"""

from collections.abc import Sequence

import numpy as np

from neds_hf.analysis.comparison import Predictions
from neds_hf.analysis.decoding import decode_categorical, decode_continuous
from neds_hf.analysis.encoding import average_trial, best_smoothing, encode_linear
from neds_hf.analysis.poisson_glm import encode_poisson
from neds_hf.analysis.reduced_rank import reduced_rank
from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError

MIN_TRIALS = 5  # training trials: one for each fold
MULTI_SESSION = "reduced_rank_multi_session"


def predict_tests(
    method: str, trains: Sequence[SessionTrials], tests: Sequence[SessionTrials], seed: int
) -> list[Predictions]:
    """What a method predicts of each session's test trials.

    Args:
        method: One of `METHODS`.
        trains, tests: Training and test trials of each session. A behaviour that is missing in a trial is neither
            used nor predicted from there. `MULTI_SESSION` fits all sessions together, the others each alone.
        seed: Shuffles the trials into folds, and draws initial weights.

    Raises:
        NEDSError: Fewer training trials than folds.
    """
    for train in trains:
        if len(train.spike_counts) < MIN_TRIALS:
            raise NEDSError(
                f"{train.session}: a baseline needs {MIN_TRIALS} training trials, found {len(train.spike_counts)}"
            )
    if method == MULTI_SESSION:
        return reduced_rank(trains, tests, seed)
    return [_OF_ONE_SESSION[method](train, test, seed) for train, test in zip(trains, tests)]


def _average(train: SessionTrials, test: SessionTrials, seed: int) -> Predictions:
    """The average training trial and the share of each class, whatever the test trial."""
    counts = train.spike_counts.astype(np.float32)
    predictions = {"log_rates": np.log(average_trial(counts, best_smoothing(counts, seed)))}
    for name, values in train.continuous.items():
        present = ~np.isnan(values).any(1)
        predictions[name] = values[present].mean(0) if present.any() else np.full(values.shape[1], np.nan)
    for name, classes in train.classes.items():
        present = train.categorical[name] >= 0
        occurrences = np.bincount(train.categorical[name][present], minlength=len(classes))
        predictions[name] = occurrences / (present.sum() or np.nan)
    return {
        name: np.broadcast_to(values, (len(test.spike_counts), *values.shape))
        for name, values in predictions.items()
    }


def _linear(train: SessionTrials, test: SessionTrials, seed: int) -> Predictions:
    return {
        "log_rates": encode_linear(train, test, seed),
        **decode_continuous(train, test, seed),
        **decode_categorical(train, test, seed),
    }


def _reduced_rank(train: SessionTrials, test: SessionTrials, seed: int) -> Predictions:
    return reduced_rank([train], [test], seed)[0]


def _poisson_glm(train: SessionTrials, test: SessionTrials, seed: int) -> Predictions:
    return {"log_rates": encode_poisson(train, test, seed)}


_OF_ONE_SESSION = {
    "trial_average": _average,
    "linear": _linear,
    "reduced_rank": _reduced_rank,
    "poisson_glm": _poisson_glm,
}
METHODS = ("trial_average", "linear", "reduced_rank", MULTI_SESSION, "poisson_glm")
