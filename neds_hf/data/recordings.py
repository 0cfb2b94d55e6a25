"""A converted dataset, opened: its trials by split, its units and its sessions."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pandas as pd

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
            raise NEDSError(f"{self.source} has no split {name!r}; there are: {', '.join(self.splits)}")
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
        NEDSError: There is no such dataset or configuration, or the cache of `datasets` cannot be written.
    """
    source = str(source)
    if Path(source).exists():
        if not Path(source, "README.md").exists():
            raise NEDSError(f"{source} is no dataset folder: it has no README.md; `neds build` makes one")
        check_path(Path(source))
    elif source.count("/") != 1:
        raise NEDSError(f"no dataset folder {source}")
    try:
        splits = dict(datasets.load_dataset(source, config))
        units = datasets.load_dataset(source, "units", split="train").to_pandas()
        sessions = datasets.load_dataset(source, "sessions", split="train").to_pandas()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        what = f"is no dataset with a configuration {config!r}"
        if getattr(error, "errno", None):  # of the system
            what = "cannot be read, or the cache of datasets (in $HF_HOME) not be written"
        raise NEDSError(f"{source} {what}: {one_line(error)}") from error
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
