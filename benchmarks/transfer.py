"""Pretraining on some animals' sessions and fine-tuning on others, against training on these alone, five folds.

    python benchmarks/transfer.py --recordings steinmetz2019/*.npz --new 3 --output transfer_runs

The last `--new` sessions by name are new, and each fifth of their trials is tested once; all methods learn from
the training and validation trials of a fold. Writes `transfer.csv` beside this file and its table into
RESULTS.md. What is finished is not repeated.
"""

import argparse
from pathlib import Path

import pandas as pd
from common import (
    ALONE,
    HERE,
    METRICS,
    TRAINED_ON,
    best_of,
    built,
    estimate,
    markdown,
    publish_table,
    scores_by_session,
    scores_of_baseline,
    scores_of_evaluation,
    scores_of_run,
)

from neds_hf.analysis.baselines import MULTI_SESSION
from neds_hf.data.recordings import open_recordings
from neds_hf.data.schema import NUM_FOLDS

CSV = HERE / "transfer.csv"
PRETRAINING = ("--learning_rate", "3e-3", "--num_train_epochs", 120)
FINE_TUNING = ("--learning_rate", "1e-3", "--num_train_epochs", 60, "--unit_weight_decay", 3)  # the defaults
BASELINES = ("linear", "reduced_rank", "reduced_rank_multi_session", "poisson_glm")
TOGETHER = "fine-tuned together"  # one model of all new sessions
GRADUAL = "fine-tuned, gradual unfreezing"
TRAINED = ("alone", "fine-tuned", TOGETHER)
AVERAGED = {f"{method}, seeds averaged": method for method in TRAINED}
ONE_MODEL = "fine-tuned, weights averaged"  # over the seeds, all from the first pretraining


def measure(recordings: list[Path], output: Path, num_new: int, seeds: list[int]) -> pd.DataFrame:
    """A row a new session, fold, method and seed."""
    rows = []
    for fold in range(NUM_FOLDS):
        folder = output / f"fold-{fold}"
        dataset = built(folder / "dataset", "--arrays", *recordings, "--fold", fold)
        sessions = sorted(open_recordings(dataset).session_ids)
        known, new = sessions[:-num_new], sessions[-num_new:]
        if fold == 0:  # models of the other sessions
            for seed in seeds:
                what = ("--dataset", dataset, "--sessions", *known, "--seed", seed)
                scores_of_run(output / f"pretrained-{seed}", "pretrain", *what, *TRAINED_ON, *PRETRAINING)
        scores = {}
        for method in BASELINES:
            fitted = ("--session", *(sessions if method == MULTI_SESSION else new))
            by_session = scores_of_baseline(method, dataset, folder / "baselines", *fitted)
            scores |= {(session, method, 0): by_session[session] for session in new}
        together = []
        for seed in seeds:
            what = ("--dataset", dataset, "--session", *new, "--seed", seed, *TRAINED_ON, *FINE_TUNING)
            run = folder / f"{TOGETHER}-{seed}"
            scores_of_run(run, "finetune", "--model", output / f"pretrained-{seed}", *what)
            scores |= {(session, TOGETHER, seed): scores_by_session(run)[session] for session in new}
            together.append(run)
        for session in new:
            runs = {"alone": [], "fine-tuned": [], TOGETHER: together}
            alike = []  # fine-tunings that `neds average` can take
            for seed in seeds:
                what = ("--dataset", dataset, "--seed", seed, *TRAINED_ON)
                run = folder / f"alone-{seed}" / session
                scores[session, "alone", seed] = scores_of_run(
                    run, "pretrain", "--sessions", session, *what, *ALONE
                )
                runs["alone"].append(run)
                what = ("--session", session, *what, *FINE_TUNING)
                pretrained = output / f"pretrained-{seed}"
                run = folder / f"gradual-{seed}" / session
                scores[session, GRADUAL, seed] = scores_of_run(
                    run, "finetune", "--model", pretrained, "--strategy", "gradual", *what
                )
                run = folder / f"fine-tuned-{seed}" / session
                scores[session, "fine-tuned", seed] = scores_of_run(
                    run, "finetune", "--model", pretrained, *what
                )
                runs["fine-tuned"].append(run)
                if seed != seeds[0]:
                    run = folder / f"fine-tuned-from-first-{seed}" / session
                    scores_of_run(run, "finetune", "--model", output / f"pretrained-{seeds[0]}", *what)
                alike.append(run)
            for name, method in AVERAGED.items():
                report = folder / f"{method}-averaged" / f"{session}.json"
                what = ("--dataset", dataset, "--session", session, "--model", *runs[method])
                scores[session, name, len(seeds)] = scores_of_evaluation(report, *what)
            one = folder / "fine-tuned-weights-averaged" / session
            what = ("--dataset", dataset, "--model", *alike)
            scores[session, ONE_MODEL, len(seeds)] = scores_of_run(one, "average", *what)
        rows += [
            {"session": session, "fold": fold, "method": method, "seed": seed, **metrics}
            for (session, method, seed), metrics in scores.items()
        ]
    results = pd.DataFrame(rows)
    return results[
        ["session", "fold", "method", "seed", *(metric for metric in METRICS if metric in results)]
    ]


def means_of_folds(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method to its metrics, means over sessions and seeds, a row a fold."""
    metrics = [metric for metric in METRICS if metric in results]
    by_session = results.groupby(["session", "method", "fold"])[metrics].mean()
    folds = by_session.groupby(["method", "fold"]).mean()
    return {method: folds.loc[method] for method in (*BASELINES, *TRAINED, GRADUAL, ONE_MODEL, *AVERAGED)}


def table(results: pd.DataFrame) -> str:
    """Each session, the mean over folds; then the mean over sessions ± standard error over folds, and what
    fine-tuning adds to training alone and to the best baseline of each column."""
    means = means_of_folds(results)
    metrics = list(means[BASELINES[0]])
    of_folds = results.groupby(["session", "method", "fold"])[metrics].mean()  # over seeds
    by_session = of_folds.groupby(["session", "method"]).mean()
    texts = {
        f"{session}: {method}": [
            "" if pd.isna(value) else f"{value:.3f}" for value in by_session.loc[session, method]
        ]
        for session in by_session.index.unique("session")
        for method in means
    }
    best_baseline = best_of(means, BASELINES, metrics)
    alone, fine_tuned, together = TRAINED
    alone_averaged, fine_tuned_averaged, together_averaged = AVERAGED
    means |= {
        f"{ours} − {name}": means[ours] - theirs
        for ours, name, theirs in (
            (fine_tuned, alone, means[alone]),
            (ONE_MODEL, alone, means[alone]),
            (together, alone, means[alone]),
            (together, fine_tuned, means[fine_tuned]),
            (GRADUAL, fine_tuned, means[fine_tuned]),
            (fine_tuned_averaged, alone_averaged, means[alone_averaged]),
            (together_averaged, fine_tuned_averaged, means[fine_tuned_averaged]),
            (fine_tuned, "best baseline", best_baseline),
            (ONE_MODEL, "best baseline", best_baseline),
            (together, "best baseline", best_baseline),
            (fine_tuned_averaged, "best baseline", best_baseline),
            (together_averaged, "best baseline", best_baseline),
        )
    }
    texts |= {f"**mean: {name}**": [estimate(values[m]) for m in metrics] for name, values in means.items()}
    columns = [METRICS[metric] for metric in metrics]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="trial arrays (.npz), a session each"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset and the runs")
    parser.add_argument("--new", type=int, default=3, help="sessions not pretrained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all that is trained")
    options = parser.parse_args()
    publish_table(CSV, measure(options.recordings, options.output, options.new, options.seeds), table)


if __name__ == "__main__":
    main()
