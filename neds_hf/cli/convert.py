"""Convert a checkpoint of the published NEDS code to a model folder."""

import argparse
from pathlib import Path

from transformers.utils import logging

from neds_hf.errors import NEDSError
from neds_hf.hub.original import convert, read_sessions, write_converted


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="neds convert", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="ORIGINAL.pt", help="checkpoint of the published code"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="model folder to write")
    parser.add_argument(
        "--sessions",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON or YAML: every session of the code's list, in its order, with its number of units (null: not "
        "in this checkpoint), or with {units: number or uuids, wheel_speed: [smallest, largest], ...}",
    )
    parser.add_argument(
        "--num-heads", type=int, default=8, help="attention heads, which no tensor tells (default: 8)"
    )
    arguments = parser.parse_args(argv)
    if arguments.num_heads < 1:
        raise NEDSError(f"--num-heads must be at least 1, not {arguments.num_heads}")
    if arguments.output.exists():
        raise NEDSError(f"{arguments.output} exists; choose another folder")
    logging.disable_progress_bar()  # of weights being written: a few milliseconds
    sessions = read_sessions(arguments.sessions)
    model, processor = convert(arguments.checkpoint, sessions, arguments.num_heads)
    write_converted(model, processor, arguments.checkpoint, sessions, arguments.output)
    config = model.config
    print(
        f"{arguments.output}: {len(config.session_ids)} sessions, {sum(config.unit_counts)} units, "
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_bins} bins; "
        f"{config.num_attention_heads} heads, by --num-heads"
    )
