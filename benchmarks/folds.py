"""NEDS and the baselines on one session, five folds: each fifth of the trials is tested once.

    python benchmarks/folds.py --recording dy016.npz --output fold_runs

All learn from the training and validation trials of a fold. Writes `folds.csv` beside this file and its table into
RESULTS.md. What is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from common import (
    ALONE,
    HERE,
    METRICS,
    RESULTS,
    TRAINED_ON,
    markdown,
    neds,
    scores_of_baseline,
    scores_of_training,
    write_table,
)

from neds_hf.training.sessions import open_recordings

NUM_FOLDS = 5
CSV = HERE / "folds.csv"
BASELINES = ("linear", "reduced_rank", "poisson_glm")
ONE_TASK = ("neds_encoding", "neds_decoding")  # the paper's ablation
ROOTS = ("--set", "stabilized_counts=true", "label_smoothing=0.2")
# Name to that of the folders of its runs, and further options of its training.
NEDS = {
    "NEDS": ("neds", ()),
    "NEDS, in bf16": ("neds-bf16", ("--bf16",)),
    "NEDS, roots and smoothed labels": ("neds-roots", ROOTS),
}
# Name to that of the models whose predictions are averaged.
ENSEMBLES = {
    "NEDS, seeds averaged": "NEDS",
    "NEDS, roots and smoothed labels, seeds averaged": "NEDS, roots and smoothed labels",
}
COMPARED = ("NEDS", "NEDS, roots and smoothed labels", *ENSEMBLES)  # with the best baseline


def measure(recording: Path, output: Path, seeds: list[int]) -> pd.DataFrame:
    """A row a method, fold and seed."""
    rows = []
    for fold in range(NUM_FOLDS):
        dataset = output / f"fold-{fold}" / "dataset"
        if not dataset.exists():
            neds("build", dataset, "--arrays", recording, "--fold", fold)
        (session,) = open_recordings(dataset).session_ids
        for method in (*BASELINES, *ONE_TASK):
            training = (*TRAINED_ON, *ALONE) if method in ONE_TASK else ()
            scores = scores_of_baseline(method, dataset, output / f"fold-{fold}" / "baselines", *training)
            rows.append({"method": method, "fold": fold, "seed": 0, **scores[session]})
        for method, (name, more) in NEDS.items():
            for seed in seeds:
                run = output / f"fold-{fold}" / f"{name}-{seed}"
                metrics = scores_of_training(dataset, run, seed, *more)
                rows.append({"method": method, "fold": fold, "seed": seed, **metrics})
        for method, averaged in ENSEMBLES.items():
            name = NEDS[averaged][0]
            report = output / f"fold-{fold}" / f"{name}-averaged.json"
            runs = [output / f"fold-{fold}" / f"{name}-{seed}" for seed in seeds]
            if not report.exists():
                neds("evaluate", "--dataset", dataset, "--output", report, "--model", *runs)
            metrics = json.loads(report.read_text())["mean"]
            rows.append({"method": method, "fold": fold, "seed": len(seeds), **metrics})
    return pd.DataFrame(rows)[["method", "fold", "seed", *METRICS]]


def table(results: pd.DataFrame) -> str:
    """Mean ± standard error over folds, of each fold the mean over seeds; then NEDS, one seed and several
    averaged, less the best baseline of each column, fold by fold."""
    folds = results.drop(columns="seed").groupby(["method", "fold"]).mean()
    shown = {method: folds.loc[method] for method in (*BASELINES, *ONE_TASK, *NEDS, *ENSEMBLES)}
    best = {m: max(BASELINES, key=lambda method: shown[method][m].fillna(-1).mean()) for m in METRICS}
    for method in COMPARED:
        differences = {m: shown[method][m] - shown[best[m]][m] for m in METRICS}
        shown[f"{method} − best baseline"] = pd.DataFrame(differences)
    texts = {name: [estimate(values[m]) for m in METRICS] for name, values in shown.items()}
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(METRICS.values())))


def estimate(values: pd.Series) -> str:
    return "" if values.isna().all() else f"{values.mean():.3f} ± {values.sem():.3f}"


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
