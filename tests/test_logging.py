"""`--report_to` alone logs a run, where the logger is installed: losses, metrics and settings."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from small_dataset import pretrain_arguments

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def pretrain(dataset, folder, logger) -> list[dict]:
    """Two epochs in a process of their own; what the Trainer logged."""
    argv = [*pretrain_arguments(dataset, folder / "out"), "--num_train_epochs", "2", "--report_to", logger]
    places = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "pretrain.py"), *argv],
        cwd=folder,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]


def values_of(log: list[dict], name: str) -> list[float]:
    return [entry[name] for entry in log if name in entry]


def test_tensorboard_has_every_metric_of_every_evaluation(dataset, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = pretrain(dataset, tmp_path, "tensorboard")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    written = events.EventAccumulator(str(folder)).Reload()
    for name, tag in [
        ("loss", "train/loss"),
        *((name, f"eval/{name[5:]}") for name in log[1] if "eval_" in name),
    ]:
        values = [event.value for event in written.Scalars(tag)]
        assert values == pytest.approx(values_of(log, name), rel=1e-6, nan_ok=True), name
        assert len(values) == 2
    assert len(written.Scalars("eval/ann/bits_per_spike")) == 2
    assert (
        "hidden_size" in written.Tensors("model_config/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_wandb_keeps_a_run_offline(dataset, tmp_path):
    pytest.importorskip("wandb")
    log = pretrain(dataset, tmp_path, "wandb")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert f"{log[-2]['eval_mean']:.6g}"[:6].encode() in content
    for name in (b"train/loss", b"eval/mean", b"eval/ann/bits_per_spike", b"hidden_size"):
        assert name in content


def test_trackio_has_every_metric_of_every_evaluation(dataset, tmp_path):
    pytest.importorskip("trackio")
    log = pretrain(dataset, tmp_path, "trackio")
    (file,) = Path(tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert len([row for row in rows if "eval/bob/mean" in row]) == 2
    for name, tag in (("loss", "train/loss"), ("eval_mean", "eval/mean")):
        values = [row[tag] for row in rows if tag in row]
        assert values == pytest.approx(values_of(log, name)) and len(values) == 2
