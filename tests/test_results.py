"""The tables of RESULTS.md come from committed files."""

import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import folds
    import transfer

    yield {"folds": folds, "transfer": transfer}
    for name in ("folds", "transfer", "common"):
        sys.modules.pop(name)


@pytest.mark.parametrize("name", ["folds", "transfer"])
def test_the_page_holds_the_table_of_the_committed_runs(scripts, name):
    script = scripts[name]
    assert script.table(pd.read_csv(script.CSV)) in script.RESULTS.read_text()


def test_table_of_folds_is_over_means_of_seeds_and_paired(scripts):
    """Two folds: linear 0.1 and 0.3; NEDS 0.2 and 0.5, the first from seeds at 0.1 and 0.3."""
    values = [
        ("linear", 0, 0, 0.1),
        ("linear", 1, 0, 0.3),
        ("NEDS", 0, 0, 0.1),
        ("NEDS", 0, 1, 0.3),
        ("NEDS", 1, 0, 0.5),
    ]
    rows = [
        {"method": method, "fold": fold, "seed": seed, **dict.fromkeys(scripts["folds"].METRICS, value)}
        for method, fold, seed, value in values
    ]
    lines = scripts["folds"].table(pd.DataFrame(rows)).splitlines()
    assert lines[0].startswith("| | bits/spike | wheel R²")
    assert lines[2].startswith("| linear | 0.200 ± 0.100 |")
    assert lines[3].startswith("| NEDS | 0.350 ± 0.150 |")
    assert lines[4].startswith("| NEDS − linear | 0.150 ± 0.050 |")


def test_table_of_transfer_has_sessions_and_their_mean(scripts):
    rows = [
        {"session": session, "method": method, "bits_per_spike": value}
        for session, start in (("a", 0.1), ("b", 0.3))
        for method, value in (("linear", start), ("alone", start + 0.1), ("fine-tuned", start + 0.2))
    ]
    lines = scripts["transfer"].table(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| | bits/spike |"
    assert lines[2:5] == ["| a: linear | 0.100 |", "| a: alone | 0.200 |", "| a: fine-tuned | 0.300 |"]
    assert lines[-1] == "| **mean: fine-tuned** | 0.400 |"


def test_a_table_replaces_what_was_between_its_marks(scripts, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    scripts["folds"].write_table(page, "one", "| new |\n")
    assert page.read_text() == "before\n<!-- one -->\n\n| new |\n\n<!-- /one -->\nafter\n"
