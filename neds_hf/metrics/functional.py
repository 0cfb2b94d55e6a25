"""How good predictions are, in plain NumPy. Axes are trials B, bins T, units N.

What cannot be scored (a silent unit, a variable that never changes, no trial) is NaN, never an infinity.
Arrays that do not fit together are a ValueError. Tensors (on the CPU, without gradient) and lists are taken too.
"""

import numpy as np

# A variable whose spread is below this fraction of its size is constant up to float32 rounding.
CONSTANT = 1e-6


def bits_per_spike(
    log_rates: np.ndarray, spike_counts: np.ndarray, null_rates: np.ndarray | None = None
) -> np.ndarray:
    """Information that the predicted rates carry beyond a constant rate, in bits per spike, for every unit.

    With counts k, predicted counts λ and the null model's constant λ₀, summed over trials and bins:
    (Σ(k ln λ − λ) − Σ(k ln λ₀ − λ₀)) / (ln 2 · Σk). ln k! cancels. (Pei et al. 2021, Neural Latents Benchmark.)

    Args:
        log_rates: (B, T, N) natural logarithm of the expected counts per bin.
        spike_counts: (B, T, N) spikes per bin.
        null_rates: (N,) expected counts per bin of the null model, such as the means over training trials.
            None takes each unit's mean over these very trials, as the paper's code does.

    Returns:
        (N,) bits per spike; NaN for a silent unit, and for one that the null model holds to be silent.
    """
    log_rates, spike_counts = _same_shape("log_rates", log_rates, "spike_counts", spike_counts)
    num_bins = spike_counts.shape[0] * spike_counts.shape[1]
    return bits_from_sums(
        spike_log_likelihood(log_rates, spike_counts),
        spike_counts.sum((0, 1), dtype=np.float64),
        num_bins,
        null_rates,
    )


def spike_log_likelihood(log_rates: np.ndarray, spike_counts: np.ndarray) -> np.ndarray:
    """Poisson log-likelihood of every unit without its ln k! term, Σ(k ln λ − λ) over trials and bins: (N,)."""
    log_rates = np.asarray(log_rates, np.float64)
    # An empty bin under a rate of zero has likelihood one, and 0 · ln 0 would be NaN.
    spikes = np.multiply(spike_counts, log_rates, out=np.zeros(log_rates.shape), where=spike_counts > 0)
    return (spikes - np.exp(log_rates)).sum((0, 1))


def bits_from_sums(
    log_likelihood: np.ndarray, num_spikes: np.ndarray, num_bins: int, null_rates: np.ndarray | None = None
) -> np.ndarray:
    """Bits per spike of every unit from `spike_log_likelihood`, its spikes (N,) and trials × bins: (N,)."""
    null_rates = num_spikes / max(num_bins, 1) if null_rates is None else np.asarray(null_rates, np.float64)
    _same_shape("null_rates", null_rates, "units", num_spikes)
    with np.errstate(divide="ignore", invalid="ignore"):
        null = num_spikes * np.log(null_rates) - num_bins * null_rates
        bits = (log_likelihood - null) / (num_spikes * np.log(2))
    return finite_or_nan(bits)


def r2(predicted: np.ndarray, real: np.ndarray) -> float:
    """Explained variance pooled over trials and bins: 1 − Σ(real − predicted)² / Σ(real − mean)².

    This is what the paper's code reports; the shape of the average trial counts as explained.

    Args:
        predicted, real: (B, T). Trials that are all NaN in `real` are left out.
    """
    predicted, real = _present_trials(predicted, real)
    total = ((real - real.mean()) ** 2).sum() if real.size else 0.0
    return float(explained(((real - predicted) ** 2).sum(), total, (real**2).sum()))


def r2_beyond_average(predicted: np.ndarray, real: np.ndarray) -> float:
    """Explained variance beyond the average trial: 1 − Σ(real − predicted)² / Σ(real − mean of its bin)².

    The mean of a bin goes over these trials (as the paper says of its R²). Zero: no better than the average trial.

    Args:
        predicted, real: (B, T). Trials that are all NaN in `real` are left out.
    """
    predicted, real = _present_trials(predicted, real)
    total = ((real - real.mean(0)) ** 2).sum() if real.size else 0.0
    return float(explained(((real - predicted) ** 2).sum(), total, (real**2).sum()))


def psth_r2(log_rates: np.ndarray, spike_counts: np.ndarray) -> np.ndarray:
    """R² over bins between the average predicted rate and the average count of trials, for every unit.

    Args:
        log_rates: (B, T, N) natural logarithm of the expected counts per bin.
        spike_counts: (B, T, N) spikes per bin.

    Returns:
        (N,); NaN for a unit whose average count is the same in all bins.
    """
    log_rates, spike_counts = _same_shape("log_rates", log_rates, "spike_counts", spike_counts)
    if not len(spike_counts):
        return np.full(spike_counts.shape[2], np.nan)
    return psth_r2_from_means(np.exp(np.asarray(log_rates, np.float64)).mean(0), spike_counts.mean(0))


def psth_r2_from_means(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`psth_r2` from the averages over trials, or the sums, both (T, N): (N,)."""
    total = ((real - real.mean(0)) ** 2).sum(0)
    return explained(((real - predicted) ** 2).sum(0), total, (real**2).sum(0))


def accuracy(predicted_class: np.ndarray, real_class: np.ndarray) -> float:
    """Fraction of trials whose class is predicted. Both (B,); −1 in `real_class` is missing and left out."""
    predicted_class, real_class = _present_classes(predicted_class, real_class)
    return float((predicted_class == real_class).mean()) if len(real_class) else np.nan


def balanced_accuracy(predicted_class: np.ndarray, real_class: np.ndarray) -> float:
    """Mean over the classes that occur of the fraction of their trials that is predicted.

    Both (B,); −1 in `real_class` is missing and left out.
    """
    predicted_class, real_class = _present_classes(predicted_class, real_class)
    recalls = [(predicted_class[real_class == c] == c).mean() for c in np.unique(real_class)]
    return float(np.mean(recalls)) if recalls else np.nan


def mean_table(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over sessions of every metric, over the sessions where it is defined."""
    names = dict.fromkeys(name for metrics in scores.values() for name in metrics)
    values = {name: [metrics.get(name, np.nan) for metrics in scores.values()] for name in names}
    return {
        name: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
        for name, column in values.items()
    }


def explained(residual: np.ndarray, total: np.ndarray, size: np.ndarray) -> np.ndarray:
    """1 − residual / total of sums of squares; NaN where `total` is zero up to rounding beside `size`."""
    varies = total > CONSTANT**2 * size
    return finite_or_nan(1 - residual / np.where(varies, total, np.nan))


def finite_or_nan(values: np.ndarray) -> np.ndarray:
    """The values, of any shape, with NaN for infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def present_trials(real: np.ndarray) -> np.ndarray:
    """(B,) True where a trial of `real` (B, T) is not all NaN."""
    return ~np.isnan(real).all(1)


def _present_trials(predicted: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, real = _same_shape("predicted", predicted, "real", real)
    present = present_trials(real)
    return predicted.astype(np.float64)[present], real.astype(np.float64)[present]


def _present_classes(predicted: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, real = _same_shape("predicted_class", predicted, "real_class", real)
    present = real >= 0
    return predicted[present], real[present]


def _same_shape(name: str, values, other_name: str, other) -> tuple[np.ndarray, np.ndarray]:
    values, other = np.asarray(values), np.asarray(other)
    if values.shape != other.shape:
        raise ValueError(f"{name} is {values.shape}, expected the shape of {other_name}: {other.shape}")
    return values, other
