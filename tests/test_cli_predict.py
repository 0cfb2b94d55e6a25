"""`neds predict`: every flag, datasets against trial arrays, units of the data, errors and exit status."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_dataset import SIZES, TRAINING, simulate, write_arrays, write_dataset

from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings
from neds_hf.metrics import functional
from neds_hf.training.inference import score_split
from neds_hf.training.sessions import load_model


@pytest.fixture
def predict(model_folder, tmp_path):
    def run(*argv) -> dict[str, np.ndarray]:
        out = tmp_path / "new" / "predictions.npz"
        assert main(["predict", *map(str, ["--model", model_folder, "--output", out, *argv])]) == 0
        with np.load(out, allow_pickle=False) as file:
            return dict(file)

    return run


@pytest.fixture
def error_of(model_folder, tmp_path, error_of):
    """The one line that a wrong call prints."""

    def run(*argv) -> str:
        out = tmp_path / "predictions.npz"
        error = error_of("predict", "--model", model_folder, "--output", out, *argv)
        assert not out.exists()
        return error

    return run


def test_arrays_of_a_session_that_was_not_built_from_arrays_name_their_units(
    predict, error_of, model_folder, tmp_path
):
    """In another order than the model's, which has not all of them."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "processor_config.json").read_text())
    for session in config["sessions"]:
        session["units"] = [f"uuid-{place}" for place in range(len(session["units"]))]
    (model / "processor_config.json").write_text(json.dumps(config))
    file = write_arrays(tmp_path / "bob.npz", simulate("bob"), np.arange(10))
    argv = ("--arrays", file, "--task", "decoding", "--model")
    error = error_of(*argv, model)
    assert "lacks 9 of the model's 9 units: uuid-0, ...; its array 'unit_uuid' is to name them" in error
    expected = predict(*argv, model_folder)
    with np.load(file) as arrays:
        counts = np.insert(arrays["spike_counts"], 0, 200, axis=2)[:, :, ::-1]
        uuids = np.array(["not sorted", *(f"uuid-{place}" for place in range(9))])[::-1]
        np.savez(file, **{**arrays, "spike_counts": counts, "unit_uuid": uuids})
    found = predict(*argv, model)
    assert set(found) == set(expected)
    for name in ("choice", "block", "wheel_speed"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_encoding_writes_log_rates_of_every_unit(predict, dataset):
    arrays = predict("--dataset", dataset, "--session", "ann", "--task", "encoding")
    trials = open_recordings(dataset).trials("ann", "test")
    assert set(arrays) == {"session", "trial_index", "times_s", "unit_index", "log_rates"}
    assert arrays["session"] == "ann" and arrays["unit_index"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(arrays["trial_index"], trials.trial_index)
    np.testing.assert_allclose(arrays["times_s"][[0, -1]], [-0.175, 0.775])
    assert arrays["log_rates"].shape == trials.spike_counts.shape == (8, 20, 5)
    predicted, real = np.exp(arrays["log_rates"]).mean((0, 1)), trials.spike_counts.mean((0, 1))
    np.testing.assert_allclose(predicted, real, rtol=0.5)  # expected counts per bin


def test_decoding_writes_behaviours_in_the_units_of_the_data(predict, dataset, model_folder):
    arrays = predict("--dataset", dataset, "--session", "ann", "--split", "train", "--task", "decoding")
    recordings = open_recordings(dataset).only(["ann"])
    trials = recordings.trials("ann", "train")
    assert set(arrays) == {"session", "trial_index", "times_s"} | {
        *("choice", "choice_classes", "block", "block_classes", "wheel_speed", "whisker_motion_energy"),
    }
    assert arrays["choice"].shape == (29, 2) and arrays["block"].shape == (29, 3)
    np.testing.assert_allclose(arrays["choice"].sum(1), 1, rtol=1e-5)  # probabilities
    assert arrays["choice_classes"].tolist() == ["right", "left"]
    assert arrays["block_classes"].tolist() == ["0.2", "0.5", "0.8"]
    scores = score_split(*load_model(str(model_folder)), recordings, "train")["ann"]
    for name in ("choice", "block"):
        accuracy = functional.accuracy(arrays[name].argmax(1), trials.categorical[name])
        assert accuracy == pytest.approx(scores[f"{name}_accuracy"])
    whisker = arrays["whisker_motion_energy"]
    assert whisker.shape == (29, 20) and whisker.mean() == pytest.approx(6.5, abs=1)  # around 5 + 2 wheel
    for name in ("wheel_speed", "whisker_motion_energy"):
        r2 = functional.r2(arrays[name], trials.continuous[name])
        assert r2 == pytest.approx(scores[f"{name}_r2"], abs=1e-5)


def test_a_behaviour_that_the_session_never_had_is_not_predicted(predict, dataset):
    arrays = predict("--dataset", dataset, "--session", "bob", "--task", "decoding")
    assert "wheel_speed" in arrays and "whisker_motion_energy" not in arrays


def test_predictions_of_several_models_are_averaged_rates_values_and_probabilities(
    predict, dataset, model_folder, tmp_path
):
    other = another_seed(model_folder, tmp_path / "other")
    for task in ("encoding", "decoding"):
        argv = ("--dataset", dataset, "--session", "ann", "--task", task)
        ours, theirs = predict(*argv), predict(*argv, "--model", other)
        both = predict(*argv, "--model", model_folder, other)
        if task == "encoding":
            mean = (np.exp(ours["log_rates"]) + np.exp(theirs["log_rates"])) / 2
            np.testing.assert_allclose(np.exp(both["log_rates"]), mean, rtol=1e-5)
            continue
        for name in ("choice", "block", "wheel_speed", "whisker_motion_energy"):
            assert not np.allclose(ours[name], theirs[name], rtol=1e-3)
            np.testing.assert_allclose(both[name], (ours[name] + theirs[name]) / 2, rtol=1e-4, atol=1e-6)


def test_models_of_other_scales_do_not_predict_together(error_of, dataset, model_folder, tmp_path):
    other = another_seed(model_folder, tmp_path / "other")
    processor = json.loads((other / "processor_config.json").read_text())
    processor["sessions"][0]["scaling"]["wheel_speed"][1] *= 2
    (other / "processor_config.json").write_text(json.dumps(processor))
    argv = ("--dataset", dataset, "--session", "ann", "--task", "encoding", "--model", model_folder, other)
    assert "other and" in (message := error_of(*argv)) and "cannot predict together" in message


def another_seed(model_folder, out) -> Path:
    """The same model with other weights."""
    model, processor = load_model(str(model_folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.1 * torch.randn_like(weight))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def test_a_dataset_of_one_session_needs_no_session(predict, tmp_path, capsys):
    alone = write_dataset(tmp_path / "alone", ["bob"])
    assert predict("--dataset", alone, "--task", "encoding")["session"] == "bob"
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed.endswith("predictions.npz: log_rates (9, 20, 9)")


@pytest.mark.parametrize("task", ["encoding", "decoding"])
@pytest.mark.parametrize("session", ["ann", "bob"])
def test_trial_arrays_give_what_the_dataset_gives(predict, dataset, tmp_path, task, session):
    """The file has all units, the model those above the rate floor; a trial of `ann` is without wheel."""
    found = {}
    for split in ("train", "test"):
        expected = predict("--dataset", dataset, "--session", session, "--split", split, "--task", task)
        order = np.argsort(expected["trial_index"])
        file = write_arrays(tmp_path / "some.npz", simulate(session), expected["trial_index"][order])
        found = predict("--arrays", file, "--task", task, "--batch-size", "3")
        assert set(found) == set(expected)
        for name, values in expected.items():
            if name == "unit_index":
                assert found[name].tolist() == ([0, 1, 3, 4, 5] if session == "ann" else list(range(9)))
            elif values.dtype.kind == "f" and name != "times_s":
                np.testing.assert_allclose(found[name], values[order], atol=1e-5, err_msg=name)
            elif name == "trial_index":
                np.testing.assert_array_equal(found[name], values[order])
            else:
                np.testing.assert_array_equal(found[name], values)


def test_behaviours_are_decoded_from_spikes_alone(predict, tmp_path):
    trials = np.arange(0, 40, 4)
    spikes = write_arrays(tmp_path / "spikes.npz", simulate("ann"), trials, behaviors=False)
    whole = write_arrays(tmp_path / "whole.npz", simulate("ann"), trials)
    alone, together = (predict("--arrays", file, "--task", "decoding") for file in (spikes, whole))
    assert set(alone) == set(together)
    for name in ("choice", "block", "wheel_speed", "whisker_motion_energy"):
        np.testing.assert_array_equal(alone[name], together[name])


def test_rates_of_a_trial_without_a_behaviour_are_encoded_from_the_others(predict, tmp_path):
    file = write_arrays(tmp_path / "ann.npz", simulate("ann"), np.arange(4, 7))  # trial 5 is without wheel
    assert np.isfinite(predict("--arrays", file, "--task", "encoding")["log_rates"]).all()


def test_every_trial_is_predicted_whatever_its_choice_and_reaction_time(predict, tmp_path):
    file = write_arrays(tmp_path / "bob.npz", simulate("bob"), np.arange(4))
    with np.load(file) as arrays:
        choice, reaction_time = np.array([0, 1, np.nan, -1]), np.array([0.3, 5.0, np.nan, 0.01])
        np.savez(file, **{**arrays, "choice": choice, "reaction_time_s": reaction_time})
    for task, name in (("encoding", "log_rates"), ("decoding", "choice")):
        arrays = predict("--arrays", file, "--task", task)
        assert arrays["trial_index"].tolist() == simulate("bob").trial_index[:4].tolist()
        assert len(arrays[name]) == 4 and np.isfinite(arrays[name]).all()


def test_the_batch_size_changes_nothing(predict, dataset):
    where = ("--dataset", dataset, "--session", "ann", "--task", "decoding")
    np.testing.assert_allclose(
        predict(*where, "--batch-size", "1")["wheel_speed"],
        predict(*where, "--batch-size", "64")["wheel_speed"],
        atol=1e-5,
    )


def test_named_behaviours_of_another_rig_need_not_be_in_the_arrays(tmp_path):
    """A model of `odor` and `lick_rate`, from `neds build --arrays` to decoding from spikes alone."""
    recording = simulate("bob")
    file = write_arrays(tmp_path / "rig.npz", recording, np.arange(46), behaviors=False)
    with np.load(file) as arrays:
        arrays = dict(arrays)
    odor = np.array(["mint", "rose"])[recording.categorical["choice"]]
    np.savez(file, **arrays, odor=odor, lick_rate=recording.continuous["wheel_speed"])
    folder, model = tmp_path / "dataset", tmp_path / "model"
    names = ["--behaviors", "odor", "lick_rate"]
    assert main(["build", str(folder), "--arrays", str(file), "--min-rate", "0", *names]) == 0
    argv = ["--dataset", folder, "--output", model, *TRAINING, "--set", *SIZES, "--max_steps", "2"]
    assert main(["pretrain", *map(str, argv)]) == 0
    spikes = write_arrays(tmp_path / "spikes.npz", recording, np.arange(46), behaviors=False)
    argv = ["--model", model, "--arrays", spikes, "--task", "decoding", "--output", tmp_path / "out.npz"]
    assert main(["predict", *map(str, argv)]) == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as out:
        assert out["odor_classes"].tolist() == ["mint", "rose"] and out["odor"].shape == (46, 2)
        assert out["lick_rate"].shape == (46, 20)


# --- what is refused ---


def edited(path: Path, **changes) -> Path:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changes.items()})
    return path


def replaced(old: str, new: str):
    return lambda meta: str(meta).replace(old, new)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"meta": replaced('"bob"', '"eve"')}, "does not know session eve; `neds finetune` adapts it"),
        ({"meta": replaced('"go"', '"stop"')}, "(20, 0.05, -0.2, 'stop'), the model (20, 0.05, -0.2, 'go')"),
        ({"meta": replaced("[-0.2, 0.8]", "[0.0, 1.0]")}, "(20, 0.05, 0.0, 'go'), the model (20, 0.05, -0.2"),
        ({"spike_counts": lambda counts: counts[:, :, :7]}, "lacks 2 of the model's 9 units: bob/7"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(error_of, tmp_path, changes, message):
    file = write_arrays(tmp_path / "bob.npz", simulate("bob"), np.arange(10))
    error = error_of("--arrays", edited(file, **changes), "--task", "decoding")
    assert error.startswith("neds predict: ") and message in error


def test_spikes_cannot_be_encoded_from_nothing(error_of, tmp_path):
    file = write_arrays(tmp_path / "bob.npz", simulate("bob"), np.arange(10), behaviors=False)
    error = error_of("--arrays", file, "--task", "encoding")
    assert f"{file} has none of the behaviours to encode from: choice, block" in error


def test_a_behaviour_whose_scale_is_not_known_alone_is_nothing_to_encode_from(error_of, tmp_path):
    file = write_arrays(tmp_path / "bob.npz", simulate("bob"), np.arange(10), behaviors=False)
    with np.load(file) as arrays:
        np.savez(file, **dict(arrays), whisker_motion_energy=np.ones((10, 20)))
    error = error_of("--arrays", file, "--task", "encoding")
    assert str(file) in error and "has none of the behaviours to encode from" in error


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--dataset", "DATASET"], "has 3 sessions; say which with --session: ann, bob, cat"),
        (["--dataset", "DATASET", "--session", "eve"], "does not have session eve"),
        (["--dataset", "DATASET", "--session", "cat"], "does not know session cat of"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--arrays", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--arrays", "x.npz", "--split", "test"], "--split and --session are of a --dataset"),
        (["--arrays", "x.npz", "--session", "ann"], "--split and --session are of a --dataset"),
        (
            ["--dataset", "DATASET", "--session", "ann", "--batch-size", "0"],
            "--batch-size must be at least 1",
        ),
        (
            ["--dataset", "DATASET", "--model", "nowhere"],
            "no model folder nowhere; three ways to a checkpoint",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(error_of, dataset, argv, message):
    argv = [dataset if text == "DATASET" else text for text in argv]
    assert message in error_of(*argv, "--task", "decoding")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--dataset", "x"], "required: --task"),
        (["--task", "encoding"], "one of the arguments --dataset --arrays is required"),
        (["--task", "both", "--dataset", "x"], "invalid choice: 'both'"),
        (["--task", "encoding", "--dataset", "x", "--arrays", "y"], "not allowed with argument --dataset"),
    ],
)
def test_a_call_that_says_too_little_or_too_much_is_a_usage_error(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--model", "x", "--output", "y", *argv])
    assert message in capsys.readouterr().err


def test_the_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--help"])
    text = capsys.readouterr().out
    for name in "--model --dataset --arrays --split --session --task --output --batch-size".split():
        assert f"  {name} " in text
