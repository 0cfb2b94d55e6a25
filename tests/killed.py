"""Kills a program, as a system without memory does, at the moment at which it would write a file.

    python killed.py ENDING PROGRAM ARGUMENTS...

Where a file's name ends so, the program has written what comes before it and nothing else, however fast it runs.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

from neds_hf.cli.main import run

# Its processes begin with the imports done, once for all of them.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["neds_hf.cli.baselines", "neds_hf.cli.search"])


def killed_on_writing(ending: str, command: str, argv: list[str], folder: Path | None = None) -> None:
    """Run `neds COMMAND ...` in a process of its own, in a folder, until then."""
    process = SERVER.Process(target=run_until, args=(ending, command, argv, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_until(ending: str, command: str, argv: list[str], folder: Path | None) -> None:
    if folder:
        os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    kill_on_writing(ending)
    run(command, argv)


def kill_on_writing(ending: str) -> None:
    """Of this process."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith(ending) and "w" in str(arguments[1]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    ending, *sys.argv = sys.argv[1:]
    kill_on_writing(ending)
    runpy.run_path(sys.argv[0], run_name="__main__")
