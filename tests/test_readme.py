"""What README.md shows works: its Python runs, its commands parse, its files exist."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_alf import write_session

from neds_hf.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SHAPES = """
assert wheel.shape == (rows.num_rows, processor.num_bins) and len(counts) == processor.num_bins
assert rates_hz.shape == (*wheel.shape, len(embeddings)) and p_choice.shape == (rows.num_rows, 2)
assert set(mice) == {"train", "validation", "test"} and len(sessions) == 3
"""
COMMANDS = [line for block in code_blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, dataset, model_folder):
    """A small folder like `demo/` in which all Python of README.md has run, as one script, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "dataset").symlink_to(dataset)
    (folder / "neds-ibl").symlink_to(model_folder)
    for subject in ("mouse-1", "mouse-2"):
        write_session(folder / "alf", subject)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code_blocks("python"), SHAPES])],
        cwd=folder,
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout


def test_the_python_runs_from_top_to_bottom(ran):
    folder, printed = ran
    assert float(printed.splitlines()[-1]) > 0  # the loss on validation
    assert {"config.json", "model.safetensors", "processor_config.json"} <= set(
        os.listdir(folder / "new_mouse")
    )


def test_the_trial_arrays_that_the_python_wrote_convert(ran, monkeypatch):
    monkeypatch.chdir(ran[0])
    line = next(line for line in COMMANDS if "--arrays monday.npz" in line)
    assert main([*shlex.split(line)[1:], "--workers", "1"]) == 0


class Parsed(BaseException):
    """The command line is understood; stop before anything runs."""


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line, monkeypatch):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        assert not unknown, f"unknown in {line!r}: {unknown}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    with pytest.raises(Parsed):
        if words[0] == "neds":
            main(words[1:])
        else:
            place = next(place for place, word in enumerate(words) if word.startswith("../examples/"))
            script = REPOSITORY / words[place].removeprefix("../")
            monkeypatch.setattr(sys, "argv", [str(script), *words[place + 1 :]])
            runpy.run_path(str(script), run_name="__main__")


def test_every_file_that_is_named_exists():
    named = re.findall(r"(?:neds_hf|examples|tests)/[\w./]*\w(?:\.py)?", README)
    named += re.findall(r"`(Makefile|constraints\.txt|pyproject\.toml)`", README)
    assert len(named) > 25
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_map_of_the_code_is_complete():
    files = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "neds_hf").glob("*/*.py")}
    files = {file for file in files if not file.startswith("neds_hf/cli/") and "__init__" not in file}
    assert {file for file in files if f"\n{file} " not in README} == set()


def test_every_command_of_the_package_is_shown():
    from neds_hf.cli.main import COMMANDS as known

    shown = {line.split()[1] for line in COMMANDS if line.startswith(("neds ", "make "))}
    assert set(known) <= shown
