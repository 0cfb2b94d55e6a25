"""Benchmarks run from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "BENCHMARKS.md"


def results_of(script: str, folder: Path, *options: object) -> dict:
    """What a benchmark writes, on the CPU; it prints its table, and leaves the package's page as it was."""
    output, before = folder / "results.json", PAGE.read_text()
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", "--output", output, *map(str, options)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert PAGE.read_text() == before
    results = json.loads(output.read_text())
    assert results["versions"]["torch"] and results["hardware"]["torch_threads"] == 1
    for line in results["table"]:
        assert f"| {line['what']} | {line['floor']} | {line['measured']} | {line['ratio']} |" in done.stdout
    return results
