"""IBL-like mice as ALF session folders."""

import argparse
import os
from pathlib import Path

from neds_hf.data.simulation import simulate


def main(argv: list[str]) -> None:
    """Simulate mice and say where they are."""
    parser = argparse.ArgumentParser(
        prog="neds simulate",
        description="Simulate mice doing the IBL decision task, as ALF session folders with ONE cache tables. "
        "Run again to resume; the true rates are in OUT/ground_truth.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--sessions", type=int, default=10, help="mice, a session each (default %(default)s)")
    parser.add_argument("--trials", type=int, default=300, help="trials per session (default %(default)s)")
    parser.add_argument("--units", type=int, default=80, help="neurons per session (default %(default)s)")
    parser.add_argument(
        "--probes", type=int, default=1, choices=(1, 2), help="probes per session (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same data (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: the CPUs, %(default)s)"
    )
    args = parser.parse_args(argv)
    eids = simulate(
        args.out,
        sessions=args.sessions,
        workers=args.workers,
        trials=args.trials,
        units=args.units,
        probes=args.probes,
        seed=args.seed,
    )
    print(f"{len(eids)} sessions of {args.trials} trials and {args.units} units in {args.out}")
