"""`examples/pretrain_no_trainer.py` trains what `neds pretrain` trains."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from torchrun import TORCHRUN

from neds_hf.data.recordings import open_recordings
from neds_hf.metrics.functional import mean_table
from neds_hf.training.inference import score_split
from neds_hf.training.sessions import load_model

SCRIPT = Path(__file__).parents[1] / "examples" / "pretrain_no_trainer.py"


@pytest.fixture
def run_here(monkeypatch):
    """Run it in this process; what Python is to exit with: None, or the line that it prints for status 1."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def call(*arguments: object) -> str | None:
        monkeypatch.setattr(sys, "argv", list(map(str, [SCRIPT, *arguments])))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code

    return call


def test_the_plain_loop_writes_a_model_with_its_test_metrics(dataset, tmp_path, run_here):
    options = (
        "--preset tiny --epochs 3 --batch-size 8 --learning-rate 0.004 --weight-decay 0.1 --seed 7 "
        "--set hidden_size=32 bins_per_token=5"
    ).split()
    assert run_here("--dataset", dataset, "--output", tmp_path, *options) is None
    model, processor = load_model(str(tmp_path))
    assert (model.config.hidden_size, model.config.bins_per_token) == (32, 5)
    written = json.loads((tmp_path / "metrics.json").read_text())
    scores = score_split(model, processor, open_recordings(dataset), "test")
    assert set(written["sessions"]) == set(scores) == {"ann", "bob", "cat"}
    assert written["mean"]["mean"] == pytest.approx(mean_table(scores)["mean"], abs=1e-6)


def test_a_training_that_diverges_ends_with_one_line(dataset, tmp_path, run_here):
    where = ("--dataset", dataset, "--output", tmp_path / "out")
    error = run_here(*where, "--epochs", "5", "--learning-rate", "1e20")
    assert error.startswith("training diverged: the loss is no number any more") and "\n" not in error


@pytest.mark.parametrize(
    "options, message",
    [
        ("--dataset nowhere", "no dataset folder nowhere"),
        ("--set num_bins=3", "--set takes NAME=VALUE, not 'num_bins=3'; the names are"),
        ("--set bins_per_token=3", "num_bins 20 is not a multiple of bins_per_token 3"),
    ],
)
def test_a_training_that_cannot_be_ends_with_one_line(dataset, tmp_path, run_here, options, message):
    error = run_here("--dataset", dataset, "--output", tmp_path / "out", "--epochs", "5", *options.split())
    assert message in error and "\n" not in error


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_trials_than_a_batch_of_every_process_make_one_step(dataset, tmp_path, run_here, processes):
    batch = len(open_recordings(dataset).split("train")) // processes + 1
    where = ("--dataset", dataset, "--output", tmp_path, "--epochs", "1", "--batch-size", str(batch))
    if processes == 1:
        assert run_here(*where) is None
    else:
        command = list(map(str, [*TORCHRUN, SCRIPT, *where]))
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "metrics.json").exists()
