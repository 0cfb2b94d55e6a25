"""Tables for the console and a report in one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import pandas as pd

from neds_hf.data.files import written_whole

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

    from neds_hf.analysis.comparison import ShownSession

FIGURE_DPI = 130


def text_table(table: pd.DataFrame, heading_width: int | None = None) -> str:
    """The table for the console, numbers as in a report: three decimals, – for NaN, columns aligned.

    Args:
        heading_width: Columns' headings are broken between words into lines of at most so many letters.
    """
    if heading_width is not None:
        lines = [wrap(heading, heading_width, break_long_words=False) for heading in table.columns]
        height = max(map(len, lines), default=1)
        padded = [("",) * (height - len(heading)) + tuple(heading) for heading in lines]
        table = table.set_axis(pd.MultiIndex.from_tuples(padded), axis="columns")
    return _formatted(table).to_string(sparsify=False)


def write_report(
    path: str | Path,
    title: str,
    sections: list[tuple[str, str, pd.DataFrame | None, Figure | None]],
    reference_rows: Collection[str] = (),
) -> None:
    """Write one HTML file that needs no other: figures are inside.

    Args:
        path: The file; its folder is made where missing.
        title: Heading of the page.
        sections: Heading, text (paragraphs apart by an empty line), and a table and a figure or None each.
            Where a table compares rows, the highest of each column of fractional numbers is bold.
        reference_rows: Rows that are not compared: never bold.
    """
    from jinja2 import Environment, PackageLoader

    template = Environment(
        loader=PackageLoader("neds_hf.analysis"), autoescape=True, trim_blocks=True
    ).get_template("report.html")
    page = template.render(
        title=title,
        sections=[
            {
                "heading": heading,
                "paragraphs": text.split("\n\n") if text else [],
                "table": None if table is None else _table_cells(table, reference_rows),
                "image": None if figure is None else _png_base64(figure),
            }
            for heading, text, table, figure in sections
        ],
    )
    with written_whole(Path(path)) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def trial_sections(shown: ShownSession, name: str, split: str) -> list[tuple[str, str, None, Figure]]:
    """Sections for `write_report` of trials of the session that is called `name`, recorded and predicted: of those
    figures that something is predicted for."""
    from neds_hf.analysis import figures

    sections = []
    if shown.encoding:
        sections = [
            (
                "Encoding: one trial",
                f"The first {split} trial of {name}: spikes, and rates that {shown.encoding} predicts.",
                None,
                figures.raster_of_first_trial(shown),
            ),
            (
                "Encoding: average trials",
                f"The units of {name} with the most spikes, {split} trials averaged; predicted by "
                f"{shown.encoding}.",
                None,
                figures.psths_of_busiest_units(shown),
            ),
        ]
    if traces := figures.behavior_of_first_trials(shown):
        text = f"The first {split} trials of {name} with recorded behaviour, predicted from their spikes."
        sections.append(("Decoding: single trials", text, None, traces))
    if classes := figures.classes_of_trials(shown):
        text = (
            f"Number of {split} trials of {name}, by recorded class and the class predicted from the spikes."
        )
        sections.append(("Decoding: classes", text, None, classes))
    return sections


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text."""

    def text(value: object) -> str:
        if value is None or value is pd.NA or value != value:  # NaN
            return "–"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    return table.astype(object).map(text)


def _table_cells(table: pd.DataFrame, reference_rows: Collection[str]) -> dict:
    formatted = _formatted(table)
    best = pd.DataFrame(False, index=table.index, columns=table.columns)
    compared = ~table.index.isin(list(reference_rows))
    for name in table:
        if not table[name].map(lambda value: isinstance(value, float)).all():
            continue
        values = table[name].astype(float).round(3).where(compared)  # what looks the same is equally good
        if compared.sum() > 1 and values.notna().any():
            best[name] = values == values.max()
    rows = [
        (name, list(zip(texts, flags)))
        for name, texts, flags in zip(table.index, formatted.to_numpy(), best.to_numpy())
    ]
    return {"corner": table.index.name or "", "columns": list(table.columns), "rows": rows}


def _png_base64(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
