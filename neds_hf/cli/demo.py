"""The whole way from recordings to a model fine-tuned on new mice, with a report.

Every step keeps what an earlier, interrupted call finished.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from neds_hf.analysis.baselines import predict_tests
from neds_hf.analysis.comparison import ShownSession, comparison_table, score_predictions
from neds_hf.analysis.predictions import predict_session, show_session
from neds_hf.analysis.report import text_table, trial_sections, write_report
from neds_hf.cli import finetune, pretrain
from neds_hf.cli.evaluate import score_true_rates
from neds_hf.data.alf import one_sources
from neds_hf.data.files import read_json, write_json
from neds_hf.data.one_cache import open_local
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.data.schema import IBL_BEHAVIORS, ConversionOptions, check_path
from neds_hf.data.simulation import SimulationOptions, simulate
from neds_hf.data.storage import convert
from neds_hf.errors import NEDSError, require
from neds_hf.metrics.functional import mean_table
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.fit import fit
from neds_hf.training.runs import environment, finish_run, start_run, write_arrays

# How the models are trained, beyond the defaults of `NEDSTrainingArguments`. `eval_steps` is the share of the
# training between two evaluations, by which the checkpoint is chosen. Fine-tuning is what `neds finetune` does by
# default; the model of the new mouse alone gets more steps on that mouse: enough to converge.
PRESET = "tiny"
STRATEGY = "full"
TRAININGS = {
    "pretraining": {
        "num_train_epochs": 60,
        "per_device_train_batch_size": 32,
        "learning_rate": 4e-3,
        "eval_steps": 1 / 6,
    },
    "alone": {
        "num_train_epochs": 100,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "eval_steps": 1 / 12,
    },
    "fine-tuning": {
        "num_train_epochs": 60,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "unit_weight_decay": 3.0,
        "eval_steps": 1 / 6,
    },
}

LINEAR, ALONE, FINETUNED = "linear baseline", "NEDS alone", "NEDS pretrained + fine-tuned"
METHODS = (LINEAR, ALONE, FINETUNED)
# What the rates that the simulated neurons truly had reach, as `evaluate.score_true_rates` names it.
TRUE_RATES = {
    "true rates, given behaviour": "attainable_bits_per_spike",
    "true rates, given everything": "attainable_bits_per_spike_given_everything",
}
NUM_STEPS = 6


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    check(args)
    mice = {"trials": args.trials, "units": args.units, "seed": args.seed}
    trainings = {
        name: {**training, "num_train_epochs": epochs, "seed": args.seed}
        for (name, training), epochs in zip(TRAININGS.items(), args.epochs)
    }
    model = {"preset": PRESET, **PRESETS[PRESET]}
    settings = {"sessions": args.sessions, "new": args.new, **mice, "model": model, **trainings}
    out = args.out.resolve()  # a fine-tuned model notes where it came from
    metrics_file, report_file = out / "metrics.json", out / "report.html"
    if start_run(out, settings) and metrics_file.exists() and report_file.exists():
        metrics = read_json(metrics_file)
        print(f"{args.out} holds this very demo, finished")
        print_results(metrics["mean"], metrics["seconds"], args.out)
        return

    # So small a model gains a third by a second core, but is ten times slower where another program wants that.
    threadpool_limits(1)
    datasets.disable_progress_bars()  # of tables being read: milliseconds
    seconds = {}
    with step(seconds, "simulate", f"simulate {args.sessions} mice, as ALF recordings", args.out / "alf"):
        eids = simulate(out / "alf", args.sessions, args.workers, **mice)
        pretrained_mice, new_mice = eids[: -args.new], eids[-args.new :]
    with step(
        seconds, "build", "convert the recordings to trials, reading them with ONE", args.out / "dataset"
    ):
        recordings = build(out / "alf", out / "dataset", new_mice, args.workers)
    with step(seconds, "pretrain", f"pretrain on {len(pretrained_mice)} mice", args.out / "neds-ibl"):
        prepare = partial(pretrain.prepare, preset=PRESET, settings={})
        train(out / "neds-ibl", trainings["pretraining"], recordings.only(pretrained_mice), prepare)
    with step(
        seconds, "adapt", f"train on {args.new} new mice: each alone, and fine-tuned", args.out / "finetuned"
    ):
        adapt = partial(finetune.prepare, source=str(out / "neds-ibl"), strategy=STRATEGY)
        for eid in new_mice:
            recording = recordings.only([eid])
            print(f"    {subject(recording)} alone", flush=True)
            train(out / "alone" / eid, trainings["alone"], recording, prepare)
            print(f"    {subject(recording)} fine-tuned", flush=True)
            train(out / "finetuned" / eid, trainings["fine-tuning"], recording, adapt)
    with step(seconds, "baseline", "fit linear models to the new mice", args.out / "linear"):
        for eid in tqdm(new_mice, desc="linear", unit="mouse"):
            baseline(out / "linear" / f"{eid}.npz", recordings.only([eid]), args.seed)
    with step(seconds, "compare", "compare them on the test trials", args.out / "report.html"):
        compared = [
            compare(out, recordings.only([eid]), args.seed)
            for eid in tqdm(new_mice, desc="compare", unit="mouse")
        ]
        scores = {
            method: {eid: scored[method] for eid, (scored, _) in zip(new_mice, compared)}
            for method in (*METHODS, *TRUE_RATES)
        }
        means = {method: mean_table(sessions) for method, sessions in scores.items()}
        subjects = [subject(recordings.only([eid])) for eid in new_mice]
        report(out, settings, scores, means, dict(zip(new_mice, subjects)), compared[0][1])
    write_json(
        metrics_file,
        {
            "mean": means,
            "sessions": scores,
            "settings": settings,
            "data_fingerprint": recordings.fingerprint,
            "seconds": seconds,
            **environment(),
        },
    )
    finish_run(out, {"test": means})
    print_results(means, seconds, args.out)


def check(args: argparse.Namespace) -> None:
    """Raise NEDSError for what would stop the demo later."""
    require("the demo", "ibl,report", "one", "matplotlib")
    if not 1 <= args.new < args.sessions:
        raise NEDSError(f"--new must be at least 1 and below --sessions {args.sessions}, not {args.new}")
    if args.workers < 1 or min(args.epochs) < 1:
        raise NEDSError(f"--workers and --epochs must be at least 1, not {args.workers} and {args.epochs}")
    SimulationOptions(trials=args.trials, units=args.units, seed=args.seed)
    check_path(args.out)


@contextmanager
def step(seconds: dict[str, float], name: str, what: str, where: Path) -> Iterator[None]:
    """Say which step comes; note how long this call took for it."""
    print(f"{len(seconds) + 1}/{NUM_STEPS} {what} -> {where}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def build(alf: Path, out: Path, held_out: list[str], workers: int) -> Recordings:
    """The dataset of all sessions of a ONE cache."""
    options = ConversionOptions()
    sources = one_sources(partial(open_local, alf), options)
    convert(out, sources, options, IBL_BEHAVIORS, held_out, workers)
    return open_recordings(out)


def train(
    folder: Path,
    training: dict,
    recordings: Recordings,
    prepare: Callable[[Recordings, NEDSTrainingArguments], tuple[NEDSModel, NEDSProcessor, dict]],
) -> None:
    """Train into a model folder, unless that is done already."""
    args = NEDSTrainingArguments(
        output_dir=str(folder),
        eval_strategy="steps",
        save_strategy="steps",
        save_steps=training["eval_steps"],
        **training,
    )
    model, processor, configuration = prepare(recordings, args)
    if not start_run(folder, configuration):
        fit(model, processor, recordings, args, configuration)


def baseline(file: Path, recording: Recordings, seed: int) -> dict[str, np.ndarray]:
    """What the linear models of a session predict of its test trials: from the file, or fitted and written."""
    if file.exists():
        with np.load(file) as arrays:
            predictions = dict(arrays)
        if predictions.pop("data_fingerprint") == recording.fingerprint:
            return predictions
    (eid,) = recording.session_ids
    # NEDS chooses a checkpoint on the validation trials; linear models learn from them, as in `neds baselines`.
    train = recording.with_validation().trials(eid, "train")
    (predictions,) = predict_tests("linear", [train], [recording.trials(eid, "test")], seed)
    write_arrays(file, data_fingerprint=np.array(recording.fingerprint), **predictions)
    return predictions


def compare(out: Path, recording: Recordings, seed: int) -> tuple[dict[str, dict[str, float]], ShownSession]:
    """Metrics of every method on the test trials of a new mouse, and what its figures show."""
    (eid,) = recording.session_ids
    trials = recording.trials(eid, "test")
    predictions = {LINEAR: baseline(out / "linear" / f"{eid}.npz", recording, seed)}
    for method, folder in ((ALONE, "alone"), (FINETUNED, "finetuned")):
        predictions[method], _ = predict_session([str(out / folder / eid)], recording, "test")
    processor = NEDSProcessor.from_pretrained(out / "finetuned" / eid)
    null_rates = processor.mean_counts(eid)
    scores = {m: score_predictions(predicted, trials, null_rates) for m, predicted in predictions.items()}
    reached = score_true_rates(out / "alf", recording, "test", processor)[eid]
    scores |= {method: {"bits_per_spike": reached[name]} for method, name in TRUE_RATES.items()}
    return scores, show_session(recording, trials, predictions)


def subject(recording: Recordings) -> str:
    """Name of the mouse of the only session."""
    return recording.sessions["subject"].item()


def print_results(means: dict[str, dict[str, float]], seconds: dict[str, float], out: Path) -> None:
    print(f"\nTest trials of the new mice, mean over mice:\n\n{text_table(comparison_table(means))}\n")
    print(f"{out / 'report.html'} shows more, {out / 'metrics.json'} has all numbers.")
    print(f"The demo took {sum(seconds.values()):.0f} s.")


def report(
    out: Path,
    settings: dict,
    scores: dict[str, dict[str, dict[str, float]]],
    means: dict[str, dict[str, float]],
    subjects: dict[str, str],
    shown: ShownSession,
) -> None:
    """Write `report.html`."""
    from neds_hf.analysis.figures import metric_bars, training_curves  # needs matplotlib

    table = comparison_table(means)
    first = next(iter(subjects.values()))
    num_pretrained = settings["sessions"] - settings["new"]
    sections = [
        (
            "Result",
            f"All data here are simulated: {settings['sessions']} mice that do the IBL decision task, with "
            f"neurons of their own. NEDS was pretrained on {num_pretrained} of them and fine-tuned on "
            f"{settings['new']} new ones; the table has the means over the new mice on test trials that no "
            "training saw, beside the same model trained on each new mouse alone and linear models of it. On its "
            "validation trials NEDS chooses a checkpoint; the linear models learn from them as well.\n\n"
            "Bits/spike measure encoding, spikes predicted from behaviour; the others decoding, behaviour "
            "predicted from spikes. The last two rows are what the rates that the simulated neurons truly had "
            "reach: given the same behaviour, which no model can beat but by chance, and given everything that "
            "drove the neurons.",
            table,
            None,
        ),
        ("Metrics", "", None, metric_bars(table.loc[list(METHODS)])),
        (
            "Pretraining",
            f"Means over the {num_pretrained} mice. Validation trials are neither trained on nor tested; the "
            "checkpoint with the best mean of their five metrics, over up to five evaluations, is kept. Their "
            "loss is encoding plus decoding, the training loss of one masking scheme a trial: do not compare the "
            "two.",
            None,
            training_curves({"pretraining": history(out / "neds-ibl")}),
        ),
        *(
            (
                f"New mouse {name}",
                "Metrics on its test trials; curves of the model trained on it alone and of the fine-tuned one.",
                comparison_table({method: of_mice[eid] for method, of_mice in scores.items()}),
                training_curves(
                    {
                        "alone": history(out / "alone" / eid),
                        "fine-tuned": history(out / "finetuned" / eid),
                    }
                ),
            )
            for eid, name in subjects.items()
        ),
        *trial_sections(shown, f"new mouse {first}", "test"),
        ("Settings", settings_text(settings), None, None),
    ]
    write_report(out / "report.html", "NEDS on simulated mice", sections, reference_rows=TRUE_RATES)


def history(folder: Path) -> list[dict]:
    """Curves of a training run."""
    return read_json(folder / "trainer_state.json")["log_history"]


def settings_text(settings: dict) -> str:
    """A paragraph a part of the demo."""
    parts = {"mice": {name: value for name, value in settings.items() if not isinstance(value, dict)}}
    parts |= {name: value for name, value in settings.items() if isinstance(value, dict)} | environment()
    return "\n\n".join(
        f"{part}: "
        + ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        for part, values in parts.items()
    )


def parser() -> argparse.ArgumentParser:
    epochs = tuple(training["num_train_epochs"] for training in TRAININGS.values())
    parser = argparse.ArgumentParser(
        prog="neds demo",
        description="Simulate mice, convert them, pretrain, fine-tune on new mice, and compare with training on "
        "these alone and with linear models: a table, OUT/report.html and OUT/metrics.json. Run again to resume.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of mice and training (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes to simulate and convert (default %(default)s)"
    )
    parser.add_argument("--sessions", type=int, default=10, help="mice, a session each (default %(default)s)")
    parser.add_argument(
        "--new", type=int, default=2, help="of these, not pretrained on (default %(default)s)"
    )
    parser.add_argument("--trials", type=int, default=300, help="trials per mouse (default %(default)s)")
    parser.add_argument("--units", type=int, default=80, help="neurons per mouse (default %(default)s)")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs=3,
        default=epochs,
        metavar=("PRETRAINING", "ALONE", "FINETUNING"),
        help=f"passes over the training trials (default {' '.join(map(str, epochs))})",
    )
    return parser
