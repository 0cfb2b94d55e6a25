"""Training in bf16 from a dataset's folder, with and without compiling, against the matmul rate of the device.

    python benchmarks/gpu.py

For the paper's models of one session and of 74; at most 8 minutes on a GPU. Compiled are the encoder's blocks, of
which all but the first cost no time to compile. Without a GPU it runs on the CPU, to be checked there:
`--presets small --seconds 1 --trials 4`, and smaller `--bins`, `--units`, `--layers`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from common import HERE
from machine import best_seconds, matmul_rate, peak_bytes
from page import publish, row
from steps import operations, training_step
from synthetic import write_dataset
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import DataLoader, RandomSampler

from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.training.sessions import new_processor

SESSIONS = {"small": 1, "base": 74}
PAPER = {"trials": 2000 * 25_200, "gpu_days": 16 * 2}  # of the training on 74 sessions
TARGETS = {"small": "wait < 2 %", "base": "ratio ≤ 2, wait < 2 %"}
WARM_UP = 3  # steps


def batches(recordings: Recordings, processor: NEDSProcessor, options: argparse.Namespace) -> Iterator[dict]:
    """Random training trials without end."""
    trials = ArrowTrials(recordings.split("train"))
    return iter(
        DataLoader(
            trials,
            options.trials,
            sampler=RandomSampler(trials, replacement=True, num_samples=10**9),
            collate_fn=NEDSCollator(processor),
            num_workers=options.workers,
            pin_memory=options.device == "cuda",
        )
    )


def train(config: NEDSConfig, loader: Iterator[dict], compiled: bool, options: argparse.Namespace) -> dict:
    """Train for `options.seconds` after the warm-up; seconds of a step and of its wait for data, peak memory."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = NEDSModel(config).to(device).train()
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if compiled:
        for block in model.encoder.blocks:
            block.compile(backend=options.backend)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, waited, start = -WARM_UP, 0.0, time.perf_counter()
    while steps < 1 or time.perf_counter() - start < options.seconds:
        if steps == 0:
            warm_up, waited, start = time.perf_counter() - start, 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = send_to_device(next(loader), device)
        waited += time.perf_counter() - asked
        training_step(model, optimizer, batch, torch.bfloat16)()
        if options.device == "cuda":
            torch.cuda.synchronize()
        steps += 1
    elapsed = time.perf_counter() - start
    return {
        "compiled": compiled,
        "warm_up_seconds": warm_up,
        "steps": steps,
        "step_seconds": elapsed / steps,
        "data_wait": waited / elapsed,
        "peak_bytes": torch.cuda.max_memory_allocated() if options.device == "cuda" else peak_bytes(),
    }


def line(result: dict, trials: int, device: str) -> dict[str, str]:
    """Of the table, for a training with so many trials a step."""
    how = "compiled" if result["compiled"] else "as it is"
    return row(
        f"`{result['preset']}`, {trials} trials a step, {how}, {device}",
        f"{1e3 * result['floor_seconds']:.3g} ms a step",
        f"{1e3 * result['step_seconds']:.3g} ms (attention alone {1e3 * result['attention_seconds']:.3g}); "
        f"{result['tokens_per_second']:,.0f} tokens/s; {result['share_of_matmul_rate']:.0%} of the matmul rate; "
        f"{result['peak_bytes'] / 1e9:.1f} GB; data wait {result['data_wait']:.1%}; as many trials as in the "
        f"paper's training of `base` in {24 * result['paper_training_days']:.1f} hours (there {PAPER['gpu_days']} "
        "GPU-days)",
        result["step_seconds"] / result["floor_seconds"],
        "" if device == "cpu" else TARGETS[result["preset"]],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--presets", nargs="+", choices=list(SESSIONS), default=list(SESSIONS))
    parser.add_argument("--seconds", type=float, default=30, help="of each of the trainings, warmed up")
    parser.add_argument("--rounds", type=int, default=10, help="products of each matmul rate that count")
    parser.add_argument("--trials", type=int, default=256, help="trials of a step")
    parser.add_argument(
        "--workers", type=int, default=min(8, (os.cpu_count() or 1) - 1), help="that load data"
    )
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--units", type=int, default=370, help="units of each session")
    parser.add_argument("--layers", type=int, help="instead of the preset's")
    parser.add_argument("--output", type=Path, default=HERE / "gpu.json")
    options = parser.parse_args()

    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    results, rows = [], []
    for preset in options.presets:
        for result in measure(preset, options):
            results.append(result)
            rows.append(line(result, options.trials, device))
            print(rows[-1]["what"], rows[-1]["measured"], flush=True)
    publish(options.output, {"device": device, "trials": options.trials, "trainings": results}, rows)


def attention_seconds(config: NEDSConfig, options: argparse.Namespace) -> float:
    """Of a training step's attention in all layers, forward and back, alone and without masks: its products are
    too small for the rate of large ones."""
    heads, tokens = config.num_attention_heads, sum(config.tokens_per_trial.values())
    shape = (options.trials, heads, tokens, config.hidden_size // heads)
    gradient, *inputs = (torch.randn(shape, device=options.device, dtype=torch.bfloat16) for _ in range(4))
    for one in inputs:
        one.requires_grad_()

    def attend() -> None:
        attended = scaled_dot_product_attention(*inputs, dropout_p=config.attention_dropout)
        torch.autograd.grad(attended, inputs, gradient)

    alone = best_seconds({"attention": attend}, 5, options.device)["attention"]
    return config.num_hidden_layers * alone


def measure(preset: str, options: argparse.Namespace) -> Iterator[dict]:
    """A training as it is and a compiled one, each with the matmul rate before and after it."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = SESSIONS[preset]
        trials = max(2048 // sessions, 8)
        recordings = open_recordings(
            write_dataset(Path(folder), sessions, options.units, trials, options.bins)
        )
        processor = new_processor(recordings)
        layers = {} if options.layers is None else {"num_hidden_layers": options.layers}
        config = NEDSConfig.from_preset(
            preset,
            session_ids=processor.session_ids,
            unit_counts=[len(session["units"]) for session in processor.sessions],
            num_bins=options.bins,
            **layers,
        )
        needed = operations(config) * options.trials
        attention = attention_seconds(config, options)
        for compiled in (False, True):
            rate = matmul_rate(torch.bfloat16, options.device, options.rounds)
            result = train(config, batches(recordings, processor, options), compiled, options)
            rate = max(rate, matmul_rate(torch.bfloat16, options.device, options.rounds))
            floor = needed / rate
            trials_per_second = options.trials / result["step_seconds"]
            yield {
                "preset": preset,
                **result,
                "matmul_rate": rate,
                "floor_seconds": floor,
                "attention_seconds": attention,
                "share_of_matmul_rate": floor / result["step_seconds"],
                "tokens_per_second": trials_per_second * sum(config.tokens_per_trial.values()),
                "paper_training_days": PAPER["trials"] / trials_per_second / 86_400,
            }


if __name__ == "__main__":
    main()
