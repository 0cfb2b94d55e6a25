"""`neds average`: one model of fine-tunings that differ in the seed alone."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import OPTIONS, TRAINING, write_dataset

from neds_hf.cli.main import main
from neds_hf.training.sessions import load_model


@pytest.fixture(scope="module")
def fine_tunings(model_folder, dataset, tmp_path_factory):
    """Runs of seeds 0 and 1, and one of seed 2 with another learning rate."""
    folder = tmp_path_factory.mktemp("fine-tunings")
    where = ["--model", str(model_folder), "--dataset", str(dataset), "--session", "cat"]
    for name, more in (("0", []), ("1", []), ("2", ["--learning_rate", "2e-2"])):
        argv = [*where, *TRAINING, "--num_train_epochs", "2", *more]
        assert main(["finetune", *argv, "--output", str(folder / name), "--seed", name]) == 0
    return folder


def test_the_weights_are_the_mean_and_the_folder_is_whole(fine_tunings, dataset, tmp_path, capsys):
    runs = [str(fine_tunings / seed) for seed in "01"]
    out = tmp_path / "averaged"
    argv = ["average", "--model", *runs, "--dataset", str(dataset), "--output", str(out)]
    assert main(argv) == 0
    assert "cat" in capsys.readouterr().out
    one, other, averaged = (load_file(f"{run}/model.safetensors") for run in (*runs, out))
    assert averaged.keys() == one.keys()
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, (one[name] + other[name]) / 2, msg=name)
    assert not torch.equal(one["unit_readout.weight"], other["unit_readout.weight"])

    run = json.loads((out / "run.json").read_text())
    assert run["configuration"]["seeds"] == [0, 1] and run["configuration"]["models"] == runs
    assert run["base"]["name"] == "model" and "finished" in run
    card = (out / "README.md").read_text()
    assert (
        "the mean of those of 2 fine-tunings (seeds 0, 1)" in card
        and "started from are those of `model`" in card
    )
    where = ["--dataset", str(dataset), "--session", "cat", "--output", str(tmp_path / "scores.json")]
    assert main(["evaluate", "--model", str(out), *where]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["sessions"]["cat"]
    written = json.loads((out / "metrics.json").read_text())["sessions"]["cat"]
    assert written["bits_per_spike"] == pytest.approx(scores["bits_per_spike"], abs=1e-6)
    assert load_model(str(out))[1].session_ids == ["ann", "bob", "cat"]

    assert main(argv) == 2
    assert "holds this very average, finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["0"], "--model: two or more fine-tunings make an average"),
        (["0", "0"], "two of the fine-tunings are of the same seed: 0, 0"),
        (["0", "2"], "differ in the seed alone are averaged: learning_rate 0.02"),
        (["0", "pretrained"], "is no finished run of `neds finetune`"),
        (["0", "nowhere"], "no model folder"),
    ],
)
def test_what_cannot_be_averaged(fine_tunings, model_folder, dataset, tmp_path, error_of, runs, said):
    sources = [str(model_folder if run == "pretrained" else fine_tunings / run) for run in runs]
    where = ["--dataset", str(dataset), "--output", str(tmp_path / "out")]
    assert said in error_of("average", "--model", *sources, *where)
    assert not (tmp_path / "out").exists()


def test_a_configuration_without_training_trials(fine_tunings, dataset, tmp_path, error_of):
    runs = [shutil.copytree(fine_tunings / seed, tmp_path / seed) for seed in "01"]
    for folder in runs:
        run = json.loads((folder / "run.json").read_text())
        run["configuration"]["train_splits"] = []
        (folder / "run.json").write_text(json.dumps(run))
    where = ["--dataset", str(dataset), "--output", str(tmp_path / "out")]
    error = error_of("average", "--model", *runs, *where)
    assert error == (
        f"neds average: {dataset}: no split is named to train on; there are: train, validation, test"
    )


def test_another_dataset_would_score_trials_that_were_learned(fine_tunings, tmp_path, error_of):
    other = write_dataset(tmp_path / "other", options=replace(OPTIONS, fold=1))
    runs = [str(fine_tunings / seed) for seed in "01"]
    where = ["--dataset", str(other), "--output", str(tmp_path / "out")]
    assert f"{other} is not what {runs[0]} was fine-tuned on" in error_of("average", "--model", *runs, *where)
