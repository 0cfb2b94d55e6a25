"""Pretraining on some animals' sessions and fine-tuning on others, against training on these alone.

    python benchmarks/transfer.py --recordings steinmetz2019/*.npz --new 3 --output transfer_runs

The last `--new` sessions by name are new; all methods learn from their training and validation trials.
Writes `transfer.csv` beside this file and its table into RESULTS.md. What is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from common import ALONE, HERE, METRICS, RESULTS, TRAINED_ON, markdown, neds, scores_of_baseline, write_table

from neds_hf.analysis.baselines import MULTI_SESSION
from neds_hf.training.sessions import open_recordings

CSV = HERE / "transfer.csv"
PRETRAINING = ("--learning_rate", "3e-3", "--num_train_epochs", 120)
FINE_TUNING = ("--learning_rate", "1e-3", "--num_train_epochs", 60)
BASELINES = ("linear", "reduced_rank", "reduced_rank_multi_session", "poisson_glm")
TRAINED = ("alone", "fine-tuned")
METHODS = (*BASELINES, *TRAINED, *(f"{method}, seeds averaged" for method in TRAINED))


def measure(recordings: list[Path], output: Path, num_new: int, seeds: list[int]) -> pd.DataFrame:
    """A row a new session, method and seed."""
    dataset, pretrained = output / "dataset", output / "pretrained"
    if not dataset.exists():
        neds("build", dataset, "--arrays", *recordings)
    sessions = sorted(open_recordings(dataset).session_ids)
    known, new = sessions[:-num_new], sessions[-num_new:]
    if not (pretrained / "metrics.json").exists():
        neds(
            "pretrain",
            "--dataset",
            dataset,
            "--sessions",
            *known,
            "--output",
            pretrained,
            "--seed",
            0,
            *TRAINED_ON,
            *PRETRAINING,
        )
    baselines = {
        method: scores_of_baseline(
            method,
            dataset,
            output / "baselines",
            "--session",
            *(sessions if method == MULTI_SESSION else new),
        )
        for method in BASELINES
    }
    rows = []
    for session in new:
        for method in BASELINES:
            rows.append({"session": session, "method": method, "seed": 0, **baselines[method][session]})
        for method in TRAINED:
            runs = [output / f"{method}-{seed}" / session for seed in seeds]
            for run, seed in zip(runs, seeds):
                if not (run / "metrics.json").exists():
                    where = ("--dataset", dataset, "--output", run, "--seed", seed, *TRAINED_ON)
                    if method == "alone":
                        neds("pretrain", *where, "--sessions", session, *ALONE)
                    else:
                        neds("finetune", *where, "--session", session, "--model", pretrained, *FINE_TUNING)
                metrics = json.loads((run / "metrics.json").read_text())["mean"]
                rows.append({"session": session, "method": method, "seed": seed, **metrics})
            report = output / f"{method}-averaged" / f"{session}.json"
            if not report.exists():
                scored = ("--session", session, "--output", report)
                neds("evaluate", "--dataset", dataset, "--model", *runs, *scored)
            metrics = json.loads(report.read_text())["mean"]
            averaged = {"method": f"{method}, seeds averaged", "seed": len(seeds)}
            rows.append({"session": session, **averaged, **metrics})
    results = pd.DataFrame(rows)
    return results[["session", "method", "seed", *(metric for metric in METRICS if metric in results)]]


def table(results: pd.DataFrame) -> str:
    """A row a session and method, the mean over seeds, then the means over sessions."""
    metrics = [metric for metric in METRICS if metric in results]
    results = results.groupby(["session", "method"], sort=False)[metrics].mean().reset_index()
    means = results.groupby("method")[metrics].mean().loc[list(METHODS)]
    rows = {
        f"{row.session}: {row.method}": [getattr(row, m) for m in metrics] for row in results.itertuples()
    }
    rows |= {f"**mean: {method}**": means.loc[method].tolist() for method in METHODS}
    texts = {
        name: ["" if pd.isna(value) else f"{value:.3f}" for value in values] for name, values in rows.items()
    }
    columns = [METRICS[metric] for metric in metrics]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="trial arrays (.npz), a session each"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset and the runs")
    parser.add_argument("--new", type=int, default=3, help="sessions not pretrained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of what the new sessions train")
    options = parser.parse_args()
    results = measure(options.recordings, options.output, options.new, options.seeds)
    results.to_csv(CSV, index=False, float_format="%.5f")
    write_table(RESULTS, "transfer", table(pd.read_csv(CSV)))
    print(table(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
