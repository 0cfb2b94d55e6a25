"""Which checkpoint of a training to keep: what ways to choose it by validation trials, and averaged weights, give.

    python benchmarks/checkpoints.py --recording dy016.npz --output checkpoint_runs

Trains `compact` on the training trials of five folds of one session with the defaults of `neds pretrain`, and
scores the test trials at every evaluation too. Writes `checkpoints.csv` beside this file and its table into
RESULTS.md. What is finished is not repeated.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from common import HERE, METRICS, built, markdown, options_of_recording, publish_table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from neds_hf.cli.pretrain import prepare
from neds_hf.data.files import write_json
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.data.schema import NUM_FOLDS
from neds_hf.metrics.functional import mean_table
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.fit import fit
from neds_hf.training.inference import score_split
from neds_hf.training.trainer import RECENT

CSV = HERE / "checkpoints.csv"
DEFAULT = f"best mean over {RECENT} evaluations, the default"
# Validation means and losses, an evaluation each, to the place of the checkpoint.
RULES = {
    DEFAULT: lambda means, losses: pd.Series(means).rolling(RECENT, min_periods=1).mean().argmax(),
    "best mean of one evaluation": lambda means, losses: np.argmax(means),
    "lowest loss": lambda means, losses: np.argmin(losses),
    "the last": lambda means, losses: len(means) - 1,
}
AVERAGED = "the last, weights averaged over steps"
DECAY = 0.99  # what a step leaves of the average before it


class TestScores(TrainerCallback):
    """At every evaluation `epoch`, the validation's `mean` and `loss`, and metrics of `test` trials; at the last
    also those of the `averaged` model, whose weights are an exponential moving average over steps."""

    def __init__(self, processor: NEDSProcessor, recordings: Recordings):
        self.processor, self.recordings, self.scores = processor, recordings, []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.average.update_parameters(model)

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        validation = {"mean": metrics["eval_mean"], "loss": metrics["eval_loss"]}
        self.scores.append({"epoch": state.epoch, **validation, "test": self.test(model)})

    def on_train_end(self, args, state, control, **kwargs):
        self.scores[-1]["averaged"] = self.test(self.average.module)

    def test(self, model: NEDSModel) -> dict[str, float]:
        return mean_table(score_split(model, self.processor, self.recordings, "test"))


def evaluations(dataset: Path, run: Path, seed: int) -> list[dict]:
    """Those of a training in this folder, which is done where it is not."""
    file = run / "evaluations.json"
    if not file.exists():
        shutil.rmtree(run, ignore_errors=True)  # half a training has half the scores
        args = NEDSTrainingArguments(output_dir=str(run), seed=seed)
        recordings = open_recordings(dataset)
        model, processor, configuration = prepare(recordings, args, "compact", {})
        scores = TestScores(processor, recordings)
        fit(model, processor, recordings, args, configuration, [scores])
        write_json(file, scores.scores)
    return json.loads(file.read_text())


def measure(recording: Path, output: Path, seeds: list[int]) -> pd.DataFrame:
    """A row a way to choose, fold and seed."""
    rows = []
    for seed in seeds:
        for fold in range(NUM_FOLDS):
            dataset = built(output / f"fold-{fold}" / "dataset", "--arrays", recording, "--fold", fold)
            found = evaluations(dataset, output / f"fold-{fold}" / f"neds-{seed}", seed)
            means, losses = ([scores[name] for scores in found] for name in ("mean", "loss"))
            for rule, choose in RULES.items():
                chosen = found[choose(means, losses)]
                about = {"checkpoint": rule, "fold": fold, "seed": seed, "epoch": chosen["epoch"]}
                rows.append(about | chosen["test"])
            last = {"checkpoint": AVERAGED, "fold": fold, "seed": seed, "epoch": found[-1]["epoch"]}
            rows.append(last | found[-1]["averaged"])
    return pd.DataFrame(rows)[["checkpoint", "fold", "seed", "epoch", *METRICS]]


def table(results: pd.DataFrame) -> str:
    """The default's means over folds and seeds; what each other way adds: mean ± standard error over these."""
    shown = {"epoch": "epoch", **METRICS}
    runs = results.set_index(["checkpoint", "fold", "seed"])[list(shown)]
    means = runs.groupby("checkpoint").mean()
    texts = {DEFAULT: [f"{means['epoch'][DEFAULT]:.0f}", *(f"{means[m][DEFAULT]:.3f}" for m in METRICS)]}
    for rule in (*RULES, AVERAGED):
        if rule != DEFAULT:
            added = runs.loc[rule] - runs.loc[DEFAULT]
            changes = (f"{added[m].mean():+.3f} ± {added[m].sem():.3f}" for m in METRICS)
            texts[rule] = [f"{means['epoch'][rule]:.0f}", *changes]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=list(shown.values())))


if __name__ == "__main__":
    options = options_of_recording(__doc__)
    publish_table(CSV, measure(options.recording, options.output, options.seeds), table)
