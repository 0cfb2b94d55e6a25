"""What the benchmarks share: running commands, reading their scores, and writing tables into a page."""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from neds_hf.data.folder import provenances

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "RESULTS.md"
METRICS = {
    "bits_per_spike": "bits/spike",
    "wheel_speed_r2": "wheel R²",
    "wheel_speed_r2_beyond_average": "wheel, beyond",
    "whisker_motion_energy_r2": "whisker R²",
    "whisker_motion_energy_r2_beyond_average": "whisker, beyond",
    "choice_accuracy": "choice",
    "choice_balanced_accuracy": "choice, bal.",
    "block_accuracy": "block",
    "block_balanced_accuracy": "block, bal.",
}
# Training of `compact` on one session, and the trials that all methods learn from.
ALONE = ("--learning_rate", "3e-3", "--num_train_epochs", 200, "--mixup", 0.3)
TRAINED_ON = ("--train_splits", "train", "validation")
# `compact` as it was before it read roots of the counts: what some committed runs rest on.
COUNTS = ("--set", "stabilized_counts=false")


def neds(command: str, *arguments: object) -> None:
    """Run a command of the package in a process of its own."""
    script = HERE.parent / "examples" / f"{command}.py"
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True)


def built(dataset: Path, *options: object) -> Path:
    """Convert recordings into this folder, where that is not done; the folder."""
    if not (dataset / "README.md").exists():
        neds("build", dataset, *options)
    files = [word for word in options if isinstance(word, Path) and word.is_file()]
    given = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if files and given != {mark["fingerprint"] for mark in provenances(dataset).values()}:
        raise SystemExit(f"{dataset} is of other recordings than these; choose another --output")
    return dataset


def scores_of_training(dataset: Path, run: Path, seed: int, *options: object) -> dict[str, float]:
    """Train on one session as `ALONE` says, with further options, where that is not done; its test metrics."""
    return scores_of_run(run, "pretrain", "--dataset", dataset, "--seed", seed, *TRAINED_ON, *ALONE, *options)


def scores_of_run(run: Path, command: str, *options: object) -> dict[str, float]:
    """Run the command that trains a model into this folder, where that is not done; its test metrics."""
    if not (run / "metrics.json").exists():
        neds(command, "--output", run, *options)
    return json.loads((run / "metrics.json").read_text())["mean"]


def scores_by_session(run: Path) -> dict[str, dict[str, float]]:
    """Of a finished run, session to test metrics."""
    return json.loads((run / "metrics.json").read_text())["sessions"]


def scores_of_evaluation(report: Path, *options: object) -> dict[str, float]:
    """Score models into this file, where that is not done; the test metrics."""
    if not report.exists():
        neds("evaluate", "--output", report, *options)
    return json.loads(report.read_text())["mean"]


def scores_of_baseline(
    method: str, dataset: Path, output: Path, *options: object
) -> dict[str, dict[str, float]]:
    """Fit a baseline where that is not done; session to metrics."""
    if not (output / method / "metrics.json").exists():
        neds("baselines", "--dataset", dataset, "--output", output, "--methods", method, *options)
    return scores_by_session(output / method)


def best_of(means: dict[str, pd.DataFrame], methods: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Of these methods the one with the highest mean over folds, metric by metric: a row a fold."""
    best = {m: max(methods, key=lambda method: means[method][m].fillna(-1).mean()) for m in metrics}
    return pd.DataFrame({m: means[best[m]][m] for m in metrics})


def estimate(values: pd.Series) -> str:
    """Mean ± standard error."""
    return "" if values.isna().all() else f"{values.mean():.3f} ± {values.sem():.3f}"


def markdown(table: pd.DataFrame) -> str:
    """The table of texts, with its index as first column."""
    lines = ["| | " + " | ".join(table.columns) + " |", "| --- |" + " --- |" * len(table.columns)]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in zip(table.index, table.to_numpy())]
    return "\n".join(lines) + "\n"


def write_table(page: Path, name: str, table: str) -> None:
    """Put a table between the marks of that name."""
    before, rest = page.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    page.write_text(f"{before}<!-- {name} -->\n\n{table}\n<!-- /{name} -->{after}")


def options_of_recording(about: str) -> argparse.Namespace:
    """Command line of a benchmark on one recording; `about` is the docstring of its script."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--recording", type=Path, required=True, help="trial arrays of one session (.npz)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the datasets and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def publish_table(csv: Path, results: pd.DataFrame, table: Callable[[pd.DataFrame], str]) -> None:
    """Write results to a file, and the table of what is in it into RESULTS.md, between the marks of its name."""
    results.to_csv(csv, index=False, float_format="%.5f")
    text = table(pd.read_csv(csv))
    write_table(RESULTS, csv.stem, text)
    print(text)
