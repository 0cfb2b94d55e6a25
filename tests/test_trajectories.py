"""However a training is spread over processes, steps and memory, it takes the same way as in one process."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from small_dataset import pretrain_arguments
from torch.distributed import TCPStore
from torchrun import TORCHRUN

from neds_hf.cli.main import leave_processes, main, say
from neds_hf.models import NEDSModel
from neds_hf.training.runs import alone

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KILLED = Path(__file__).with_name("killed.py")
# 89 training trials: 11 steps of 8 and one trial left over; 13 validation trials: one process has one more.
OPTIONS = (
    "--num_train_epochs 2 --mixup 0.3 "
    "--logging_strategy steps --logging_steps 1 --per_device_eval_batch_size 4"
).split()


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

    def start(*argv: str, program: Path = EXAMPLES / "pretrain.py", options=()) -> subprocess.Popen:
        return subprocess.Popen(
            [*TORCHRUN, *options, program, *argv, "--per_device_train_batch_size", "4"], **pipes
        )

    return start


def finish(process: subprocess.Popen) -> str:
    """What it prints."""
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.terminate()  # which, other than a kill, also ends the two
    assert process.returncode == 0, errors[-3000:]
    return output


@pytest.mark.parametrize(
    "program, options",
    [
        (EXAMPLES / "pretrain.py", ""),
        # Each process holds half of every weight; one has a batch more to evaluate than the other.
        (Path(__file__).with_name("pretrain_sharded.py"), "--fsdp --per_device_eval_batch_size 6"),
    ],
    ids=["copies", "sharded"],
)
def test_two_processes_that_are_cut_off_train_and_evaluate_as_one(
    dataset, one_process, torchrun, tmp_path, program, options
):
    argv = [*pretrain_arguments(dataset, tmp_path), *OPTIONS, *options.split()]
    # The first process is killed, which ends the other.
    cut_off = torchrun("checkpoint-22/trainer_state.json", program, *argv, program=KILLED)
    _, errors = cut_off.communicate(timeout=600)
    assert "exitcode  : -9" in errors and "finished" not in json.loads((tmp_path / "run.json").read_text())
    assert (tmp_path / "checkpoint-22" / "model.safetensors").exists()  # half a checkpoint
    table = finish(torchrun(*argv, program=program))
    assert table.count("bits_per_spike wheel_speed_r2") == 1  # one process prints the table
    assert json.loads((tmp_path / "run.json").read_text())["configuration"]["train_batch_size"] == 8
    assert_same_run(tmp_path, one_process)
    assert (tmp_path / "modeling_neds.py").exists()


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="reads the names of threads as Linux lists them"
)
def test_no_thread_of_the_group_is_left_when_python_ends(tmp_path):
    def threads() -> list[str]:
        names = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
        return [name for name in names if "gloo" in name]

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.trainer = {"model": model}  # a cycle, as of models and their Trainer
    del model
    assert threads()
    assert main(["push", str(tmp_path), "lab/x"]) == 2  # however a command ends
    assert not threads() and not torch.distributed.is_initialized()
    leave_processes()  # and without a group nothing happens


def test_what_one_process_refuses_is_no_traceback_of_the_other(dataset, torchrun, tmp_path):
    with alone(tmp_path):  # which only the first process finds, while the other waits for it
        process = torchrun(*pretrain_arguments(dataset, tmp_path), options=("--monitor-interval", "3"))
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and output == ""
    (said,) = [line for line in errors.splitlines() if line.startswith("neds pretrain: ")]
    assert said.startswith(f"neds pretrain: another process trains in {tmp_path}: wait for it")
    assert "[rank1]: Traceback" not in errors and "terminate called" not in errors


def test_of_the_errors_of_processes_each_is_said_once(monkeypatch, capsys):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's
    of_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in {**of_torchrun, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    for error in ("no dataset folder a", "no dataset folder a", "no dataset folder b"):
        say(error)
    say("another has ended", unless_another=True)
    assert capsys.readouterr().err == "no dataset folder a\nno dataset folder b\n"


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


def test_one_mask_for_the_whole_batch_is_one_for_all_its_parts(dataset, tmp_path):
    for parts in (1, 2):
        split = f"--per_device_train_batch_size {8 // parts} --gradient_accumulation_steps {parts}"
        options = f"masks_per=batch {split} --num_train_epochs 1 --logging_strategy steps --logging_steps 1"
        assert main(["pretrain", *pretrain_arguments(dataset, tmp_path / str(parts)), *options.split()]) == 0
    whole, halves = ([entry["loss"] for entry in log(tmp_path / str(parts), "loss")] for parts in (1, 2))
    assert len(whole) == 11 and halves == pytest.approx(whole, abs=1e-4)


def test_the_configurations_for_accelerate_are_what_it_reads():
    folder = EXAMPLES / "configs" / "accelerate"
    configs = {file.stem: load_config_from_file(str(file)) for file in folder.glob("*.yaml")}
    assert {name: config.distributed_type for name, config in configs.items()} == {
        "gpus": DistributedType.MULTI_GPU,
        "nodes": DistributedType.MULTI_GPU,
        "fsdp": DistributedType.FSDP,
    }
    assert configs["nodes"].num_machines == 2 and configs["nodes"].num_processes == 16
    wrapped = configs["fsdp"].fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert [wrapped] == list(NEDSModel._no_split_modules)
