"""Results of a benchmark: a JSON file, and its table on BENCHMARKS.md.

    python benchmarks/page.py

writes all tables anew from the files beside it.
"""

import json
from pathlib import Path

import pandas as pd
from common import HERE, markdown, write_table

from neds_hf.data.files import write_json
from neds_hf.training.runs import environment

PAGE = HERE.parent / "BENCHMARKS.md"
COLUMNS = ("what", "floor", "measured", "ratio", "target")


def row(what: str, floor: str, measured: str, ratio: float | None = None, target: str = "") -> dict[str, str]:
    """A line of the table; `floor` and `measured` with their units."""
    return dict(zip(COLUMNS, (what, floor, measured, "" if ratio is None else f"{ratio:.2f}", target)))


def table(rows: list[dict[str, str]]) -> str:
    """The rows as on the page."""
    return markdown(pd.DataFrame(rows, columns=list(COLUMNS)).set_index("what"))


def publish(file: Path, results: dict, rows: list[dict[str, str]]) -> None:
    """Print the table, and write results, table and environment to `file`; one of this folder goes on the page."""
    write_json(file, {**results, "table": rows, **environment()})
    print(table(rows))
    if file.resolve().parent == HERE:
        write_table(PAGE, file.stem, table(rows))


if __name__ == "__main__":
    for mark in [line for line in PAGE.read_text().splitlines() if line.startswith("<!-- /")]:
        subject = mark.removeprefix("<!-- /").removesuffix(" -->")
        results = json.loads((HERE / f"{subject}.json").read_text())
        write_table(PAGE, subject, table(results["table"]))
