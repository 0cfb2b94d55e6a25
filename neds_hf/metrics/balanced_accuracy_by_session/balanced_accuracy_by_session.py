"""`neds_hf.metrics.functional.balanced_accuracy` of every session as a module of `evaluate`."""

import evaluate
import numpy as np
from datasets import Features, Value

from neds_hf.metrics import functional

DESCRIPTION = (
    """Balanced accuracy of a class a trial, in every session by itself, and its mean over sessions."""
)
INPUTS = """
Trials of any sessions, in any number of batches.

Args:
    predictions: (trials,) predicted class index.
    references: (trials,) class index; -1 is missing and left out.
    sessions: (trials,) session of each trial.

Returns:
    balanced_accuracy: mean over sessions; a session without a class is left out.
    balanced_accuracy_by_session: session to the mean over its classes of the fraction that is predicted.

Raises:
    ValueError: Not whole numbers, such as probabilities.
"""
CITATION = """Brodersen et al. 2010, The balanced accuracy and its posterior distribution, ICPR."""


class BalancedAccuracyBySession(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = Features(
            # Not whole numbers, which `evaluate` would make of probabilities without a word.
            {"predictions": Value("float64"), "references": Value("float64"), "sessions": Value("string")}
        )
        return evaluate.MetricInfo(DESCRIPTION, CITATION, features, INPUTS)

    def _compute(self, predictions, references, sessions) -> dict:
        predictions, references, sessions = map(np.array, (predictions, references, sessions))
        for name, classes in (("predictions", predictions), ("references", references)):
            if (classes % 1 != 0).any():
                raise ValueError(f"{name} holds {classes[classes % 1 != 0][0]}, expected class indices")
        by_session = {
            str(session): functional.balanced_accuracy(
                predictions[sessions == session], references[sessions == session]
            )
            for session in np.unique(sessions)
        }
        scored = [value for value in by_session.values() if not np.isnan(value)]
        return {
            "balanced_accuracy": float(np.mean(scored)) if scored else float("nan"),
            "balanced_accuracy_by_session": by_session,
        }
