"""`neds evaluate`: every flag, its errors and its exit status."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from small_dataset import write_dataset

from neds_hf.cli.main import main
from neds_hf.training.sessions import open_recordings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def evaluate(dataset, model_folder, tmp_path):
    def run(*more) -> dict:
        argv = [
            "--model",
            model_folder,
            "--dataset",
            dataset,
            "--output",
            tmp_path / "new" / "report.json",
            *more,
        ]
        assert main(["evaluate", *map(str, argv)]) == 0
        return json.loads((tmp_path / "new" / "report.json").read_text())

    return run


def test_all_sessions_that_the_model_knows_are_scored_on_test(evaluate, dataset, model_folder, capsys):
    report = evaluate()
    assert list(report["sessions"]) == ["ann", "bob"]  # the model does not know cat
    metrics = json.loads((model_folder / "metrics.json").read_text())
    for session in ("ann", "bob"):
        for name, value in metrics["sessions"][session].items():
            assert report["sessions"][session][name] == pytest.approx(value, abs=1e-6), name
    assert report["mean"] == pytest.approx(metrics["mean"], abs=1e-6)
    assert report["configuration"] == {
        "model": str(model_folder),
        "dataset": str(dataset),
        "split": "test",
        "data_fingerprint": open_recordings(dataset).only(["ann", "bob"]).fingerprint,
    }
    assert report["versions"]["neds_hf"] and report["hardware"]["cpus"]
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    shown = ["wheel_speed_r2", "whisker_motion_energy_r2", "choice_accuracy", "block_accuracy"]
    assert sorted(header) == sorted(["bits_per_spike", *shown])
    scores = {**report["sessions"], "mean": report["mean"]}
    expected = [
        [row, *("–" if scores[row][name] is None else f"{scores[row][name]:.3f}" for name in header)]
        for row in ("ann", "bob", "mean")
    ]
    assert rows == expected and rows[1][1 + header.index("whisker_motion_energy_r2")] == "–"


def test_a_split_and_a_session(evaluate):
    test = evaluate("--session", "bob")
    train = evaluate("--session", "bob", "--split", "train")
    assert list(test["sessions"]) == list(train["sessions"]) == ["bob"]
    assert train["configuration"]["split"] == "train"
    assert train["sessions"]["bob"]["bits_per_spike"] != test["sessions"]["bob"]["bits_per_spike"]


def test_the_batch_size_changes_nothing(evaluate):
    ones, all_at_once = evaluate("--batch-size", "1"), evaluate("--batch-size", "64")
    for session in ("ann", "bob"):
        assert ones["sessions"][session] == pytest.approx(all_at_once["sessions"][session], abs=1e-5)


def test_a_modality_that_a_session_lacks_has_no_metric_and_no_part_in_its_mean(evaluate):
    scores = evaluate()["sessions"]
    bob = scores["bob"]
    assert bob["whisker_motion_energy_r2"] is None and scores["ann"]["whisker_motion_energy_r2"] is not None
    four = [bob[name] for name in ("bits_per_spike", "wheel_speed_r2", "choice_accuracy", "block_accuracy")]
    assert bob["mean"] == pytest.approx(np.mean(four))


@pytest.mark.parametrize(
    "change, message",
    [
        (["--session", "cat"], "does not know session cat of"),
        (["--session", "eve"], "does not know session eve of"),
        (["--model", "nowhere"], "no model folder nowhere"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(dataset, model_folder, tmp_path, capsys, change, message):
    argv = ["--model", model_folder, "--dataset", dataset, "--output", tmp_path / "report.json", *change]
    assert main(["evaluate", *map(str, argv)]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "report.json").exists()


def test_a_dataset_of_unknown_sessions_or_other_units_is_refused(model_folder, tmp_path, capsys):
    only_cat = write_dataset(tmp_path / "cat", ["cat"])
    argv = ["--model", model_folder, "--dataset", only_cat, "--output", tmp_path / "report.json"]
    assert main(["evaluate", *map(str, argv)]) == 2
    assert "does not know session cat of" in capsys.readouterr().err

    def change(recording):  # as many units, but others
        recording.units = recording.units.assign(uuid=[f"sorted again/{unit}" for unit in range(9)])
        return recording

    other = write_dataset(tmp_path / "other", ["bob"], change=change)
    argv = ["--model", model_folder, "--dataset", other, "--output", tmp_path / "report.json"]
    assert main(["evaluate", *map(str, argv)]) == 2
    assert "session bob has other units" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["--model", "--dataset", "--output"])
def test_what_is_missing_is_a_usage_error(lacking, capsys):
    argv = [text for name in ("--model", "--dataset", "--output") if name != lacking for text in (name, "x")]
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *argv])
    assert f"required: {lacking}" in capsys.readouterr().err


def test_the_example_is_the_command_and_help_lists_every_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / "evaluate.py"), run_name="__main__")
    text = capsys.readouterr().out
    for name in ("--model", "--dataset", "--split", "--session", "--output", "--batch-size"):
        assert f"  {name} " in text
