"""Brain regions from a model's unit embeddings."""

import argparse
from pathlib import Path

import pandas as pd

from neds_hf.analysis.regions import (
    FOLDS,
    Predictions,
    predict_regions,
    unit_features,
    unit_regions,
)
from neds_hf.analysis.report import FIGURE_DPI, text_table
from neds_hf.cli.config import read_as_text
from neds_hf.data.files import write_json
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError, require
from neds_hf.training.runs import fingerprint_of, finish_run, start_run
from neds_hf.training.sessions import known_recordings, load_model

MAPPINGS = ("allen", "beryl", "cosmos")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="neds regions",
        description="Predict the brain regions of units by a linear support vector machine from their embeddings "
        "in a model, beside what firing rates and other plain statistics give.",
    )
    parser.add_argument("--model", required=True, help="model folder, or a model id on the Hub")
    parser.add_argument("--dataset", required=True, help="folder written by `neds build`, or a dataset id")
    parser.add_argument("--output", type=Path, required=True, help="folder of the metrics and figures")
    parser.add_argument("--session", nargs="+", help="these sessions only; default: all that the model knows")
    parser.add_argument("--mapping", default="allen", choices=MAPPINGS, help="of acronyms (default: allen)")
    parser.add_argument(
        "--group", type=Path, metavar="FILE", help="YAML file, acronym to class; other acronyms are left out"
    )
    parser.add_argument("--regions", nargs="+", help="only these acronyms, or classes of --group")
    parser.add_argument("--min-units", type=int, default=20, help="rarer regions are left out (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="shuffles units and sessions (default: 0)")
    arguments = parser.parse_args(argv)
    if arguments.min_units < FOLDS:
        raise NEDSError(f"--min-units must be at least {FOLDS}, one a fold, not {arguments.min_units}")
    require("the figure of each confusion matrix", "report", "matplotlib")
    groups = read_groups(arguments.group) if arguments.group else None

    model, processor = load_model(arguments.model)
    recordings = open_recordings(arguments.dataset)
    recordings = known_recordings(recordings, processor, arguments.model, arguments.session)
    recordings = recordings.with_validation()  # a model may have learned from both; so do the statistics
    try:
        regions, left_out = unit_regions(
            recordings.units, arguments.mapping, groups, arguments.regions, arguments.min_units
        )
    except NEDSError as error:
        raise NEDSError(f"{arguments.dataset}: {error}") from None
    start_run(
        arguments.output,
        {
            "command": "regions",
            "model": arguments.model,
            "weights": fingerprint_of(model),
            "dataset": arguments.dataset,
            "data_fingerprint": recordings.fingerprint,
            "sessions": recordings.session_ids,
            "mapping": arguments.mapping,
            "group": groups,
            "regions": arguments.regions,
            "min_units": arguments.min_units,
            "seed": arguments.seed,
        },
    )

    units = regions.to_frame("region").join(recordings.units["session"])
    features = unit_features(model, recordings)
    metrics = {"regions": counts(units), "left_out": left_out}
    print(f"{len(units)} units in {listed(metrics['regions'])}")
    if left_out:
        print(f"left out: {listed(left_out)}")
    table = {}
    for by in ("unit", "session"):
        if by == "session":
            shared = units.groupby("region")["session"].transform("nunique") > 1
            metrics["left_out_by_session"] = counts(units[~shared])
            if metrics["left_out_by_session"]:
                alone = listed(metrics["left_out_by_session"])
                print(f"left out of the split by session, as one session has them: {alone}")
            units = units[shared]
            if units["region"].nunique() < 2:
                print("no split by session: it needs two regions in two sessions each")
                break
        predictions = predict_regions(
            {name: values.loc[units.index] for name, values in features.items()},
            units["region"],
            units["session"],
            by,
            arguments.seed,
        )
        metrics[f"by_{by}"] = {}
        for name, predicted in predictions.items():
            write_confusion(arguments.output, predicted, name, by)
            metrics[f"by_{by}"][name] = predicted.metrics
            for score, value in predicted.scores.items():
                table.setdefault(f"{score.replace('_', ' ')} by {by}", []).append(value)
    write_json(arguments.output / "metrics.json", metrics)
    finish_run(arguments.output, {})
    print(f"\n{text_table(pd.DataFrame(table, list(features), dtype=object), heading_width=10)}\n")
    print(f"Mean ± standard error over the folds. {arguments.output} has the confusion matrices.")


def read_groups(file: Path) -> dict[str, str]:
    """Acronym to class.

    Raises:
        NEDSError: The file is no such mapping.
    """
    groups = read_as_text(file)
    if not isinstance(groups, dict) or not all(isinstance(group, str) for group in groups.values()):
        raise NEDSError(f"{file}: expected a mapping of acronyms to classes, such as `VISp: visual cortex`")
    return groups


def write_confusion(folder: Path, predictions: Predictions, name: str, by: str) -> None:
    """The confusion matrix of features as a table and as a figure."""
    from neds_hf.analysis.figures import draw_confusion  # needs matplotlib

    confusion = predictions.confusion
    stem = f"confusion_by_{by}_{name.replace(' + ', '_')}"
    confusion.to_csv(folder / f"{stem}.csv")
    scores = ", ".join(
        f"{score.replace('_', ' ')} {value:.3f}" for score, value in predictions.scores.items()
    )
    draw_confusion(confusion, f"{name}, split by {by}\n{scores}").savefig(
        folder / f"{stem}.png", dpi=FIGURE_DPI
    )


def counts(units: pd.DataFrame) -> dict[str, int]:
    """Region to its number of units, the largest first."""
    return units["region"].value_counts().to_dict()


def listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
