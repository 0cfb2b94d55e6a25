"""One training step of a model of one session, against its matrix products at the machine's rate.

    python benchmarks/training_step.py

The floor is that of the published layout: a token a bin of every modality, 187 GFLOP for 16 trials, in fp32.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import HERE
from machine import best_seconds, matmul, operations_of_matmul, peak_bytes
from page import publish, row
from steps import DTYPES, SIZES, encoder_operations, make_config, make_step, operations

RECIPES = {
    "`compact`, the default": ("compact", {}),
    "a token a bin, one a categorical behaviour, no attention dropout": (
        "small",
        {"categorical_tokens": "trial", "attention_dropout": 0.0},
    ),
    "`small`, the paper's": ("small", {}),
}
TARGETS = {"fp32": "ratio ≤ 2, ≤ 1.5 GB", "bf16": "ratio ≤ 1, ≤ 1.5 GB"}


def peak_of_step(config, trials: int, dtype) -> int:
    """Bytes; for a process of its own."""
    step = make_step(config, trials, dtype)
    for _ in range(2):
        step()
    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--units", type=int, default=300)
    parser.add_argument("--layers", type=int, default=SIZES["of `small`"]["num_hidden_layers"])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count")
    parser.add_argument("--output", type=Path, default=HERE / "training_step.json")
    options = parser.parse_args()

    sizes = SIZES["of `small`"] | {"num_hidden_layers": options.layers, "num_bins": options.bins}
    configs = {
        name: make_config(preset, [options.units], **{**sizes, **settings})
        for name, (preset, settings) in RECIPES.items()
    }
    cases = {(name, dtype): config for name, config in configs.items() for dtype in DTYPES}
    functions = {dtype: matmul(DTYPES[dtype]) for dtype in DTYPES}
    functions |= {case: make_step(config, options.trials, DTYPES[case[1]]) for case, config in cases.items()}
    times = best_seconds(functions, options.rounds)
    rates = {dtype: operations_of_matmul() / times[dtype] for dtype in DTYPES}
    published = configs["`small`, the paper's"]
    needed = encoder_operations(published, options.trials, sum(published.tokens_per_trial.values()))
    floor = needed / rates["fp32"]

    results, rows = [], []
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["neds_hf.models"])
    for (name, dtype), config in cases.items():
        with ProcessPoolExecutor(1, mp_context=server) as pool:
            peak = pool.submit(peak_of_step, config, options.trials, DTYPES[dtype]).result()
        own = operations(config) * options.trials
        thing = times[name, dtype]
        results.append(
            {
                "recipe": name,
                "dtype": dtype,
                "seconds": thing,
                "ratio": thing / floor,
                "own_operations": own,
                "own_ratio": thing / (own / rates[dtype]),
                "peak_bytes": peak,
            }
        )
        rows.append(
            row(
                f"training step, {name}, {dtype}",
                f"{floor:.3g} s",
                f"{thing:.3g} s, {peak / 1e9:.2f} GB; {thing * rates[dtype] / own:.1f} × its own "
                f"{own / 1e9:.3g} GFLOP in {dtype}",
                thing / floor,
                TARGETS[dtype] if config is configs["`compact`, the default"] else "",
            )
        )
    summary = {
        "trials": options.trials,
        "units": options.units,
        "operations": needed,
        "matmul_rates": rates,
        "floor_seconds": floor,
    }
    publish(options.output, {**summary, "steps": results}, rows)


if __name__ == "__main__":
    main()
