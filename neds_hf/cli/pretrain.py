"""``neds pretrain``: train a model on many sessions."""

import json
from dataclasses import dataclass, field

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from neds_hf.errors import NEDSError
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.training.arguments import NEDSTrainingArguments, parse_training_command
from neds_hf.training.console import print_scores
from neds_hf.training.fit import configuration_of, fit
from neds_hf.training.sessions import Recordings, new_processor, open_recordings

# What the data say of the configuration.
FROM_DATA = ("session_ids", "unit_counts", "modalities", "num_bins")


@dataclass
class PretrainArguments:
    """What to train, on what."""

    dataset: str = field(metadata={"help": "Folder written by `neds build`, or a dataset id on the Hub."})
    preset: str = field(default="tiny", metadata={"help": "Sizes of the model.", "choices": list(PRESETS)})
    dataset_config: str = field(
        default="trials", metadata={"help": "trials (all sessions), pretrain or held_out."}
    )
    sessions: list[str] | None = field(
        default=None, metadata={"help": "Train on these sessions only. Default: all."}
    )
    set: list[str] | None = field(
        default=None,
        metadata={"help": "NAME=VALUE of NEDSConfig instead of the preset's: mask_ratio=0.3 hidden_size=64."},
    )


def main(argv: list[str] | None = None) -> None:
    arguments, args = parse_training_command(PretrainArguments, "pretrain", __doc__, argv)
    recordings = open_recordings(arguments.dataset, arguments.dataset_config)
    if arguments.sessions:
        recordings = recordings.only(arguments.sessions)
    model, processor, configuration = prepare(
        recordings, args, arguments.preset, overrides(arguments.set or [])
    )
    print_scores(fit(model, processor, recordings, args, configuration))


def prepare(
    recordings: Recordings, args: NEDSTrainingArguments, preset: str, settings: dict
) -> tuple[NEDSModel, NEDSProcessor, dict]:
    """A new model of these sessions, its processor, and the configuration of its run, for `fit`.

    Args:
        settings: Values of NEDSConfig instead of the preset's.

    Raises:
        NEDSError: There is no such model.
    """
    processor = new_processor(recordings)
    set_seed(args.seed)
    try:
        config = NEDSConfig.from_preset(
            preset,
            session_ids=processor.session_ids,
            unit_counts=[len(session["units"]) for session in processor.sessions],
            modalities=processor.modalities,
            num_bins=processor.num_bins,
            **settings,
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise NEDSError(f"the model cannot be configured so: {reason}") from error
    model = NEDSModel(config)
    for session in processor.session_ids:
        model.set_mean_counts(session, processor.mean_counts(session))
    return (
        model,
        processor,
        configuration_of(args, recordings, command="pretrain", model=config.to_diff_dict()),
    )


def overrides(pairs: list[str]) -> dict:
    """`NAME=VALUE` pairs of configuration values; a value that is not JSON is text.

    Raises:
        NEDSError: Not such a pair, no such name, or a name whose value the data give.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in NEDSConfig.__dataclass_fields__ or name in FROM_DATA:
            raise NEDSError(
                f"--set takes NAME=VALUE with a name of NEDSConfig that the data do not give, not {pair!r}"
            )
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
