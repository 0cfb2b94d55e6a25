"""Adapt a model to new animals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainerCallback, set_seed
from transformers.utils import find_adapter_config_file

from neds_hf.cli.config import parse_settings, use_config
from neds_hf.cli.console import print_scores
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.errors import NEDSError
from neds_hf.hub.push import is_only_here, push_run
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.arguments import (
    FinetuningArguments,
    NEDSTrainingArguments,
    parse_training_arguments,
    training_parser,
)
from neds_hf.training.fit import check_metric, configuration_of, fit
from neds_hf.training.runs import fingerprint_of
from neds_hf.training.sessions import add_sessions, load_model, trained_behaviors, trained_on_others
from neds_hf.training.strategies import STRATEGIES, freeze, with_adapter

# What of NEDSConfig may be set: it changes the training, not the weights that there are.
SETTABLE = (
    "mask_ratio",
    "scheme_weights",
    "single_behavior_probability",
    "within_modality_context",
    "masks_per",
    "loss",
    "loss_weights",
    "label_smoothing",
    "hidden_dropout",
    "attention_dropout",
    "unit_dropout",
)


@dataclass
class FinetuneArguments:
    """Which model, on which animals."""

    model: str = field(metadata={"help": "Model folder, or a model id on the Hub."})
    dataset: str = field(metadata={"help": "Folder written by `neds build`, or a dataset id on the Hub."})
    session: list[str] = field(metadata={"help": "Sessions to adapt to; new ones are added to the model."})
    strategy: str = field(
        default="full",
        metadata={
            "help": "full: all weights. session: only the rows of units and the embeddings of sessions. gradual: "
            "these, then layer after layer from the top, then all. lora: these and low-rank updates of the "
            "encoder; writes an adapter of the model.",
            "choices": list(STRATEGIES),
        },
    )
    set: list[str] | None = field(
        default=None,
        metadata={
            "help": f"NAME=VALUE of NEDSConfig instead of the model's; names: {', '.join(SETTABLE)}.",
            "action": "extend",
        },
    )


def main(argv: list[str]) -> None:
    parser = training_parser(FinetuneArguments, "finetune", __doc__, FinetuningArguments)
    use_config(parser, "finetune", argv, SETTABLE)
    arguments, args = parse_training_arguments(parser, argv)
    print_scores(train(arguments, args))
    push_run(args)


def opened(arguments: FinetuneArguments) -> Recordings:
    """The sessions to train on."""
    return open_recordings(arguments.dataset).only(arguments.session)


def train(
    arguments: FinetuneArguments, args: NEDSTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, dict[str, float]]:
    """What these arguments ask for (`fit`); session to its test metrics."""
    settings = parse_settings(arguments.set or [], SETTABLE)
    whole = opened(arguments)
    recordings = whole.trained_on(args.train_splits)
    model, processor, configuration = prepare(recordings, args, arguments.model, arguments.strategy, settings)
    there, known = trained_behaviors(recordings), processor.behaviors
    if not there.keys() & known.keys():
        raise NEDSError(
            f"{arguments.dataset} has none of the behaviours of {arguments.model} in its training trials: "
            f"expected one of {', '.join(known)}, found {', '.join(there) or 'none'}"
        )
    check_metric(args, processor, recordings)
    # A search, which brings callbacks, says it of its best model alone.
    speaks = args.should_save and not callbacks
    if speaks and (unknown := there.keys() - known.keys()):
        print(
            f"neds finetune: {arguments.model} does not know {', '.join(sorted(unknown))} of {arguments.dataset}, "
            "which is left out: only pretraining teaches a behaviour",
            file=sys.stderr,
        )
    if speaks and (others := trained_on_others(processor, whole, "test")):
        print(
            f"neds finetune: {arguments.dataset} does not have the training trials of {arguments.model} for "
            f"session {', '.join(others)} (another --fold?): it may have learned from test trials",
            file=sys.stderr,
        )
    return fit(model, processor, recordings, args, configuration, callbacks)


def prepare(
    recordings: Recordings,
    args: NEDSTrainingArguments,
    source: str,
    strategy: str,
    settings: dict | None = None,
) -> tuple[NEDSModel, NEDSProcessor, dict]:
    """The model of `source` with these sessions added, its processor, and the configuration of its run.

    Args:
        settings: Values of NEDSConfig instead of the model's.

    Raises:
        NEDSError: There is no such model, it cannot be set so, or the recordings do not fit it; or an adapter of a
            model that is not on the Hub is to be pushed.
    """
    set_seed(args.seed)
    model, processor = load_model(source, settings)
    if strategy == "lora" and find_adapter_config_file(source):
        raise NEDSError(f"{source} is an adapter itself; --strategy lora starts from a whole model")
    if strategy == "lora" and args.push_to_hub:
        check_base(model, source)
    configuration = configuration_of(
        args,
        recordings,
        command="finetune",
        model=source,
        model_fingerprint=fingerprint_of(model),
        strategy=strategy,
        set=settings or {},
    )
    model.float()  # of weights saved in half precision, most would not change by such small steps
    add_sessions(model, processor, recordings)
    freeze(model, strategy)
    if strategy == "lora":
        model = with_adapter(model, recordings.session_ids)
    if strategy == "gradual":
        args.ddp_find_unused_parameters = True  # for a time there are some
    return model, processor, configuration


def check_base(model: NEDSModel, source: str) -> None:
    """Make sure that an adapter of the model, from `source`, can be pushed.

    Raises:
        NEDSError: The model is not on the Hub.
    """
    if is_only_here(model.name_or_path):
        raise NEDSError(
            f"--push_to_hub: an adapter of {source} is of no use without that model, which only this machine has: "
            "push it first, and give its USER/NAME as --model"
        )
