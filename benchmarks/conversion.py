"""Conversion of a full-size session, against `numpy.load` of its files; and of several in parallel processes.

python benchmarks/conversion.py
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from common import HERE
from machine import best_seconds
from page import publish, row
from synthetic import write_session

from neds_hf.data.alf import one_sources, read_session
from neds_hf.data.one_cache import list_sessions, open_local
from neds_hf.data.schema import IBL_BEHAVIORS, ConversionOptions
from neds_hf.data.storage import convert, write_table

BUILD = HERE.parent / "examples" / "build.py"
WORKERS = 2


def load(files: list[Path]) -> None:
    for file in files:
        np.load(file)


def forget(files: list[Path]) -> None:
    """Take files out of the page cache (Linux), so that they are read from the disc next."""
    for file in files:
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def hash_files(files: list[Path]) -> None:
    for file in files:
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, xxhash.xxh3_128)


def write(tables: dict[Path, pa.Table]) -> None:
    for path, table in tables.items():
        write_table(path, table)


def times_in_process(cache: Path, out: Path, rounds: int) -> dict[str, float]:
    """Seconds of `numpy.load` of the files that a conversion reads, and of all; and of the conversion.

    Of what else it cannot do without also: hashing these files, and writing their trials as Parquet, on one
    processor. `processors` are the seconds that the conversion takes of both. `…, from disc` is of files that are
    not in the page cache, as those of a large data set are not.
    """
    one, options = open_local(cache), ConversionOptions()
    (eid,) = list_sessions(one)
    session = one.eid2path(eid)
    read = [session / file["path"] for file in read_session(one, eid, options).provenance["files"]]

    processors = []

    def converted():
        start = time.process_time()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        convert(out, one_sources(partial(open_local, cache), options), options, IBL_BEHAVIORS)
        processors.append(time.process_time() - start)

    converted()
    tables = {out / f"{path.parent.name}.parquet": pq.read_table(path) for path in out.glob("trials/*/*")}
    functions = {
        "files read": partial(load, [file for file in read if file.suffix == ".npy"]),
        "all files": partial(load, sorted(session.rglob("*.npy"))),
        "conversion": converted,
    }
    alone = {"hash": partial(hash_files, read), "write": partial(write, tables)}
    times = best_seconds(functions | alone, rounds) | {"processors": min(processors)}
    files = [file for file in session.rglob("*") if file.is_file()]
    from_disc = best_seconds(functions, rounds, before=partial(forget, files))
    return times | {f"{name}, from disc": value for name, value in from_disc.items()}


def build(*arguments: object) -> dict[str, float]:
    """Seconds that `neds build` takes, of these on processors, and the peak of its largest process, in bytes."""
    # A process's peak begins at the size of what starts it, and this one has held whole sessions.
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as small:
        return small.submit(_build, *arguments).result()


def _build(cache: Path, out: Path, *options: object) -> dict[str, float]:
    start = time.perf_counter()
    command = [sys.executable, BUILD, out, "--alf", cache, *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # the usage of its own processes, too
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"neds build ended in status {process.returncode}")
    kilobytes = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * kilobytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spikes", type=int, default=20_000_000)
    parser.add_argument("--clusters", type=int, default=1200)
    parser.add_argument("--trials", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=3, help="conversions that count")
    parser.add_argument("--sessions", type=int, default=6, help=f"to convert in {WORKERS} processes")
    parser.add_argument("--output", type=Path, default=HERE / "conversion.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, many = Path(folder, "one"), Path(folder, "many")
        session = write_session(cache, "mouse", options.spikes, options.clusters, options.trials)
        times = times_in_process(cache, Path(folder, "in-process"), options.rounds)
        alone = build(cache, Path(folder, "alone"), "--workers", 1)
        (row_of_session,) = pq.read_table(next(Path(folder, "alone", "sessions").glob("*"))).to_pylist()
        for number in range(options.sessions):
            copy = many / session.relative_to(cache).with_name(f"{number:03d}")
            shutil.copytree(session, copy, copy_function=os.link)
        together = build(many, Path(folder, "together"), "--workers", WORKERS)
        again = build(many, Path(folder, "together"), "--workers", WORKERS)
    times["needed"] = times["files read"] + times["hash"] + times["write"]
    floors = {
        "files read": ("`numpy.load` of the files it reads", "ratio ≤ 3"),
        "all files": ("`numpy.load` of all files of the folder", "ratio ≤ 3"),
        "needed": (
            "that of the files it reads, their hashes and writing the trials as Parquet, on one processor",
            "",
        ),
    }
    rows = [
        row(
            f"conversion of {options.spikes / 1e6:g} million spikes, {row_of_session['num_units']} of "
            f"{options.clusters} units kept; floor: {text}",
            f"{times[name]:.3g} s",
            f"{times['conversion']:.3g} s",
            times["conversion"] / times[name],
            target,
        )
        for name, (text, target) in floors.items()
    ]
    rows += [
        row(
            f"the same, files not in the page cache; floor: {text}",
            f"{times[f'{name}, from disc']:.3g} s",
            f"{times['conversion, from disc']:.3g} s",
            times["conversion, from disc"] / times[f"{name}, from disc"],
            target,
        )
        for name, (text, target) in floors.items()
        if target
    ]
    shared = options.sessions * times["processors"] / WORKERS
    rows += [
        row(
            "the same as `neds build`, with its start",
            "",
            f"{alone['seconds']:.3g} s, {alone['peak_bytes'] / 1e9:.2f} GB",
            target="≤ 1.5 GB",
        ),
        row(
            f"{options.sessions} such sessions, {WORKERS} processes; floor: the time of processors that they "
            f"take, shared by {WORKERS}",
            f"{shared:.3g} s",
            f"{together['seconds']:.3g} s, {together['peak_bytes'] / 1e9:.2f} GB a process",
            together["seconds"] / shared,
        ),
        row("the same again, all converted", "", f"{again['seconds']:.3g} s"),
    ]
    publish(options.output, {"seconds": times, "alone": alone, "together": together, "again": again}, rows)


if __name__ == "__main__":
    main()
