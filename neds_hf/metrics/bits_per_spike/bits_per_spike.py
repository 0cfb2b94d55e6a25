"""`neds_hf.metrics.functional.bits_per_spike` as a module of `evaluate`."""

import evaluate
import numpy as np
from datasets import Features, List, Value

from neds_hf.metrics import functional

DESCRIPTION = (
    """How much more than a constant rate predicted spike rates tell of the spikes, in bits per spike."""
)
INPUTS = """
Trials of one session, in any number of batches.

Args:
    predictions: (trials, bins, units) natural logarithm of the expected spikes of each bin.
    references: (trials, bins, units) spikes of each bin.
    null_rates: (units,) expected spikes of a bin under the null model, such as the means over training trials.
        Default: the means over these trials.

Returns:
    bits_per_spike: mean over the units that are not silent (NaN where all are).
    silent_units: number of units that it leaves out: those without a spike, or that the null model holds silent.
"""
CITATION = """Pei et al. 2021, Neural Latents Benchmark '21, arXiv 2109.04463."""


class BitsPerSpike(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # Spikes too: of fractions in lists, whole numbers would keep the whole part without a word.
        numbers = List(List(Value("float64")))
        features = Features({"predictions": numbers, "references": numbers})
        return evaluate.MetricInfo(DESCRIPTION, CITATION, features, INPUTS)

    def _compute(self, predictions, references, null_rates=None) -> dict[str, float]:
        counts = np.array(references)
        bits = functional.bits_per_spike(np.array(predictions), counts, null_rates)
        scored = counts.any((0, 1))
        if null_rates is not None:
            scored &= np.asarray(null_rates) > 0
        return {
            "bits_per_spike": float(bits[scored].mean()) if scored.any() else float("nan"),
            "silent_units": int((~scored).sum()),
        }
