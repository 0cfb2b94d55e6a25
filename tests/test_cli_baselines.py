"""`neds baselines`: every flag, what it writes, resuming, its errors and its exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
from killed import killed_on_writing
from small_dataset import SIZES, TRAINING, simulate, write_arrays, write_dataset
from small_grids import use_small_grids

from neds_hf.analysis.baselines import METHODS
from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings
from neds_hf.data.schema import split_of_trials
from neds_hf.metrics import functional
from neds_hf.training.sessions import load_model

NEDS_SIZES = [word for word in SIZES if not word.startswith("scheme_weights")]


@pytest.fixture
def arguments(dataset, tmp_path):
    """Arguments into the folder `out`."""

    def with_more(*more) -> list[str]:
        return list(
            map(
                str,
                ["--dataset", dataset, "--output", tmp_path / "out", *"--disable_tqdm true".split(), *more],
            )
        )

    return with_more


@pytest.fixture
def error_of(arguments, error_of):
    """The one line that a wrong call prints."""
    return lambda *more: error_of("baselines", *arguments(*more))


def read(folder: Path) -> tuple[dict, dict]:
    """Metrics and configuration of a run."""
    run = json.loads((folder / "run.json").read_text())
    assert "finished" in run and run["versions"]["neds_hf"]
    return json.loads((folder / "metrics.json").read_text()), run["configuration"]


def test_all_classical_methods_of_all_sessions_and_their_report(
    arguments, dataset, tmp_path, capsys, monkeypatch
):
    use_small_grids(monkeypatch)
    assert main(["baselines", *arguments()]) == 0
    out = tmp_path / "out"
    assert {folder.name for folder in out.iterdir()} == set(METHODS)
    printed = capsys.readouterr().out
    encoding, decoding = printed.split("Decoding, test trials")
    for method in METHODS:
        metrics, configuration = read(out / method)
        assert list(metrics["sessions"]) == ["ann", "bob", "cat"] and configuration["method"] == method
        values = [scores["bits_per_spike"] for scores in metrics["sessions"].values()]
        assert metrics["mean"]["bits_per_spike"] == pytest.approx(np.mean(values))
        error = np.std(values, ddof=1) / 3**0.5
        assert metrics["standard_error"]["bits_per_spike"] == pytest.approx(error)
        if method != "poisson_glm":
            assert metrics["num_sessions"]["whisker_motion_energy_r2"] == 2  # bob has no video
        (row,) = [line for line in encoding.splitlines() if line.startswith(f"{method} ")]
        assert f"{np.mean(values):.3f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{error:.3f}" in row
        assert (f"\n{method} " in decoding) == (method != "poisson_glm")

    # What is written is what was scored, and what it is of.
    recordings = open_recordings(dataset)
    for session in ("ann", "bob"):
        trials = recordings.trials(session, "test")
        with np.load(out / "linear" / "predictions" / f"{session}.npz") as predicted:
            assert np.isnan(predicted["whisker_motion_energy"]).all() == (session == "bob")
            np.testing.assert_array_equal(predicted["trial_index"], trials.trial_index)
            assert predicted["choice_classes"].tolist() == ["right", "left"]
            scores = read(out / "linear")[0]["sessions"][session]
            bits = functional.bits_per_spike(predicted["log_rates"], trials.spike_counts).mean()
            assert scores["bits_per_spike"] == pytest.approx(bits, abs=1e-6)
            wheel = functional.r2(predicted["wheel_speed"], trials.continuous["wheel_speed"])
            assert scores["wheel_speed_r2"] == pytest.approx(wheel, abs=1e-6)
            right = predicted["choice"].argmax(1) == trials.categorical["choice"]
            assert scores["choice_accuracy"] == pytest.approx(right.mean())
    # Spikes follow wheel and choice: what is fitted is better than the average.
    means = {method: read(out / method)[0]["mean"] for method in METHODS}
    assert means["poisson_glm"]["bits_per_spike"] > means["trial_average"]["bits_per_spike"] + 0.1
    assert means["linear"]["wheel_speed_r2"] > means["trial_average"]["wheel_speed_r2"] + 0.3

    pytest.importorskip("matplotlib", reason="matplotlib is not installed (neds_hf[report])")
    assert main(["report", str(out), "--output", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    for method in METHODS:
        (row,) = [line for line in printed.splitlines() if line.startswith(f"{method} ")]
        assert f"{means[method]['bits_per_spike']:.3f}" in row
    assert "cannot be told" not in printed and "different data" not in printed


def test_sessions_methods_split_and_seed_are_chosen(arguments, dataset, tmp_path, capsys, monkeypatch):
    use_small_grids(monkeypatch)
    chosen = ["--session", "bob", "cat", "--methods", "linear", "--split", "validation", "--seed", "5"]
    assert main(["baselines", *arguments(*chosen)]) == 0
    out = tmp_path / "out"
    assert [folder.name for folder in out.iterdir()] == ["linear"]
    metrics, configuration = read(out / "linear")
    assert list(metrics["sessions"]) == ["bob", "cat"]
    assert (configuration["split"], configuration["seed"]) == ("validation", 5)
    with np.load(out / "linear" / "predictions" / "cat.npz") as predicted:
        trials = open_recordings(dataset).trials("cat", "validation")
        np.testing.assert_array_equal(predicted["trial_index"], trials.trial_index)
    assert "Encoding, validation trials" in capsys.readouterr().out


def test_validation_trials_are_trained_on_unless_they_are_scored(arguments, dataset, tmp_path):
    recordings = open_recordings(dataset)
    for split, train in (("test", ("train", "validation")), ("validation", ("train",))):
        more = ["--session", "cat", "--methods", "trial_average", "--split", split]
        assert main(["baselines", *arguments(*more), "--output", str(tmp_path / split)]) == 0
        wheel = np.concatenate([recordings.trials("cat", name).continuous["wheel_speed"] for name in train])
        with np.load(tmp_path / split / "trial_average" / "predictions" / "cat.npz") as predicted:
            np.testing.assert_allclose(predicted["wheel_speed"][0], wheel.mean(0), rtol=1e-5)


def test_the_sessions_of_a_configuration_and_no_multi_session_model_of_one(arguments, tmp_path, monkeypatch):
    use_small_grids(monkeypatch)
    assert main(["baselines", *arguments("--dataset_config", "held_out")]) == 0
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {
        *METHODS[:3],
        "poisson_glm",
    }
    assert list(read(tmp_path / "out" / "linear")[0]["sessions"]) == ["cat"]


def test_neds_for_one_task(arguments, tmp_path, capsys):
    # What a checkpoint is chosen by is the task's, whatever else is asked for.
    training = [*TRAINING, "--num_train_epochs", "3", "--metric_for_best_model", "eval_loss"]
    more = ["--session", "cat", "--methods", "neds_encoding", "neds_decoding", "--preset", "small"]
    assert main(["baselines", *arguments(*more, *training, "--set", *NEDS_SIZES)]) == 0
    out = tmp_path / "out"
    decoded = ("wheel_speed_r2", "whisker_motion_energy_r2", "choice_accuracy", "block_accuracy")
    for task, chosen_by, predicted in (
        ("encoding", ("bits_per_spike",), {"log_rates"}),
        ("decoding", decoded, {"wheel_speed", "whisker_motion_energy", "choice", "block"}),
    ):
        metrics, configuration = read(out / f"neds_{task}")
        assert configuration["preset"] == "small" and configuration["set"]["hidden_size"] == 16
        assert configuration["num_train_epochs"] == 3 and configuration["seed"] == 3
        model, _ = load_model(str(out / f"neds_{task}" / "models" / "cat"))
        weights = {name: weight for name, weight in model.config.scheme_weights.items() if weight}
        assert weights == {task: 1.0}
        assert (model.config.hidden_size, model.config.session_ids) == (16, ["cat"])
        state = json.loads((out / f"neds_{task}" / "models" / "cat" / "trainer_state.json").read_text())
        evaluations = [entry for entry in state["log_history"] if "eval_bits_per_spike" in entry]
        values = [np.mean([entry[f"eval_{name}"] for name in chosen_by]) for entry in evaluations]
        recent = np.cumsum(values) / np.arange(1, 4)
        assert len(set(values)) > 1 and state["best_metric"] == pytest.approx(max(recent))
        with np.load(out / f"neds_{task}" / "predictions" / "cat.npz") as arrays:
            assert {name for name in arrays if not name.endswith("_classes")} == {"trial_index", *predicted}
        assert "mean" not in metrics["mean"]
        assert ("bits_per_spike" in metrics["mean"]) == (task == "encoding")
        assert ("wheel_speed_r2" in metrics["mean"]) == (task == "decoding")
    assert "neds_encoding" in capsys.readouterr().out
    # Finished: nothing is trained again.
    file = out / "neds_encoding" / "models" / "cat" / "model.safetensors"
    before = file.stat().st_mtime_ns
    assert main(["baselines", *arguments(*more, *training, "--set", *NEDS_SIZES)]) == 0
    assert file.stat().st_mtime_ns == before


def test_neds_also_trains_on_validation_trials_where_asked(arguments, tmp_path):
    more = ["--session", "cat", "--methods", "neds_encoding", "--train_splits", "train", "validation"]
    more += [*TRAINING, "--max_steps", "1", "--preset", "tiny"]
    assert main(["baselines", *arguments(*more)]) == 0
    _, configuration = read(tmp_path / "out" / "neds_encoding")
    assert configuration["train_splits"] == ["train", "validation"]


def test_validation_trials_that_are_scored_choose_no_checkpoint(arguments, tmp_path):
    more = ["--session", "cat", "--methods", "neds_encoding", "--split", "validation"]
    more += [*TRAINING, "--num_train_epochs", "2", "--preset", "tiny"]
    assert main(["baselines", *arguments(*more)]) == 0
    model = tmp_path / "out" / "neds_encoding" / "models" / "cat"
    state = json.loads((model / "trainer_state.json").read_text())
    assert state["best_metric"] is None and not any("eval_loss" in entry for entry in state["log_history"])


@pytest.mark.parametrize("splits", [["train"], ["train", "validation"]])
def test_the_null_of_every_method_is_the_mean_of_the_trials_that_neds_trains_on(
    arguments, tmp_path, dataset, splits
):
    more = ["--session", "cat", "--methods", "trial_average", "neds_encoding", "--train_splits", *splits]
    more += [*TRAINING, "--max_steps", "1", "--preset", "tiny"]
    assert main(["baselines", *arguments(*more)]) == 0
    recordings, out = open_recordings(dataset), tmp_path / "out"
    counts = recordings.trials("cat", "test").spike_counts
    null_rates = np.concatenate([recordings.trials("cat", split).spike_counts for split in splits]).mean(
        (0, 1)
    )
    for method in ("trial_average", "neds_encoding"):
        with np.load(out / method / "predictions" / "cat.npz") as predicted:
            bits = functional.bits_per_spike(predicted["log_rates"], counts, null_rates).mean()
        scores = read(out / method)[0]["sessions"]["cat"]
        assert scores["bits_per_spike_train_null"] == pytest.approx(bits, abs=1e-6)
    # So it is in the model's own folder.
    model = json.loads((out / "neds_encoding" / "models" / "cat" / "metrics.json").read_text())
    bits = model["sessions"]["cat"]["bits_per_spike_train_null"]
    assert scores["bits_per_spike_train_null"] == pytest.approx(bits, abs=1e-4)


def test_without_any_behaviour_the_average_trial_is_encoded_and_neds_left_out(tmp_path, capsys, monkeypatch):
    """Trial arrays of the two that `neds build` requires."""
    use_small_grids(monkeypatch)
    for session in ("ann", "bob"):
        write_arrays(tmp_path / f"{session}.npz", simulate(session), np.arange(40), behaviors=False)
    files = [str(tmp_path / f"{session}.npz") for session in ("ann", "bob")]
    data, out = tmp_path / "data", tmp_path / "out"
    assert main(["build", str(data), "--arrays", *files]) == 0
    more = ["--methods", *METHODS, "neds_encoding", "neds_decoding", "--disable_tqdm", "true"]
    capsys.readouterr()
    assert main(["baselines", "--dataset", str(data), "--output", str(out), *more]) == 0
    printed = capsys.readouterr().out
    for method in ("neds_encoding", "neds_decoding"):
        for session in ("ann", "bob"):
            left_out = f"{method} leaves out {session}: none of its training trials has a behaviour"
            assert left_out in printed
        assert read(out / method)[0]["sessions"] == {"ann": {}, "bob": {}}
        assert f"\n{method}  " not in printed
    average = read(out / "trial_average")[0]["sessions"]["ann"]["bits_per_spike"]
    for method in METHODS:
        assert f"\n{method}  " in printed
        bits = read(out / method)[0]["sessions"]["ann"]["bits_per_spike"]
        assert bits == pytest.approx(average, abs=0.02)


def test_decoding_that_no_validation_trial_can_score_keeps_the_last_checkpoint(tmp_path, capsys):
    def unscored(recording):
        validation = split_of_trials("cat", 40) == "validation"
        for values in recording.continuous.values():
            values[validation] = np.nan
        for values in recording.categorical.values():
            values[validation] = -1
        return recording

    data, out = write_dataset(tmp_path / "data", ["cat"], change=unscored), tmp_path / "out"
    more = ["--methods", "neds_decoding", "--num_train_epochs", "3", *TRAINING, "--set", *NEDS_SIZES]
    assert main(["baselines", "--dataset", str(data), "--output", str(out), *more]) == 0
    folder = out / "neds_decoding" / "models" / "cat"
    said = f"{folder}: no evaluation gave eval_decoding_mean, so the last checkpoint is kept"
    assert said in capsys.readouterr().err.splitlines()
    assert json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"] is None


def test_a_killed_run_goes_on_where_it_was(arguments, tmp_path):
    argv = arguments("--methods", "poisson_glm")
    killed_on_writing("predictions/.bob.npz.unfinished", "baselines", argv)
    folder = tmp_path / "out" / "poisson_glm"
    first = folder / "predictions" / "ann.npz"
    assert not (folder / "metrics.json").exists()
    before = first.stat().st_mtime_ns
    assert main(["baselines", *argv]) == 0
    assert first.stat().st_mtime_ns == before
    resumed, _ = read(folder)
    assert main(["baselines", *argv, "--output", str(tmp_path / "whole")]) == 0
    assert read(tmp_path / "whole" / "poisson_glm")[0] == resumed


def test_another_run_in_the_folder_is_refused(arguments, error_of):
    trial_average = ["--methods", "trial_average"]
    assert main(["baselines", *arguments(*trial_average)]) == 0
    assert "seed 42 there, 1 asked for" in error_of(*trial_average, "--seed", "1")
    assert "split 'test' there" in error_of(*trial_average, "--split", "validation")
    assert "sessions ['ann', 'bob', 'cat'] there" in error_of(*trial_average, "--session", "cat")
    assert main(["baselines", *arguments(*trial_average)]) == 0


@pytest.mark.parametrize(
    "more, message",
    [
        (["--session", "dan"], "does not have session dan"),
        (["--dataset_config", "none"], "no dataset with a configuration 'none'"),
        (["--set", "mask_ratio=2", "--methods", "neds_encoding"], "the model cannot be configured so"),
        (["--set", "scheme_weights={}"], "scheme_weights"),
        (["--output", __file__], "test_cli_baselines.py is no folder"),
        (
            ["--split", "validation", "--train_splits", "train", "validation"],
            "--train_splits has the validation trials, which are to be predicted",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(error_of, more, message):
    assert message in error_of(*more)


@pytest.mark.parametrize("more", [["--methods", "magic"], ["--split", "train"], ["--preset", "huge"]])
def test_only_what_there_is_can_be_chosen(arguments, capsys, more):
    with pytest.raises(SystemExit) as ended:
        main(["baselines", *arguments(*more)])
    assert ended.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_the_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["baselines", "--help"])
    shown = capsys.readouterr().out
    flags = "dataset dataset_config session methods split preset set output seed train_splits".split()
    assert all(f"--{flag}" in shown for flag in flags)
