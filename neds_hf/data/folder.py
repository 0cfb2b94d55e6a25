"""What a dataset folder holds, was made from and lacks, for the steps that follow; and its card, for people.

`storage.convert` writes the folder.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData
from yaml import YAMLError

from neds_hf.cards.rendering import origin_in_words, render
from neds_hf.data.files import LIST_OR_NULL, TEXT_OR_NULL, check_content, parse_json, read_json, written_whole
from neds_hf.data.origin import license_of, origins
from neds_hf.data.schema import SESSION_FEATURES, SPLITS, Behaviors
from neds_hf.errors import NEDSError, one_line

# What is read of the columns of a `sessions` table that are JSON, for `check_content`.
JSON_COLUMNS = {
    "dropped_trials": {"*": int},
    "dropped_units": {"*": int},
    "provenance": {
        "fingerprint": str,
        "version": str,
        "options": dict,
        "behaviors": {"*": LIST_OR_NULL},
        "source?": TEXT_OR_NULL,
    },
}


def provenances(out: Path) -> dict[str, dict]:
    """Session to how it was converted (`fingerprint` of its source, `options`, `behaviors`, `version` and what the
    reader noted), for the sessions that `out` holds.
    """
    if not any((out / "sessions").glob("*.parquet")):
        return {}
    sessions = _read_sessions(out)
    return dict(zip(sessions["session"], map(json.loads, sessions["provenance"])))


def behaviors_there(out: Path) -> Behaviors:
    """Behaviours of the sessions that `out` holds; none where it holds none."""
    for mark in provenances(out).values():
        return {name: classes and tuple(classes) for name, classes in mark["behaviors"].items()}
    return {}


def held_out_sessions(out: Path) -> list[str]:
    """Sessions that are held out of pretraining, whether or not they are converted already."""
    listed, card = Path(out) / "held_out.json", Path(out) / "README.md"
    if listed.exists():
        return read_json(listed, [str])
    if not (card.exists() and any(card.parent.glob("sessions/*.parquet"))):
        return []
    # A folder of before there was the list.
    try:
        metadata = DatasetCard.load(card).data.to_dict()
    except (ValueError, YAMLError) as error:
        raise NEDSError(f"{card}: expected the card of a dataset ({one_line(error)})") from None
    check_content(card, metadata, {"configs?": [{"config_name": str}]})
    for config in metadata.get("configs", ()):
        if config["config_name"] == "held_out":
            check_content(card, config, {"data_files": [{"path": [str]}]}, "held_out")
            return sorted({Path(file).stem for part in config["data_files"] for file in part["path"]})
    return []


def dropped_sessions(out: Path) -> dict[str, str]:
    """Session to why it could not be used."""
    file = Path(out) / "dropped_sessions.json"
    return read_json(file, {"*": str}) if file.exists() else {}


def summary(out: Path) -> str:
    """What a dataset folder holds and what was dropped on the way, in a few lines."""
    sessions = _read_sessions(out)
    dropped = dropped_sessions(out)
    trials = {split: int(sessions[f"{split}_trials"].sum()) for split in SPLITS}
    splits = ", ".join(f"{number} {split}" for split, number in trials.items())
    return "\n".join(
        [
            f"sessions: {len(sessions)} kept, {len(dropped)} dropped",
            *(f"  dropped {session}: {reason}" for session, reason in dropped.items()),
            f"trials: {sum(trials.values())} kept ({splits})",
            *_drop_lines(sessions["dropped_trials"]),
            f"units: {sessions['num_units'].sum()} kept",
            *_drop_lines(sessions["dropped_units"]),
        ]
    )


def write_card(out: Path) -> None:
    """Write ``out/README.md``, whose header tells `load_dataset` which files belong to which config.

    A config that would be empty is left out.
    """
    out = Path(out)
    sessions = _read_sessions(out)
    held_out = {*held_out_sessions(out)} & {*sessions["session"]}
    # By name, not by a pattern, with which a file that is gone would not be missed.
    configs = [
        {"config_name": "trials", "default": True, "data_files": _trial_files(sessions["session"])},
        *(
            {"config_name": table, "data_files": [_files(table, "train", sessions["session"])]}
            for table in ("units", "sessions")
        ),
    ]
    if held_out:
        parts = {
            "pretrain": [s for s in sessions["session"] if s not in held_out],
            "held_out": [s for s in sessions["session"] if s in held_out],
        }
        configs += [{"config_name": k, "data_files": _trial_files(v)} for k, v in parts.items() if v]
    # `load_dataset` finds its cache by the folder's name and these lines alone: other content, other lines.
    content = hashlib.sha256(sessions.to_json().encode()).hexdigest()[:16]
    configs = [{**config, "description": f"conversion {content}"} for config in configs]
    first = sessions.iloc[0]
    found, licence = origins(sessions), license_of(sessions)
    name = out.resolve().name
    card = render(
        "dataset.md",
        DatasetCardData(
            pretty_name=name,
            license=licence,
            task_categories=["other"],
            size_categories=[
                _size_category(int(sessions[[f"{split}_trials" for split in SPLITS]].sum().sum()))
            ],
            tags=["neuroscience", "electrophysiology", "neds", *sorted({*found} - {"unknown"})],
            configs=configs,
        ),
        name=name,
        origins=found,
        origin=origin_in_words(found),
        first=first,
        provenance=json.loads(first["provenance"]),
        summary=summary(out),
        held_out=held_out,
        license=licence,
    )
    with written_whole(out / "README.md") as unfinished:
        unfinished.write_text(card)


def _trial_files(sessions: Iterable[str]) -> list[dict]:
    return [_files(f"trials/{split}", split, sessions) for split in SPLITS]


def _files(folder: str, split: str, sessions: Iterable[str]) -> dict:
    return {"split": split, "path": [f"{folder}/{session}.parquet" for session in sessions]}


def _size_category(rows: int) -> str:
    """As the Hub names it."""
    below = (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")
    return next((name for limit, name in below if rows < limit), "1M<n<10M")


def _drop_lines(reasons: Iterable[str]) -> list[str]:
    total = sum((Counter(json.loads(counts)) for counts in reasons), Counter())
    return [f"  {number} dropped: {reason}" for reason, number in total.most_common()]


def _read_sessions(out: Path) -> pd.DataFrame:
    rows = []
    for file in sorted((Path(out) / "sessions").glob("*.parquet")):
        try:
            row = pq.read_table(file).to_pandas()
        except (OSError, ValueError) as error:
            raise NEDSError(
                f"{file}: expected a Parquet file ({error}); without it, its session is converted again"
            ) from None
        if missing := [name for name in SESSION_FEATURES if name not in row]:
            raise NEDSError(f"{file}: expected a column {missing[0]!r}, found {', '.join(row)}")
        for name, expected in JSON_COLUMNS.items():
            for text in row[name]:
                parse_json(file, text, expected, name)
        rows.append(row)
    return pd.concat(rows, ignore_index=True)
