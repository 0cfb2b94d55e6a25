"""One training run, from a model and recordings to a model folder."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from transformers import TrainerCallback
from transformers.utils import logging

from neds_hf.cards.model import write_model_card
from neds_hf.data.files import write_json, writing
from neds_hf.data.origin import license_of, origins
from neds_hf.data.recordings import Recordings
from neds_hf.errors import NEDSError, one_line
from neds_hf.metrics.functional import mean_table
from neds_hf.models.modeling_neds import NEDSModel
from neds_hf.models.processing_neds import NEDSProcessor
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.inference import score_split, sums_of
from neds_hf.training.runs import alone, finish_run, hub_id, last_checkpoint, note, start_run
from neds_hf.training.strategies import GradualUnfreezing
from neds_hf.training.trainer import NEDSTrainer, global_batch_size

# Of the training arguments, those that change the result; the rest may differ when a run goes on.
TRAINED_WITH = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "attn_implementation",
    "bf16",
    "data_seed",
    "eval_steps",
    "eval_strategy",
    "fp16",
    "greater_is_better",
    "learning_rate",
    "load_best_model_at_end",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "metric_for_best_model",
    "mixup",
    "num_train_epochs",
    "optim",
    "optim_args",
    "seed",
    "train_splits",
    "unit_weight_decay",
    "warmup_steps",
    "weight_decay",
)


def configuration_of(args: NEDSTrainingArguments, recordings: Recordings, **rest) -> dict:
    """What makes a run what it is: its settings, the sessions, and the data's fingerprint."""
    return {
        **rest,
        **{name: getattr(args, name) for name in TRAINED_WITH},
        "train_batch_size": global_batch_size(args),
        "sessions": recordings.session_ids,
        "data_fingerprint": recordings.fingerprint,
    }


def check_metric(args: NEDSTrainingArguments, processor: NEDSProcessor, recordings: Recordings) -> None:
    """Make sure that evaluation has what checkpoints are chosen by.

    Raises:
        NEDSError: It has no metric of that name.
    """
    if args.eval_strategy == "no" or not args.metric_for_best_model:
        return
    session = recordings.session_ids[0]
    names = list(sums_of(processor, session).metrics(processor.mean_counts(session)))
    known = [*names, "loss", *(f"loss_{name}" for name in ("spikes", *processor.behaviors))]
    of_sessions = {f"{session}/{name}" for session in recordings.session_ids for name in names}
    if args.metric_for_best_model.removeprefix("eval_") not in {*known, *of_sessions}:
        raise NEDSError(
            f"--metric_for_best_model: there is no {args.metric_for_best_model!r}; there are, also as "
            f"eval_NAME: {', '.join(known)}"
        )


def fit(
    model: NEDSModel,
    processor: NEDSProcessor,
    recordings: Recordings,
    args: NEDSTrainingArguments,
    configuration: dict,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, dict[str, float]]:
    """Train, keep the best checkpoint, score the test split, write the model folder; resume what was cut off.

    Writes `run.json` (configuration, versions, hardware, data), `trainer_state.json` (curves), `metrics.json`
    (test metrics of every session and their mean) and the card beside the weights and the processor.

    Returns:
        Session to its test metrics; empty without a test split.

    Raises:
        NEDSError: The folder holds this very run, finished, or a run of another configuration, or another process
            trains in it; there is no such attention; there are no validation trials for `args.eval_strategy`; the
            tokenizer takes no mixed trials; the loss becomes no number (`Diverged`); or, with `args.push_to_hub`,
            there is no repository for it. `neds_hf.hub.push.push_run` then fills it.
    """
    folder = Path(args.output_dir)
    if args.push_to_hub and args.hub_strategy != "end":
        raise NEDSError(
            f"--hub_strategy {args.hub_strategy.value}: a run is pushed at its end, never half of it"
        )
    if args.eval_strategy != "no" and not len(recordings.splits.get("validation", ())):
        raise NEDSError(
            f"{recordings.source} has no validation trials to choose a checkpoint by; to keep the last one: "
            "--eval_strategy no --load_best_model_at_end false"
        )
    if args.mixup and model.config.tokenizer == "mlp":
        raise NEDSError(f"--mixup {args.mixup}: tokenizer 'mlp' takes whole classes, not mixed ones")
    try:
        model.set_attn_implementation(args.attn_implementation)
    except (ValueError, ImportError) as error:
        raise NEDSError(f"--attn_implementation: {one_line(error)}") from error
    logging.disable_progress_bar()  # of weights being read and written: a few milliseconds
    # It warns that it orders checkpoints by number, not by time.
    logging.get_logger("transformers.trainer_utils").setLevel(logging.ERROR)
    with alone(folder) if args.should_save else nullcontext():
        origins(recordings.sessions)  # of the card, when it would be too late for an error
        with args.main_process_first(desc="run file"):
            if start_run(folder, configuration):
                raise NEDSError(f"{folder} holds this very run, finished; choose another folder to repeat it")
            checkpoint = args.resume_from_checkpoint or last_checkpoint(folder)
        if configuration.get("strategy") == "gradual":
            callbacks = [GradualUnfreezing(), *callbacks]
        trainer = NEDSTrainer(model, args, processor, recordings, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with writing(folder):
            trainer.save_model(_internal_call=True)  # or it would push
            trainer.save_state()
        scores = {}
        with trainer.whole_model():
            if args.should_save and "test" in recordings.splits:
                scores = score_split(model, processor, recordings, "test", args.per_device_eval_batch_size)
        if args.should_save and args.load_best_model_at_end and not trainer.state.best_model_checkpoint:
            print(
                f"{folder}: no evaluation gave {args.metric_for_best_model}, so the last checkpoint is kept",
                file=sys.stderr,
            )
        if args.should_save:
            write_results(folder, recordings, configuration, scores, trainer.state.best_metric)
            for rest in folder.glob("checkpoint-*"):
                shutil.rmtree(rest)
        return scores


def write_results(
    folder: Path,
    recordings: Recordings,
    configuration: dict,
    scores: dict[str, dict[str, float]],
    best_validation: float | None = None,
) -> None:
    """Write test metrics and card beside the weights, and note that the run is finished."""
    mean = mean_table(scores)
    write_json(folder / "metrics.json", {"mean": mean, "sessions": scores})
    base = configuration["model"]  # of a new model: its configuration
    base = {"name": Path(base).name, "hub_id": hub_id(base)} if isinstance(base, str) else None
    note(folder, data=described(recordings), base=base)
    with writing(folder):
        write_model_card(folder)
    finish_run(folder, {"best_validation": best_validation, "test": mean})


def described(recordings: Recordings) -> dict:
    """What a model's card says of the recordings that it was trained on."""
    sessions = recordings.sessions
    return {
        "name": Path(recordings.source).name,
        "hub_id": hub_id(recordings.source),
        "origins": origins(sessions),
        "license": license_of(sessions),
        "sessions": len(sessions),
        "subjects": sessions["subject"].replace("", np.nan).nunique(),
        "units": int(sessions["num_units"].sum()),
        "trials": {name: len(split) for name, split in recordings.splits.items()},
    }
