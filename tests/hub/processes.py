"""Fresh processes, as users of a Hub start them."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def neds(environment: dict[str, str], command: str, *argv) -> subprocess.CompletedProcess:
    """`neds COMMAND ...`."""
    return python(environment, EXAMPLES / f"{command}.py", *argv)


def python(environment: dict[str, str], *argv, cwd=None) -> subprocess.CompletedProcess:
    words = [sys.executable, *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600)


def result_of(environment: dict[str, str], script: str, cwd=None):
    """What a script prints last, as JSON."""
    done = python(environment, "-c", script, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
