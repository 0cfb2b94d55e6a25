"""What each setting of `compact` and its training is worth: one changed at a time, on two folds of one session.

    python benchmarks/ablations.py --recording dy016.npz --output fold_runs

With the `--output` of `folds.py` the runs of the unchanged preset are shared. All learn from the training and
validation trials of a fold. Writes `ablations.csv` beside this file and its table into RESULTS.md. What is
finished is not repeated.
"""

import json
import re
from pathlib import Path

import pandas as pd
from common import (
    COUNTS,
    HERE,
    METRICS,
    built,
    markdown,
    options_of_recording,
    publish_table,
    scores_of_training,
)

CSV = HERE / "ablations.csv"
FOLDS = (0, 1)
UNCHANGED = "compact"
CHANGES = {
    UNCHANGED: (),
    "predictions not smoothed": ("--set", "prediction_smoothing=0"),
    "spike counts not smoothed": ("--set", "spike_smoothing=0"),
    "rows of units not decayed": ("--unit_weight_decay", 0),
    "trials not mixed": ("--mixup", 0),
    "100 epochs": ("--num_train_epochs", 100),
    "no units dropped": ("--set", "unit_dropout=0"),
    "losses weighed equally": ("--set", 'loss_weights={"spikes":1.0}'),
    "losses of choice and block weighed a quarter": (
        "--set",
        'loss_weights={"spikes":8.0,"choice":0.25,"block":0.25}',
    ),
    "the paper's four schemes, equally often": (
        "--set",
        'scheme_weights={"encoding":1,"decoding":1,"within_modality":1,"cross_modal":1}',
    ),
    "input rows of their own": ("--set", "tied_units=false"),
    "tokens of one bin": ("--set", "bins_per_token=1"),
    "tokens of five bins": ("--set", "bins_per_token=5"),
    "twice as wide": ("--set", "hidden_size=128", "intermediate_size=256"),
    "one layer": ("--set", "num_hidden_layers=1"),
    "the paper's dropout beside that of units": ("--set", "hidden_dropout=0.2", "attention_dropout=0.4"),
    "0.3 of the tokens hidden": ("--set", "mask_ratio=0.3"),
    "constant learning rate": ("--lr_scheduler_type", "constant_with_warmup"),
    "no temporal embedding": ("--set", "temporal_embedding=false"),
    "behaviours scaled to −1…1": ("--scaling", "minus_one_one"),
}


def measure(recording: Path, output: Path, seeds: list[int]) -> pd.DataFrame:
    """A row a change, fold and seed."""
    rows = []
    for fold in FOLDS:
        dataset = built(output / f"fold-{fold}" / "dataset", "--arrays", recording, "--fold", fold)
        for change, options in CHANGES.items():
            for seed in seeds:
                name = re.sub(r"[^a-z0-9]+", "-", change) if options else "neds-counts"
                run = output / f"fold-{fold}" / f"{name}-{seed}"
                # `--set` and its values are the last of the options.
                counts = COUNTS[1:] if "--set" in options else COUNTS
                metrics = scores_of_training(dataset, run, seed, *options, *counts)
                processor = json.loads((run / "run.json").read_text())["hardware"]["cpu"]
                about = {"change": change, "processor": processor, "fold": fold, "seed": seed}
                rows.append(about | metrics)
    return pd.DataFrame(rows)[["change", "processor", "fold", "seed", *METRICS]]


def table(results: pd.DataFrame) -> str:
    """The unchanged preset's means over folds and seeds; what each change adds: mean ± standard error over these.

    A change is compared with the preset of the same fold and seed that was trained on the same processor.
    """
    runs = results.set_index(["change", "processor", "fold", "seed"])
    unchanged = runs.loc[UNCHANGED]
    texts = {UNCHANGED: [f"{mean:.3f}" for mean in unchanged[list(METRICS)].mean()]}
    for change in CHANGES:
        if change != UNCHANGED:
            added = runs.loc[change] - unchanged
            texts[change] = [f"{added[name].mean():+.3f} ± {added[name].sem():.3f}" for name in METRICS]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(METRICS.values())))


if __name__ == "__main__":
    options = options_of_recording(__doc__)
    publish_table(CSV, measure(options.recording, options.output, options.seeds), table)
