"""The metrics of one session from sums that add up over batches and processes."""

from math import prod

import numpy as np

from neds_hf.metrics.functional import (
    bits_from_sums,
    explained,
    finite_or_nan,
    present_trials,
    psth_r2_from_means,
    spike_log_likelihood,
)


class SessionSums:
    """Sums over the trials of one session from which every metric follows, without keeping predictions.

    All sums live in one flat float64 array, `vector`, so that those of several processes are gathered by adding:

        sums.vector += other.vector

    Args:
        num_bins, num_units: T and N of the session.
        continuous: Names of the continuous behaviours.
        classes: Name of each categorical behaviour to its number of classes.

    Raises:
        ValueError: Trials are added of another shape, or of a class that does not exist.
    """

    def __init__(self, num_bins: int, num_units: int, continuous: list[str], classes: dict[str, int]) -> None:
        self.shape = (num_bins, num_units)
        self.continuous = list(continuous)
        self.classes = dict(classes)
        shapes = {
            "trials": (),
            "log_likelihood": (num_units,),
            "psth": (num_bins, num_units),
            "predicted_psth": (num_bins, num_units),
        }
        for name in self.continuous:
            shapes |= {(name, "trials"): (), (name, "residual"): ()}
            shapes |= {(name, "sum"): (num_bins,), (name, "squares"): (num_bins,)}
        for name, num_classes in self.classes.items():
            shapes |= {(name, "trials"): (num_classes,), (name, "correct"): (num_classes,)}
        sizes = [prod(shape) for shape in shapes.values()]
        self.vector = np.zeros(sum(sizes))
        parts = np.split(self.vector, np.cumsum(sizes)[:-1])
        self._sums = {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), parts)}

    @property
    def num_trials(self) -> int:
        """Trials whose spikes were added."""
        return int(self._sums["trials"])

    def add_spikes(self, log_rates: np.ndarray, spike_counts: np.ndarray) -> None:
        """Add trials: ln expected counts per bin and counts, both (B, T, N)."""
        self._require_shape("log_rates", log_rates, (len(spike_counts), *self.shape))
        self._require_shape("spike_counts", spike_counts, (len(spike_counts), *self.shape))
        self._sums["trials"] += len(spike_counts)
        self._sums["log_likelihood"] += spike_log_likelihood(log_rates, spike_counts)
        self._sums["psth"] += spike_counts.sum(0, dtype=np.float64)
        self._sums["predicted_psth"] += np.exp(np.asarray(log_rates, np.float64)).sum(0)

    def add_continuous(self, name: str, predicted: np.ndarray, real: np.ndarray) -> None:
        """Add trials of a continuous behaviour, both (B, T). Trials all NaN in `real` are left out."""
        self._require_shape(f"predicted {name}", predicted, (len(real), self.shape[0]))
        self._require_shape(f"real {name}", real, (len(real), self.shape[0]))
        present = present_trials(real)
        predicted = np.asarray(predicted, np.float64)[present]
        real = np.asarray(real, np.float64)[present]
        self._sums[name, "trials"] += len(real)
        self._sums[name, "residual"] += ((real - predicted) ** 2).sum()
        self._sums[name, "sum"] += real.sum(0)
        self._sums[name, "squares"] += (real**2).sum(0)

    def add_categorical(self, name: str, predicted_class: np.ndarray, real_class: np.ndarray) -> None:
        """Add trials of a categorical behaviour, class indices, both (B,). −1 in `real_class` is left out."""
        self._require_shape(f"predicted {name}", predicted_class, (len(real_class),))
        if real_class.max(initial=-1) >= self.classes[name]:
            raise ValueError(f"{name} holds class {real_class.max()}, expected {self.classes[name]} classes")
        correct = real_class[(real_class >= 0) & (predicted_class == real_class)]
        self._sums[name, "trials"] += np.bincount(real_class[real_class >= 0], minlength=self.classes[name])
        self._sums[name, "correct"] += np.bincount(correct, minlength=self.classes[name])

    def metrics(self, null_rates: np.ndarray | None = None) -> dict[str, float]:
        """The metrics of `neds_hf.metrics.functional` over all trials added.

        Args:
            null_rates: (N,) expected counts per bin of the null model, such as the means over training trials.

        Returns:
            `bits_per_spike`, the mean over units that are not silent, the null from these trials, and
            `silent_units`, their number; `bits_per_spike_train_null` where `null_rates` is given, over units
            that these also give a rate; `psth_r2`, the mean over units whose average trial is not flat;
            `<behavior>_r2` and `_r2_beyond_average`, or `_accuracy` and `_balanced_accuracy`; `mean`, of bits
            per spike, every R² and every accuracy whose data allow it (what the paper selects models by).

            What the data do not define is NaN. Predictions that are not finite also make `mean` NaN.
        """
        num_bins = self.num_trials * self.shape[0]
        num_spikes = self._sums["psth"].sum(0)
        spiking = num_spikes > 0
        bits = bits_from_sums(self._sums["log_likelihood"], num_spikes, num_bins)
        metrics = {"bits_per_spike": _mean(bits[spiking]), "silent_units": float((~spiking).sum())}
        selection = [metrics["bits_per_spike"]] if spiking.any() else []
        if null_rates is not None:
            bits = bits_from_sums(self._sums["log_likelihood"], num_spikes, num_bins, null_rates)
            metrics["bits_per_spike_train_null"] = _mean(bits[spiking & (np.asarray(null_rates) > 0)])
        psth = self._sums["psth"]
        metrics["psth_r2"] = _mean(
            psth_r2_from_means(self._sums["predicted_psth"], psth)[np.ptp(psth, axis=0) > 0]
        )
        for name in self.continuous:
            residual, size = self._sums[name, "residual"], self._sums[name, "squares"].sum()
            trials = max(float(self._sums[name, "trials"]), 1.0)
            pooled = size - self._sums[name, "sum"].sum() ** 2 / (trials * self.shape[0])
            beyond = size - (self._sums[name, "sum"] ** 2).sum() / trials
            metrics[f"{name}_r2"] = float(explained(residual, pooled, size))
            metrics[f"{name}_r2_beyond_average"] = float(explained(residual, beyond, size))
            if not np.isnan(explained(0.0, pooled, size)):
                selection.append(metrics[f"{name}_r2"])
        for name in self.classes:
            trials, correct = self._sums[name, "trials"], self._sums[name, "correct"]
            occurs = trials > 0
            metrics[f"{name}_accuracy"] = float(correct.sum() / trials.sum()) if occurs.any() else np.nan
            metrics[f"{name}_balanced_accuracy"] = _mean(correct[occurs] / trials[occurs])
            if occurs.any():
                selection.append(metrics[f"{name}_accuracy"])
        return metrics | {"mean": _mean(selection)}

    def _require_shape(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
        if np.shape(values) != shape:
            raise ValueError(f"{name} is {np.shape(values)}, expected {shape}")


def _mean(values: np.ndarray | list[float]) -> float:
    return float(finite_or_nan(np.mean(values))) if len(values) else np.nan
