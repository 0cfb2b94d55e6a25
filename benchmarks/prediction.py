"""Decoding one trial, and many, with the model of one session, against their matrix products.

    python benchmarks/prediction.py

From spike counts to behaviour in its own units: processor, model, scale.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from common import HERE
from machine import best_seconds, matmul, operations_of_matmul, seconds
from page import publish, row
from steps import DTYPES, SIZES, make_config, operations
from torch.utils.data import DataLoader

from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.training.inference import predict

ALL = 10_000  # trials
PRESETS = ("small", "compact")
ATTENTIONS = ("sdpa", "eager")


def make_processor(config: NEDSConfig) -> NEDSProcessor:
    """Knows the model's session from some random trials."""
    processor = NEDSProcessor(config.modalities, num_bins=config.num_bins)
    rng = np.random.default_rng(0)
    for session, units in zip(config.session_ids, config.unit_counts):
        behaviors = {
            name: rng.normal(size=(4, config.num_bins))
            for name, classes in config.behaviors.items()
            if not classes
        }
        counts = random_counts(config, 4)
        processor.add_session(session, [f"{session} {unit}" for unit in range(units)], counts, behaviors)
    return processor


def random_counts(config: NEDSConfig, trials: int) -> np.ndarray:
    """(trials, T, N) of the first session."""
    shape = (trials, config.num_bins, config.unit_counts[0])
    return np.random.default_rng(1).poisson(0.1, shape).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=512, help="trials decoded in one go, for the rate")
    parser.add_argument("--batch", type=int, default=64, help="trials a batch of these")
    parser.add_argument("--single", type=int, default=50, help="trials decoded one by one")
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--units", type=int, default=300)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "prediction.json")
    options = parser.parse_args()

    results, rows = [], []
    for preset in PRESETS:
        for dtype in DTYPES:
            result = measure(preset, dtype, options)
            results.append(result)
            floor, medians, rates = (
                result[name] for name in ("floor_seconds", "median_seconds", "trials_per_second")
            )
            fastest, other = sorted(medians, key=medians.get)
            rows.append(
                row(
                    f"one trial decoded, `{preset}`, {dtype}",
                    f"{1e3 * floor:.1f} ms",
                    f"median {1e3 * medians[fastest]:.1f} ms ({fastest}; {other} {1e3 * medians[other]:.1f})",
                    medians[fastest] / floor,
                    "≤ 15 ms" if preset == "small" else "",
                )
            )
            other, fastest = sorted(rates, key=rates.get)
            rate = rates[fastest]
            rows.append(
                row(
                    f"{ALL:,} trials decoded, `{preset}`, {dtype}",
                    f"{1 / floor:.0f} trials/s",
                    f"{rate:.0f} trials/s, {ALL / rate:.0f} s ({fastest}; {other} {rates[other]:.0f} trials/s)",
                    1 / floor / rate,
                    "ratio ≤ 3" if (preset, dtype) == ("small", "fp32") else "",
                )
            )
    publish(options.output, {"units": options.units, "predictions": results}, rows)


def measure(preset: str, dtype: str, options: argparse.Namespace) -> dict:
    """One preset and number format; the weights themselves are of that format."""
    sizes = SIZES["of `small`"] | {"num_bins": options.bins, "num_hidden_layers": options.layers}
    config = make_config(preset, [options.units], **sizes)
    needed = operations(config, train=False)
    model = NEDSModel(config).eval().to(DTYPES[dtype])
    processor = make_processor(config)
    session, counts = config.session_ids[0], random_counts(config, options.trials)

    @torch.no_grad()
    def decode_one() -> dict[str, np.ndarray]:
        output = model(**processor(session, counts[:1]), scheme="decoding", return_loss=False)
        return processor.in_data_units(session, output.predictions)

    def decode_many() -> dict[str, np.ndarray]:
        loader = DataLoader(counts, options.batch, collate_fn=lambda trials: dict(processor(session, trials)))
        return predict(model, processor, loader, "decoding")

    product = matmul(DTYPES[dtype])
    singles, products, rates = {}, [], {}
    for attention in ATTENTIONS:
        model.set_attn_implementation(attention)
        decode_one()
        singles[attention] = []
        for _ in range(options.single):
            singles[attention].append(seconds(decode_one))
            products.append(seconds(product))
        many = best_seconds({"decode": decode_many, "matmul": product}, options.rounds)
        products.append(many["matmul"])
        rates[attention] = options.trials / many["decode"]
    rate = operations_of_matmul() / min(products)
    return {
        "preset": preset,
        "dtype": dtype,
        "operations": needed,
        "matmul_rate": rate,
        "floor_seconds": needed / rate,
        "median_seconds": {attention: statistics.median(single) for attention, single in singles.items()},
        "trials_per_second": rates,
    }


if __name__ == "__main__":
    main()
