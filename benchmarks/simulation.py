"""How the gain of pretraining grows with the number of mice, on simulated mice, whose true rates are known.

    python benchmarks/simulation.py --output simulation_runs

Pretrains on the first 1, 5 and 20 mice and fine-tunes each model on three more, all of its weights or what is the
mouse's own; the three are also trained on alone. What is the mouse's own is fitted to the model of 20 mice with
three seeds, of which predictions are averaged too, and weights. All of it twice, as models read the counts or
their roots. All learn from training and validation trials, in bf16. Writes `simulation.csv` beside this file, its
table into RESULTS.md and the curve into `simulation.png`. What is finished is not repeated.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from common import (
    ALONE,
    COUNTS,
    HERE,
    METRICS,
    TRAINED_ON,
    built,
    markdown,
    neds,
    publish_table,
    scores_of_evaluation,
    scores_of_run,
)

from neds_hf.data.recordings import open_recordings

CSV, FIGURE = HERE / "simulation.csv", HERE / "simulation.png"
NUM_MICE = (1, 5, 20)
NUM_NEW = 3
MICE = ("--trials", 300, "--units", 80, "--seed", 11)
NUM_AVERAGED = 3  # of the model of all mice, fine-tuned as is best
# Wider and deeper than `compact`, and encoding more often.
MODEL = (
    *("--set", "hidden_size=128", "intermediate_size=256", "num_hidden_layers=3"),
    'scheme_weights={"encoding":2,"decoding":1,"within_modality":0,"cross_modal":0.25}',
)
PRETRAINING = ("--learning_rate", "2e-3", "--num_train_epochs", 150, *MODEL, "unit_dropout=0.2")
# Whether it reads roots of the counts, as `compact` does, and the folder of such runs.
ROOTS = {False: ("counts", COUNTS[1:]), True: ("roots", ())}
FINE_TUNING = {
    "full": (
        *("--strategy", "full", "--unit_weight_decay", 0.3),
        *("--learning_rate", "1e-3", "--num_train_epochs", 60),
    ),
    "session": (
        *("--strategy", "session", "--unit_weight_decay", 1),
        *("--learning_rate", "3e-3", "--num_train_epochs", 100),
    ),
}
AVERAGED = "averaged"
IN_WORDS = {"full": "all weights fine-tuned", "session": "only units' rows and session embedding fine-tuned"}
IN_WORDS[AVERAGED] = f"{IN_WORDS['session']}, weights of {NUM_AVERAGED} seeds averaged"
LINES = {"full": "--", "session": "-"}
SHARE = {"share_of_attainable": "share of the attainable"}
WITH_ROOTS = "share with roots"
SHOWN = SHARE | {name: METRICS[name] for name in METRICS if "beyond" not in name}


def measure(output: Path, seed: int, roots: bool) -> pd.DataFrame:
    """A row a new mouse, number of mice pretrained on, how the new one is trained on ("alone" after none), and
    number of models that predict together."""
    recordings, dataset = output / "mice", output / "dataset"
    folder, counts = ROOTS[roots]
    output = output / folder
    if not (recordings / "simulation.json").exists():
        neds("simulate", recordings, "--sessions", max(NUM_MICE) + NUM_NEW, *MICE)
    sessions = open_recordings(built(dataset, "--alf", recordings)).session_ids
    known, new = sessions[:-NUM_NEW], sessions[-NUM_NEW:]
    learned = ("--dataset", dataset, *TRAINED_ON, "--bf16")
    rows = []
    for number in (0, *NUM_MICE):
        pretrained = output / f"pretrained-{number}"
        if number:
            mice = ("--sessions", *known[:number], "--seed", seed)
            scores_of_run(pretrained, "pretrain", *learned, *mice, *PRETRAINING, *counts)
        for how, options in FINE_TUNING.items() if number else [("alone", (*ALONE, *MODEL, *counts))]:
            averaged = (number, how) == (max(NUM_MICE), "session")
            seeds = range(seed, seed + (NUM_AVERAGED if averaged else 1))
            for session in new:
                runs = [output / f"{how}-{number}-{run_seed}" / session for run_seed in seeds]
                which = ("--model", pretrained, "--session", session) if number else ("--sessions", session)
                for run, run_seed in zip(runs, seeds):
                    what = (*learned, "--seed", run_seed, *which, *options)
                    scores_of_run(run, "finetune" if number else "pretrain", *what)
                scored = {(how, len(models)): models for models in (runs[:1], runs)}
                if averaged:
                    one = output / f"{how}-{number}-averaged" / session
                    scores_of_run(one, "average", "--dataset", dataset, "--model", *runs)
                    scored[AVERAGED, 1] = [one]
                for (name, count), models in scored.items():
                    report = output / f"{name}-{number}" / f"{session}-{count}.json"
                    what = ("--dataset", dataset, "--alf", recordings, "--session", session)
                    metrics = scores_of_evaluation(report, *what, "--model", *models)
                    rows.append({"session": session, "mice": number, "how": name, "models": count, **metrics})
    return pd.DataFrame(rows).assign(roots=roots)[["session", "roots", "mice", "how", "models", *SHOWN]]


def table(results: pd.DataFrame) -> str:
    """Means over the new mice; with roots only the share."""
    means = results.drop(columns="session").groupby(["roots", "mice", "how", "models"], sort=False).mean()
    texts = {}
    for (number, how, models), row in means.loc[False].iterrows():
        name = "the new mouse alone"
        if number:
            name = f"{number} {'mouse' if number == 1 else 'mice'}, {IN_WORDS[how]}"
        name += f", {models} seeds averaged" if models > 1 else ""
        texts[name] = [f"{row[metric]:.3f}" for metric in SHOWN]
        with_roots = means.loc[(True, number, how, models), "share_of_attainable"]
        texts[name].insert(1, f"{with_roots:.3f}")
    share, *others = SHOWN.values()
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=[share, WITH_ROOTS, *others]))


def draw(results: pd.DataFrame, file: Path) -> None:
    """Share of the attainable bits per spike, without roots, against the number of mice pretrained on; a colour a
    new mouse."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    one = results[(results["models"] == 1) & ~results["roots"]]
    for place, (name, of_mouse) in enumerate(one.groupby("session")):
        color = f"C{place}"
        alone = of_mouse.loc[of_mouse["how"] == "alone", "share_of_attainable"].item()
        axes.axhline(alone, color=color, linestyle=":", linewidth=1)
        for how, line in LINES.items():
            rows = of_mouse[of_mouse["how"] == how]
            axes.plot(rows["mice"], rows["share_of_attainable"], color=color, linestyle=line, marker="o")
        axes.plot([], [], color=color, label=f"mouse {name[:8]}")
    for how, line in LINES.items():
        axes.plot([], [], color="gray", linestyle=line, label=IN_WORDS[how])
    axes.plot([], [], color="gray", linestyle=":", label="the new mouse alone")
    axes.set(xscale="log", xlabel="mice pretrained on", ylabel="share of the attainable bits/spike")
    axes.set_xticks(NUM_MICE, NUM_MICE)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize="small")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the mice and the runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    both = [measure(options.output, options.seed, roots) for roots in ROOTS]
    publish_table(CSV, pd.concat(both), table)
    draw(pd.read_csv(CSV), FIGURE)


if __name__ == "__main__":
    main()
