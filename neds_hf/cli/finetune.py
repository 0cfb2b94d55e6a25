"""``neds finetune``: adapt a model to new animals."""

from dataclasses import dataclass, field

from transformers import set_seed

from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.arguments import NEDSTrainingArguments, parse_training_command
from neds_hf.training.console import print_scores
from neds_hf.training.fit import configuration_of, fit
from neds_hf.training.runs import fingerprint_of
from neds_hf.training.sessions import (
    STRATEGIES,
    Recordings,
    add_sessions,
    freeze,
    load_model,
    open_recordings,
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
            "help": "full: all weights. session: only the rows of units and the embeddings of sessions.",
            "choices": list(STRATEGIES),
        },
    )


def main(argv: list[str] | None = None) -> None:
    arguments, args = parse_training_command(FinetuneArguments, "finetune", __doc__, argv)
    recordings = open_recordings(arguments.dataset).only(arguments.session)
    model, processor, configuration = prepare(recordings, args, arguments.model, arguments.strategy)
    print_scores(fit(model, processor, recordings, args, configuration))


def prepare(
    recordings: Recordings, args: NEDSTrainingArguments, source: str, strategy: str
) -> tuple[NEDSModel, NEDSProcessor, dict]:
    """The model of `source` with these sessions added, its processor, and the configuration of its run.

    Raises:
        NEDSError: There is no such model, or the recordings do not fit it.
    """
    set_seed(args.seed)
    model, processor = load_model(source)
    configuration = configuration_of(
        args,
        recordings,
        command="finetune",
        model=source,
        model_fingerprint=fingerprint_of(model),
        strategy=strategy,
    )
    add_sessions(model, processor, recordings)
    freeze(model, strategy)
    return model, processor, configuration
