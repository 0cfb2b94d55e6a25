"""However a training is spread over processes, steps and memory, it takes the same way as in one process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import pretrain_arguments

from neds_hf.cli.main import main
from neds_hf.training.runs import last_checkpoint

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


@pytest.fixture
def torchrun(monkeypatch):
    """Start `neds pretrain` in two processes, with 4 trials each."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(*argv: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        program = [str(EXAMPLES / "pretrain.py"), *argv, "--per_device_train_batch_size", "4"]
        return subprocess.Popen([*command, *program], **pipes)

    return start


def finish(process: subprocess.Popen) -> str:
    """What it prints."""
    try:
        output, errors = process.communicate(timeout=200)
    finally:
        process.terminate()  # which, other than a kill, also ends the two
    assert process.returncode == 0, errors[-3000:]
    return output


def test_two_processes_train_and_evaluate_as_one(dataset, one_process, torchrun, tmp_path):
    table = finish(torchrun(*pretrain_arguments(dataset, tmp_path), *OPTIONS))
    assert json.loads((tmp_path / "run.json").read_text())["configuration"]["train_batch_size"] == 8
    assert table.count("bits_per_spike wheel_speed_r2") == 1  # one process prints the table
    assert_same_run(tmp_path, one_process)


def test_two_processes_that_are_cut_off_go_on_as_one(dataset, one_process, torchrun, tmp_path):
    argv = [*pretrain_arguments(dataset, tmp_path), *OPTIONS]
    cut_off = torchrun(*argv)
    half_way = tmp_path / "checkpoint-11" / "trainer_state.json"
    while not half_way.exists() and cut_off.poll() is None:
        time.sleep(0.002)
    cut_off.terminate()
    cut_off.communicate(timeout=60)
    assert "finished" not in json.loads((tmp_path / "run.json").read_text())
    assert last_checkpoint(tmp_path) is not None
    finish(torchrun(*argv))
    assert_same_run(tmp_path, one_process)


@pytest.mark.parametrize(
    "options",
    [
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 2",
        "--activation_checkpointing true",
        "--dataloader_num_workers 2",
    ],
)
def test_what_saves_memory_or_time_leaves_the_training_as_it_is(dataset, one_process, tmp_path, options):
    assert main(["pretrain", *pretrain_arguments(dataset, tmp_path), *OPTIONS, *options.split()]) == 0
    assert_same_run(tmp_path, one_process)
