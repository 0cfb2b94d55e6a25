"""Runs, read from what they wrote, and what may be compared between them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd

from neds_hf.analysis.summary import Estimate, metric_label
from neds_hf.data.files import check_content, read_json
from neds_hf.errors import NEDSError
from neds_hf.training.runs import RUN_FILE, read_run

METRICS_FILE = "metrics.json"
HISTORY_FILE = "trainer_state.json"
# What is read of the files, for `check_content`.
NUMBER = (int, float)
METRICS = {"sessions": {"*": {"*": (*NUMBER, type(None))}}}
HISTORY = {"log_history": [{"epoch": NUMBER, "*": (*NUMBER, type(None))}]}
ABOUT = {  # `run.json`, or a file of `neds evaluate`
    "configuration": {
        "command?": str,
        "sessions?": [str],
        "data_fingerprint?": str,
        "models?": [str],
        "split?": str,
        "train_null?": [str],
        "train_splits?": [str],
    },
    "hardware?": {"gpus?": [str]},
    "started?": NUMBER,
    "finished?": NUMBER,
    "warnings?": [str],
}
# Settings that are of the sessions, not of the method.
OF_SESSIONS = ("sessions", "session_ids", "unit_counts", "data_fingerprint")
VARIES = "varies"


@dataclass
class Run:
    """What one method wrote.

    Attributes:
        name: For tables and figures.
        path: What it was read from.
        scores: Session to its metrics; NaN is not defined.
        parts: Session to the folder or file that has its metrics: `path`, or what is in it.
        settings: Name to value, names of what is nested joined by dots; empty where not known.
        split: Of the dataset, that was scored.
        fingerprints: Sessions to the fingerprint of their data, where known (`Recordings.fingerprint`).
        history: Log of the training (`log_history` of `trainer_state.json`); empty where there is none.
        seconds: From start to finish, interruptions included; NaN where not known.
        hardware: In words; empty where not known.
        warnings: What `neds evaluate` warned of.
    """

    name: str
    path: Path
    scores: dict[str, dict[str, float]]
    parts: dict[str, Path] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    split: str = "test"
    fingerprints: dict[frozenset[str], str] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    seconds: float = math.nan
    hardware: str = ""
    warnings: list[str] = field(default_factory=list)


def read_runs(path: Path, name: str | None = None) -> list[Run]:
    """The runs of a path.

    - A folder with `metrics.json` (of training, of a baseline) is one run, with `run.json` and
      `trainer_state.json` where they are there; so is a file that `neds evaluate` wrote.
    - A folder whose folders are runs (`neds baselines`) is all of them; where these score different sessions,
      none of them twice (a model for each new animal), together they are one run.

    Args:
        path: Folder or file.
        name: Instead of the folder's or file's name; of several runs, put before each one's own.

    Raises:
        NEDSError: There is no such path, no metrics, or they are not such as `neds` writes.
    """
    if path.is_file() or (path / METRICS_FILE).is_file():
        return [_read_run(path, name or path.resolve().name.removesuffix(".json"))]
    if not path.exists():
        raise NEDSError(f"there is no run {path}")
    parts = [
        _read_run(folder, folder.name)
        for folder in sorted(path.iterdir())
        if (folder / METRICS_FILE).is_file()
    ]
    if not parts:
        raise NEDSError(f"{path} has no {METRICS_FILE}, nor has any folder in it: no run that was finished")
    sessions = [session for part in parts for session in part.scores]
    if len(parts) > 1 and len(set(sessions)) == len(sessions):
        return [_joined(name or path.resolve().name, path, parts)]
    for part in parts:
        part.name = f"{name}: {part.name}" if name else part.name
    return parts


def shared_sessions(runs: list[Run]) -> list[str]:
    """Sessions that all runs score, in the order of the first."""
    return [session for session in runs[0].scores if all(session in run.scores for run in runs)]


def metrics_of(runs: list[Run]) -> list[str]:
    """Metrics that some run has in some session."""
    everything = (item for run in runs for scores in run.scores.values() for item in scores.items())
    return list(dict.fromkeys(name for name, value in everything if math.isfinite(value)))


def values_of(runs: list[Run], metric: str, sessions: list[str]) -> pd.DataFrame:
    """A metric: a row a session where every run that has the metric at all has it, a column a run."""
    table = pd.DataFrame(
        {run.name: [run.scores[session].get(metric, math.nan) for session in sessions] for run in runs},
        index=sessions,
        dtype=float,
    )
    return table.dropna(axis="columns", how="all").dropna().reindex(columns=table.columns)


def means_of(runs: list[Run], metrics: list[str], sessions: list[str]) -> pd.DataFrame:
    """Mean and standard error (`Estimate`) over sessions: a row a run, a column a metric.

    Those of one metric are of the same sessions for every run (`values_of`).
    """
    columns = {}
    for metric in metrics:
        values = values_of(runs, metric, sessions)
        columns[metric] = [Estimate(values[run.name]) for run in runs]
    return pd.DataFrame(columns, index=[run.name for run in runs], dtype=object)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table of runs and metrics with the metrics' names for a reader."""
    return table.rename(columns=metric_label).rename_axis("run")


def differences(runs: list[Run]) -> pd.DataFrame:
    """Settings that differ between the runs, as text: a row a setting, a column a run.

    A setting that one run has and another has not is a difference where both are of the same command.
    """
    known = [run for run in runs if run.settings]
    rows = {}
    for setting in dict.fromkeys(setting for run in known for setting in run.settings):
        having = [run for run in known if setting in run.settings]
        commands = {run.settings.get("command") for run in having}
        lacking = [run for run in known if run not in having and run.settings.get("command") in commands]
        values = [run.settings[setting] for run in having]
        if lacking or any(value != values[0] for value in values):
            rows[setting] = {run.name: _short(run.settings[setting]) for run in having}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in known])


def cautions(runs: list[Run]) -> list[str]:
    """What a reader must know before comparing the runs, a sentence each."""
    said = []
    if len({frozenset(run.scores) for run in runs}) > 1:
        shared = len(shared_sessions(runs))
        counts = ", ".join(f"{run.name} {len(run.scores)}" for run in runs)
        said.append(
            f"The runs are not of the same sessions ({counts}); "
            + (
                f"the means are over the {shared} that all have."
                if shared
                else "no session is in all of them."
            )
        )
    if len({run.split for run in runs}) > 1:
        splits = ", ".join(f"{run.name} {run.split}" for run in runs)
        said.append(f"The runs are not of the same split of the trials ({splits}).")
    nulls = {run.name: run.settings.get("train_null", run.settings.get("train_splits")) for run in runs}
    nulls = {name: " and ".join(null) for name, null in nulls.items() if isinstance(null, list)}
    if len(set(nulls.values())) > 1:
        means = ", ".join(f"{name} {null}" for name, null in nulls.items())
        said.append(f"Bits/spike train null are not of the same null, the mean of some trials ({means}).")
    different, unknown = [], []
    for one, other in combinations(runs, 2):
        both = set(one.fingerprints) & set(other.fingerprints)
        if any(one.fingerprints[sessions] != other.fingerprints[sessions] for sessions in both):
            different.append(f"{one.name} and {other.name}")
        elif (set(one.scores) & set(other.scores)).difference(*both):
            unknown += [one.name, other.name]
    if different:
        said.append(
            f"These are of different data, by their fingerprints of the same sessions: {'; '.join(different)}. "
            "Their trials, units or splits may differ."
        )
    if unknown:
        said.append(
            f"Whether these are all of the same data cannot be told: {', '.join(dict.fromkeys(unknown))}. A "
            "fingerprint is of all sessions of a model together, and these had not the same ones, or have none."
        )
    return said + [f"{run.name}: {warning}." for run in runs for warning in run.warnings]


def _read_run(path: Path, name: str) -> Run:
    """The run of a folder, or of a file that `neds evaluate` wrote."""
    metrics_file = path if path.is_file() else path / METRICS_FILE
    metrics = read_json(metrics_file, METRICS)
    scores = {
        session: {metric: math.nan if value is None else float(value) for metric, value in of_session.items()}
        for session, of_session in metrics["sessions"].items()
    }
    if not scores:
        raise NEDSError(f"{metrics_file} has the metrics of no session")
    about, about_file, history = {"configuration": {}, **metrics}, path, []
    if path.is_dir():
        about, about_file = read_run(path), path / RUN_FILE
        if (path / HISTORY_FILE).exists():
            history = read_json(path / HISTORY_FILE, HISTORY)["log_history"]
    check_content(about_file, about, ABOUT)
    configuration = about["configuration"]
    fingerprint, sessions = configuration.get("data_fingerprint"), configuration.get("sessions", scores)
    return Run(
        name,
        path,
        scores,
        dict.fromkeys(scores, path),
        {key: value for key, value in _flat(configuration) if key.split(".")[-1] not in OF_SESSIONS},
        configuration.get("split", "test"),
        {frozenset(sessions): fingerprint} if fingerprint else {},
        history,
        about.get("finished", math.nan) - about.get("started", math.nan),
        _hardware(about["hardware"]) if "hardware" in about else "",
        metrics.get("warnings", []),
    )


def _joined(name: str, path: Path, parts: list[Run]) -> Run:
    """Runs of different sessions as one."""
    settings = {}
    for key in dict.fromkeys(key for part in parts for key in part.settings):
        values = [part.settings.get(key) for part in parts]
        settings[key] = values[0] if all(value == values[0] for value in values) else VARIES
    history = []
    for part in parts:
        # What is not a number, so that no line goes from one run's curve to the next one's.
        gap = {key: math.nan for entry in history for key in entry}
        history += [gap, *part.history] if history else part.history
    splits, hardware = {part.split for part in parts}, {part.hardware for part in parts}
    return Run(
        name,
        path,
        {session: scores for part in parts for session, scores in part.scores.items()},
        {session: folder for part in parts for session, folder in part.parts.items()},
        settings,
        splits.pop() if len(splits) == 1 else VARIES,
        {sessions: fingerprint for part in parts for sessions, fingerprint in part.fingerprints.items()},
        history,
        sum(part.seconds for part in parts),
        hardware.pop() if len(hardware) == 1 else VARIES,
    )


def _flat(settings: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    short = reprlib.Repr()
    short.maxstring = 60
    return value if isinstance(value, str) and len(value) <= 60 else short.repr(value)


def _hardware(hardware: dict) -> str:
    if hardware.get("gpus"):
        return ", ".join(hardware["gpus"])
    return f"{hardware.get('cpu') or 'CPU'}, {hardware.get('torch_threads')} of {hardware.get('cpus')} cores"
