"""``neds evaluate``: score a model on a split of a dataset."""

import argparse
from pathlib import Path

from neds_hf.cli.console import print_scores
from neds_hf.data.schema import SPLITS
from neds_hf.errors import NEDSError
from neds_hf.training.fit import score_split
from neds_hf.training.runs import environment, write_json
from neds_hf.training.sessions import check_fits, load_model, mean_table, open_recordings


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="neds evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder, or a model id on the Hub")
    parser.add_argument("--dataset", required=True, help="folder written by `neds build`, or a dataset id")
    parser.add_argument("--split", default="test", choices=SPLITS, help="default: test")
    parser.add_argument("--session", nargs="+", help="these sessions only; default: all that the model knows")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--batch-size", type=int, default=64, help="trials a step (default: 64)")
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise NEDSError(f"--batch-size must be at least 1, not {arguments.batch_size}")

    model, processor = load_model(arguments.model)
    recordings = open_recordings(arguments.dataset)
    known = [session for session in recordings.session_ids if session in processor.session_ids]
    sessions = arguments.session or known
    unknown = sorted(set(sessions) - set(processor.session_ids))
    if unknown or not sessions:
        raise NEDSError(
            f"{arguments.model} does not know session {', '.join(unknown or recordings.session_ids)} of "
            f"{arguments.dataset}; `neds finetune` adapts it"
        )
    recordings = recordings.only(sessions)
    check_fits(processor, recordings)
    scores = score_split(model, processor, recordings, arguments.split, arguments.batch_size)
    write_json(
        arguments.output,
        {
            "mean": mean_table(scores),
            "sessions": scores,
            "configuration": {
                "model": arguments.model,
                "dataset": arguments.dataset,
                "split": arguments.split,
                "data_fingerprint": recordings.fingerprint,
            },
            **environment(),
        },
    )
    print_scores(scores)
