"""A converted dataset, opened: its trials by split, its units and its sessions."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet as pq

from neds_hf.data.schema import SPLITS, check_path
from neds_hf.data.trials import SessionTrials, session_trials
from neds_hf.errors import NEDSError, one_line


@dataclass
class Recordings:
    """A converted dataset: the splits of its `trials`, and its `units` and `sessions` tables.

    Attributes:
        source: Folder or Hub id.
        splits: Split to its trials.
        units, sessions: One row a unit, one row a session.
    """

    source: str
    splits: dict[str, datasets.Dataset]
    units: pd.DataFrame
    sessions: pd.DataFrame

    @property
    def fingerprint(self) -> str:
        """Hash of what the recordings were made from: sources, their hashes, options."""
        rows = self.sessions.sort_values("session").to_json(orient="records")
        return hashlib.sha256(rows.encode()).hexdigest()[:16]

    @property
    def features(self) -> datasets.Features:
        return next(iter(self.splits.values())).features

    @property
    def session_ids(self) -> list[str]:
        return self.sessions["session"].tolist()

    def split(self, name: str) -> datasets.Dataset:
        """One split.

        Raises:
            NEDSError: There is no such split, or it is empty.
        """
        if name not in self.splits or len(self.splits[name]) == 0:
            there = ", ".join(split for split, trials in self.splits.items() if len(trials))
            raise NEDSError(f"{self.source} has no split {name!r}; there are: {there}")
        return self.splits[name]

    def trained_on(self, splits: list[str]) -> "Recordings":
        """The same trials, with these splits together as `train`.

        Raises:
            NEDSError: There are none, or one of them is not there, or empty.
        """
        if not splits:
            raise NEDSError(
                f"{self.source}: no split is named to train on; there are: {', '.join(self.splits)}"
            )
        train = datasets.concatenate_datasets([self.split(name) for name in splits])
        rest = {name: split for name, split in self.splits.items() if name not in {"train", *splits}}
        return replace(self, splits={"train": train, **rest})

    def with_validation(self) -> "Recordings":
        """The same trials, with those of the validation split, where there is one, as training trials."""
        return self.trained_on(["train", "validation"]) if "validation" in self.splits else self

    def trials(self, session: str, split: str) -> SessionTrials:
        """Trials of one session in one split."""
        return session_trials(self.split(split), session)

    def unit_ids(self, session: str) -> list[str]:
        """Uuids of a session's units in the order of their index."""
        rows = self.units[self.units["session"] == session].sort_values("unit_index")
        return rows["uuid"].tolist()

    @property
    def listed_sessions(self) -> str:
        """The session ids, up to ten of them, for a message."""
        return ", ".join(self.session_ids[:10]) + ", ..." * (len(self.session_ids) > 10)

    def only(self, sessions: list[str]) -> "Recordings":
        """These sessions alone, in the order of the table.

        Raises:
            NEDSError: A session that is not there.
        """
        missing = sorted(set(sessions) - set(self.session_ids))
        if missing:
            raise NEDSError(
                f"{self.source} does not have session {', '.join(missing)}; it has {self.listed_sessions}"
            )
        wanted = set(sessions)

        def keep(dataset: datasets.Dataset) -> datasets.Dataset:
            names = dataset.with_format("arrow")["session"][:].to_pylist()
            return dataset.select([row for row, name in enumerate(names) if name in wanted])

        return Recordings(
            self.source,
            {name: keep(dataset) for name, dataset in self.splits.items()},
            self.units[self.units["session"].isin(wanted)],
            self.sessions[self.sessions["session"].isin(wanted)],
        )


def open_recordings(source: str | Path, config: str = "trials") -> Recordings:
    """Open a converted dataset.

    Args:
        source: Folder written by `neds build`, or the id of a dataset repository on the Hub.
        config: `"trials"` (all sessions), `"pretrain"` or `"held_out"` where the dataset has them.

    Raises:
        NEDSError: There is no such dataset or configuration, a file of it is gone or damaged, or the cache of
            `datasets` cannot be written.
    """
    where = source = str(source)
    if Path(source).exists():
        if not Path(source, "README.md").exists():
            raise NEDSError(f"{source} is no dataset folder: it has no README.md; `neds build` makes one")
        check_path(Path(source))
        where = str(Path(source).absolute())  # a word alone may be the name of a builder
    elif source.count("/") != 1:
        raise NEDSError(f"no dataset folder {source}")
    with _errors_of(source, config):
        splits = dict(datasets.load_dataset(where, config))
        units = datasets.load_dataset(where, "units", split="train").to_pandas()
        sessions = datasets.load_dataset(where, "sessions", split="train").to_pandas()
    recordings = Recordings(
        source, {name: splits[name] for name in SPLITS if name in splits}, units, sessions
    )
    if config == "trials":
        return recordings
    present = {
        session
        for dataset in splits.values()
        for session in dataset.with_format("arrow")["session"][:].unique().to_pylist()
    }
    return recordings.only([session for session in recordings.session_ids if session in present])


def check_files(folder: str | Path) -> None:
    """Make sure that a dataset folder has the files that its card lists.

    Raises:
        NEDSError: One is gone, the card is none of a dataset, or `datasets` would take the path for a pattern.
    """
    check_path(Path(folder))
    for config in ("trials", "units", "sessions"):
        with _errors_of(str(folder), config):
            datasets.load_dataset_builder(str(Path(folder).absolute()), config)


@contextmanager
def _errors_of(source: str, config: str) -> Iterator[None]:
    """Let an error of `datasets` be a NEDSError; one of a file names it."""
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        generating = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = error.__cause__ or error if generating else error
        what, reason = f"{source} is no dataset with a configuration {config!r}", one_line(cause)
        if getattr(cause, "errno", None):  # of the system
            what = f"{source} cannot be read, or the cache of datasets (in $HF_HOME) not be written"
        elif gone := re.match(r"Unable to find '(.+?\.parquet)'", reason):
            what = f"{source} is not whole, `neds build` converts session {Path(gone[1]).stem} again"
            reason = f"there is no file {gone[1]}"
        elif generating and (file := _damaged_file(source)):
            what = f"{file} is damaged, without it `neds build` converts session {file.stem} again"
        raise NEDSError(f"{what}: {reason}") from error


def _damaged_file(folder: str) -> Path | None:
    """The first Parquet file that cannot be read."""
    for file in sorted(Path(folder).glob("**/*.parquet")):
        try:
            pq.read_table(file)
        except (OSError, ValueError):
            return file
    return None
