"""The three R² of `neds_hf.metrics.functional` as a module of `evaluate`."""

import evaluate
import numpy as np
from datasets import Features, List, Value

from neds_hf.metrics import functional

DESCRIPTION = """Explained variance of a behaviour over the bins of trials, or of units' average responses."""
INPUTS = """
Trials of one session, in any number of batches; either a behaviour or spikes.

Args:
    predictions: (trials, bins) a behaviour; or (trials, bins, units) natural logarithm of the expected spikes of
        each bin.
    references: (trials, bins) the behaviour, where a trial of NaN is left out; or (trials, bins, units) spikes.
    null_rates: not looked at; `evaluate.combine` gives every metric what is for `bits_per_spike`.

Returns:
    r2: of a behaviour, pooled over trials and bins; the average trial's shape counts as explained.
    r2_beyond_average: of a behaviour, beyond the average trial.
    psth_r2: of spikes, over the bins of the trials' average (PSTH); mean over the units whose average varies.
"""
CITATION = """Zhang, Wang et al. 2025, Neural Encoding and Decoding at Scale, ICML, arXiv 2504.08201."""


class NeuralR2(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        behavior, spikes = List(Value("float64")), List(List(Value("float64")))
        features = [Features({"predictions": kind, "references": kind}) for kind in (behavior, spikes)]
        return evaluate.MetricInfo(DESCRIPTION, CITATION, features, INPUTS)

    def _compute(self, predictions, references, null_rates=None) -> dict[str, float]:
        predictions, references = np.array(predictions), np.array(references)
        if references.ndim == 2:
            return {
                "r2": functional.r2(predictions, references),
                "r2_beyond_average": functional.r2_beyond_average(predictions, references),
            }
        varies = np.ptp(references.mean(0), axis=0) > 0
        of_units = functional.psth_r2(predictions, references)[varies]
        return {"psth_r2": float(of_units.mean()) if len(of_units) else float("nan")}
