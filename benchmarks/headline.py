"""The paper's five metrics on recordings, of what a lab would choose among: README's table.

python benchmarks/headline.py

takes them from `folds.csv` and `transfer.csv`.
"""

import folds
import pandas as pd
import transfer
from common import HERE, METRICS, best_of, estimate, markdown, write_table

README = HERE.parent / "README.md"
SHOWN = ("bits_per_spike", "wheel_speed_r2", "whisker_motion_energy_r2", "choice_accuracy", "block_accuracy")
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
        "fine-tuned, seeds averaged": "three NEDS together, pretrained on other mice",
    },
}
RECORDINGS = {folds: "IBL", transfer: "Steinmetz et al."}


def table() -> str:
    """Mean ± standard error over folds; first the best baseline of each column."""
    texts = {}
    for script, methods in METHODS.items():
        means = script.means_of_folds(pd.read_csv(script.CSV))
        metrics = [metric for metric in SHOWN if metric in means["linear"]]
        rows = {"best baseline": best_of(means, script.BASELINES, metrics)}
        rows |= {name: means[method] for method, name in methods.items()}
        for name, values in rows.items():
            texts[f"{RECORDINGS[script]}: {name}"] = {METRICS[m]: estimate(values[m]) for m in metrics}
    return markdown(pd.DataFrame.from_dict(texts, orient="index").fillna(""))


if __name__ == "__main__":
    write_table(README, "headline", table())
    print(table())
