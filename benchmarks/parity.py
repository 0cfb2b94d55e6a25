"""What the differences between the paper and its published code change, measured on one session.

    python benchmarks/parity.py --recording dy016.npz --output parity_runs

Trains one small model for each difference and seed, everything else equal, and scores the test trials. Writes
`parity.json` beside this file and its table into PARITY.md. A run that is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from common import HERE, built, markdown, scores_of_run, write_table

RESULTS, PAGE = HERE / "parity.json", HERE.parent / "PARITY.md"

# The paper's tokens, tokenizer and masks, in a size that trains in minutes on one CPU core.
BASE = {
    "bins_per_token": 1,
    "categorical_tokens": "bin",
    "tied_units": False,
    "spike_smoothing": 0.0,
    "scheme_weights": {"encoding": 1, "decoding": 1, "within_modality": 1, "cross_modal": 1},
    "single_behavior_probability": 0.5,
    "mask_ratio": 0.1,
    "loss_weights": {"spikes": 1},
}
CODE_MASKS = {
    "scheme_weights": {"encoding": 1, "decoding": 1, "within_modality": 2, "cross_modal": 1},
    "within_modality_context": True,
    "single_behavior_probability": 0,
    "mask_ratio": 0.3,
}
# The published code divides the cross-entropy by the number of a trial's tokens, here 50.
STATIC = {"loss_weights": {"choice": 0.02, "block": 0.02}}
CHANGES = {
    "default": {},
    "one mask for the whole batch": {"masks_per": "batch"},
    "cross-entropy weighs 1/bins": STATIC,
    "loss as published": {"loss": "published"},
    "no temporal embedding": {"temporal_embedding": False},
    "mask ratio 0.3": {"mask_ratio": 0.3},
    "masking as published": CODE_MASKS,
    "mlp tokenizer": {"tokenizer": "mlp"},
    "all as published": {"tokenizer": "mlp", "loss": "published", **CODE_MASKS},
    "all as published, one mask for the batch": {
        "tokenizer": "mlp",
        "loss": "published",
        "masks_per": "batch",
        **CODE_MASKS,
    },
}
METRICS = {
    "bits_per_spike": "bits/spike",
    "wheel_speed_r2": "wheel R²",
    "whisker_motion_energy_r2": "whisker R²",
    "choice_accuracy": "choice acc.",
    "block_accuracy": "block acc.",
    "mean": "mean of the five",
}


def train(dataset: Path, folder: Path, changes: dict, seed: int, epochs: int) -> dict:
    """Metrics on the test trials and the run's file."""
    settings = [f"{name}={json.dumps(value)}" for name, value in (BASE | changes).items()]
    what = ("--dataset", dataset, "--preset", "tiny", "--seed", seed, "--num_train_epochs", epochs)
    metrics = scores_of_run(folder, "pretrain", *what, "--set", *settings)
    return {"metrics": metrics, "run": json.loads((folder / "run.json").read_text())}


def summarised(runs: dict[str, list[dict]]) -> dict:
    """What is committed: metrics of each seed, and what all runs share."""
    first = next(iter(runs.values()))[0]["run"]
    return {
        "runs": {
            name: [{metric: of_seed["metrics"][metric] for metric in METRICS} for of_seed in seeds]
            for name, seeds in runs.items()
        },
        "changes": {name: CHANGES[name] for name in runs},
        "seeds": [of_seed["run"]["configuration"]["seed"] for of_seed in next(iter(runs.values()))],
        "configuration": first["configuration"],
        "versions": first["versions"],
        "hardware": first["hardware"],
        "training_minutes": {
            name: [round((r["run"]["finished"] - r["run"]["started"]) / 60, 2) for r in seeds]
            for name, seeds in runs.items()
        },
    }


def table(results: dict) -> str:
    """Mean ± standard deviation over seeds; in brackets the mean change against the first row, seed by seed."""
    texts = {}
    base = next(iter(results["runs"].values()))
    for name, seeds in results["runs"].items():
        cells = []
        for metric in METRICS:
            values = np.array([of_seed[metric] for of_seed in seeds])
            change = values - [of_seed[metric] for of_seed in base]
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}")
            if seeds is not base:
                cells[-1] += f" ({change.mean():+.3f} ± {change.std(ddof=1):.3f})"
        texts[name] = cells
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(METRICS.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recording", type=Path, required=True, help="trial arrays of one session (.npz)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), help="train these only")
    options = parser.parse_args()
    dataset = built(options.output / "dataset", "--arrays", options.recording)
    runs = {
        name: [
            train(
                dataset,
                options.output / f"{name.replace(' ', '-').replace('/', '-')}-{seed}",
                CHANGES[name],
                seed,
                options.epochs,
            )
            for seed in options.seeds
        ]
        for name in options.only
    }
    if options.only != list(CHANGES):
        return
    results = summarised(runs)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    write_table(PAGE, "measured", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
