"""`examples/pretrain_no_trainer.py` trains what `neds pretrain` trains, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torchrun import TORCHRUN

from neds_hf.training.fit import score_split
from neds_hf.training.sessions import load_model, mean_table, open_recordings

SCRIPT = Path(__file__).parents[1] / "examples" / "pretrain_no_trainer.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=200)


def test_the_plain_loop_writes_a_model_with_its_test_metrics(dataset, tmp_path):
    options = (
        "--preset tiny --epochs 3 --batch-size 8 --learning-rate 0.004 --weight-decay 0.1 --seed 7 "
        "--set hidden_size=32 bins_per_token=5"
    ).split()
    result = run("--dataset", str(dataset), "--output", str(tmp_path), *options)
    assert result.returncode == 0, result.stderr
    model, processor = load_model(str(tmp_path))
    assert (model.config.hidden_size, model.config.bins_per_token) == (32, 5)
    written = json.loads((tmp_path / "metrics.json").read_text())
    scores = score_split(model, processor, open_recordings(dataset), "test")
    assert set(written["sessions"]) == set(scores) == {"ann", "bob", "cat"}
    assert written["mean"]["mean"] == pytest.approx(mean_table(scores)["mean"], abs=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--learning-rate 1e20", "training diverged: the loss is no number any more"),
        ("--dataset nowhere", "no dataset folder nowhere"),
        ("--set num_bins=3", "--set takes NAME=VALUE, not 'num_bins=3'; the names are"),
        ("--set bins_per_token=3", "num_bins 20 is not a multiple of bins_per_token 3"),
    ],
)
def test_a_training_that_cannot_be_ends_with_one_line(dataset, tmp_path, options, message):
    where = ("--dataset", str(dataset), "--output", str(tmp_path / "out"))
    result = run(*where, "--epochs", "5", *options.split())
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_trials_than_a_batch_of_every_process_make_one_step(dataset, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    batch = len(open_recordings(dataset).split("train")) // processes + 1
    where = (
        "--dataset",
        str(dataset),
        "--output",
        str(tmp_path),
        "--epochs",
        "1",
        "--batch-size",
        str(batch),
    )
    start = TORCHRUN if processes > 1 else [sys.executable]
    result = subprocess.run([*start, SCRIPT, *where], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "metrics.json").exists()
