"""The paper's metrics on recordings, of what a lab would choose among: README's table, RESULTS.md's figures.

python benchmarks/headline.py

takes them from `folds.csv` and `transfer.csv`, and draws `folds.png` and `transfer.png`.
"""

import hashlib
from pathlib import Path
from textwrap import fill
from types import ModuleType

import folds
import pandas as pd
import transfer
from common import HERE, METRICS, best_of, estimate, markdown, write_table
from matplotlib.figure import Figure

from neds_hf.analysis.figures import paired_sessions
from neds_hf.analysis.report import FIGURE_DPI

README = HERE.parent / "README.md"
SHOWN = ("bits_per_spike", "wheel_speed_r2", "whisker_motion_energy_r2", "choice_accuracy", "block_accuracy")
BASELINES = {
    "linear": "linear",
    "reduced_rank": "reduced rank",
    "reduced_rank_multi_session": "reduced rank, all sessions",
    "poisson_glm": "Poisson GLM",
}
# What is shown of each script, under which name.
METHODS = {
    folds: {
        "NEDS": "NEDS",
        "NEDS, seeds averaged": "three NEDS together",
        "NEDS, pretrained on 36 simulated mice": "NEDS, pretrained on simulated mice",
    },
    transfer: {
        "alone": "NEDS",
        "fine-tuned": "NEDS, pretrained on other mice",
        transfer.TOGETHER: "NEDS of all three, pretrained on other mice",
        "fine-tuned, seeds averaged": "three NEDS together, pretrained on other mice",
    },
}
RECORDINGS = {folds: "IBL", transfer: "Steinmetz et al."}


def means_of(script: ModuleType) -> dict[str, pd.DataFrame]:
    """Method to those metrics that are shown and that it or another method has, a row a fold."""
    means = script.means_of_folds(pd.read_csv(script.CSV))
    metrics = [metric for metric in SHOWN if metric in means["linear"]]
    return {method: values[metrics] for method, values in means.items()}


def table() -> str:
    """Mean ± standard error over folds; first the best baseline of each column."""
    texts = {}
    for script, methods in METHODS.items():
        means = means_of(script)
        metrics = list(means["linear"])
        rows = {"best baseline": best_of(means, script.BASELINES, metrics)}
        rows |= {name: means[method] for method, name in methods.items()}
        for name, values in rows.items():
            texts[f"{RECORDINGS[script]}: {name}"] = {METRICS[m]: estimate(values[m]) for m in metrics}
    return markdown(pd.DataFrame.from_dict(texts, orient="index").fillna(""))


def figure(script: ModuleType) -> Figure:
    """A panel a metric, a row a method, a line a fold."""
    means = means_of(script)
    baselines = {method: BASELINES[method] for method in script.BASELINES}
    names = {method: fill(name, 24) for method, name in (baselines | METHODS[script]).items()}
    return paired_sessions(
        {
            metric: pd.DataFrame({name: means[method][metric] for method, name in names.items()})
            for metric in means["linear"]
        }
    )


def hash_of(csv: Path) -> str:
    """By which a figure says what it was drawn from."""
    return hashlib.sha256(csv.read_bytes()).hexdigest()


def main() -> None:
    write_table(README, "headline", table())
    print(table())
    for script in METHODS:
        figure(script).savefig(
            script.CSV.with_suffix(".png"), dpi=FIGURE_DPI, metadata={"Source": hash_of(script.CSV)}
        )


if __name__ == "__main__":
    main()
