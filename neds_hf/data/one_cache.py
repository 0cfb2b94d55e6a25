"""ONE caches: a folder of ALF sessions with tables of what it holds, or the public IBL server's."""

import hashlib
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock

from neds_hf.data.files import written_whole
from neds_hf.errors import NEDSError, one_line, require

if TYPE_CHECKING:
    from one.api import One

_CACHE_TABLES = ("sessions.pqt", "datasets.pqt")


def open_local(cache_dir: str | Path) -> "One":
    """A ONE object on a folder of ALF sessions; its cache tables are made where it has none.

    The folder holds `<lab>/Subjects/<subject>/<date>/<number>/alf/...`. Tables that exist are used as they are,
    so that sessions downloaded from a server keep their ids. Only those made here are made anew, when sessions
    were added; others warn of sessions that they lack.

    Raises:
        NEDSError: No such folder, no session in it, tables that cannot be written or are damaged, or ONE is not
            installed.
    """
    require("reading ALF folders", "ibl", "one")
    from one.api import One

    cache_dir = Path(cache_dir)
    if not cache_dir.is_dir():
        raise NEDSError(f"{cache_dir}: no such folder, expected one with ALF sessions")
    if not all((cache_dir / name).is_file() for name in _CACHE_TABLES):
        make_cache_tables(cache_dir)
    try:
        table = pd.read_parquet(cache_dir / "sessions.pqt")
        if added := _sessions_not_in(table, cache_dir):
            if _made_here(table):
                make_cache_tables(cache_dir)
            else:
                warnings.warn(
                    f"{added[0]} is not in {cache_dir / 'sessions.pqt'} and is left out ({len(added)} such "
                    "sessions): the tables were not made here, and are made anew only where both are deleted",
                    stacklevel=2,
                )
        return One(cache_dir=cache_dir, mode="local")
    except (OSError, ValueError, KeyError) as error:
        raise _damaged_tables(cache_dir, error) from error


def open_openalyx(cache_dir: Path | None) -> "One":
    """The public IBL server, downloading into `cache_dir` (default: ONE's own folder).

    Raises:
        NEDSError: The server cannot be reached, or ONE is not installed.
    """
    require("reading from the public IBL server", "ibl", "one")
    from one.api import ONE

    url = "https://openalyx.internationalbrainlab.org"
    try:
        return ONE(
            base_url=url, username="intbrainlab", password="international", silent=True, cache_dir=cache_dir
        )
    except OSError as error:
        raise NEDSError(f"{url}: the server cannot be reached ({one_line(error)})") from None


def _sessions_not_in(table: pd.DataFrame, cache_dir: Path) -> list[Path]:
    """Folders of the sessions on disk that ONE's table of sessions lacks."""
    from one.alf.io import iter_sessions

    known = {*zip(table["lab"], table["subject"], table["date"].astype(str), table["number"])}
    found = iter_sessions(cache_dir, "*/Subjects/*/????-??-??/*")
    return [path for path in found if (*path.session_parts[:3], int(path.session_parts[3])) not in known]


def _made_here(table: pd.DataFrame) -> bool:
    """Whether all ids are those that `make_cache_tables` gives."""
    return all(
        str(row.Index) == uuid_of(f"{row.lab}/{row.subject}/{row.date}/{row.number:03}")
        for row in table.itertuples()
    )


def _damaged_tables(cache_dir: Path, reason: object) -> NEDSError:
    return NEDSError(
        f"{cache_dir}: its ONE cache tables are damaged ({reason}): delete both, {' and '.join(_CACHE_TABLES)}, "
        "and they are made anew"
    )


def make_cache_tables(cache_dir: str | Path) -> None:
    """Write the ONE cache tables of a folder of ALF sessions.

    Unlike those of ONE itself, whose ids are new each time, these give a session the same id (of its lab,
    subject, date and number) wherever and whenever they are made: the split of its trials depends on it.

    Raises:
        NEDSError: No session is found, one is not in its place or behind a link, or the folder cannot be written
            to.
    """
    from iblutil.io import parquet
    from one.alf.cache import make_parquet_db

    cache_dir = Path(cache_dir)
    for alf in cache_dir.glob("*/Subjects/*/*/*/alf"):
        _, date, subject, subjects, lab = alf.parents[:5]
        if link := next(
            (folder for folder in (lab, subjects, subject, date, alf) if folder.is_symlink()), None
        ):
            raise NEDSError(
                f"{link} is a link, which ONE's tables do not follow: put the folder itself there"
            )
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore", RuntimeWarning)  # no session: said below
            files = make_parquet_db(cache_dir, folder, hash_ids=False)
            (sessions, sessions_origin), (datasets, datasets_origin) = map(parquet.load, files)
        if sessions.empty:
            raise NEDSError(
                f"{cache_dir}: no ALF session found, expected LAB/Subjects/SUBJECT/YYYY-MM-DD/001/alf/..."
            )
        for row in sessions.itertuples():
            place = Path(row.lab, "Subjects" if row.lab else "", row.subject, str(row.date))
            if not (cache_dir / place).is_dir():
                raise NEDSError(
                    f"{cache_dir}: expected the folder above LAB/Subjects, found a session that is not at {place} "
                    "in it"
                )
        datasets["id"] = [uuid_of(f"{eid}/{path}") for eid, path in zip(datasets["eid"], datasets["id"])]
        datasets["eid"] = datasets["eid"].map(uuid_of)
        sessions["id"] = sessions["id"].map(uuid_of)
        tables = {
            "datasets.pqt": (datasets.set_index(["eid", "id"]), datasets_origin),
            "sessions.pqt": (sessions.set_index("id"), sessions_origin),
        }
        with FileLock(cache_dir / ".tables.lock", mode=0o666):  # another process may be at it too
            for name, table in tables.items():
                with written_whole(cache_dir / name) as unfinished:
                    parquet.save(unfinished, *table)
    except OSError as error:
        raise NEDSError(
            f"{cache_dir} has no ONE cache tables ({', '.join(_CACHE_TABLES)}) and they cannot be written "
            f"there ({error}): make the folder writable, or copy it to one that is"
        ) from error


def uuid_of(path: str) -> str:
    """Id of a session or file by its path: a version 3 uuid, the only kind beside Alyx's that ONE takes."""
    return str(uuid.uuid3(uuid.NAMESPACE_URL, f"alf:{path}"))


def list_sessions(one: "One") -> list[str]:
    """Ids of the sessions in ONE's cache tables, sorted: of a folder those that are there, as the tables may be a
    server's; of a server those with trials and sorted spikes.

    Raises:
        NEDSError: The tables are damaged.
    """
    names = one.list_datasets(details=True)["rel_path"].str.rsplit("/", n=1).str[-1]
    eids = names.index.get_level_values("eid")
    with_spikes = set(eids[names == "spikes.times.npy"])
    with_trials = set(eids[names.isin(("_ibl_trials.table.pqt", "_ibl_trials.choice.npy"))])
    try:
        if one.offline:
            listed = [eid for eid in set(eids) if one.eid2path(eid).is_dir()]
        else:
            listed = with_spikes & with_trials
        return sorted(str(uuid.UUID(str(eid))) for eid in listed)
    except ValueError as error:
        raise _damaged_tables(one.cache_dir, error) from error


def session_fingerprint(one: "One", session: str) -> str:
    """Of the files on disk, or of the server's table of datasets where they still have to be downloaded."""
    if one.offline:
        return fingerprint(one.eid2path(session))
    table = one.list_datasets(session, details=True)
    return hashlib.sha256(table[["rel_path", "file_size", "hash"]].to_csv().encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """Changes whenever a file below the folder is added, removed, resized or written."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name[0] != ".")
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
