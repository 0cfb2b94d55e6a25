"""``neds pretrain``: train a model on many sessions."""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser, set_seed

from neds_hf.errors import NEDSError
from neds_hf.models import NEDSConfig, NEDSModel
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.console import print_scores
from neds_hf.training.fit import check_run_folder, configuration_of, fit
from neds_hf.training.sessions import new_processor, open_recordings


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
        metadata={"help": "NAME=VALUE of NEDSConfig instead of the preset's, such as mask_ratio=0.3."},
    )


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        (PretrainArguments, NEDSTrainingArguments), prog="neds pretrain", description=__doc__
    )
    arguments, args = parser.parse_args_into_dataclasses(args=sys.argv[1:] if argv is None else argv)
    check_run_folder(args)
    recordings = open_recordings(arguments.dataset, arguments.dataset_config)
    if arguments.sessions:
        recordings = recordings.only(arguments.sessions)
    processor = new_processor(recordings)
    set_seed(args.seed)
    try:
        config = NEDSConfig.from_preset(
            arguments.preset,
            **{
                "session_ids": processor.session_ids,
                "unit_counts": [len(session["units"]) for session in processor.sessions],
                "modalities": processor.modalities,
                "num_bins": processor.num_bins,
                **overrides(arguments.set or []),
            },
        )
    except (ValueError, TypeError) as error:
        raise NEDSError(f"the model cannot be configured so: {error}") from error
    model = NEDSModel(config)
    for session in processor.session_ids:
        model.set_mean_counts(session, processor.mean_counts(session))
    configuration = configuration_of(args, recordings, command="pretrain", model=config.to_diff_dict())
    print_scores(fit(model, processor, recordings, args, configuration))


def overrides(pairs: list[str]) -> dict:
    """`NAME=VALUE` pairs of configuration values, as YAML reads the values.

    Raises:
        NEDSError: Not such a pair, or no such name.
    """
    import yaml

    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in NEDSConfig.__dataclass_fields__:
            raise NEDSError(f"--set takes NAME=VALUE with a name of NEDSConfig, not {pair!r}")
        values[name] = yaml.safe_load(value)
    return values
