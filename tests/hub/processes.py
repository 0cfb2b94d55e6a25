"""Processes with an environment of their own, as users of a Hub start them."""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import SERVER

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def neds(environment: dict[str, str], command: str, *argv) -> subprocess.CompletedProcess:
    """`neds COMMAND ...`."""
    return python(environment, EXAMPLES / f"{command}.py", *argv)


def python(environment: dict[str, str], *argv, cwd=None) -> subprocess.CompletedProcess:
    """`python FILE ...` or `python -c CODE ...`."""
    words = list(map(str, argv))
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(target=run, args=(words, environment, cwd or os.getcwd(), folder))
        process.start()
        process.join(600)
        process.kill()
        process.join()
        output, errors = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def run(words: list[str], environment: dict[str, str], cwd: str, folder: str) -> None:
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ |= environment
    os.chdir(cwd)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def result_of(environment: dict[str, str], script: str, cwd=None):
    """What a script prints last, as JSON."""
    done = python(environment, "-c", script, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
