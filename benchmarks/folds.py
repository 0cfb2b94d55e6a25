"""NEDS and the baselines on one session, five folds: each fifth of the trials is tested once.

    python benchmarks/folds.py --recording dy016.npz --output fold_runs

All learn from the training and validation trials of a fold; two NEDS are pretrained on simulated mice. Writes
`folds.csv` beside this file and its table into RESULTS.md, and draws trials into `folds_encoding.png` and
`folds_decoding.png`. What is finished is not repeated.
"""

from pathlib import Path

import pandas as pd
from common import (
    ALONE,
    COUNTS,
    HERE,
    METRICS,
    TRAINED_ON,
    best_of,
    built,
    estimate,
    markdown,
    neds,
    options_of_recording,
    publish_table,
    scores_of_baseline,
    scores_of_evaluation,
    scores_of_run,
    scores_of_training,
)

from neds_hf.analysis.figures import behavior_of_first_trials, psths_of_busiest_units
from neds_hf.analysis.predictions import show_runs
from neds_hf.analysis.report import FIGURE_DPI
from neds_hf.analysis.runs import read_runs
from neds_hf.data.recordings import open_recordings
from neds_hf.data.schema import NUM_FOLDS

CSV = HERE / "folds.csv"
BASELINES = ("linear", "reduced_rank", "poisson_glm")
ONE_TASK = ("neds_encoding", "neds_decoding")  # the paper's ablation
# Name to that of the folders of its runs, and further options of its training.
NEDS = {
    "NEDS": ("neds", ()),
    "NEDS, smoothed labels": ("neds-labels", ("--set", "label_smoothing=0.2")),
    "NEDS, no roots": ("neds-counts", COUNTS),
    "NEDS, no roots, in bf16": ("neds-bf16", ("--bf16", *COUNTS)),
}
# The one with smoothed labels, fine-tuned from a model of simulated mice of the same seed. Name to that of the
# folders of its runs, number of mice, and epochs of pretraining.
FROM_MICE = {
    "NEDS, pretrained on 12 simulated mice": ("neds-from-12-mice", 12, 60),
    "NEDS, pretrained on 36 simulated mice": ("neds-from-36-mice", 36, 40),
}
MICE = ("--trials", 400, "--units", 120, "--seed", 21)
FINE_TUNING = (
    *("--learning_rate", "1e-3", "--num_train_epochs", 200, "--unit_weight_decay", 0.3, "--mixup", 0.3),
    *("--set", "label_smoothing=0.2"),
)
# Those of which the seeds' predictions are averaged, and which are compared with the best baseline.
SEVERAL = {name: folder for name, (folder, _) in NEDS.items() if "bf16" not in name}
SEVERAL |= {name: folder for name, (folder, *_) in FROM_MICE.items()}
ENSEMBLES = {f"{name}, seeds averaged": folder for name, folder in SEVERAL.items()}
COMPARED = (*SEVERAL, *ENSEMBLES)


def measure(recording: Path, output: Path, seeds: list[int]) -> pd.DataFrame:
    """A row a method, fold and seed."""
    rows = []
    for fold in range(NUM_FOLDS):
        dataset = built(output / f"fold-{fold}" / "dataset", "--arrays", recording, "--fold", fold)
        recordings = open_recordings(dataset)
        (session,) = recordings.session_ids
        window = recordings.sessions[["window_start_s", "window_end_s"]].iloc[0]
        for method in (*BASELINES, *ONE_TASK):
            training = (*TRAINED_ON, *ALONE) if method in ONE_TASK else ()
            scores = scores_of_baseline(method, dataset, output / f"fold-{fold}" / "baselines", *training)
            rows.append({"method": method, "fold": fold, "seed": 0, **scores[session]})
        for method, (name, more) in NEDS.items():
            for seed in seeds:
                run = output / f"fold-{fold}" / f"{name}-{seed}"
                metrics = scores_of_training(dataset, run, seed, *more)
                rows.append({"method": method, "fold": fold, "seed": seed, **metrics})
        for method, (name, num_mice, epochs) in FROM_MICE.items():
            for seed in seeds:
                mice = model_of_mice(output / f"mice-{num_mice}", window, num_mice, epochs, seed)
                what = ("--model", mice, "--dataset", dataset, "--session", session, "--seed", seed)
                run = output / f"fold-{fold}" / f"{name}-{seed}"
                metrics = scores_of_run(run, "finetune", *what, *TRAINED_ON, *FINE_TUNING)
                rows.append({"method": method, "fold": fold, "seed": seed, **metrics})
        for method, name in ENSEMBLES.items():
            report = output / f"fold-{fold}" / f"{name}-averaged.json"
            runs = [output / f"fold-{fold}" / f"{name}-{seed}" for seed in seeds]
            metrics = scores_of_evaluation(report, "--dataset", dataset, "--model", *runs)
            rows.append({"method": method, "fold": fold, "seed": len(seeds), **metrics})
    return pd.DataFrame(rows)[["method", "fold", "seed", *METRICS]]


def model_of_mice(output: Path, window: pd.Series, num_mice: int, epochs: int, seed: int) -> Path:
    """A model of simulated mice whose trials are cut as the recording's."""
    if not (output / "dataset" / "README.md").exists():
        neds("simulate", output / "alf", "--sessions", num_mice, *MICE)
        neds("build", output / "dataset", "--alf", output / "alf", "--window", *window)
    what = ("--dataset", output / "dataset", "--seed", seed, "--learning_rate", "3e-3")
    scores_of_run(output / f"model-{seed}", "pretrain", *what, *TRAINED_ON, "--num_train_epochs", epochs)
    return output / f"model-{seed}"


def means_of_folds(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method to its metrics, means over seeds, a row a fold."""
    folds = results.drop(columns="seed").groupby(["method", "fold"]).mean()
    return {method: folds.loc[method] for method in (*BASELINES, *ONE_TASK, *NEDS, *FROM_MICE, *ENSEMBLES)}


def table(results: pd.DataFrame) -> str:
    """Mean ± standard error over folds, of each fold the mean over seeds; then NEDS, one seed and several
    averaged, less the best baseline of each column, fold by fold."""
    shown = means_of_folds(results)
    best = best_of(shown, BASELINES, METRICS)
    shown |= {f"{method} − best baseline": shown[method] - best for method in COMPARED}
    texts = {name: [estimate(values[m]) for m in METRICS] for name, values in shown.items()}
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(METRICS.values())))


def draw(fold: Path, seed: int, folder: Path) -> None:
    """What the linear baseline and a NEDS predict of a fold's test trials, into this folder."""
    paths = {"linear": fold / "baselines" / "linear", "NEDS": fold / f"{NEDS['NEDS'][0]}-{seed}"}
    runs = [run for name, path in paths.items() for run in read_runs(path, name)]
    recordings = open_recordings(fold / "dataset")
    shown, _ = show_runs(runs, recordings, recordings.session_ids[0])
    psths_of_busiest_units(shown).savefig(folder / "folds_encoding.png", dpi=FIGURE_DPI)
    behavior_of_first_trials(shown).savefig(folder / "folds_decoding.png", dpi=FIGURE_DPI)


if __name__ == "__main__":
    options = options_of_recording(__doc__)
    publish_table(CSV, measure(options.recording, options.output, options.seeds), table)
    draw(options.output / "fold-0", options.seeds[0], HERE)
