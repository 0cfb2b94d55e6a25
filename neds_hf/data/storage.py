"""A dataset folder: recordings in, one set of Parquet files a session and a README card out.

``OUT/trials/<split>/<session>.parquet``, ``OUT/units/<session>.parquet``, ``OUT/sessions/<session>.parquet``.
The file under ``sessions`` is written last and marks the session as converted. Plain ``datasets`` loads the
folder through the ``configs:`` of the card, without this package.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from neds_hf.data.files import write_json, written_whole
from neds_hf.data.folder import dropped_sessions, held_out_sessions, provenances, write_card
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.data.schema import (
    SESSION_FEATURES,
    SPLITS,
    UNIT_FEATURES,
    Behaviors,
    ConversionOptions,
    Recording,
    split_of_trials,
    trial_features,
)
from neds_hf.data.workers import outcomes
from neds_hf.errors import NEDSError, one_line

# Where every session has a file of its name; the one under `sessions` is written last.
FOLDERS = (*(f"trials/{split}" for split in SPLITS), "units", "sessions")
# Spike counts of one row group: small enough to stream and shuffle, large enough for fast reads.
ROW_GROUP_BYTES = 4 << 20
# A page that stays in the processor's cache is encoded a tenth faster than one of 1 MiB, for 2 % larger files.
PAGE_BYTES = 64 << 10
# Written and read a third faster than by a dictionary, for files a fifth larger.
ENCODING_OF_COUNTS = {"spike_counts.list.element": "DELTA_BINARY_PACKED"}


@dataclass(frozen=True)
class Source:
    """A session that is still to be read.

    Attributes:
        session: Session id; also the name of its files.
        fingerprint: Changes whenever the data behind the session does.
        read: Returns the recording, or raises NEDSError; must be picklable, as another process may call it.
    """

    session: str
    fingerprint: str
    read: Callable[[], Recording]


def convert(
    out: Path,
    sources: list[Source],
    options: ConversionOptions,
    behaviors: Behaviors,
    held_out: Iterable[str] | None = None,
    workers: int = 1,
) -> Counter:
    """Convert sessions into the dataset folder `out`, and write its card.

    A session whose files are all there, from the same data with the same options, is left alone. A session that
    cannot be used is listed with its reason in ``out/dropped_sessions.json`` and stops no other. Where another
    process converts into `out`, this one waits for it.

    Args:
        options: Their window, bin and event must be those of every recording.
        behaviors: Behaviour columns of the dataset, whether or not a session has them.
        held_out: Sessions of the config `held_out` (default: those of `out`); the others form the config
            `pretrain`. Kept in ``out/held_out.json``, as one may be converted later.
        workers: Number of processes.

    Returns:
        How many sessions were `converted`, `unchanged` and `dropped`.

    Raises:
        NEDSError: Two sources have one session id, a held-out session is unknown, `out` cannot be written to or
            holds a conversion with other options or behaviours, foreign Parquet files, a model or a README.md, or
            lacks a file of a session that is not among the sources; no session could be converted, or a process
            was killed.
    """
    out = Path(out)
    _check_session_ids([source.session for source in sources])
    with _only_writer(out):
        conversion = _conversion(options, behaviors)
        marks = provenances(out)
        for session, mark in marks.items():
            _check_same_conversion(out, session, mark, conversion)
        dropped, stored = dropped_sessions(out), held_out_sessions(out)
        held_out = stored if held_out is None else sorted({*held_out})
        given = {source.session for source in sources}
        known = {*stored, *marks, *dropped, *given}
        known.update(*repeated_site_sessions().values())
        if unknown := set(held_out) - known:
            raise NEDSError(f"held-out session {min(unknown)} is not among the sessions of {out}")
        _remove_uncommitted(out, marks)
        write_json(out / "held_out.json", held_out)

        done = {session: (mark["fingerprint"], mark["version"]) for session, mark in marks.items()}
        for session, file in _files_gone(out, marks):
            if session not in given:
                raise NEDSError(
                    f"there is no file {file}: convert session {session} again with the others, or delete "
                    f"{out / 'sessions' / file.name}"
                )
            done.pop(session, None)
        todo = [
            source
            for source in sources
            if done.get(source.session) != (source.fingerprint, conversion["version"])
        ]
        counts = Counter(unchanged=len(sources) - len(todo))
        task = partial(_convert_session, out=out, options=options, behaviors=behaviors)
        with tqdm(total=len(sources), initial=len(sources) - len(todo), desc="build", unit="session") as bar:
            for source, reason in outcomes(task, todo, workers):
                counts["dropped" if reason else "converted"] += 1
                dropped.pop(source.session, None)
                if reason:
                    dropped[source.session] = reason
                bar.update()
                bar.set_postfix(converted=counts["converted"], dropped=counts["dropped"])

        dropped_file = out / "dropped_sessions.json"
        write_json(dropped_file, dict(sorted(dropped.items())))
        if any((out / "sessions").glob("*.parquet")):
            write_card(out)
        if not counts["converted"] + counts["unchanged"]:
            reasons = "\n  ".join(f"{source.session}: {dropped[source.session]}" for source in sources[:5])
            more = f"\n  ... {len(sources) - 5} more in {dropped_file}" if len(sources) > 5 else ""
            raise NEDSError(f"none of {len(sources)} sessions could be converted:\n  {reasons}{more}")
        return counts


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Make the folder and keep it to this process; what cannot be written, as on a full disc, is one error."""
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            tqdm.write(f"{out}: another process converts into it; waiting until it is done", file=sys.stderr)
            lock.acquire()
        yield
    except OSError as error:
        raise NEDSError(
            f"{out}: expected a folder that can be written to ({error}); run again to go on"
        ) from error
    finally:
        lock.release()


def _check_session_ids(sessions: list[str]) -> None:
    for session, number in Counter(sessions).items():
        if number > 1:
            raise NEDSError(f"session {session} is given {number} times")
        if not re.fullmatch(r"\w[\w.-]*", session):
            raise NEDSError(
                f"session id {session!r}: only letters, digits, '_', '-' and '.' make a file name"
            )


def _conversion(options: ConversionOptions, behaviors: Behaviors) -> dict:
    """What all sessions of a dataset share, as JSON gives it back."""
    shared = {"options": asdict(options), "behaviors": behaviors, "version": version("neds_hf")}
    return json.loads(json.dumps(shared))


def _check_same_conversion(out: Path, session: str, mark: dict, conversion: dict) -> None:
    # A conversion of before an option existed was made with its default.
    options = _conversion(ConversionOptions(), {})["options"] | mark["options"]
    if options != conversion["options"]:
        name = next(name for name, value in options.items() if conversion["options"].get(name, ...) != value)
        there, asked = (f"{name} = {shared.get(name)}" for shared in (options, conversion["options"]))
    elif mark["behaviors"] != conversion["behaviors"]:
        there, asked = (_describe(shared["behaviors"]) for shared in (mark, conversion))
    else:
        return
    raise NEDSError(
        f"{out} holds session {session} with {there}, this conversion has {asked}: convert into another folder"
    )


def _describe(behaviors: Behaviors) -> str:
    return "the behaviours " + ", ".join(
        f"{name} ({'continuous' if classes is None else '/'.join(map(str, classes))})"
        for name, classes in behaviors.items()
    )


def _remove_uncommitted(out: Path, committed: Iterable[str]) -> None:
    """Remove what an interrupted conversion left, or it would be pushed with the rest; nothing else."""
    names = ("*.parquet", ".*.parquet.unfinished")
    files = [file for folder in FOLDERS for name in names for file in out.glob(f"{folder}/{name}")]
    # README.md and config.json are a model's.
    foreign = [*files, *(file for name in ("README.md", "config.json") if (file := out / name).exists())]
    if foreign and not committed and not (out / "held_out.json").exists():
        raise NEDSError(f"{foreign[0]} is no file of `neds build`: convert into another folder")
    for file in files:
        if file.stem not in committed:
            file.unlink()


def _files_gone(out: Path, sessions: Iterable[str]) -> list[tuple[str, Path]]:
    files = ((session, out / folder / f"{session}.parquet") for session in sessions for folder in FOLDERS)
    return [(session, file) for session, file in files if not file.exists()]


def _convert_session(
    source: Source, out: Path, options: ConversionOptions, behaviors: Behaviors
) -> str | None:
    """Convert one session; return why it was dropped, or None."""
    file, writing = f"{source.session}.parquet", []
    (out / "sessions" / file).unlink(missing_ok=True)
    try:
        # Arrow lets go of Python's lock; training trials take one of the two threads.
        with ThreadPoolExecutor(2) as pool:
            for folder, table in session_tables(source.read(), source.fingerprint, options, behaviors):
                if folder == "sessions":
                    _wait_for(writing)
                writing.append(pool.submit(write_table, out / folder / file, table))
        _wait_for(writing)
    except (NEDSError, ValueError, TypeError, KeyError, MemoryError) as error:
        for folder in FOLDERS[:-1]:
            (out / folder / file).unlink(missing_ok=True)
        if isinstance(error, NEDSError):
            return str(error).removeprefix(f"{source.session}: ")
        return f"cannot be read: {type(error).__name__}: {one_line(error)}"
    return None


def _wait_for(writing: list[Future]) -> None:
    for future in writing:
        future.result()


def session_tables(
    recording: Recording, fingerprint: str, options: ConversionOptions, behaviors: Behaviors
) -> Iterator[tuple[str, pa.Table]]:
    """Folder and table of one session, `sessions` last: trials are split, then units kept by their rate.

    Raises:
        NEDSError: Too few trials, no unit above the rate floor, or bins or behaviours that differ from those
            of the dataset.
    """
    _check_fits_dataset(recording, options, behaviors)
    counts = recording.spike_counts
    session, (trials, bins, _) = recording.session, counts.shape
    splits = split_of_trials(session, trials, options.split, options.seed, options.fold)

    train = counts[splits == "train"]
    rate_hz = train.sum(axis=(0, 1), dtype=np.int64) / (len(train) * bins * recording.bin_size_s)
    kept = rate_hz >= options.min_rate_hz
    if not kept.any():
        raise NEDSError(
            f"{session}: none of {len(kept)} units reaches {options.min_rate_hz:g} Hz in the training trials"
        )
    num_units = int(kept.sum())
    floor = f"rate below {options.min_rate_hz:g} Hz"
    dropped_units = {floor: len(kept) - num_units} if num_units < len(kept) else {}
    units = recording.units[kept].assign(
        session=session, unit_index=np.arange(num_units), rate_hz=rate_hz[kept]
    )
    row = {
        "session": session,
        "subject": recording.subject,
        "lab": recording.lab,
        "date": recording.date,
        "num_units": num_units,
        "num_bins": bins,
        "bin_size_s": recording.bin_size_s,
        "window_start_s": recording.window_s[0],
        "window_end_s": recording.window_s[1],
        "align_event": recording.align_event,
        **{f"{split}_trials": int((splits == split).sum()) for split in SPLITS},
        "dropped_trials": json.dumps(recording.dropped_trials),
        "dropped_units": json.dumps(dropped_units),
        "provenance": json.dumps(
            {**recording.provenance, "fingerprint": fingerprint, **_conversion(options, behaviors)}
        ),
    }
    for split in SPLITS:
        yield f"trials/{split}", _trial_table(recording, splits == split, kept, behaviors)
    yield "units", _table(units.reindex(columns=list(UNIT_FEATURES)), UNIT_FEATURES)
    yield "sessions", _table(pd.DataFrame([row]), SESSION_FEATURES)


def _check_fits_dataset(recording: Recording, options: ConversionOptions, behaviors: Behaviors) -> None:
    found = (recording.spike_counts.shape[1], recording.bin_size_s, recording.window_s, recording.align_event)
    asked = (options.num_bins, options.bin_size_s, options.window_s, options.align_event)
    if (
        found[0] != asked[0]
        or not np.allclose([found[1], *found[2]], [asked[1], *asked[2]])
        or found[3] != asked[3]
    ):
        raise NEDSError(
            f"{recording.session}: {found[0]} bins of {found[1]} s, {found[2]} s around {found[3]}; all sessions "
            f"of this dataset have {asked[0]} bins of {asked[1]} s, {asked[2]} s around {asked[3]}"
        )
    for name, values in recording.continuous.items():
        if not np.isfinite(values[~np.isnan(values).all(axis=1)]).all():
            raise NEDSError(f"{recording.session}: {name} has a trial that is missing in part")
    for name, classes in {**dict.fromkeys(recording.continuous), **recording.classes}.items():
        if behaviors.get(name, "no column") != classes:
            raise NEDSError(
                f"{recording.session}: {name} is {classes or 'continuous'}, the dataset has "
                f"{behaviors.get(name, 'no column') or 'continuous'}"
            )


def _trial_table(recording: Recording, rows: np.ndarray, kept: np.ndarray, behaviors: Behaviors) -> pa.Table:
    """`trials` rows (boolean masks of trials and units) as Arrow, with the features in the schema."""
    counts = np.compress(kept, recording.spike_counts[rows], axis=2)
    trials, _, units = counts.shape
    columns = {
        "session": np.full(trials, recording.session),
        "trial_index": recording.trial_index[rows],
        "num_units": np.full(trials, units),
        "spike_counts": _list_array(counts.reshape(trials, -1)),
    }
    for name in behaviors:
        if name in recording.continuous:
            columns[name] = _list_array(recording.continuous[name][rows].astype(np.float32))
        elif name in recording.categorical:
            indices = recording.categorical[name][rows]
            columns[name] = pa.array(indices, pa.int64(), mask=indices < 0)
        else:
            columns[name] = pa.nulls(trials)
    return _table(columns, trial_features(behaviors))


def _list_array(values: np.ndarray) -> pa.ListArray:
    """(rows, n) as a list column; of floats, a row of NaN only is null."""
    rows, size = values.shape
    offsets = pa.array(np.arange(rows + 1) * size, pa.int32())
    missing = pa.array(np.isnan(values).all(axis=1)) if values.dtype.kind == "f" else None
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()), mask=missing)


def _table(columns: dict | pd.DataFrame, features: Features) -> pa.Table:
    """Columns in the order and types of the features, which `datasets` finds in the schema's metadata."""
    schema = features.arrow_schema
    # The name of a list before `datasets` 4, which later ones still read.
    named = schema.metadata[b"huggingface"].replace(b'"_type": "List"', b'"_type": "Sequence"')
    schema = schema.with_metadata({"huggingface": named})
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, which is there as a whole or not at all."""
    rows = max(1, round(ROW_GROUP_BYTES * len(table) / max(table.nbytes, 1)))
    with written_whole(path) as unfinished:
        pq.write_table(
            table,
            unfinished,
            compression="zstd",
            row_group_size=rows,
            data_page_size=PAGE_BYTES,
            use_dictionary=["session"],
            column_encoding=ENCODING_OF_COUNTS if "spike_counts" in table.column_names else None,
        )
