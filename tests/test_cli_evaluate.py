"""`neds evaluate`: every flag, its errors and its exit status."""

import io
import json
import resource
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_dataset import OPTIONS, pretrain_arguments, write_dataset

from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings
from neds_hf.metrics.functional import bits_per_spike


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


def test_all_sessions_that_the_model_knows_are_scored_on_test(evaluate, dataset, model_folder):
    report = evaluate()
    assert list(report["sessions"]) == ["ann", "bob"]  # the model does not know cat
    metrics = json.loads((model_folder / "metrics.json").read_text())
    for session in ("ann", "bob"):
        for name, value in metrics["sessions"][session].items():
            assert report["sessions"][session][name] == pytest.approx(value, abs=1e-6), name
    assert {name: report["mean"][name] for name in metrics["mean"]} == pytest.approx(
        metrics["mean"], abs=1e-6
    )
    assert report["configuration"] == {
        "command": "evaluate",
        "models": [str(model_folder)],
        "dataset": str(dataset),
        "split": "test",
        "alf": None,
        "data_fingerprint": open_recordings(dataset).only(["ann", "bob"]).fingerprint,
    }
    assert report["versions"]["neds_hf"] and report["hardware"]["cpus"]


def test_a_report_that_finds_no_room_is_named_and_the_one_before_stays(
    evaluate, dataset, model_folder, tmp_path, capsys
):
    before, file = evaluate(), tmp_path / "new" / "report.json"
    argv = ["--model", model_folder, "--dataset", dataset, "--output", file, "--split", "validation"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert main(["evaluate", *map(str, argv)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.endswith(f"neds evaluate: [Errno 27] File too large: '{file}'\n")
    assert json.loads(file.read_text()) == before


def test_the_mean_over_sessions_comes_with_its_standard_error(evaluate):
    report = evaluate()
    ann, bob = report["sessions"]["ann"], report["sessions"]["bob"]
    for name in ("bits_per_spike", "bits_per_spike_train_null", "psth_r2", "block_balanced_accuracy"):
        assert report["mean"][name] == pytest.approx((ann[name] + bob[name]) / 2)
        assert report["standard_error"][name] == pytest.approx(
            abs(ann[name] - bob[name]) / 2
        )  # of two values
        assert report["num_sessions"][name] == 2
    name = "whisker_motion_energy_r2"  # bob has no video
    assert report["mean"][name] == pytest.approx(ann[name])
    assert report["standard_error"][name] is None and report["num_sessions"][name] == 1


def test_two_tables_have_a_row_a_session_then_mean_and_standard_error(evaluate, capsys):
    report = evaluate()
    rows = {**report["sessions"], "mean": report["mean"], "± s.e.": report["standard_error"]}
    encoding, decoding = capsys.readouterr().out.split("Decoding, behaviour from spikes\n\n")
    assert encoding.startswith("Encoding, spikes from behaviour\n\n")
    behaviors = ("choice", "block", "wheel_speed", "whisker_motion_energy")
    spikes = ["bits_per_spike", "bits_per_spike_train_null", "psth_r2"]
    continuous = [f"{name}_{of}" for name in behaviors[2:] for of in ("r2", "r2_beyond_average")]
    classes = [f"{name}_{of}" for name in behaviors[:2] for of in ("accuracy", "balanced_accuracy")]
    for text, names in (
        (encoding, [*spikes, *(f"bits_per_spike_from_{name}" for name in behaviors)]),
        (decoding, continuous + classes),
    ):
        lines = [line.split() for line in text.splitlines()]
        shown = {" ".join(line[: -len(names)]): line[-len(names) :] for line in lines}
        for row, metrics in rows.items():
            assert shown[row] == ["–" if metrics[n] is None else f"{metrics[n]:.3f}" for n in names]
        assert max(map(len, text.splitlines())) < 85
    assert (
        list(report["sessions"]["bob"].values()).count(None) == 3
    )  # of the whiskers: two R², encoding from them


def test_the_tables_are_printed_where_the_output_has_no_such_characters(evaluate, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    evaluate()
    sys.stdout.flush()
    assert b"\n? s.e. " in printed.getvalue()


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


def test_test_trials_that_the_model_may_have_learned_from_are_warned_of(evaluate, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", options=replace(OPTIONS, fold=1))
    (warning,) = evaluate("--dataset", other)["warnings"]
    assert f"{other} does not have the training trials of the model for session ann, bob" in warning
    assert capsys.readouterr().err.count(warning) == 1
    assert evaluate("--dataset", other, "--split", "train")["warnings"] == []  # are training trials anyway
    assert evaluate()["warnings"] == [] and "training trials" not in capsys.readouterr().err


def test_a_model_that_learned_from_validation_trials_is_warned_of_where_these_are_scored(
    evaluate, dataset, tmp_path, capsys
):
    train = pretrain_arguments(dataset, tmp_path / "model")
    both = ["--train_splits", "train", "validation", "--max_steps", "1", "--sessions", "bob"]
    assert main(["pretrain", *train, *both]) == 0
    assert evaluate("--model", tmp_path / "model")["warnings"] == []
    (warning,) = evaluate("--model", tmp_path / "model", "--split", "validation")["warnings"]
    assert "session bob" in warning and warning in capsys.readouterr().err


def test_a_model_that_does_not_say_what_it_learned_from_is_not_warned_of(evaluate, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "unknown")
    processor = json.loads((model_folder / "processor_config.json").read_text())
    for session in processor["sessions"]:
        session["mean_counts"] = [None] * len(session["units"])
    (tmp_path / "unknown" / "processor_config.json").write_text(json.dumps(processor))
    other = write_dataset(tmp_path / "other", options=replace(OPTIONS, fold=1))
    assert evaluate("--model", tmp_path / "unknown", "--dataset", other)["warnings"] == []


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Folder with two simulated mice in `alf`, their `dataset`, and a `model` of them that has learned little."""
    pytest.importorskip("one", reason="ONE-api is not installed (neds_hf[ibl])")
    folder = tmp_path_factory.mktemp("simulated")
    simulate = [str(folder / "alf"), "--sessions", "2", "--trials", "40", "--units", "12", "--seed", "1"]
    build = [str(folder / "dataset"), "--alf", str(folder / "alf")]
    train = pretrain_arguments(folder / "dataset", folder / "model")
    for command in (
        ["simulate", *simulate],
        ["build", *build],
        ["pretrain", *train, "--num_train_epochs", "2"],
    ):
        assert main(command) == 0
    return folder


def test_several_models_are_scored_together_by_their_averaged_predictions(evaluate, model_folder):
    """A model thrice is that model; the tests of `neds predict` say what is averaged."""
    one, thrice = evaluate(), evaluate("--model", *[model_folder] * 3)
    assert thrice["configuration"]["models"] == [str(model_folder)] * 3
    assert thrice["mean"] == pytest.approx(one["mean"], abs=1e-5, nan_ok=True)


def test_the_true_rates_of_simulated_neurons_are_what_can_be_attained(simulated, evaluate, capsys):
    where = ["--model", simulated / "model", "--dataset", simulated / "dataset"]
    report = evaluate(*where, "--alf", simulated / "alf")
    assert len(report["sessions"]) == 2 and report["configuration"]["alf"] == str(simulated / "alf")
    recordings = open_recordings(simulated / "dataset")
    for session, metrics in report["sessions"].items():
        trials = recordings.trials(session, "test")
        with np.load(simulated / "alf" / "ground_truth" / f"{session}.npz") as truth:
            units = [truth["uuids"].tolist().index(uuid) for uuid in recordings.unit_ids(session)]
            bits = {
                given: np.nanmean(
                    bits_per_spike(
                        truth[f"log_rates_{given}"][trials.trial_index][..., units], trials.spike_counts
                    )
                )
                for given in ("behavior", "full")
            }
        assert metrics["attainable_bits_per_spike"] == pytest.approx(bits["behavior"])
        assert metrics["attainable_bits_per_spike_given_everything"] == pytest.approx(bits["full"])
        assert metrics["share_of_attainable"] == pytest.approx(metrics["bits_per_spike"] / bits["behavior"])
        assert metrics["share_of_attainable"] < 0.5 < bits["full"] / bits["behavior"]
    shares = [metrics["share_of_attainable"] for metrics in report["sessions"].values()]
    assert report["mean"]["share_of_attainable"] == pytest.approx(np.mean(shares))
    assert f"{np.mean(shares):.3f}" in capsys.readouterr().out
    assert "share_of_attainable" not in evaluate(*where)["mean"]


def test_true_rates_of_other_recordings_are_refused(simulated, dataset, model_folder, tmp_path, error_of):
    out = ["--output", tmp_path / "report.json"]
    other_window = ["--model", model_folder, "--dataset", dataset, "--alf", simulated / "alf"]
    error = error_of("evaluate", *other_window, *out)
    assert "(100, 0.02, -0.5, 'stimOn_times')" in error and "(20, 0.05, -0.2, 'go')" in error
    no_truth = ["--model", simulated / "model", "--dataset", simulated / "dataset", "--alf", tmp_path]
    assert f"there is no file of true rates {tmp_path}" in error_of("evaluate", *no_truth, *out)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--session", "cat"], "does not know session cat of"),
        (["--session", "eve", "cat"], "does not have session eve"),
        (["--model", "nowhere"], "no model folder nowhere"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    dataset, model_folder, tmp_path, error_of, change, message
):
    argv = ["--model", model_folder, "--dataset", dataset, "--output", tmp_path / "report.json", *change]
    assert message in error_of("evaluate", *argv)
    assert not (tmp_path / "report.json").exists()


def test_a_dataset_of_unknown_sessions_or_other_units_is_refused(model_folder, tmp_path, error_of):
    only_cat = write_dataset(tmp_path / "cat", ["cat"])
    argv = ["--model", model_folder, "--dataset", only_cat, "--output", tmp_path / "report.json"]
    assert "does not know session cat of" in error_of("evaluate", *argv)

    def change(recording):  # as many units, but others
        recording.units = recording.units.assign(uuid=[f"sorted again/{unit}" for unit in range(9)])
        return recording

    other = write_dataset(tmp_path / "other", ["bob"], change=change)
    argv = ["--model", model_folder, "--dataset", other, "--output", tmp_path / "report.json"]
    assert "session bob has other units" in error_of("evaluate", *argv)


@pytest.mark.parametrize("lacking", ["--model", "--dataset", "--output"])
def test_what_is_missing_is_a_usage_error(lacking, capsys):
    argv = [text for name in ("--model", "--dataset", "--output") if name != lacking for text in (name, "x")]
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *argv])
    assert f"required: {lacking}" in capsys.readouterr().err


def test_the_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for name in ("--model", "--dataset", "--split", "--session", "--alf", "--output", "--batch-size"):
        assert f"  {name} " in text
