"""Train models with drawn settings, keep the best. With --model: fine-tunings of that model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from os.path import isfile
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, get_args

import yaml
from transformers import HfArgumentParser, TrainerCallback

from neds_hf.cli import finetune, pretrain
from neds_hf.cli.config import use_config, value_in
from neds_hf.cli.console import print_scores
from neds_hf.errors import NEDSError, one_line, require
from neds_hf.hub.push import push_run
from neds_hf.models import NEDSConfig
from neds_hf.training.arguments import (
    FinetuningArguments,
    NEDSTrainingArguments,
    parse_training_arguments,
    training_parser,
)
from neds_hf.training.fit import configuration_of
from neds_hf.training.runs import alone, fingerprint_of, finish_run, start_run
from neds_hf.training.sessions import load_model

if TYPE_CHECKING:
    from optuna import Study

# The paper's, arXiv 2504.08201; examples/configs/search.yaml has the same, and what is the same for all models.
FINETUNING_RANGES = {
    "mask_ratio": {"low": 0.1, "high": 0.4},
    "weight_decay": {"low": 1e-3, "high": 1e-1, "log": True},
    "learning_rate": {"low": 1e-4, "high": 1e-3, "log": True},
}
RANGES = {
    "pretrain": {
        "hidden_size": {"choices": [128, 256, 512]},
        "intermediate_size": {"choices": [256, 512, 1024]},
        "num_hidden_layers": {"choices": [5, 6]},
        **FINETUNING_RANGES,
    },
    "finetune": FINETUNING_RANGES,
}
NUM_MODELS = {"pretrain": 50, "finetune": 30}
COMMANDS = {"pretrain": pretrain, "finetune": finetune}

# Options that may be searched, besides what `--set` takes.
OPTIONS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "num_train_epochs",
    "per_device_train_batch_size",
    "preset",
    "scaling",
    "strategy",
    "warmup_steps",
    "weight_decay",
)


@dataclass
class SearchArguments:
    """How to search."""

    trials: int | None = field(
        default=None,
        metadata={
            "help": "Models to train. Default: num_models of the file of --config, else 50, or 30 fine-tuned."
        },
    )
    space: str | None = field(
        default=None,
        metadata={
            "help": "What to draw, as YAML or a file of it: {hidden_size: {choices: [128, 256]}, mask_ratio: "
            "{low: 0.1, high: 0.4}, learning_rate: {low: 1e-4, high: 1e-3, log: true}}. Default: ranges of the "
            "file of --config, else the paper's; what the command line sets is then not drawn."
        },
    )
    sampler: str = field(
        default="random", metadata={"help": "How settings are drawn.", "choices": ["random", "tpe"]}
    )
    pruner: str = field(
        default="median",
        metadata={
            "help": "Early stopping: of a model below the median of the others from a quarter of its training on "
            "(median), or not in their better half at a quarter and at a half of it (halving).",
            "choices": ["median", "halving", "none"],
        },
    )
    backend: str = field(
        default="optuna",
        metadata={
            "help": "One model at a time, or with Ray Tune as many as a cluster has GPUs.",
            "choices": ["optuna", "ray"],
        },
    )


@dataclass
class PretrainSearch(SearchArguments, pretrain.PretrainArguments):
    """A search for the best pretraining."""


@dataclass
class FinetuneSearch(SearchArguments, finetune.FinetuneArguments):
    """A search for the best fine-tuning."""


def main(argv: list[str]) -> None:
    command, parser = parser_of(argv)
    arguments, args = parse_training_arguments(parser, argv)
    if arguments.backend == "ray":
        require("the search", "ray", "ray")
    require("the search", "search", "optuna", "matplotlib")
    from neds_hf.training import search as searches

    ranges, num_models, where = asked_for(command, arguments, argv)
    space = space_of(command, parser, ranges, where)
    if args.world_size > 1:
        raise NEDSError("a search runs in one process; --backend ray trains several models at a time")
    if arguments.backend == "ray" and arguments.sampler != "random":
        raise NEDSError("--backend ray draws everything before it trains, which only --sampler random can")
    if args.eval_strategy == "no":
        raise NEDSError(
            "a search chooses by validation: it needs --eval_strategy epoch or steps, and --train_splits without "
            "validation"
        )
    recordings = COMMANDS[command].opened(arguments).trained_on(args.train_splits)
    recordings.split("validation")
    base = {}
    if command == "finetune":
        model, _ = load_model(arguments.model)
        strategies = space["strategy"].choices if "strategy" in space else [arguments.strategy]
        if "lora" in strategies and args.push_to_hub:
            finetune.check_base(model, arguments.model)
        base["model_fingerprint"] = fingerprint_of(model)

    folder = Path(args.output_dir)
    how = ("model", "strategy", "preset", "scaling", "set", "sampler", "pruner")
    configuration = configuration_of(
        args, recordings, command="search", searched=command, space=ranges, **base
    ) | {name: value for name, value in vars(arguments).items() if name in how}
    with alone(folder), searches.usable_database(folder):
        searches.forget_untrained(folder)
        finished = start_run(folder, {n: value for n, value in configuration.items() if n not in ranges})
        study = searches.open_study(folder, arguments.pruner, args.greater_is_better)
        if finished and len(study.trials) >= num_models:
            raise NEDSError(f"{folder} holds this very search, finished; with more --trials it goes on")
        models = searches.unfinished(study, space, num_models, arguments.sampler, args.seed)
        if arguments.backend == "ray":
            from neds_hf.training.search_ray import search_on_ray

            search_on_ray(study, models, folder, num_models, partial(train, argv), arguments.pruner)
        else:
            searches.search(study, models, folder, num_models, partial(train, argv))
        keep_best(study, space, folder, argv, args)


def keep_best(
    study: "Study", space: dict, folder: Path, argv: list[str], args: NEDSTrainingArguments
) -> None:
    """Draw the models of a search, train the best one's settings anew into `best`, and note how it ended.

    Raises:
        NEDSError: No model could be trained.
    """
    from neds_hf.analysis.figures import search_figure  # needs matplotlib
    from neds_hf.training import search as searches

    logarithmic = {name: getattr(distribution, "log", None) for name, distribution in space.items()}
    best, table = searches.best_of(study), searches.table_of(study)
    figure = search_figure(table, logarithmic, best.number, args.metric_for_best_model)
    figure.savefig(folder / "search.png", dpi=150)

    print(f"best: model {best.number + 1}, {args.metric_for_best_model} {best.value:.4f} on validation")
    print("its settings:", *words_of(searches.settings_of(best)))
    place = folder / "best"
    if study.user_attrs.get("trained_anew") != best.number:
        rmtree(place, ignore_errors=True)
        study.set_user_attr("trained_anew", best.number)
    if searches.results_of(place) is None:
        print_scores(train(argv, searches.settings_of(best), place, push=args.push_to_hub))
    results = {
        "states": table["state"].value_counts().to_dict(),
        "best": best.number,
        "settings": best.params,
        "best_validation": best.value,
        "test": searches.results_of(place)["test"],
    }
    finish_run(folder, results)


def parser_of(argv: list[str]) -> tuple[str, HfArgumentParser]:
    """The command that is searched, and the parser of the search with its options."""
    command = "pretrain" if value_in(argv, "--model") is None else "finetune"
    kind, how = (
        (PretrainSearch, NEDSTrainingArguments)
        if command == "pretrain"
        else (FinetuneSearch, FinetuningArguments)
    )
    parser = training_parser(kind, "search", __doc__, how)
    use_config(parser, command, argv, COMMANDS[command].SETTABLE)
    return command, parser


def asked_for(command: str, arguments: SearchArguments, argv: list[str]) -> tuple[dict, int, str]:
    """What to draw from, how many models, and where the former is written.

    Raises:
        NEDSError: The file, the space or the number of models is not what it should be.
    """
    ranges, num_models, where = RANGES[command], NUM_MODELS[command], "ranges"
    if file := value_in(argv, "--config"):
        content = read_yaml(file)
        section = content.get("search", {command: {}})
        section = section.get(command) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not set(section) <= {"ranges", "num_models"}:
            raise NEDSError(
                f"{file}: expected in section 'search' a mapping {command!r} of ranges and num_models"
            )
        ranges, num_models = section.get("ranges", ranges), section.get("num_models", num_models)
        where = f"{file}: ranges"
    if arguments.space is not None:
        ranges, where = read_yaml(arguments.space), "--space"
    if arguments.trials is not None:
        num_models = arguments.trials
    if not isinstance(num_models, int) or num_models < 1:
        raise NEDSError(f"expected a number of models of at least 1, not {num_models!r}")
    if not isinstance(ranges, dict):
        raise NEDSError(
            f"{where}: expected a mapping of settings to what they are drawn from, not {ranges!r}"
        )
    words = {word.partition("=")[0] for word in argv if word.startswith("--") or "=" in word}
    fixed = {word.removeprefix("--").replace("-", "_") for word in words} & ranges.keys()
    if fixed and where == "--space":
        raise NEDSError(f"{', '.join(sorted(fixed))}: to be drawn by --space, but set on the command line")
    return {name: values for name, values in ranges.items() if name not in fixed}, num_models, where


def read_yaml(text: str):
    """YAML, or a file of it. Raises NEDSError."""
    try:
        return yaml.safe_load(Path(text).read_text() if isfile(text) else text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise NEDSError(f"{text}: expected YAML ({one_line(error)})") from None


def space_of(command: str, parser: HfArgumentParser, ranges: dict, where: str) -> dict:
    """Setting to the distribution that it is drawn from.

    Raises:
        NEDSError: Nothing is left to draw, there is no such setting, or it cannot be drawn so.
    """
    from neds_hf.training.search import distribution_of

    settable = COMMANDS[command].SETTABLE
    types = {field.name: field.type for field in fields(NEDSConfig) if field.name in settable}
    options = {action.dest: action for action in parser._actions if action.dest in OPTIONS}
    types |= {name: action.type for name, action in options.items()}
    space = {}
    for name, values in ranges.items():
        if name not in types:
            raise NEDSError(f"{where}: {name!r} cannot be drawn; what can: {', '.join(types)}")
        kinds = get_args(types[name]) or (types[name],)
        try:
            space[name] = distribution_of(
                values, next((kind for kind in (float, int) if kind in kinds), None)
            )
            for choice in getattr(space[name], "choices", ()) if name in options else ():
                value = options[name].type(choice)
                if options[name].choices and value not in options[name].choices:
                    raise ValueError(f"{choice!r} is none of {', '.join(options[name].choices)}")
        except ValueError as error:
            raise NEDSError(f"{where}: {name}: {error}") from None
    if not space:
        raise NEDSError(f"{where}: expected settings to draw that the command line does not set")
    return space


def train(
    argv: list[str],
    settings: dict[str, str],
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    push: bool = False,
) -> dict[str, dict[str, float]]:
    """What `neds pretrain` or `neds finetune` would do with these settings; the test metrics of every session."""
    command, parser = parser_of(argv)
    words = [*argv, f"--output={folder}", f"--push_to_hub={push}", *words_of(settings)]
    arguments, args = parse_training_arguments(parser, words)
    scores = COMMANDS[command].train(arguments, args, callbacks)
    push_run(args)
    return scores


def words_of(settings: dict[str, str]) -> list[str]:
    """Settings as words of the command line."""
    options = [f"--{name}={value}" for name, value in settings.items() if name in OPTIONS]
    pairs = [f"{name}={value}" for name, value in settings.items() if name not in OPTIONS]
    return [*options, "--set", *pairs] if pairs else options
