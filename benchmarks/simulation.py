"""How the gain of pretraining grows with the number of mice, on simulated mice, whose true rates are known.

    python benchmarks/simulation.py --output simulation_runs

Pretrains on the first 1, 5 and 20 mice and fine-tunes each model on three more; the latter are also trained
on alone. All learn from training and validation trials. Writes `simulation.csv` beside this file, its table into
RESULTS.md and the curve into `simulation.png`. What is finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from common import ALONE, HERE, METRICS, RESULTS, TRAINED_ON, markdown, neds, write_table

from neds_hf.training.sessions import open_recordings

CSV, FIGURE = HERE / "simulation.csv", HERE / "simulation.png"
NUM_MICE = (1, 5, 20)
NUM_NEW = 3
MICE = ("--trials", 300, "--units", 80, "--seed", 11)
PRETRAINING = ("--learning_rate", "3e-3", "--num_train_epochs", 60)
FINE_TUNING = ("--learning_rate", "1e-3", "--num_train_epochs", 60)
SHARE = {"share_of_attainable": "share of the attainable"}
SHOWN = SHARE | {name: METRICS[name] for name in METRICS if "beyond" not in name}


def measure(output: Path, seed: int) -> pd.DataFrame:
    """A row a new mouse and number of mice pretrained on, 0 for training on the new mouse alone."""
    recordings, dataset = output / "mice", output / "dataset"
    if not (recordings / "simulation.json").exists():
        neds("simulate", recordings, "--sessions", max(NUM_MICE) + NUM_NEW, *MICE)
    if not (dataset / "README.md").exists():
        neds("build", dataset, "--alf", recordings)
    sessions = open_recordings(dataset).session_ids
    known, new = sessions[:-NUM_NEW], sessions[-NUM_NEW:]
    seeded = ("--dataset", dataset, "--seed", seed, *TRAINED_ON)
    rows = []
    for number in (0, *NUM_MICE):
        pretrained = output / f"pretrained-{number}"
        if number and not (pretrained / "metrics.json").exists():
            neds("pretrain", "--sessions", *known[:number], "--output", pretrained, *seeded, *PRETRAINING)
        for session in new:
            run = output / f"new-{number}" / session
            scores = run / "scores.json"
            if not (run / "metrics.json").exists():
                if number:
                    where = ("--model", pretrained, "--session", session, *FINE_TUNING)
                else:
                    where = ("--sessions", session, *ALONE)
                neds("finetune" if number else "pretrain", "--output", run, *seeded, *where)
            if not scores.exists():
                scored = ("--model", run, "--session", session, "--output", scores)
                neds("evaluate", "--dataset", dataset, "--alf", recordings, *scored)
            metrics = json.loads(scores.read_text())["mean"]
            rows.append({"session": session, "mice": number, **metrics})
    return pd.DataFrame(rows)[["session", "mice", *SHOWN]]


def table(results: pd.DataFrame) -> str:
    """Means over the new mice."""
    means = results.drop(columns="session").groupby("mice").mean()
    texts = {
        f"{number} mice" if number else "the new mouse alone": [f"{row[name]:.3f}" for name in SHOWN]
        for number, row in means.iterrows()
    }
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(SHOWN.values())))


def draw(results: pd.DataFrame, file: Path) -> None:
    """Share of the attainable bits per spike against the number of mice pretrained on; a line a new mouse."""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    pretrained = results[results["mice"] > 0]
    for name, rows in results.groupby("session"):
        alone = rows.loc[rows["mice"] == 0, "share_of_attainable"].item()
        rows = rows[rows["mice"] > 0]
        (line,) = axes.plot(rows["mice"], rows["share_of_attainable"], marker="o", label=f"mouse {name[:8]}")
        axes.axhline(alone, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(
        xscale="log",
        xlabel="mice pretrained on (dotted: the new mouse alone)",
        ylabel="share of the attainable bits/spike",
        ylim=(0, 1),
    )
    axes.set_xticks(sorted(pretrained["mice"].unique()), sorted(pretrained["mice"].unique()))
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the mice and the runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measure(options.output, options.seed).to_csv(CSV, index=False, float_format="%.5f")
    results = pd.read_csv(CSV)
    draw(results, FIGURE)
    write_table(RESULTS, "simulation", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
