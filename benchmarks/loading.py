"""Trials from the dataset to batches, against a copy of the same bytes; how long a training step waits for them.

python benchmarks/loading.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from common import HERE
from machine import best_seconds
from page import publish, row
from steps import SIZES
from synthetic import write_dataset

from neds_hf.cli.pretrain import prepare
from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.sessions import new_processor
from neds_hf.training.trainer import NEDSTrainer

BATCH = 64
TARGET = 10_000  # trials/s
WORKERS = (0, 2)


def times_of_epoch(recordings: Recordings, rounds: int) -> dict[str, float]:
    """Seconds of one epoch in random order: of `copy`, spike counts only, and of `batches`, everything."""
    trials, collate = ArrowTrials(recordings.split("train")), NEDSCollator(new_processor(recordings))
    (session,) = recordings.session_ids
    counts = recordings.trials(session, "train").spike_counts
    order = np.random.default_rng(0).permutation(len(trials))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def copy():
        for batch in batches:
            counts[batch]

    def collated():
        for batch in batches:
            collate(trials.__getitems__(batch.tolist()))

    return best_seconds({"copy": copy, "batches": collated}, rounds)


class WaitingTrainer(NEDSTrainer):
    """Notes when each step asks for its batch and when it has it."""

    def get_batch_samples(self, *args):
        asked = time.perf_counter()
        result = super().get_batch_samples(*args)
        self.asked_and_got.append((asked, time.perf_counter()))
        return result


def data_wait(
    recordings: Recordings, folder: Path, sizes: dict, workers: int, steps: int
) -> dict[str, float]:
    """Median seconds of a step of `compact`, of these sizes, and of its wait for a batch of 16 trials."""
    args = NEDSTrainingArguments(
        output_dir=str(folder),
        max_steps=steps + 2,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        dataloader_num_workers=workers,
        disable_tqdm=True,
    )
    model, processor, _ = prepare(recordings, args, "compact", sizes)
    trainer = WaitingTrainer(model, args, processor, recordings)
    trainer.asked_and_got = []
    trainer.train()
    asked, got = np.array(trainer.asked_and_got[1:]).T  # the first starts the workers
    return {"step": float(np.median(np.diff(asked))), "wait": float(np.median((got - asked)[:-1]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--trials", type=int, default=1500, help="of which 70 %% are loaded")
    parser.add_argument("--rounds", type=int, default=10, help="epochs of each that count")
    parser.add_argument("--steps", type=int, default=16, help="training steps that count")
    parser.add_argument("--output", type=Path, default=HERE / "loading.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        recordings = open_recordings(write_dataset(Path(folder, "data"), 1, options.units, options.trials))
        times = times_of_epoch(recordings, options.rounds)
        waits = [
            {
                "sizes": name,
                "workers": workers,
                **data_wait(recordings, Path(folder, f"{name}-{workers}"), sizes, workers, options.steps),
            }
            for name, sizes in SIZES.items()
            for workers in WORKERS
        ]
        trials = len(recordings.split("train"))
    rates = {name: trials / seconds for name, seconds in times.items()}
    rows = [
        row(
            f"batches of {BATCH} trials of 100 bins × {options.units} units",
            f"{rates['copy']:,.0f} trials/s",
            f"{rates['batches']:,.0f} trials/s",
            times["batches"] / times["copy"],
            f"≥ {TARGET:,} trials/s",
        )
    ]
    rows += [
        row(
            f"wait of a training step, sizes {wait['sizes']}, {wait['workers']} workers",
            f"{wait['step']:.3g} s a step",
            f"{1e3 * wait['wait']:.2g} ms, {wait['wait'] / wait['step']:.2%}",
            target="< 2 %",
        )
        for wait in waits
    ]
    publish(options.output, {"trials_per_second": rates, "waits": waits}, rows)


if __name__ == "__main__":
    main()
