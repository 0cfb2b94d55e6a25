"""Two processes with a fixed batch each, against one: what a training step takes, and why it takes longer.

    python benchmarks/scale_out.py

A process has one thread. Beside one process alone, two are measured that do not know of each other: what they lose
is the machine's (shared memory bandwidth, caches, other users); what two that train together lose on top is the
exchange of gradients. Time on the processor says what is work, and what is waiting.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from operator import itemgetter
from pathlib import Path

import datasets
import numpy as np
import torch
from common import HERE
from page import publish, row
from steps import SIZES
from synthetic import write_dataset
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import start_processes
from transformers import TrainerCallback

from neds_hf.cli.main import leave_processes
from neds_hf.cli.pretrain import prepare
from neds_hf.data.files import write_json
from neds_hf.data.recordings import open_recordings
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.trainer import NEDSTrainer

multiprocessing.set_forkserver_preload(["neds_hf.cli.pretrain"])


class StepTimes(TrainerCallback):
    """When each step ended, by the clock and by this process's time on the processor."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.perf_counter(), time.process_time()))


def train(
    rank: int, data: Path, outputs: list[Path], group: dict, preset: str, sizes: str, batch: int, steps: int
) -> None:
    """Train a little, alone or, by the environment `group`, with the other process; write the median step."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}
    # As `torchrun` sets it, or accelerate would give each process all processors.
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **group, **place}
    output = outputs[rank]
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = data.parent / "cache"
    args = NEDSTrainingArguments(
        output_dir=str(output.with_suffix("")),
        per_device_train_batch_size=batch,
        max_steps=steps + 1,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    recordings = open_recordings(data)
    model, processor, _ = prepare(recordings, args, preset, SIZES[sizes])
    times = StepTimes()
    NEDSTrainer(model, args, processor, recordings, callbacks=[times]).train()
    if args.should_save:
        parameters = sum(weight.numel() for weight in model.parameters())
        seconds, processor_seconds = np.median(np.diff(times.ends, axis=0), axis=0).tolist()
        write_json(
            output,
            {"seconds": seconds, "processor_seconds": processor_seconds, "parameters": parameters},
        )
    leave_processes()


def step_times(folder: Path, way: str, sizes: str, options: argparse.Namespace) -> list[dict]:
    """What each process that wrote something measured."""
    number = 1 if way == "alone" else 2
    outputs = [folder / f"{way}-{rank}.json" for rank in range(number)]
    group = {}
    if way == "together":
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port()), "WORLD_SIZE": "2"}
    how_much = (options.preset, sizes, options.batch, options.steps)
    # Where one fails, it ends the other.
    start_processes(train, (folder / "data", outputs, group, *how_much), number, start_method="forkserver")
    return [json.loads(output.read_text()) for output in outputs if output.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of the preset")
    parser.add_argument("--batch", type=int, default=16, help="trials of a process")
    parser.add_argument("--steps", type=int, default=30, help="steps that count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    parser.add_argument("--units", type=int, default=370)
    parser.add_argument("--trials", type=int, default=486)
    parser.add_argument("--output", type=Path, default=HERE / "scale_out.json")
    options = parser.parse_args()
    steps = {sizes: {"alone": [], "apart": [], "together": []} for sizes in options.sizes}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "data"), 1, options.units, options.trials)
        for _ in range(options.rounds):
            for sizes, ways in steps.items():
                for way, measured in ways.items():
                    each = step_times(Path(folder), way, sizes, options)
                    measured.append(max(each, key=itemgetter("seconds")))
    rows = []
    for sizes, ways in steps.items():
        best = {way: min(measured, key=itemgetter("seconds")) for way, measured in ways.items()}
        texts = {
            way: f"{step['seconds']:.3g} s, {step['processor_seconds']:.3g} s on the processor"
            for way, step in best.items()
        }
        ratios = {way: step["seconds"] / best["alone"]["seconds"] for way, step in best.items()}
        gradients = 4 * best["alone"]["parameters"] / 1e6
        rows += [
            row(
                f"step of `{options.preset}`, sizes {sizes}, {options.batch} trials a process, two processes that "
                f"train together (gloo, {gradients:.3g} MB of gradients); floor: one process alone",
                texts["alone"],
                texts["together"],
                ratios["together"],
                "ratio ≤ 1.1",
            ),
            row(
                "two processes that do not know of each other",
                texts["alone"],
                texts["apart"],
                ratios["apart"],
            ),
        ]
    publish(options.output, {"steps": steps}, rows)


if __name__ == "__main__":
    main()
