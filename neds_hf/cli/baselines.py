"""Fit and score what a lab would use instead of NEDS, on the same trials."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import TrainerCallback

from neds_hf.analysis.baselines import METHODS, MULTI_SESSION, predict_tests
from neds_hf.analysis.comparison import Predictions, score_predictions
from neds_hf.analysis.predictions import file_of, read_predictions, write_predictions
from neds_hf.analysis.report import text_table
from neds_hf.analysis.runs import Run, labelled, means_of, metrics_of
from neds_hf.analysis.summary import grouped, is_headline, summary
from neds_hf.cli.config import parse_settings
from neds_hf.cli.pretrain import SETTABLE, PretrainArguments, prepare
from neds_hf.data.files import write_json
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.data.trials import SessionTrials
from neds_hf.errors import NEDSError
from neds_hf.metrics.functional import mean_table
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.training.arguments import NEDSTrainingArguments, parse_training_arguments, training_parser
from neds_hf.training.fit import configuration_of, fit
from neds_hf.training.inference import predict, split_loader
from neds_hf.training.runs import finish_run, start_run
from neds_hf.training.sessions import load_model

# NEDS that does only one of the two: its task.
UNIMODAL = {"neds_encoding": "encoding", "neds_decoding": "decoding"}
# What their checkpoints are chosen by.
BEST = {"encoding": "eval_bits_per_spike", "decoding": "eval_decoding_mean"}


@dataclass
class BaselinesArguments:
    """Which baselines, of what."""

    dataset: str = field(metadata={"help": "Folder written by `neds build`, or a dataset id on the Hub."})
    dataset_config: str = field(
        default="trials", metadata={"help": "trials (all sessions), pretrain or held_out."}
    )
    session: list[str] | None = field(default=None, metadata={"help": "These sessions only. Default: all."})
    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": "Default: all but neds_encoding and neds_decoding; of one session not the multi-session one. "
            "The two are NEDS trained on each session alone for one task; --preset, --set and the options below "
            "are for them; --train_splits are also the trials whose mean is the null of every method.",
            "choices": [*METHODS, *UNIMODAL],
        },
    )
    split: str = field(
        default="test",
        metadata={
            "help": "Trials to predict. Validation trials are trained on where they are not to be predicted; of "
            "neds_encoding and neds_decoding they choose the checkpoint, or the last one is kept.",
            "choices": ["test", "validation"],
        },
    )
    preset: str = field(
        default=PretrainArguments.preset, metadata={"help": "Sizes of NEDS.", "choices": list(PRESETS)}
    )
    set: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=VALUE of NEDSConfig instead of the preset's, but for scheme_weights.",
            "action": "extend",
        },
    )


def main(argv: list[str]) -> None:
    parser = training_parser(BaselinesArguments, "baselines", __doc__)
    arguments, args = parse_training_arguments(parser, argv)
    settings = parse_settings(arguments.set or [], [name for name in SETTABLE if name != "scheme_weights"])
    recordings = open_recordings(arguments.dataset, arguments.dataset_config)
    if arguments.session:
        recordings = recordings.only(arguments.session)
    if arguments.split in args.train_splits:
        raise NEDSError(
            f"--train_splits has the {arguments.split} trials, which are to be predicted (--split)"
        )
    several = len(recordings.session_ids) > 1
    methods = arguments.methods or [method for method in METHODS if several or method != MULTI_SESSION]
    runs, fits = [], len(methods) * len(recordings.session_ids)
    with tqdm(total=fits, unit="fit", disable=args.disable_tqdm) as progress:
        for method in methods:
            scores = run_method(method, recordings, arguments, args, settings, progress)
            runs.append(Run(method, Path(args.output_dir) / method, scores))
    for group, names in grouped(metrics_of(runs)).items():
        if names:
            table = labelled(means_of(runs, names, recordings.session_ids).dropna(how="all"))
            print(
                f"\n{group.capitalize()}, {arguments.split} trials\n\n{text_table(table, heading_width=14)}"
            )


def run_method(
    method: str,
    recordings: Recordings,
    arguments: BaselinesArguments,
    args: NEDSTrainingArguments,
    settings: dict,
    progress: tqdm,
) -> dict[str, dict[str, float]]:
    """Fit a method where that is not done, and score it; session to metrics.

    Writes `predictions/<session>.npz`, `metrics.json` and `run.json` into the folder of the method.

    Raises:
        NEDSError: The folder holds a run with other settings.
    """
    folder, split = Path(args.output_dir) / method, arguments.split
    null_trials = recordings.trained_on(args.train_splits)
    if method not in UNIMODAL and split != "validation":
        recordings = recordings.with_validation()
    finished = start_run(folder, configuration(method, recordings, arguments, args, settings))
    scores = {}
    for session in recordings.session_ids:
        progress.set_description(f"{method}, {session}")
        train = null_trials.trials(session, "train")
        if method in UNIMODAL and not has_behavior(train):
            print(f"{method} leaves out {session}: none of its training trials has a behaviour")
            scores[session] = {}
            progress.update()
            continue
        if not file_of(folder, session).exists():
            fitted = recordings if method == MULTI_SESSION else recordings.only([session])
            if method in UNIMODAL:
                model_folder = folder / "models" / session
                predicted = [
                    unimodal(UNIMODAL[method], fitted, split, model_folder, arguments.preset, args, settings)
                ]
            else:
                trains, tests = (
                    [fitted.trials(s, part) for s in fitted.session_ids] for part in ("train", split)
                )
                predicted = predict_tests(method, trains, tests, args.seed)
            for of_session, predictions in zip(fitted.session_ids, predicted):
                write_predictions(folder, fitted.trials(of_session, split), predictions)
        scores[session] = score(folder, recordings.trials(session, split), train.spike_counts.mean((0, 1)))
        progress.update()
    if not finished:
        write_json(folder / "metrics.json", {**summary(scores), "sessions": scores})
        finish_run(folder, {split: mean_table(scores)})
    return scores


def has_behavior(trials: SessionTrials) -> bool:
    """Whether one of the trials has one."""
    return any(np.isfinite(values).any() for values in trials.continuous.values()) or any(
        (values >= 0).any() for values in trials.categorical.values()
    )


def configuration(
    method: str,
    recordings: Recordings,
    arguments: BaselinesArguments,
    args: NEDSTrainingArguments,
    settings: dict,
) -> dict:
    """What makes a run what it is."""
    what = {"command": "baselines", "method": method, "split": arguments.split}
    if method in UNIMODAL:
        return configuration_of(args, recordings, **what, preset=arguments.preset, set=settings)
    return {
        **what,
        "seed": args.seed,
        "train_null": args.train_splits,
        "sessions": recordings.session_ids,
        "data_fingerprint": recordings.fingerprint,
    }


def score(folder: Path, trials: SessionTrials, null_rates: np.ndarray) -> dict[str, float]:
    """Metrics (`score_predictions`) of predictions that were written."""
    predictions = read_predictions(folder, trials)
    metrics = score_predictions(predictions, trials, null_rates)
    if "log_rates" not in predictions or len(predictions) == 1:
        del metrics["mean"]  # of encoding and decoding
    return metrics


def unimodal(
    task: str,
    recordings: Recordings,
    split: str,
    folder: Path,
    preset: str,
    args: NEDSTrainingArguments,
    settings: dict,
) -> Predictions:
    """What NEDS that is trained on this one session for one task alone predicts."""
    args = copy.copy(args)
    args.output_dir = str(folder)
    args.metric_for_best_model, args.greater_is_better = BEST[task], True
    if split == "validation":  # what is scored chooses no checkpoint
        args.eval_strategy, args.load_best_model_at_end = "no", False
    trained = recordings.trained_on(args.train_splits)
    model, processor, configuration = prepare(
        trained, args, preset, {**settings, "scheme_weights": {task: 1.0}}
    )
    if not start_run(folder, configuration):
        fit(model, processor, trained, args, configuration, [DecodingMean()])
    model, processor = load_model(str(folder))
    return predict(model, processor, split_loader(processor, recordings, split), task)


class DecodingMean(TrainerCallback):
    """Adds the mean of all R² and accuracies to the metrics on validation trials, to choose a checkpoint by."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        decoding = [
            value
            for name, value in metrics.items()
            if "/" not in name  # not of one session
            and is_headline(name.removeprefix("eval_"))
            and name != BEST["encoding"]
            and np.isfinite(value)
        ]
        metrics[BEST["decoding"]] = float(np.mean(decoding)) if decoding else np.nan
