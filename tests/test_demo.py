"""`neds demo`: what it writes, that the numbers are right, that it resumes, and its flags."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from neds_hf.analysis.comparison import COLUMNS, comparison_table, score_predictions
from neds_hf.cli import demo
from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings
from neds_hf.data.trials import SessionTrials
from neds_hf.metrics.functional import accuracy, bits_per_spike, r2
from neds_hf.training.sessions import load_model

FLAGS = {
    "--seed": ["3"],
    "--workers": ["1"],
    "--sessions": ["3"],
    "--new": ["1"],
    "--trials": ["40"],
    "--units": ["12"],
    "--epochs": ["1", "2", "1"],
}
ARGUMENTS = [word for flag, values in FLAGS.items() for word in (flag, *values)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a demo, far too short to learn anything."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", str(out), *ARGUMENTS]) == 0
    return out


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads((finished / "metrics.json").read_text())


@pytest.fixture(scope="module")
def new_mouse(metrics):
    (eid,) = metrics["sessions"][demo.LINEAR]
    return eid


def no_training(monkeypatch):
    def fail(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(demo, "fit", fail)
    monkeypatch.setattr(demo, "predict_tests", fail)


def test_every_piece_is_where_the_readme_says(finished, new_mouse):
    for folder in ("neds-ibl", f"alone/{new_mouse}", f"finetuned/{new_mouse}"):
        files = {file.name for file in (finished / folder).iterdir()}
        assert {"model.safetensors", "config.json", "run.json", "metrics.json"} <= files
    pretrained, _ = load_model(str(finished / "neds-ibl"))
    alone, _ = load_model(str(finished / "alone" / new_mouse))
    finetuned, _ = load_model(str(finished / "finetuned" / new_mouse))
    assert alone.config.session_ids == [new_mouse]
    assert finetuned.config.session_ids == [*pretrained.config.session_ids, new_mouse]
    assert len(list(finished.glob("alf/simlab/Subjects/*"))) == 3
    assert open_recordings(finished / "dataset", "held_out").session_ids == [new_mouse]


def test_flags_reach_what_they_name(finished, new_mouse):
    def run(folder):
        return json.loads((finished / folder / "run.json").read_text())["configuration"]

    simulation = json.loads((finished / "alf" / "simulation.json").read_text())
    assert (simulation["trials"], simulation["units"], simulation["seed"]) == (40, 12, 3)
    runs = [run("neds-ibl"), run(f"alone/{new_mouse}"), run(f"finetuned/{new_mouse}")]
    assert [one["num_train_epochs"] for one in runs] == [1, 2, 1]
    assert [one["seed"] for one in runs] == [3, 3, 3]
    assert [len(one["sessions"]) for one in runs] == [2, 1, 1]


def test_the_models_scores_are_those_that_training_wrote(finished, metrics, new_mouse):
    for method, folder in ((demo.ALONE, "alone"), (demo.FINETUNED, "finetuned")):
        written = json.loads((finished / folder / new_mouse / "metrics.json").read_text())
        assert metrics["sessions"][method][new_mouse] == pytest.approx(
            written["sessions"][new_mouse], rel=1e-4, abs=1e-5, nan_ok=True
        )


def test_the_linear_scores_are_those_of_its_predictions(finished, metrics, new_mouse):
    trials = open_recordings(finished / "dataset").trials(new_mouse, "test")
    with np.load(finished / "linear" / f"{new_mouse}.npz") as predictions:
        bits = bits_per_spike(predictions["log_rates"], trials.spike_counts)
        wheel = r2(predictions["wheel_speed"], trials.continuous["wheel_speed"])
        choice = accuracy(predictions["choice"].argmax(1), trials.categorical["choice"])
    scores = metrics["sessions"][demo.LINEAR][new_mouse]
    assert scores["bits_per_spike"] == pytest.approx(np.nanmean(bits))
    assert scores["wheel_speed_r2"] == pytest.approx(wheel)
    assert scores["choice_accuracy"] == pytest.approx(choice)


def test_the_linear_baseline_is_that_of_neds_baselines(finished, new_mouse, tmp_path):
    data = ["--dataset", str(finished / "dataset"), "--dataset_config", "held_out"]
    arguments = ["--methods", "linear", "--seed", "3", "--output", str(tmp_path), "--disable_tqdm", "true"]
    assert main(["baselines", *data, *arguments]) == 0
    with (
        np.load(finished / "linear" / f"{new_mouse}.npz") as of_demo,
        np.load(tmp_path / "linear" / "predictions" / f"{new_mouse}.npz") as expected,
    ):
        for name in ("log_rates", "wheel_speed", "whisker_motion_energy", "choice", "block"):
            np.testing.assert_allclose(of_demo[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_true_rates_explain_the_spikes_better_than_any_method(metrics):
    bits = {method: mean["bits_per_spike"] for method, mean in metrics["mean"].items()}
    behavior, everything = (bits.pop(method) for method in demo.TRUE_RATES)
    assert everything > behavior > max(bits.values())


def test_the_numbers_say_where_they_come_from(finished, metrics):
    assert metrics["settings"]["seed"] == 3 and metrics["settings"]["fine-tuning"]["num_train_epochs"] == 1
    assert metrics["data_fingerprint"] == open_recordings(finished / "dataset").fingerprint
    assert list(metrics["seconds"]) == "simulate build pretrain adapt baseline compare".split() and {
        "versions",
        "hardware",
    } <= set(metrics)


def test_the_report_holds_the_table_and_all_figures(finished, metrics):
    page = (finished / "report.html").read_text(encoding="utf-8")
    for method, mean in metrics["mean"].items():
        assert method in page and f"{mean['bits_per_spike']:.3f}" in page
    assert page.count("data:image/png;base64,") == 7
    assert page.index("simulated") < page.index("<table>")


def test_a_finished_demo_prints_its_table_again(finished, metrics, capsys, monkeypatch):
    no_training(monkeypatch)
    before = (finished / "metrics.json").read_bytes()
    assert main(["demo", str(finished), *ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*COLUMNS, *metrics["mean"]))
    assert (finished / "metrics.json").read_bytes() == before


def test_a_demo_that_was_cut_off_goes_on_without_training_again(finished, metrics, monkeypatch):
    no_training(monkeypatch)
    (finished / "report.html").unlink()
    assert main(["demo", str(finished), *ARGUMENTS]) == 0
    again = json.loads((finished / "metrics.json").read_text())
    assert (again["sessions"], again["mean"]) == (metrics["sessions"], metrics["mean"])
    assert (finished / "report.html").exists()


def test_a_baseline_of_other_data_is_fitted_again(finished, new_mouse, tmp_path):
    recording = open_recordings(finished / "dataset").only([new_mouse])
    file = shutil.copy(finished / "linear" / f"{new_mouse}.npz", tmp_path / "linear.npz")
    with np.load(file) as arrays:
        there = dict(arrays)
    np.savez(file, **{**there, "choice": np.zeros(1), "data_fingerprint": "other"})
    fitted = demo.baseline(file, recording, seed=3)
    np.testing.assert_allclose(fitted["choice"], there["choice"])


@pytest.mark.parametrize(
    "change, message",
    [
        (["--seed", "4"], "holds a run with other settings: "),
        (["--epochs", "1", "2", "5"], "fine-tuning.num_train_epochs 1 there, 5 asked for"),
        (["--new", "3"], "--new must be at least 1 and below --sessions 3, not 3"),
        (["--new", "0"], "not 0"),
        (["--workers", "0"], "--workers and --epochs must be at least 1, not 0"),
        (["--epochs", "1", "0", "1"], "[1, 0, 1]"),
        (["--trials", "5"], "at least 10 trials"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(finished, capsys, change, message):
    assert main(["demo", str(finished), *ARGUMENTS, *change]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("neds demo: ") and message in captured.err
    assert len(captured.err.splitlines()) == 1 and captured.out == ""


def test_options_that_cannot_be_simulated_leave_no_folder(tmp_path):
    assert main(["demo", str(tmp_path / "out"), "--units", "0"]) == 2
    assert not (tmp_path / "out").exists()


def test_the_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in FLAGS) and set(FLAGS) >= {
        word.split()[0].rstrip(",") for word in text.split("\n  ") if word.startswith("--")
    }


def test_predictions_are_scored_by_the_metrics_of_their_kind():
    counts = np.array([[[1], [0]], [[3], [0]]], np.uint8)
    trials = SessionTrials(
        session="s",
        trial_index=np.arange(2),
        spike_counts=counts,
        continuous={"wheel_speed": np.array([[0.0, 2.0], [4.0, 2.0]], np.float32)},
        categorical={"choice": np.array([0, 1]), "block": np.array([2, 2])},
        classes={"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")},
    )
    scores = score_predictions(
        {
            "log_rates": np.log(np.ones((2, 2, 1))),  # the mean rate: nothing beyond the null
            "wheel_speed": np.array([[0.0, 2.0], [4.0, 4.0]]),  # residual 4 of 8 about the mean
            "choice": np.array([[0.9, 0.1], [0.8, 0.2]]),
            "block": np.full((2, 3), np.nan),  # not predicted, so not scored
        },
        trials,
    )
    assert scores["bits_per_spike"] == pytest.approx(0)
    assert (scores["wheel_speed_r2"], scores["choice_accuracy"]) == (0.5, 0.5)
    assert np.isnan(scores["block_accuracy"])
    only_rates = score_predictions({"log_rates": np.zeros((2, 2, 1))}, trials)
    assert "wheel_speed_r2" not in only_rates and "block_accuracy" not in only_rates


def test_the_table_has_a_row_a_method_and_nothing_for_what_is_not_known():
    table = comparison_table({"one": {"bits_per_spike": 0.1, "block_accuracy": None}, "two": {}})
    expected = pd.DataFrame(np.nan, index=["one", "two"], columns=list(COLUMNS))
    expected.loc["one", "bits/spike"] = 0.1
    pd.testing.assert_frame_equal(table, expected)
