"""Kills a program, as a system without memory does, at the moment at which it would write a file.

    python killed.py ENDING PROGRAM ARGUMENTS...

Where a file's name ends so, the program has written what comes before it and nothing else, however fast it runs.
"""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def killed_on_writing(ending: str, command: str, argv: list[str], folder: Path | None = None) -> None:
    """Run `neds COMMAND ...`, in a folder, until then."""
    process = subprocess.run(
        [sys.executable, __file__, ending, EXAMPLES / f"{command}.py", *argv],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.returncode == -signal.SIGKILL


def kill(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith(ending) and "w" in str(arguments[1]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    ending, *sys.argv = sys.argv[1:]
    sys.addaudithook(kill)
    runpy.run_path(sys.argv[0], run_name="__main__")
