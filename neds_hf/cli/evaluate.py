"""Score a model on a split of a dataset."""

import argparse
import sys
from pathlib import Path

from neds_hf.analysis.comparison import score_predictions
from neds_hf.analysis.report import text_table
from neds_hf.analysis.summary import grouped, score_table, summary
from neds_hf.data.files import write_json
from neds_hf.data.recordings import Recordings, open_recordings
from neds_hf.data.schema import SPLITS
from neds_hf.data.simulated_neurons import BIN_SIZE_S, NUM_BINS, WINDOW_START_S
from neds_hf.data.simulation import read_true_rates
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSProcessor
from neds_hf.training.inference import load_models, score, score_single_behaviors, split_loader
from neds_hf.training.runs import check_output, environment
from neds_hf.training.sessions import check_bins, known_recordings, trained_on_others

TITLES = {"encoding": "Encoding, spikes from behaviour", "decoding": "Decoding, behaviour from spikes"}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="neds evaluate", description=__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="model folder, or a model id on the Hub; of several (seeds) the predictions are averaged",
    )
    parser.add_argument("--dataset", required=True, help="folder written by `neds build`, or a dataset id")
    parser.add_argument("--split", default="test", choices=SPLITS, help="default: test")
    parser.add_argument("--session", nargs="+", help="these sessions only; default: all that the model knows")
    parser.add_argument(
        "--alf",
        type=Path,
        help="folder of `neds simulate` that the dataset was built from: scores the true rates of its neurons too",
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--batch-size", type=int, default=64, help="trials a step (default: 64)")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise NEDSError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    check_output(arguments.output)

    model, processor = load_models(arguments.model)
    recordings = open_recordings(arguments.dataset)
    recordings = known_recordings(recordings, processor, arguments.model[0], arguments.session)
    split = arguments.split
    warnings = []
    if others := trained_on_others(processor, recordings, split):
        warnings.append(
            f"{arguments.dataset} does not have the training trials of the model for session {', '.join(others)} "
            f"(another --fold?): it may have learned from {split} trials"
        )
        print(f"neds evaluate: {warnings[0]}", file=sys.stderr)
    true_rates = score_true_rates(arguments.alf, recordings, split, processor) if arguments.alf else {}
    loader = split_loader(processor, recordings, split, arguments.batch_size)
    scores = score(model, processor, loader, f"score {split}")
    alone = score_single_behaviors(model, processor, loader, "encode from one behaviour")
    for session, metrics in scores.items():
        metrics |= alone[session]
        if true_rates:
            metrics |= true_rates[session]
            attainable = metrics["attainable_bits_per_spike"]
            metrics["share_of_attainable"] = metrics["bits_per_spike"] / attainable
    write_json(
        arguments.output,
        {
            **summary(scores),
            "sessions": scores,
            "warnings": warnings,
            "configuration": {
                "command": "evaluate",
                "models": arguments.model,
                "dataset": arguments.dataset,
                "split": split,
                "alf": arguments.alf and str(arguments.alf),
                "data_fingerprint": recordings.fingerprint,
            },
            **environment(),
        },
    )
    names = dict.fromkeys(name for metrics in scores.values() for name in metrics)
    for group, metrics in grouped(names).items():
        print(f"{TITLES[group]}\n\n{text_table(score_table(scores, metrics), heading_width=10)}\n")


def score_true_rates(
    alf: Path, recordings: Recordings, split: str, processor: NEDSProcessor
) -> dict[str, dict[str, float]]:
    """What the true rates of simulated neurons reach on the trials of a split.

    Returns:
        Session to `attainable_bits_per_spike`, of the rates given the choice, block, wheel and whiskers of the
        trial, which no encoding beats but by chance, and `attainable_bits_per_spike_given_everything` that drove
        the neurons.

    Raises:
        NEDSError: There are no true rates of a session, or they are of another trial window.
    """
    there = (NUM_BINS, BIN_SIZE_S, WINDOW_START_S, "stimOn_times")
    check_bins(processor, there, f"the true rates in {alf} have")
    reached = {}
    for session in recordings.session_ids:
        trials = recordings.trials(session, split)
        rates = read_true_rates(
            alf / "ground_truth" / f"{session}.npz", trials.trial_index, recordings.unit_ids(session)
        )
        reached[session] = {
            name: score_predictions({"log_rates": rates[given]}, trials)["bits_per_spike"]
            for name, given in (
                ("attainable_bits_per_spike", "log_rates_behavior"),
                ("attainable_bits_per_spike_given_everything", "log_rates_full"),
            )
        }
    return reached
