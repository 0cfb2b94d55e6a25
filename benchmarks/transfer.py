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
PRETRAINING = ("--learning_rate", "3e-3", "--num_train_epochs", 60)
FINE_TUNING = ("--learning_rate", "2e-3", "--num_train_epochs", 60)
BASELINES = ("linear", "reduced_rank", "reduced_rank_multi_session", "poisson_glm")
METHODS = (*BASELINES, "alone", "fine-tuned")


def measure(recordings: list[Path], output: Path, num_new: int, seed: int) -> pd.DataFrame:
    """A row a new session and method."""
    dataset, pretrained = output / "dataset", output / "pretrained"
    if not dataset.exists():
        neds("build", dataset, "--arrays", *recordings)
    sessions = sorted(open_recordings(dataset).session_ids)
    known, new = sessions[:-num_new], sessions[-num_new:]
    seeded = ("--seed", seed, *TRAINED_ON)
    if not (pretrained / "metrics.json").exists():
        neds(
            "pretrain",
            "--dataset",
            dataset,
            "--sessions",
            *known,
            "--output",
            pretrained,
            *seeded,
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
            rows.append({"session": session, "method": method, **baselines[method][session]})
        for method in ("alone", "fine-tuned"):
            run = output / f"{method}-{session}"
            if not (run / "metrics.json").exists():
                where = ("--dataset", dataset, "--output", run, *seeded)
                if method == "alone":
                    neds("pretrain", *where, "--sessions", session, *ALONE)
                else:
                    neds("finetune", *where, "--session", session, "--model", pretrained, *FINE_TUNING)
            metrics = json.loads((run / "metrics.json").read_text())["mean"]
            rows.append({"session": session, "method": method, **metrics})
    results = pd.DataFrame(rows)
    return results[["session", "method", *(metric for metric in METRICS if metric in results)]]


def table(results: pd.DataFrame) -> str:
    """A row a session and method, then the means over sessions."""
    metrics = [metric for metric in METRICS if metric in results]
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
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = measure(options.recordings, options.output, options.new, options.seed)
    results.to_csv(CSV, index=False, float_format="%.5f")
    write_table(RESULTS, "transfer", table(pd.read_csv(CSV)))
    print(table(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
