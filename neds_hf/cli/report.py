"""Any runs side by side, on one HTML page."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from neds_hf.analysis.report import text_table, trial_sections, write_report
from neds_hf.analysis.runs import (
    Run,
    cautions,
    differences,
    labelled,
    means_of,
    metrics_of,
    read_runs,
    shared_sessions,
    values_of,
)
from neds_hf.analysis.summary import grouped, is_headline, metric_label
from neds_hf.errors import NEDSError, require
from neds_hf.training.runs import check_output


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="neds report",
        description="Put runs side by side on one HTML page: means over the sessions that all of them score, "
        "every session, training curves, settings that differ.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="model folder, folder of one baseline or of several, file of `neds evaluate`, or folder of models of "
        "different sessions, which together are one run",
    )
    parser.add_argument("--names", nargs="+", help="a name for each DIR (default: its own)")
    parser.add_argument(
        "--dataset",
        help="that of the runs (a folder, or an id on the Hub): draws trials of a session, behaviour as every run "
        "predicts it, spikes as the last one does that encodes",
    )
    parser.add_argument("--session", help="of the dataset, to draw (default: the one that most runs predict)")
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args(argv)
    names = arguments.names or [None] * len(arguments.runs)
    if len(names) != len(arguments.runs):
        raise NEDSError(f"--names has {len(names)} names for {len(arguments.runs)} DIR")
    if arguments.session and not arguments.dataset:
        raise NEDSError("--session is of a --dataset, whose trials it draws")
    require("a report", "report", "matplotlib")
    check_output(arguments.output)
    runs = [run for path, name in zip(arguments.runs, names) for run in read_runs(path, name)]
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NEDSError(f"several runs are called {', '.join(twice)}; --names gives them others")

    shared, metrics = shared_sessions(runs), metrics_of(runs)
    headlines = [name for name in metrics if is_headline(name)]
    others, drawn = trials_of(runs, arguments.dataset, arguments.session) if arguments.dataset else ([], [])
    sections = []
    if said := cautions(runs) + others:
        print(*said, sep="\n", end="\n\n")
        sections.append(("Before comparing", "\n\n".join(said), None, None))
    if shared and headlines:
        about, means = about_means(runs, headlines, shared), labelled(means_of(runs, headlines, shared))
        print(about, text_table(means, heading_width=14), sep="\n\n", end="\n\n")
        sections.append(("Result", about, means, None))
        if len(runs) > 1:
            sections.append(every_session(runs, headlines, shared))
        for group, names in grouped(metrics).items():
            if more := [name for name in names if not is_headline(name)]:
                sections.append((f"More of {group}", "", labelled(means_of(runs, more, shared)), None))
    if any(run.history for run in runs):
        sections.append(training(runs))
    sections += drawn
    if not (different := differences(runs)).empty:
        sections.append(("Settings that differ", ABOUT_SETTINGS, different.rename_axis("setting"), None))
    sections.append(provenance(runs))
    for session in dict.fromkeys(session for run in runs for session in run.scores):
        sections.append((f"Session {session}", "", labelled(scores_of(runs, headlines, session)), None))
    title = ", ".join(run.name for run in runs) if len(runs) < 5 else f"{len(runs)} runs side by side"
    write_report(arguments.output, title, sections)
    print(f"{arguments.output} shows more.")


ABOUT_SETTINGS = (
    "Those that are not the same in all runs that have them, and those that only some runs of a command name: "
    "in the others they have their default."
)


def about_means(runs: list[Run], metrics: list[str], shared: list[str]) -> str:
    """What the table of means is of."""
    what = f"Mean ± standard error over the {len(shared)} sessions" if len(shared) > 1 else "The one session"
    text = (
        f"{what} that {'all runs score' if len(runs) > 1 else 'the run scores'}, "
        f"{' and '.join(dict.fromkeys(run.split for run in runs))} trials. Bits/spike measure encoding, spikes "
        "predicted from behaviour; R² and accuracy decoding, behaviour predicted from spikes. Higher is better, "
        "the best is bold, – is not predicted or not defined."
    )
    numbers = {metric: len(values_of(runs, metric, shared)) for metric in metrics}
    if fewer := [f"{metric_label(name)} {n}" for name, n in numbers.items() if n < len(shared)]:
        text += f" Some metrics are not defined in all of these sessions, but in fewer: {', '.join(fewer)}."
    return text


def every_session(runs: list[Run], metrics: list[str], shared: list[str]) -> tuple:
    """The figure of the sessions."""
    from neds_hf.analysis.figures import paired_sessions  # needs matplotlib

    text = "A line is a session; diamonds are the means, with their standard errors."
    figure = paired_sessions({metric: values_of(runs, metric, shared) for metric in metrics})
    return "Session by session", text, None, figure


def training(runs: list[Run]) -> tuple:
    """Curves of the runs that have them."""
    from neds_hf.analysis.figures import training_curves  # needs matplotlib

    text = (
        "Validation metrics are means over the sessions that a run was trained on; a run of several models has a "
        "line for each. The validation loss is encoding plus decoding, the training loss that of one masking "
        "scheme a trial: do not compare the two."
    )
    return "Training", text, None, training_curves({run.name: run.history for run in runs if run.history})


def trials_of(runs: list[Run], dataset: str, session: str | None) -> tuple[list[str], list[tuple]]:
    """What a reader must know of the figures of trials of one session, recorded and predicted; and these.

    Args:
        session: Default: the first of the dataset that all runs score, or else some.

    Raises:
        NEDSError: A run does not score the session, the dataset does not have it, or a run's predictions cannot
            be had (`show_runs`).
    """
    from neds_hf.analysis.predictions import show_runs  # needs torch
    from neds_hf.data.recordings import open_recordings

    recordings = open_recordings(dataset)
    if session is None:
        shared = [name for name in shared_sessions(runs) if name in recordings.session_ids]
        if not shared:
            raise NEDSError(f"{dataset} has no session that all runs score, whose trials could be drawn")
        session = max(shared, key=lambda name: sum(bool(run.scores[name]) for run in runs))
    for run in runs:
        if session not in run.scores:
            raise NEDSError(f"{run.path} does not score session {session}, whose trials are to be drawn")
    shown, others = show_runs(runs, recordings, session)
    sections = trial_sections(shown, session, runs[0].split)
    said = [
        f"{run.name}: {dataset} does not have its training trials of session {session} (another --fold?); it may "
        "have learned from the trials that are drawn."
        for run in runs
        if run.name in others and not run.warnings  # which say so
    ]
    if not sections:
        said.append(f"No run predicts anything of session {session} that could be drawn.")
    return said, sections


def provenance(runs: list[Run]) -> tuple:
    """Where each run came from."""
    rows = {}
    for run in runs:
        fingerprints = list(run.fingerprints.values())
        rows[run.name] = {
            "command": run.settings.get("command"),
            "sessions": len(run.scores),
            "hardware": run.hardware or None,
            "minutes": None if np.isnan(run.seconds) else f"{run.seconds / 60:.1f}",
            "data fingerprint": f"{len(fingerprints)} different"
            if fingerprints[1:]
            else "".join(fingerprints),
            "read from": str(run.path),
        }
    text = "Minutes are from start to finish, interruptions included."
    return "Runs", text, pd.DataFrame.from_dict(rows, orient="index").rename_axis("run"), None


def scores_of(runs: list[Run], metrics: list[str], session: str) -> pd.DataFrame:
    """Metrics of one session: a row a run that scores it."""
    rows = {run.name: run.scores[session] for run in runs if session in run.scores}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=metrics).astype(float)
