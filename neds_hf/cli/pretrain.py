"""Train a model on many sessions."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from transformers import PreTrainedConfig, TrainerCallback, set_seed

from neds_hf.cli.config import parse_settings, use_config
from neds_hf.cli.console import print_scores
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.hub.push import push_run
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.models.processing_neds import SCALINGS
from neds_hf.training.arguments import NEDSTrainingArguments, parse_training_arguments, training_parser
from neds_hf.training.fit import check_metric, configuration_of, fit
from neds_hf.training.sessions import new_model, new_processor

# What the data say of the configuration, and what may be set.
FROM_DATA = ("session_ids", "unit_counts", "modalities", "num_bins")
OF_ANY_MODEL = {field.name for field in fields(PreTrainedConfig)}
SETTABLE = [field.name for field in fields(NEDSConfig) if field.name not in {*FROM_DATA, *OF_ANY_MODEL}]


@dataclass
class PretrainArguments:
    """What to train, on what."""

    dataset: str = field(metadata={"help": "Folder written by `neds build`, or a dataset id on the Hub."})
    preset: str = field(default="compact", metadata={"help": "Sizes of the model.", "choices": list(PRESETS)})
    dataset_config: str = field(
        default="trials", metadata={"help": "trials (all sessions), pretrain or held_out."}
    )
    sessions: list[str] | None = field(
        default=None, metadata={"help": "Train on these sessions only. Default: all."}
    )
    scaling: str = field(
        default="z_score",
        metadata={
            "help": "Of continuous behaviours, by constants of the training trials: to mean 0 and deviation 1, or "
            "their range to -1...1 or 0...1.",
            "choices": list(SCALINGS),
        },
    )
    set: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=VALUE of NEDSConfig instead of the preset's: mask_ratio=0.3 hidden_size=64.",
            "action": "extend",
        },
    )


def main(argv: list[str]) -> None:
    parser = training_parser(PretrainArguments, "pretrain", __doc__)
    use_config(parser, "pretrain", argv, SETTABLE)
    arguments, args = parse_training_arguments(parser, argv)
    print_scores(train(arguments, args))
    push_run(args)


def opened(arguments: PretrainArguments) -> Recordings:
    """The sessions to train on."""
    recordings = open_recordings(arguments.dataset, arguments.dataset_config)
    return recordings.only(arguments.sessions) if arguments.sessions else recordings


def train(
    arguments: PretrainArguments, args: NEDSTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, dict[str, float]]:
    """What these arguments ask for (`fit`); session to its test metrics."""
    settings = parse_settings(arguments.set or [], SETTABLE)
    recordings = opened(arguments).trained_on(args.train_splits)
    model, processor, configuration = prepare(recordings, args, arguments.preset, settings, arguments.scaling)
    check_metric(args, processor, recordings)
    return fit(model, processor, recordings, args, configuration, callbacks)


def prepare(
    recordings: Recordings,
    args: NEDSTrainingArguments,
    preset: str,
    settings: dict,
    scaling: str = "z_score",
) -> tuple[NEDSModel, NEDSProcessor, dict]:
    """A new model of these sessions, its processor, and the configuration of its run, for `fit`.

    Args:
        settings: Values of NEDSConfig instead of the preset's.
        scaling: As in `NEDSProcessor`.

    Raises:
        NEDSError: There is no such model.
    """
    processor = new_processor(recordings, scaling)
    set_seed(args.seed)
    model = new_model(processor, preset, settings)
    return (
        model,
        processor,
        configuration_of(
            args, recordings, command="pretrain", model=model.config.to_diff_dict(), scaling=scaling
        ),
    )
