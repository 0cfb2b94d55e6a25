"""NEDS and the linear baseline on one session, five folds: each fifth of the trials is tested once.

    python benchmarks/folds.py --recording dy016.npz --output fold_runs

Both learn from the training and validation trials of a fold. Writes `folds.csv` beside this file and its table
into RESULTS.md. What is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from common import ALONE, HERE, METRICS, RESULTS, TRAINED_ON, markdown, neds, score_linear, write_table

from neds_hf.training.sessions import open_recordings

NUM_FOLDS = 5
CSV = HERE / "folds.csv"


def measure(recording: Path, output: Path, seeds: list[int]) -> pd.DataFrame:
    """A row a method, fold and seed."""
    rows = []
    for fold in range(NUM_FOLDS):
        dataset = output / f"fold-{fold}" / "dataset"
        if not dataset.exists():
            neds("build", dataset, "--arrays", recording, "--fold", fold)
        (session,) = open_recordings(dataset).session_ids
        rows.append({"method": "linear", "fold": fold, "seed": 0, **score_linear(dataset, session)})
        for seed in seeds:
            run = output / f"fold-{fold}" / f"neds-{seed}"
            if not (run / "metrics.json").exists():
                neds("pretrain", "--dataset", dataset, "--output", run, "--seed", seed, *TRAINED_ON, *ALONE)
            metrics = json.loads((run / "metrics.json").read_text())["mean"]
            rows.append({"method": "NEDS", "fold": fold, "seed": seed, **metrics})
    return pd.DataFrame(rows)[["method", "fold", "seed", *METRICS]]


def table(results: pd.DataFrame) -> str:
    """Mean ± standard error over folds, of each fold the mean over seeds; then NEDS less linear, paired."""
    folds = results.drop(columns="seed").groupby(["method", "fold"]).mean()
    shown = {method: folds.loc[method] for method in ("linear", "NEDS")}
    shown["NEDS − linear"] = shown["NEDS"] - shown["linear"]
    texts = {
        method: [f"{values[m].mean():.3f} ± {values[m].sem():.3f}" for m in METRICS]
        for method, values in shown.items()
    }
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(METRICS.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recording", type=Path, required=True, help="trial arrays of one session (.npz)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the datasets and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    measure(options.recording, options.output, options.seeds).to_csv(CSV, index=False, float_format="%.5f")
    write_table(RESULTS, "folds", table(pd.read_csv(CSV)))
    print(table(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
