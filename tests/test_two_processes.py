"""Two processes, or two accumulation steps, train as one process does with the same global batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import pretrain_arguments

from neds_hf.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# 89 training trials: 11 steps of 8 and one trial left over; 13 validation trials: one process has one more.
OPTIONS = (
    "--num_train_epochs 2 --logging_strategy steps --logging_steps 1 --per_device_eval_batch_size 4".split()
)


@pytest.fixture(scope="module")
def one_process(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("one_process")
    assert main(["pretrain", *pretrain_arguments(dataset, out), *OPTIONS]) == 0
    return out


def log(run: Path, prefix: str) -> list[dict[str, float]]:
    """Entries of the log that hold `prefix`, less what is measured with a clock."""
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"][:-1]
    return [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in entries
        if prefix in entry
    ]


def assert_same_run(run: Path, other: Path) -> None:
    for prefix, number in (("loss", 22), ("eval_loss", 2)):
        assert len(log(run, prefix)) == len(log(other, prefix)) == number
        for entry, expected in zip(log(run, prefix), log(other, prefix)):
            assert entry == pytest.approx(expected, abs=1e-5, nan_ok=True)
    weights, others = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-5, rtol=0)
    metrics, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (run, other))
    for session in ("ann", "bob", "cat"):
        found, wanted = ({k: v for k, v in m["sessions"][session].items() if v} for m in (metrics, expected))
        assert found == pytest.approx(wanted, abs=1e-5)


def test_two_processes_train_and_evaluate_as_one(dataset, one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    argv = [*pretrain_arguments(dataset, tmp_path), *OPTIONS, "--per_device_train_batch_size", "4"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*torchrun, str(EXAMPLES / "pretrain.py"), *argv], **pipes) as process:
        try:
            table, errors = process.communicate(timeout=200)
        finally:
            process.terminate()  # which, other than a kill, also ends the two
    assert process.returncode == 0, errors[-3000:]
    assert json.loads((tmp_path / "run.json").read_text())["configuration"]["train_batch_size"] == 8
    assert table.count("bits_per_spike wheel_speed_r2") == 1  # one process prints the table
    assert_same_run(tmp_path, one_process)


def test_two_accumulation_steps_train_as_one(dataset, one_process, tmp_path):
    halves = "--per_device_train_batch_size 4 --gradient_accumulation_steps 2".split()
    assert main(["pretrain", *pretrain_arguments(dataset, tmp_path), *OPTIONS, *halves]) == 0
    assert_same_run(tmp_path, one_process)
