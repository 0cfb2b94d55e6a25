"""Recordings to a dataset folder of Parquet files."""

import argparse
import os
from functools import partial
from pathlib import Path

from neds_hf.cli.config import use_config
from neds_hf.data.alf import one_sources
from neds_hf.data.arrays import array_names, array_sources
from neds_hf.data.folder import behaviors_there, held_out_sessions, summary
from neds_hf.data.one_cache import open_local, open_openalyx
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.data.schema import CAMERAS, IBL_BEHAVIORS, NUM_FOLDS, ConversionOptions, check_path
from neds_hf.data.storage import convert
from neds_hf.errors import NEDSError

REPEATED_SITE = "repeated-site"


def main(argv: list[str]) -> None:
    command_line = parser()
    use_config(command_line, "build", argv)
    args = command_line.parse_args(argv)
    check_path(args.out)
    options = ConversionOptions.of(vars(args))
    held_out = read_ids(args.held_out) if args.held_out else held_out_sessions(args.out)
    sessions = read_ids(args.sessions) if args.sessions else None
    if args.cache_dir and not args.eids:
        raise NEDSError("--cache-dir is for --eids")

    if args.arrays:
        if args.window_s or args.bin_size_s or args.align_event or args.whisker_camera:
            raise NEDSError(
                "--window, --bin-size, --align-event and --whisker-camera do not apply to --arrays: their bins "
                "are made"
            )
        if args.reaction_time_s and (
            without := [file for file in args.arrays if "reaction_time_s" not in array_names(file)]
        ):
            raise NEDSError(f"{without[0]}: --reaction-time needs an array 'reaction_time_s' in the file")
        known = behaviors_there(args.out)
        sources, options, behaviors = array_sources(args.arrays, options, args.behaviors, known)
        there = [source.session for source in sources]
        sessions = _some_of(there, sessions, args.sessions, "in any of the files")
        sources = [source for source in sources if source.session in sessions]
    else:
        if args.behaviors:
            raise NEDSError(f"--behaviors is for --arrays; ALF sessions give {', '.join(IBL_BEHAVIORS)}")
        behaviors = IBL_BEHAVIORS
        if args.alf:
            open_one = partial(open_local, args.alf)
        else:
            open_one = partial(open_openalyx, args.cache_dir)
            eids, held_out = eids_and_held_out(args.eids, held_out)
            sessions = _some_of(eids, sessions, args.sessions, f"among those of --eids {args.eids}")
        sources = one_sources(open_one, options, sessions)

    counts = convert(args.out, sources, options, behaviors, held_out, args.workers)
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    print(summary(args.out))


def eids_and_held_out(eids: str, held_out: list[str]) -> tuple[list[str], list[str]]:
    """Session ids of ``--eids`` and of ``--held-out``, which the paper's own sessions bring along."""
    if eids != REPEATED_SITE:
        return read_ids(Path(eids)), held_out
    paper = repeated_site_sessions()
    return [*paper["pretrain"], *paper["held_out"]], held_out or paper["held_out"]


def _some_of(there: list[str], sessions: list[str] | None, file: Path, where: str) -> list[str]:
    """The sessions of `there` that are asked for (None: all)."""
    if missing := [session for session in sessions or () if session not in there]:
        raise NEDSError(f"{file}: session {missing[0]} is not {where}")
    return [session for session in there if sessions is None or session in sessions]


def read_ids(path: Path) -> list[str]:
    """Session ids of a text file, one a line.

    Raises:
        NEDSError: It cannot be read, or holds none.
    """
    try:
        ids = path.read_text("utf-8-sig").split()  # Windows' editors put a mark before the first
    except (OSError, UnicodeDecodeError) as error:
        raise NEDSError(f"{path}: expected a text file with a session id a line ({error})") from None
    if not ids:
        raise NEDSError(f"{path}: no session id in it, expected one a line")
    return ids


def parser() -> argparse.ArgumentParser:
    default = ConversionOptions()
    parser = argparse.ArgumentParser(
        prog="neds build",
        description="Convert recordings to Parquet files with a card: a folder that datasets.load_dataset loads. "
        "Run it again to resume, or to add sessions.",
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="dataset folder to write")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--alf", type=Path, metavar="CACHE", help="folder of a ONE cache with ALF sessions")
    source.add_argument(
        "--arrays", type=Path, nargs="+", metavar="FILE", help=".npz trial arrays, one a session"
    )
    source.add_argument(
        "--eids",
        nargs="?",
        const=REPEATED_SITE,
        metavar="FILE",
        help="sessions of the public IBL server, by a file with an id a line; 'repeated-site' (or nothing): the "
        "paper's 84, with its held-out ones",
    )
    parser.add_argument(
        "--window",
        dest="window_s",
        type=float,
        nargs=2,
        metavar=("START", "END"),
        help=f"trial around the event, in s (default {default.window_s[0]:g} {default.window_s[1]:g})",
    )
    parser.add_argument(
        "--bin-size",
        dest="bin_size_s",
        type=float,
        metavar="S",
        help=f"bin width in s (default {default.bin_size_s:g})",
    )
    parser.add_argument(
        "--align-event", metavar="NAME", help=f"trial event at time zero (default {default.align_event})"
    )
    parser.add_argument(
        "--min-rate",
        dest="min_rate_hz",
        type=float,
        metavar="HZ",
        help=f"drop units that fire less over the training trials (default {default.min_rate_hz:g})",
    )
    parser.add_argument(
        "--reaction-time",
        dest="reaction_time_s",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="drop trials with a reaction time outside, in s "
        f"(default {default.reaction_time_s[0]:g} {default.reaction_time_s[1]:g}; arrays: where the file has it)",
    )
    parser.add_argument(
        "--split",
        choices=("random", "blocked"),
        help=f"of trials into 70/10/20 %% train/validation/test (default {default.split}; "
        "blocked: contiguous in time)",
    )
    parser.add_argument("--seed", type=int, help=f"changes the random split (default {default.seed})")
    parser.add_argument(
        "--fold",
        type=int,
        metavar="K",
        help=f"which fifth of the trials is the test part, 0 to {NUM_FOLDS - 1}, for cross-validation "
        f"(default {default.fold})",
    )
    parser.add_argument(
        "--whisker-camera",
        choices=CAMERAS,
        help=f"of the whisker motion energy; the other where it has none (default {default.whisker_camera})",
    )
    parser.add_argument(
        "--behaviors",
        nargs="+",
        metavar="NAME",
        help="further arrays to take as behaviours, beside those that OUT has (with --arrays)",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="FILE",
        help="session ids, one a line, of the config 'held_out'; the others form 'pretrain' (default: as OUT "
        "has them)",
    )
    parser.add_argument(
        "--sessions", type=Path, metavar="FILE", help="convert only these session ids, one a line"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a CPU)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="where --eids downloads to (default: ONE's own)"
    )
    return parser
