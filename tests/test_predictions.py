"""What runs predict of one session's trials, and `neds report --dataset`, which draws it."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import folds
import numpy as np
import pandas as pd
import pytest
import small_dataset
from small_dataset import OPTIONS, write_dataset

pytest.importorskip("matplotlib", reason="matplotlib is not installed (neds_hf[report])")

from neds_hf.analysis.figures import (
    behavior_of_first_trials,
    classes_of_trials,
    psths_of_busiest_units,
    raster_of_first_trial,
)
from neds_hf.analysis.predictions import read_predictions, show_runs, show_session, write_predictions
from neds_hf.analysis.runs import read_runs
from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings


@pytest.fixture(scope="module")
def baselines(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("baselines") / "base"
    argv = ["--dataset", dataset, "--session", "ann", "bob", "--methods", "trial_average", "--output", out]
    assert main(["baselines", *map(str, argv)]) == 0
    return out / "trial_average"


@pytest.fixture(scope="module")
def scores(dataset, model_folder, tmp_path_factory):
    """File of `neds evaluate` of the model twice, which predicts as the model does."""
    out = tmp_path_factory.mktemp("scores") / "twice.json"
    argv = ["--model", model_folder, model_folder, "--dataset", dataset, "--output", out]
    assert main(["evaluate", *map(str, argv)]) == 0
    return out


def run_of(folder, trials, predictions):
    """A run of one session that predicts this."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"sessions": {trials.session: {"bits_per_spike": 0.1}}}))
    write_predictions(folder, trials, predictions)
    return folder


def shown_of(dataset, session, *paths):
    runs = [run for path in paths for run in read_runs(path)]
    return show_runs(runs, open_recordings(dataset), session)[0]


def lines(axes) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.lines if len(line.get_xdata()) > 2]


# --- what is predicted ---


def test_predictions_are_those_of_the_commands(dataset, model_folder, baselines, scores, tmp_path):
    shown = shown_of(dataset, "bob", baselines, model_folder, scores)
    assert list(shown.predictions) == ["trial_average", "model", "twice"] and shown.encoding == "twice"
    predicted = {}
    for task in ("encoding", "decoding"):
        out = tmp_path / f"{task}.npz"
        argv = [
            "--model",
            model_folder,
            "--dataset",
            dataset,
            "--session",
            "bob",
            "--task",
            task,
            "--output",
            out,
        ]
        assert main(["predict", *map(str, argv)]) == 0
        with np.load(out) as arrays:
            np.testing.assert_array_equal(arrays["trial_index"], shown.trials.trial_index)
            np.testing.assert_allclose(arrays["times_s"], shown.times_s, atol=1e-12)
            predicted |= {name: arrays[name] for name in shown.predictions["model"] if name in arrays}
    with np.load(baselines / "predictions" / "bob.npz") as arrays:
        for name, values in shown.predictions["trial_average"].items():
            np.testing.assert_array_equal(values, arrays[name])
    assert {*predicted} == {"log_rates", "choice", "block", "wheel_speed"}  # bob has no whiskers to scale by
    for name, values in predicted.items():
        np.testing.assert_array_equal(shown.predictions["model"][name], values)
        np.testing.assert_allclose(shown.predictions["twice"][name], values, rtol=1e-5, atol=1e-6)


def test_of_a_folder_of_models_each_predicts_its_own_session(dataset, model_folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    trials = {name: open_recordings(dataset).trials(name, "test") for name in ("ann", "cat")}
    for name, of_session in trials.items():
        run_of(new / name, of_session, {"log_rates": np.full(of_session.spike_counts.shape, len(name) + 0.5)})
    shown = shown_of(dataset, "cat", new)
    assert list(shown.predictions) == ["new"]
    assert (shown.predictions["new"]["log_rates"] == 3.5).all()
    assert shown.trials.session == "cat"


def test_averaged_models_predict_as_their_own_weights_do(dataset, model_folder, tmp_path):
    """Whatever models they were made of; here, ones that are gone. Alone or one of several."""
    averaged = tmp_path / "averaged"
    for folder in (averaged / "one", averaged / "other"):
        shutil.copytree(model_folder, folder)
        run = json.loads((folder / "run.json").read_text())
        run["configuration"]["models"] = [f"gone-{folder.name}"]
        (folder / "run.json").write_text(json.dumps(run))
    for folder, session in (("one", "bob"), ("other", "ann")):
        file = averaged / folder / "metrics.json"
        scores = json.loads(file.read_text())
        del scores["sessions"][session]
        file.write_text(json.dumps(scores))
    expected = shown_of(dataset, "ann", model_folder).predictions["model"]
    for path in (averaged / "one", averaged):
        (found,) = shown_of(dataset, "ann", path).predictions.values()
        np.testing.assert_array_equal(found["log_rates"], expected["log_rates"])


def test_a_run_that_left_the_session_out_predicts_nothing(dataset, model_folder, tmp_path):
    left_out = tmp_path / "neds_decoding"
    left_out.mkdir()
    (left_out / "metrics.json").write_text(json.dumps({"sessions": {"ann": {}}}))
    assert list(shown_of(dataset, "ann", left_out, model_folder).predictions) == ["model"]


# --- what is drawn ---


def test_behaviours_are_drawn_of_trials_that_have_them_and_by_methods_that_predict_them(dataset):
    """The third trial has no wheel; one run decodes it, one encodes, and one could not predict it."""
    recordings = open_recordings(dataset).only(["ann"])
    trials = recordings.trials("ann", "train")
    trials.continuous["wheel_speed"][2] = np.nan
    zeros = np.zeros_like(trials.continuous["wheel_speed"])
    del trials.continuous["whisker_motion_energy"]
    predictions = {
        "decoder": {"wheel_speed": zeros, "choice": np.full((len(zeros), 2), 0.5)},
        "encoder": {"log_rates": np.zeros(trials.spike_counts.shape)},
        "lost": {"wheel_speed": np.full_like(zeros, np.nan)},
    }
    shown = show_session(recordings, trials, predictions)
    assert shown.encoding == "encoder" and shown.decoded("decoder") == ["wheel_speed"]
    figure = behavior_of_first_trials(shown)
    for panel, row in zip(figure.axes, (0, 1, 3, 4, 5), strict=True):
        assert panel.get_title() == f"trial {trials.trial_index[row]}"
        real, decoded = lines(panel)
        np.testing.assert_array_equal(real, trials.continuous["wheel_speed"][row])
        assert not decoded.any()
    assert [text.get_text() for text in figure.legends[0].texts] == ["recorded", "decoder"]
    del shown.predictions["decoder"]
    assert behavior_of_first_trials(shown) is None


def test_classes_are_counted_by_method_where_they_are_recorded_and_predicted(dataset):
    """Four trials: right, left, left, unknown. One run says left of all, one right of the second and nothing of
    blocks, one could not decode."""
    recordings = open_recordings(dataset).only(["cat"])
    trials = recordings.trials("cat", "train")
    trials.categorical = {"choice": np.array([0, 1, 1, -1]), "block": np.array([2, 2, 0, 1])}
    left, right = [0.2, 0.8], [0.6, 0.4]
    predictions = {
        "left": {"choice": np.array([left] * 4), "block": np.eye(3)[[2, 0, 0, 1]]},
        "other": {"choice": np.array([right, right, left, left])},
        "lost": {"choice": np.full((4, 2), np.nan)},
        "encoder": {"log_rates": np.zeros(trials.spike_counts.shape)},
    }
    shown = show_session(recordings, trials, predictions)
    figure = classes_of_trials(shown)
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    counts = {title: [text.get_text() for text in panel.texts] for title, panel in panels.items()}
    assert counts == {
        "choice\nleft": ["0", "1", "0", "2"],
        "choice\nother": ["1", "0", "1", "1"],
        "block\nleft": ["1", "0", "0", "0", "1", "0", "1", "0", "1"],
    }
    np.testing.assert_allclose(panels["choice\nother"].images[0].get_array(), [[1, 0], [0.5, 0.5]])
    labels = panels["block\nleft"].get_yticklabels()
    assert [label.get_text() for label in labels] == ["0.2", "0.5", "0.8"]
    shown.predictions = {"encoder": predictions["encoder"]}
    assert classes_of_trials(shown) is None


def test_classes_of_a_model_are_matched_by_name(dataset, model_folder, tmp_path, monkeypatch):
    """The same recordings with classes in another order, and without the block that the model says most often."""
    expected = shown_of(dataset, "bob", model_folder).confusions("model")
    lost = expected["block"].sum().idxmax()
    classes = {"choice": ("left", "right"), "block": tuple(n for n in ("0.8", "0.5", "0.2") if n != lost)}

    def change(recording):
        for name, order in classes.items():
            given = [order.index(one) if one in order else -1 for one in recording.classes[name]]
            recording.categorical[name] = np.array(given)[recording.categorical[name]]
        recording.classes = classes
        return recording

    for name, order in classes.items():
        monkeypatch.setitem(small_dataset.BEHAVIORS, name, order)
    found = shown_of(write_dataset(tmp_path / "other", ("bob",), change=change), "bob", model_folder)
    choice, block = (found.confusions("model")[name] for name in classes)
    assert list(choice) == ["left", "right"] and list(block) == [*classes["block"], "not in the dataset"]
    pd.testing.assert_frame_equal(choice.loc[["right", "left"], ["right", "left"]], expected["choice"])
    there = expected["block"].rename(columns={lost: "not in the dataset"})
    pd.testing.assert_frame_equal(block, there.loc[list(block.index), list(block)])
    assert block["not in the dataset"].any()
    panel = classes_of_trials(found).axes[1]
    assert [label.get_text() for label in panel.get_xticklabels()] == list(block)
    assert [text.get_text() for text in panel.texts] == [str(number) for number in block.to_numpy().ravel()]


def test_classes_of_a_baseline_are_matched_by_name(dataset, tmp_path):
    """Perfect, of a class called as the last column could be."""
    trials = open_recordings(dataset).trials("cat", "test")
    trials.classes["choice"] = ("other", "left")
    run = run_of(tmp_path / "run", trials, {"choice": np.eye(2)[trials.categorical["choice"]]})
    trials.classes["choice"] = ("left", "other")
    predicted = read_predictions(run, trials)["choice"]
    np.testing.assert_array_equal(predicted.argmax(1), 1 - trials.categorical["choice"])
    trials.categorical["choice"] = 1 - trials.categorical["choice"]
    shown = show_session(open_recordings(dataset).only(["cat"]), trials, {"run": {"choice": predicted}})
    confusion = shown.confusions("run")["choice"]
    assert list(confusion) == ["left", "other"]
    assert confusion.loc["left", "other"] == confusion.loc["other", "left"] == 0


def test_a_unit_without_a_region_is_of_an_unknown_one(dataset):
    recordings = open_recordings(dataset).only(["cat"])
    recordings.units = recordings.units.assign(beryl=["CA1", "", None, "root", "LP"])
    shown = show_session(recordings, recordings.trials("cat", "test"), {})
    assert shown.regions.tolist() == ["CA1", "unknown", "unknown", "root", "LP"]


def test_average_trials_are_by_choice_or_of_all_where_there_is_none(dataset):
    recordings = open_recordings(dataset).only(["bob"])
    trials = recordings.trials("bob", "test")
    choice = trials.categorical["choice"] = trials.categorical["choice"].copy()
    choice[0] = -1
    shown = show_session(recordings, trials, {"one": {"log_rates": np.zeros(trials.spike_counts.shape)}})
    busiest = trials.spike_counts.sum((0, 1)).argmax()
    right = trials.spike_counts[choice == 0][..., busiest].mean(0) / 0.05
    figure = psths_of_busiest_units(shown)
    assert figure.axes[0].get_title() == f"unknown, unit {busiest}"
    assert len(lines(figure.axes[0])) == 4  # two choices, recorded and predicted
    assert any(np.array_equal(line, right) for line in lines(figure.axes[0]))
    del trials.categorical["choice"]
    recorded, predicted = lines(psths_of_busiest_units(shown).axes[0])
    np.testing.assert_allclose(recorded, trials.spike_counts[..., busiest].mean(0) / 0.05)
    np.testing.assert_allclose(predicted, 20)  # one spike a bin of 50 ms
    assert raster_of_first_trial(shown).axes


def test_the_benchmark_of_folds_draws_a_baseline_and_a_model(
    dataset, model_folder, baselines, tmp_path, monkeypatch
):
    """Of all sessions of a fold's dataset the only one."""
    fold = tmp_path / "fold"
    (fold / "baselines").mkdir(parents=True)
    (fold / "baselines" / "linear").symlink_to(baselines)
    (fold / "neds-1").symlink_to(model_folder)
    monkeypatch.setattr(folds, "open_recordings", lambda path: open_recordings(dataset).only(["ann"]))
    folds.draw(fold, 1, tmp_path)
    for name in ("encoding", "decoding"):
        assert (tmp_path / f"folds_{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folds.HERE / f"folds_{name}.png").exists()


def report(out, *argv) -> dict[str, str]:
    """Heading of every section to its text."""
    assert main(["report", *map(str, argv), "--output", str(out)]) == 0
    page = unescape(out.read_text(encoding="utf-8"))
    return dict(re.findall("<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL))


def test_the_report_draws_trials_of_the_first_session_or_of_the_one_that_is_named(
    dataset, model_folder, baselines, tmp_path
):
    out, runs = tmp_path / "page.html", (baselines, model_folder, "--names", "mean trial", "NEDS")
    sections = report(out, *runs, "--dataset", dataset)
    parts = (
        "Encoding: one trial",
        "Encoding: average trials",
        "Decoding: single trials",
        "Decoding: classes",
    )
    for heading in parts:
        assert f'<img alt="{heading}"' in sections[heading] and " ann" in sections[heading]
    assert "rates that NEDS predicts" in sections[parts[0]]
    sections = report(out, *runs, "--dataset", dataset, "--session", "bob")
    assert all(" bob" in sections[heading] for heading in parts)
    assert not set(parts) & set(report(out, *runs))


def test_other_data_than_a_baseline_had_are_said_to_be(dataset, baselines, tmp_path):
    """Of as many trials, bins and units."""

    def change(recording):
        recording.spike_counts = recording.spike_counts[:, ::-1]
        return recording

    other = write_dataset(tmp_path / "other", change=change)
    sections = report(tmp_path / "page.html", baselines, "--dataset", other)
    assert (
        f"trial_average: {other} does not have its training trials of session ann"
        in sections["Before comparing"]
    )
    assert "Before comparing" not in report(tmp_path / "page.html", baselines, "--dataset", dataset)


def test_what_neds_predict_left_in_a_model_folder_is_no_baseline(dataset, model_folder, tmp_path):
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    out = model / "predictions" / "ann.npz"
    argv = ["--model", model, "--dataset", dataset, "--session", "ann", "--task", "decoding", "--output", out]
    assert main(["predict", *map(str, argv)]) == 0
    expected = shown_of(dataset, "ann", model_folder).predictions["model"]
    np.testing.assert_array_equal(
        shown_of(dataset, "ann", model).predictions["model"]["log_rates"], expected["log_rates"]
    )


@pytest.mark.parametrize(
    "schemes, tasks",
    [
        ({"encoding": 1.0}, "encoding"),
        ({"decoding": 1.0, "within_modality": 1.0}, "decoding"),
        ({"cross_modal": 1.0}, "encoding decoding"),
    ],
)
def test_a_model_predicts_what_it_was_trained_for(dataset, model_folder, tmp_path, schemes, tasks):
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"scheme_weights": schemes}))
    predictions = shown_of(dataset, "ann", model).predictions["model"]
    assert ("log_rates" in predictions) == ("encoding" in tasks)
    assert ("choice" in predictions) == ("decoding" in tasks)


def test_the_session_that_is_drawn_is_one_that_all_runs_predict(dataset, baselines, tmp_path):
    left_out = tmp_path / "neds_decoding"
    left_out.mkdir()
    (left_out / "metrics.json").write_text(json.dumps({"sessions": {"ann": {}, "bob": {"psth_r2": 0.1}}}))
    trials = open_recordings(dataset).trials("bob", "test")
    write_predictions(left_out, trials, {"log_rates": np.zeros(trials.spike_counts.shape)})
    sections = report(tmp_path / "page.html", left_out, baselines, "--dataset", dataset)
    assert " bob" in sections["Encoding: one trial"]
    sections = report(tmp_path / "page.html", left_out, "--dataset", dataset, "--session", "ann")
    said = "No run predicts anything of session ann that could be drawn."
    assert said in sections["Before comparing"] and "Encoding: one trial" not in sections


def test_names_are_drawn_as_they_are_written(dataset, baselines, tmp_path):
    """No formula is read into them."""
    names = [r"$\foo$"]
    sections = report(tmp_path / "page.html", baselines, "--names", *names, "--dataset", dataset)
    assert names[0] in sections["Encoding: one trial"]


def test_what_evaluation_warned_of_is_said_once(dataset, model_folder, tmp_path):
    other, scores = write_dataset(tmp_path / "other", ("ann",), replace(OPTIONS, fold=1)), tmp_path / "s.json"
    argv = ["--model", model_folder, "--dataset", other, "--output", scores]
    assert main(["evaluate", *map(str, argv)]) == 0
    said = report(tmp_path / "page.html", scores, "--dataset", other)["Before comparing"]
    assert said.count("another --fold?") == 1


def test_trials_that_a_model_may_have_learned_from_are_said_to_be(dataset, model_folder, tmp_path):
    other = write_dataset(tmp_path / "other", ("ann",), replace(OPTIONS, fold=1))
    sections = report(tmp_path / "page.html", model_folder, "--dataset", other)
    said = f"model: {other} does not have its training trials of session ann (another --fold?)"
    assert said in sections["Before comparing"]
    assert "Before comparing" not in report(tmp_path / "page.html", model_folder, "--dataset", dataset)


def test_the_report_draws_only_what_is_predicted(dataset, tmp_path):
    trials = open_recordings(dataset).trials("cat", "test")
    encoder = run_of(tmp_path / "encoder", trials, {"log_rates": np.zeros(trials.spike_counts.shape)})
    nothing = np.full((len(trials.trial_index), 2), np.nan)
    decoder = run_of(tmp_path / "decoder", trials, {"choice": nothing})
    sections = report(tmp_path / "page.html", encoder, "--dataset", dataset)
    assert "Encoding: one trial" in sections and not [
        name for name in sections if name.startswith("Decoding:")
    ]
    sections = report(tmp_path / "page.html", decoder, "--dataset", dataset)
    assert not [heading for heading in sections if heading.startswith(("Encoding:", "Decoding:"))]  # all NaN


# --- errors ---


def test_what_cannot_be_drawn_is_one_line_that_names_it(dataset, baselines, tmp_path, error_of):
    def error(*argv) -> str:
        return error_of("report", *argv, "--output", tmp_path / "page.html")

    trials = open_recordings(dataset).trials("cat", "test")
    cat = run_of(tmp_path / "cat", trials, {"log_rates": np.zeros(trials.spike_counts.shape)})
    assert "--session is of a --dataset, whose trials it draws" in error(baselines, "--session", "ann")
    message = f"{baselines} does not score session cat, whose trials are to be drawn"
    assert message in error(baselines, "--dataset", dataset, "--session", "cat")
    message = f"{dataset} has no session that all runs score, whose trials could be drawn"
    assert message in error(baselines, cat, "--dataset", dataset)
    assert "no dataset folder nowhere" in error(baselines, "--dataset", "nowhere")
    (cat / "run.json").write_text(json.dumps({"configuration": {"split": "validation"}}))
    other = run_of(tmp_path / "other", trials, {})
    message = "of one split, but the runs are not: other of test, cat of validation"
    assert message in error(other, cat, "--dataset", dataset)
    (tmp_path / "joined").mkdir()
    cat.rename(tmp_path / "joined" / "cat")
    ann = open_recordings(dataset).trials("ann", "test")
    run_of(tmp_path / "joined" / "ann", ann, {})
    message = "of one split, but the runs are not: joined of varies"
    assert message in error(tmp_path / "joined", "--dataset", dataset)
    assert not (tmp_path / "page.html").exists()


def test_predictions_of_other_trials_bins_units_or_classes_are_refused(dataset, tmp_path, error_of):
    trials = open_recordings(dataset).trials("cat", "test")
    (num_trials, bins, units), out = trials.spike_counts.shape, tmp_path / "page.html"
    run = run_of(tmp_path / "run", trials, {})
    argv, file = ("report", run, "--dataset", dataset, "--output", out), run / "predictions" / "cat.npz"
    for name, shape, expected in (
        ("log_rates", (num_trials, bins, units + 1), (num_trials, bins, units)),
        ("log_rates", (num_trials, 10, units), (num_trials, bins, units)),
        ("wheel_speed", (num_trials, 10), (num_trials, bins)),
        ("block", (num_trials, 2), (num_trials, 3)),
    ):
        write_predictions(run, trials, {name: np.zeros(shape)})
        assert f"{file}: {name} is {shape}, the dataset's {expected}" in error_of(*argv)
    trials.classes["block"] = ("0.2", "0.5", "0.9")
    write_predictions(run, trials, {"block": np.zeros((num_trials, 3))})
    message = f"{file}: block is of the classes ['0.2', '0.5', '0.9'], without 0.8 of the dataset"
    assert message in error_of(*argv)
    trials.trial_index = trials.trial_index + 1
    write_predictions(run, trials, {"log_rates": np.zeros((num_trials, bins, units))})
    assert f"{file}: its trials are not the {num_trials} of the dataset" in error_of(*argv)
    write_predictions(
        run, open_recordings(dataset).trials("cat", "test"), {"choice": np.zeros((num_trials, 2))}
    )
    with np.load(file) as arrays:
        without = {name: values for name, values in arrays.items() if name != "choice_classes"}
    np.savez(file, **without)
    assert f"{file}: choice is of the classes [], without right of the dataset" in error_of(*argv)
    whole = file.read_bytes()
    for damaged in (b"PK", b"", whole[:200] + b"?" * 40 + whole[240:]):
        file.write_bytes(damaged)
        assert f"{file} cannot be read: " in error_of(*argv)
    np.save(file.with_suffix(""), np.zeros(3))
    file.with_suffix(".npy").rename(file)
    assert f"{file} cannot be read: " in error_of(*argv)
    file.unlink()
    assert f"{file} cannot be read: " in error_of(*argv) and not out.exists()


def test_a_model_that_cannot_predict_is_named_with_the_file_that_names_it(
    dataset, model_folder, tmp_path, error_of
):
    trials = open_recordings(dataset).trials("cat", "test")
    run, scores = run_of(tmp_path / "run", trials, {}), tmp_path / "scores.json"
    shutil.rmtree(run / "predictions")
    assert str(run) in error_of("report", run, "--dataset", dataset, "--output", tmp_path / "page.html")
    for models, message in (
        ([str(model_folder)], f"{scores}, of {model_folder}: {model_folder} does not know session cat"),
        (["gone"], f"{scores}, of gone: no model folder gone"),
        ([], f"{scores}, of : no model is named"),
    ):
        metrics = {"sessions": {"cat": {"bits_per_spike": 0.1}}, "configuration": {"models": models}}
        scores.write_text(json.dumps(metrics))
        error = error_of("report", scores, "--dataset", dataset, "--output", tmp_path / "page.html")
        assert message in error
