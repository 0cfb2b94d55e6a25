"""Benchmarks as from the command line, but in this process, which has imported what they need."""

import importlib
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import datasets
import machine
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "BENCHMARKS.md"


def results_of(script: str, folder: Path, *options: object) -> dict:
    """What a benchmark writes, on the CPU; it prints its table, and leaves the package's page as it was."""
    output, before, printed = folder / "results.json", PAGE.read_text(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, "--output", str(output), *map(str, options)])
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")  # some set it, too
        patch.setitem(machine.SIZE, "cpu", 256)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        importlib.import_module(script).main()
    assert PAGE.read_text() == before
    results = json.loads(output.read_text())
    assert results["versions"]["torch"] and results["hardware"]["torch_threads"] == 1
    for line in results["table"]:
        cells = f"| {line['what']} | {line['floor']} | {line['measured']} | {line['ratio']} |"
        assert cells in printed.getvalue()
    return results
