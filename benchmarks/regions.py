"""Brain regions from unit embeddings of recorded sessions, against plain statistics of the same units.

    python benchmarks/regions.py --recordings steinmetz2019/*.npz --output region_runs

Pretrains on all sessions and predicts groups of areas (`examples/configs/steinmetz_regions.yaml`). Writes
`regions.csv` beside this file and its table into RESULTS.md. What is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from common import HERE, RESULTS, TRAINED_ON, markdown, neds, write_table
from transfer import PRETRAINING

CSV = HERE / "regions.csv"
GROUPS = HERE.parent / "examples" / "configs" / "steinmetz_regions.yaml"
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
SPLITS = {"unit": "over units", "session": "by session"}


def measure(recordings: list[Path], output: Path, seed: int) -> pd.DataFrame:
    """A row a split of the units and kind of features."""
    dataset, model, regions = output / "dataset", output / "model", output / "regions"
    if not (dataset / "README.md").exists():
        neds("build", dataset, "--arrays", *recordings)
    if not (model / "metrics.json").exists():
        neds("pretrain", "--dataset", dataset, "--output", model, "--seed", seed, *TRAINED_ON, *PRETRAINING)
    if not (regions / "metrics.json").exists():
        neds("regions", "--model", model, "--dataset", dataset, "--output", regions, "--group", GROUPS)
    scores = json.loads((regions / "metrics.json").read_text())
    return pd.DataFrame(
        {"split": split, "features": features, **values}
        for split in SPLITS
        for features, values in scores[f"by_{split}"].items()
    )


def table(results: pd.DataFrame) -> str:
    """Mean ± standard error over the folds, a row a kind of features."""
    texts = {
        features: [
            f"{row[metric].item():.3f} ± {row[f'{metric}_standard_error'].item():.3f}"
            for split in SPLITS
            for row in [rows[rows["split"] == split]]
            for metric in METRICS
        ]
        for features, rows in results.groupby("features", sort=False)
    }
    columns = [f"{label}, {metric}" for label in SPLITS.values() for metric in METRICS.values()]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="trial arrays (.npz), a session each"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset and the runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measure(options.recordings, options.output, options.seed).to_csv(CSV, index=False, float_format="%.5f")
    write_table(RESULTS, "regions", table(pd.read_csv(CSV)))
    print(table(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
