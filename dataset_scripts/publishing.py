"""What the scripts beside this file share: where sessions are read, how they are converted and published."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from neds_hf.data.alf import one_sources
from neds_hf.data.folder import dropped_sessions, provenances, summary
from neds_hf.data.one_cache import open_local, open_openalyx
from neds_hf.data.schema import IBL_BEHAVIORS, ConversionOptions, check_path
from neds_hf.data.storage import convert
from neds_hf.errors import NEDSError
from neds_hf.hub.push import push


def parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("out", type=Path, metavar="OUT", help="dataset folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where the public IBL server's files are downloaded to (default: ONE's own)",
    )
    source.add_argument("--alf", type=Path, metavar="CACHE", help="a ONE cache on disk instead of the server")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a CPU)"
    )
    parser.add_argument("--push", metavar="USER/NAME", help="publish the folder in this dataset repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="EID",
        help="sessions that may be missing; nothing is published while another one is",
    )
    return parser


def opener(arguments: argparse.Namespace) -> Callable:
    """Opens what sessions are read from; other processes may call it."""
    if arguments.alf:
        return partial(open_local, arguments.alf)
    return partial(open_openalyx, arguments.cache_dir)


def options_of(out: Path) -> ConversionOptions:
    """Options of a dataset folder; the default ones of a new folder."""
    conversions = provenances(out)
    if not conversions:
        return ConversionOptions()
    return ConversionOptions.of(next(iter(conversions.values()))["options"])


def convert_and_publish(
    arguments: argparse.Namespace,
    sessions: Iterable[str],
    options: ConversionOptions,
    message: str,
    held_out: Iterable[str] | None = None,
) -> None:
    """Convert what is new or changed, say so, and publish the folder in one commit.

    Args:
        held_out: Default: those of the folder.

    Raises:
        NEDSError: No session can be converted; or the folder is to be published and a session is missing that
            `--without` does not name.
    """
    out = arguments.out
    check_path(out)
    before = provenances(out)
    sources = one_sources(opener(arguments), options, sessions)
    convert(out, sources, options, IBL_BEHAVIORS, held_out, arguments.workers)
    after = provenances(out)
    changed = [session for session in after if after[session] != before.get(session)]
    print(f"new or changed: {', '.join(changed) or 'none'}")
    print(summary(out))
    if not arguments.push:
        return
    dropped = dropped_sessions(out)
    if unexpected := sorted({*dropped} - {*arguments.without}):
        reasons = "\n  ".join(f"{session}: {dropped[session]}" for session in unexpected)
        raise NEDSError(
            f"nothing was published, as these are missing; --without names what may be:\n  {reasons}"
        )
    url = push(out, arguments.push, private=arguments.private or None, message=message)
    print(url or f"{arguments.push} holds all of {out} already; no commit")


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; bad input is one line and exit status 2."""
    try:
        main()
    except NEDSError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
