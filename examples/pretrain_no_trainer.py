"""Pretrain NEDS in a plain Accelerate loop, for readers who want to change something.

Does what `neds pretrain` does (same model, masks, loss and schedule), without resuming, decay of units' rows, card
and `run.json`. The preset is `tiny` where none is given, and the checkpoint that of the best single evaluation:

    python examples/pretrain_no_trainer.py --dataset DATASET --output neds-ibl --epochs 100
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/pretrain_no_trainer.py ...
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from neds_hf.cli.config import parse_settings
from neds_hf.cli.main import leave_processes
from neds_hf.cli.pretrain import SETTABLE
from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.files import write_json
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError
from neds_hf.metrics.functional import mean_table
from neds_hf.models import NEDSModel
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.models.modeling_neds import Table
from neds_hf.training.inference import score, split_loader
from neds_hf.training.sessions import new_model, new_processor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="folder written by `neds build`, or a dataset id")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--preset", default="tiny", choices=PRESETS, help="sizes of the model")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="of NEDSConfig instead of the preset's"
    )
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training trials")
    parser.add_argument("--batch-size", type=int, default=16, help="trials a step and process")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of the matrices")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    accelerator = Accelerator()
    set_seed(options.seed)

    # Data: the processor learns the sessions' statistics, the collator applies them.
    recordings = open_recordings(options.dataset)
    processor = new_processor(recordings)
    train = ArrowTrials(recordings.split("train"))
    loader = DataLoader(
        train,
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=len(train) >= options.batch_size * accelerator.num_processes,
        collate_fn=NEDSCollator(processor),
    )

    # Model: every unit's readout starts from its mean rate.
    model = new_model(processor, options.preset, parse_settings(options.set, SETTABLE))

    # Only matrices decay; rows of units and sessions, biases and norms do not.
    rows = {id(module.weight) for module in model.modules() if isinstance(module, Table)}
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in rows]
    others = [p for p in model.parameters() if p.dim() != 2 or id(p) in rows]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = options.epochs * len(loader)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(0.15 * num_steps), num_steps)

    best = -float("inf")
    bar = tqdm(total=num_steps, disable=not accelerator.is_main_process)
    for _ in range(options.epochs):
        model.train()
        for batch in loader:
            # Here forward draws a masking scheme for every trial; pass `hidden` to choose for yourself.
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            bar.update()
        if not torch.isfinite(loss):
            raise NEDSError(
                "training diverged: the loss is no number any more; a lower --learning-rate may help"
            )
        if accelerator.is_main_process:
            unwrapped = accelerator.unwrap_model(model)
            scores = mean_table(
                score(unwrapped, processor, split_loader(processor, recordings, "validation"))
            )
            bar.set_postfix(loss=f"{loss.item():.3f}", validation=f"{scores['mean']:.3f}")
            if scores["mean"] > best:
                best = scores["mean"]
                unwrapped.save_pretrained(options.output)
                processor.save_pretrained(options.output)
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        model = NEDSModel.from_pretrained(options.output)
        scores = score(model, processor, split_loader(processor, recordings, "test"))
        write_json(options.output / "metrics.json", {"mean": mean_table(scores), "sessions": scores})
        print({name: round(value, 3) for name, value in mean_table(scores).items()})
    accelerator.end_training()


if __name__ == "__main__":
    problem = None
    try:
        main()
    except NEDSError as error:  # bad input, or a loss that is no number any more
        problem = str(error)
    leave_processes()
    raise SystemExit(problem)
