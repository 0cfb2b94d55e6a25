"""`neds search`: tiny real searches, every flag of its own, kills, and what is wrong with its arguments."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
import yaml
from hub.processes import neds
from hub.server import Hub
from killed import killed_on_writing
from optuna.samplers import TPESampler
from safetensors.torch import load_file, save_file
from small_dataset import OPTIONS, TRAINING, without_validation, write_dataset

from neds_hf.cli.main import main
from neds_hf.cli.search import NUM_MODELS, RANGES, FinetuneSearch, PretrainSearch
from neds_hf.data.recordings import open_recordings
from neds_hf.training.search import SAMPLERS
from neds_hf.training.sessions import load_model

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "examples/configs/search.yaml"
SIZES = "intermediate_size=32 num_attention_heads=2 bins_per_token=5".split()
PRETRAIN_SPACE = (
    "{hidden_size: {choices: [8, 16]}, num_hidden_layers: {low: 1, high: 2}, "
    "learning_rate: {low: 1e-3, high: 3e-2, log: true}}"
)
FINETUNE_SPACE = (
    "{mask_ratio: {low: 0.1, high: 0.4}, strategy: {choices: [session, full]}, "
    "learning_rate: {low: 1e-3, high: 3e-2, log: true}}"
)
RATE = TRAINING.index("--learning_rate")
FIXED = TRAINING[:RATE] + TRAINING[RATE + 2 :]  # the rate is drawn


def arguments(dataset, out, *more) -> list[str]:
    """A search for the best pretraining on `ann`, of two epochs a model."""
    where = ["--dataset", str(dataset), "--output", str(out), "--sessions", "ann"]
    how = ["--space", PRETRAIN_SPACE, "--num_train_epochs", "2", *FIXED]
    return [*where, *how, *map(str, more), "--set", *SIZES]


def search(dataset, out, *more) -> pd.DataFrame:
    """Its table."""
    assert main(["search", *arguments(dataset, out, *more)]) == 0
    return pd.read_csv(out / "trials.csv", dtype={"hidden_size": str})


def run_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# --- a search ---


@pytest.fixture(scope="module")
def searched(tmp_path_factory, dataset):
    """Folder of a finished search of three models, and what it printed."""
    out = tmp_path_factory.mktemp("search") / "out"
    with redirect_stdout(StringIO()) as printed:
        search(dataset, out, "--trials", 3)
    return out, printed.getvalue()


def test_a_search_leaves_a_table_a_figure_its_best_model_and_of_the_others_the_records(searched):
    out, _ = searched
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "search.db", ".lock", "trials.csv", "search.png"),
        *("trials", "best"),
    }
    table = pd.read_csv(out / "trials.csv", dtype={"hidden_size": str})
    assert table["trial"].tolist() == [0, 1, 2] and set(table["state"]) == {"complete"}
    assert set(table["hidden_size"]) <= {"8", "16"} and table["num_hidden_layers"].between(1, 2).all()
    assert table["learning_rate"].between(1e-3, 3e-2).all() and table["learning_rate"].nunique() == 3
    for trial, row in table.iterrows():
        place = out / "trials" / f"{trial:03d}"
        records = {"run.json", "metrics.json", "trainer_state.json"}
        assert {path.name for path in place.iterdir()} == records
        configuration = run_of(place)["configuration"]
        assert configuration["learning_rate"] == row["learning_rate"]
        assert str(configuration["model"]["hidden_size"]) == row["hidden_size"]
        assert row["value"] == json.loads((place / "trainer_state.json").read_text())["best_metric"]


def test_the_best_on_validation_is_what_was_trained_anew(searched):
    out, printed = searched
    table = pd.read_csv(out / "trials.csv", dtype={"hidden_size": str})
    best = table["value"].idxmax()
    model, processor = load_model(str(out / "best"))
    assert str(model.config.hidden_size) == table["hidden_size"][best] and processor.session_ids == ["ann"]
    metrics = (out / "best" / "metrics.json").read_text()
    assert metrics == (out / "trials" / f"{best:03d}" / "metrics.json").read_text()
    run = run_of(out)
    assert run["configuration"]["command"] == "search" and run["configuration"]["preset"] == "compact"
    assert run["configuration"]["seed"] == 3 and "learning_rate" not in run["configuration"]
    assert run["results"]["best"] == best and run["results"]["best_validation"] == table["value"][best]
    assert run["results"]["states"] == {"complete": 3}
    assert run["results"]["test"] == json.loads(metrics)["mean"]
    assert f"best: model {best + 1}, eval_mean {table['value'][best]:.4f} on validation" in printed
    assert "bits_per_spike" in printed and "\nann " in printed


def test_the_settings_that_are_printed_make_neds_pretrain_train_the_best_model(searched, dataset, tmp_path):
    out, printed = searched
    (line,) = [line for line in printed.splitlines() if line.startswith("its settings: ")]
    argv = ["--dataset", str(dataset), "--output", str(tmp_path), "--sessions", "ann", *FIXED]
    settings = line.removeprefix("its settings: ").split()
    assert main(["pretrain", *argv, "--num_train_epochs", "2", *settings, *SIZES]) == 0
    weights, best = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path, out / "best"))
    assert weights == best


def test_a_finished_search_says_so_and_goes_on_with_more_trials(searched, dataset, error_of):
    out, _ = searched
    before = pd.read_csv(out / "trials.csv")
    error = error_of("search", *arguments(dataset, out, "--trials", 3))
    assert f"{out} holds this very search, finished; with more --trials it goes on" in error
    search(dataset, out, "--trials", 5)
    table = pd.read_csv(out / "trials.csv")
    assert len(table) == 5 and table[:3].equals(before)
    best = table["value"].idxmax()
    assert run_of(out)["results"]["best"] == best
    metrics = (out / "best" / "metrics.json").read_text()
    assert metrics == (out / "trials" / f"{best:03d}" / "metrics.json").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--num_train_epochs", "3"], "num_train_epochs 2.0 there, 3.0 asked for"),
        (["--pruner", "none"], "pruner 'median' there, 'none' asked for"),
        (["--space", "{mask_ratio: {low: 0.1, high: 0.2}}"], "mask_ratio"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(searched, dataset, error_of, change, message):
    out, _ = searched
    error = error_of("search", *arguments(dataset, out, *change))
    assert f"{out} holds a run with other settings" in error and message in error


def test_fine_tuning_is_searched_with_a_model(model_folder, tmp_path, capsys, error_of):
    base = copytree(model_folder, tmp_path / "base")
    dataset = write_dataset(tmp_path / "dataset", options=replace(OPTIONS, fold=1))
    argv = ["--model", base, "--dataset", dataset, "--output", tmp_path / "out", "--session", "cat", "ann"]
    options = ["--trials", 2, "--space", FINETUNE_SPACE, "--num_train_epochs", 1, *FIXED]
    assert main(["search", *map(str, [*argv, *options])]) == 0
    # Of a known session, once.
    assert capsys.readouterr().err.count("session ann (another --fold?): it may have learned from test") == 1
    out = tmp_path / "out"
    table = pd.read_csv(out / "trials.csv")
    assert list(table)[3:6] == ["mask_ratio", "strategy", "learning_rate"]
    assert table["mask_ratio"].between(0.1, 0.4).all()
    for trial, row in table.iterrows():
        configuration = run_of(out / "trials" / f"{trial:03d}")["configuration"]
        assert configuration["command"] == "finetune" and configuration["strategy"] == row["strategy"]
        assert configuration["set"] == {"mask_ratio": row["mask_ratio"]}
    assert load_model(str(out / "best"))[1].session_ids == ["ann", "bob", "cat"]
    # With a model that was trained anew it is another search.
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, base / "model.safetensors")
    assert "with other settings: model_fingerprint" in error_of("search", *argv, *options)
    assert run_of(out)["configuration"]["model"] == str(base)


def test_the_models_are_trained_on_the_splits_that_are_asked_for(dataset, tmp_path):
    search(dataset, tmp_path, "--trials", 1, "--train_splits", "train", "test")
    recordings = open_recordings(dataset)
    counts = [recordings.trials("ann", split).spike_counts for split in ("train", "test")]
    expected = np.concatenate(counts).mean((0, 1))
    np.testing.assert_allclose(load_model(str(tmp_path / "best"))[1].mean_counts("ann"), expected, atol=1e-6)


# --- what is drawn ---


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_defaults_are_those_of_the_recipe(command):
    recipe = yaml.safe_load(RECIPE.read_text())["search"][command]
    assert recipe == {"num_models": NUM_MODELS[command], "ranges": RANGES[command]}


def test_the_recipe_runs_and_what_the_command_line_sets_is_not_drawn(dataset, tmp_path):
    argv = ["--config", RECIPE, "--dataset", dataset, "--output", tmp_path, "--trials", 2, "--use_cpu"]
    sizes = ["hidden_size=16", "num_hidden_layers=1", *SIZES]
    epochs = ["--num-train-epochs=1", "--weight_decay", "0.05", "--preset", "tiny"]
    assert main(["search", *map(str, [*argv, *epochs, "--disable_tqdm", "true", "--set", *sizes])]) == 0
    table = pd.read_csv(tmp_path / "trials.csv")
    assert list(table)[3:-1] == ["mask_ratio", "learning_rate"]
    assert table["learning_rate"].between(1e-4, 1e-3).all() and table["mask_ratio"].between(0.1, 0.4).all()
    configuration = run_of(tmp_path / "trials" / "001")["configuration"]
    assert (configuration["weight_decay"], configuration["num_train_epochs"]) == (0.05, 1)
    assert configuration["model"]["hidden_size"] == 16 and configuration["scaling"] == "minus_one_one"


def test_the_space_of_a_file_and_its_number_of_models(dataset, tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(
        f"pretrain: {{dataset: {dataset}, sessions: [bob], max_steps: 2, learning_rate: 5e-3, use_cpu: true, "
        "set: {hidden_size: 16, mask_ratio: 0.3}}\n"
        "search: {pretrain: {num_models: 2, ranges: {mask_ratio: {choices: [15e-2]}}}}\n"
    )
    out = tmp_path / "out"
    argv = ["--config", str(file), "--output", str(out), "--disable_tqdm", "true", "--set", *SIZES]
    assert main(["search", *argv]) == 0
    table = pd.read_csv(out / "trials.csv")
    assert table["mask_ratio"].tolist() == [0.15, 0.15]  # the file's `set` is for what is not drawn
    assert run_of(out / "best")["configuration"]["learning_rate"] == 0.005
    assert load_model(str(out / "best"))[0].config.mask_ratio == 0.15

    space = tmp_path / "space.yaml"
    space.write_text("learning_rate:\n  choices: [1e-2]\n")
    other = tmp_path / "other"
    assert main(["search", *argv, "--output", str(other), "--space", str(space), "--trials", "1"]) == 0
    assert pd.read_csv(other / "trials.csv")["learning_rate"].tolist() == [0.01]


def test_the_sampler_and_the_seed_decide_what_is_drawn(searched, dataset, tmp_path, monkeypatch):
    first = pd.read_csv(searched[0] / "trials.csv")["learning_rate"][0]
    options = ["--trials", 1, "--max_steps", 2]
    assert search(dataset, tmp_path / "seed", *options, "--seed", 4)["learning_rate"][0] != first
    # The first ten draws of TPE are those of the other sampler.
    monkeypatch.setitem(SAMPLERS, "tpe", partial(TPESampler, n_startup_trials=0))
    assert search(dataset, tmp_path / "tpe", *options, "--sampler", "tpe")["learning_rate"][0] != first
    assert run_of(tmp_path / "tpe")["configuration"]["sampler"] == "tpe"


def test_a_bad_model_is_stopped_early(dataset, tmp_path, capsys):
    """By halving, as soon as there are two: one that learns, one whose learning rate is next to nothing."""
    space = "{learning_rate: {choices: [1e-2, 1e-12]}}"
    options = ["--pruner", "halving", "--space", space, "--num_train_epochs", 8, "--seed", 1]
    table = search(dataset, tmp_path, "--trials", 4, *options)
    printed = capsys.readouterr().out
    assert set(table["learning_rate"]) == {1e-2, 1e-12}
    stopped = table[table["state"] == "pruned"]
    assert len(stopped) and (stopped["learning_rate"] == 1e-12).any()
    for trial in stopped["trial"]:
        assert [path.name for path in (tmp_path / "trials" / f"{trial:03d}").iterdir()] == ["run.json"]
    assert printed.count(", stopped at 25 %") + printed.count(", stopped at 50 %") == len(stopped)
    assert run_of(tmp_path / "best")["configuration"]["learning_rate"] == 0.01
    assert run_of(tmp_path)["results"]["states"]["pruned"] == len(stopped)


def test_the_lowest_loss_can_be_what_is_best(dataset, tmp_path):
    table = search(dataset, tmp_path, "--trials", 2, "--metric_for_best_model", "eval_loss")
    assert run_of(tmp_path)["results"]["best_validation"] == table["value"].min() > 0


def test_only_the_best_is_pushed(dataset, tmp_path):
    argv = arguments(dataset, tmp_path / "out", "--trials", 2, "--push_to_hub", "--hub_model_id", "lab/neds")
    with Hub() as hub:
        done = neds(hub.environment(tmp_path / "home", token="hf_lab"), "search", *argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(hub.commits("model", "lab/neds")) == 1
    assert hub.files("model", "lab/neds")["run.json"] == (tmp_path / "out/best/run.json").read_bytes()


def test_an_adapter_of_a_local_model_with_push_to_hub_is_refused_before_any_training(
    model_folder, dataset, tmp_path, error_of
):
    argv = ["--model", model_folder, "--dataset", dataset, "--output", tmp_path / "out", "--session", "cat"]
    push = ["--push_to_hub", "--hub_model_id", "lab/adapter", "--trials", 2]
    rates = "learning_rate: {low: 1e-3, high: 3e-2}"
    for more in (
        ["--strategy", "lora", "--space", f"{{{rates}}}"],
        ["--space", f"{{{rates}, strategy: {{choices: [full, lora]}}}}"],
    ):
        assert "which only this machine has" in error_of("search", *argv, *push, *more, *FIXED)
        assert not (tmp_path / "out").exists()


# --- kills ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset):
    """A search that nothing interrupts, and its options."""
    out = tmp_path_factory.mktemp("whole") / "out"
    options = ["--trials", 3, "--num_train_epochs", 6, "--pruner", "none"]
    search(dataset, out, *options)
    return out, options


def test_a_search_that_is_killed_twice_goes_on_and_ends_as_one_that_was_not(dataset, tmp_path, whole):
    expected, options = whole
    out = tmp_path / "out"
    argv = arguments(dataset, out, *options)
    for place in (out / "trials" / "001", out / "best"):
        killed_on_writing(f"{place}/checkpoint-9/trainer_state.json", "search", argv)
        assert "finished" not in run_of(place)
        first = (out / "trials" / "000" / "run.json").read_text()
    assert main(["search", *argv]) == 0
    assert (out / "trials" / "000" / "run.json").read_text() == first
    for place in (out / "trials" / "001", out / "best"):
        summary = json.loads((place / "trainer_state.json").read_text())["log_history"][-1]
        steps = summary["train_steps_per_second"] * summary["train_runtime"]
        assert steps == pytest.approx(18 - 6, abs=0.3)  # it went on from its last whole checkpoint
    assert (out / "trials.csv").read_text() == (expected / "trials.csv").read_text()
    for name in ("model.safetensors", "metrics.json"):
        assert (out / "best" / name).read_bytes() == (expected / "best" / name).read_bytes()
    assert run_of(out)["results"] == run_of(expected)["results"]


# --- what is wrong ---


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ["--space", "{hiden_size: {choices: [8]}}"],
            "--space: 'hiden_size' cannot be drawn; what can: bins",
        ),
        (["--space", "{data_seed: {choices: [1]}}"], "--space: 'data_seed' cannot be drawn"),
        (["--space", "{strategy: {choices: [full]}}"], "--space: 'strategy' cannot be drawn"),
        (["--space", "{mask_ratio: [0.1, 0.4]}"], "--space: mask_ratio: expected {choices: [...]} or {low"),
        (["--space", "{mask_ratio: {low: 0.4, high: 0.1}}"], "mask_ratio: expected {choices: [...]} or {low"),
        (["--space", "{hidden_size: {low: 8.5, high: 16}}"], "hidden_size: invalid literal for int()"),
        (["--space", "{tied_units: {low: 0, high: 1}}"], "tied_units: expected {choices: [...]}, not"),
        (["--space", "{preset: {low: 0, high: 1}}"], "preset: expected {choices: [...]}, not"),
        (["--space", "{preset: {choices: [tiny, huge]}}"], "'huge' is none of tiny, compact, small, base"),
        (["--space", "{adam_beta1: {choices: [0.1, none]}}"], "could not convert string to float: 'none'"),
        (["--space", "{mask_ratio: {low: 0.1"], "{mask_ratio: {low: 0.1: expected YAML (while"),
        (["--space", "space.yaml"], "--space: expected a mapping of settings to what they are drawn from"),
        (["--space", "{}"], "--space: expected settings to draw that the command line does not set"),
        (["--learning_rate", "1e-3"], "learning_rate: to be drawn by --space, but set on the command line"),
        (["--set", "hidden_size=8"], "hidden_size: to be drawn by --space, but set on the command line"),
        (["--trials", "0"], "expected a number of models of at least 1, not 0"),
        (["--eval_strategy", "no", "--load_best_model_at_end", "false"], "a search chooses by validation"),
        (["--train_splits", "train", "validation"], "and --train_splits without validation"),
        (["--sessions", "eve"], "does not have session eve"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--dataset_config", "nights"], "is no dataset with a configuration 'nights'"),
        (["--strategy", "full"], "--strategy"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(dataset, tmp_path, error_of, change, message):
    error = error_of("search", *arguments(dataset, tmp_path / "out"), *change)
    assert error.startswith("neds search: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("search: {}", "expected a section 'pretrain', a mapping"),
        ("pretrain: {}\nsearch: [1]", "expected in section 'search' a mapping 'pretrain' of ranges and num_"),
        ("pretrain: {}\nsearch: {finetune: {}}", "expected in section 'search' a mapping 'pretrain'"),
        (
            "pretrain: {}\nsearch: {pretrain: {models: 3}}",
            "expected in section 'search' a mapping 'pretrain'",
        ),
        ("pretrain: {}\nsearch: {pretrain: {num_models: few}}", "of at least 1, not 'few'"),
        ("pretrain: {}\nsearch: {pretrain: {ranges: [1]}}", "ranges: expected a mapping of settings"),
        ("pretrain: {}\nsearch: {pretrain: {ranges: {depth: {}}}}", "ranges: 'depth' cannot be drawn"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(dataset, tmp_path, error_of, text, message):
    file = tmp_path / "search.yaml"
    file.write_text(text)
    argv = ["--config", file, "--dataset", dataset, "--output", tmp_path / "out", "--max_steps", 1]
    assert message in error_of("search", *argv)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(dataset, tmp_path, error_of):
    (tmp_path / "file").touch()
    assert error_of("search", *arguments(dataset, tmp_path / "file" / "out")).endswith(
        f"cannot be written: {tmp_path / 'file'} is no folder"
    )


def test_a_dataset_without_validation_trials_is_refused(tmp_path, error_of):
    dataset = without_validation(write_dataset(tmp_path / "dataset", ["ann"]))
    error = error_of("search", *arguments(dataset, tmp_path / "out"))
    assert "has no split 'validation'" in error


def test_a_metric_that_there_is_not_is_said_before_the_first_model_is_trained(dataset, tmp_path, error_of):
    error = error_of("search", *arguments(dataset, tmp_path, "--metric_for_best_model", "accuracy"))
    assert "--metric_for_best_model: there is no 'accuracy'" in error


def test_a_model_that_cannot_be_made_is_named_with_its_settings(dataset, tmp_path, error_of):
    argv = arguments(dataset, tmp_path, "--trials", 2, "--space", "{bins_per_token: {choices: [3]}}")
    argv = [word for word in argv if word != "bins_per_token=5"]
    error = error_of("search", *argv)
    assert error.startswith(
        "neds search: bins_per_token 3: the model cannot be configured so: num_bins 20 is not a multiple of "
    )
    # Its folder is free for another search.
    error = error_of("search", *argv, "--space", "{bins_per_token: {choices: [7]}}")
    assert "neds search: bins_per_token 7: the model cannot be configured so: " in error


def test_models_that_diverge_fail_alone(dataset, tmp_path, capsys):
    argv = [*arguments(dataset, tmp_path, "--trials", 2), "--max_grad_norm", "0"]
    argv[argv.index("--space") + 1] = "{learning_rate: {low: 1e6, high: 1e7}}"
    assert main(["search", *argv]) == 2
    printed = capsys.readouterr()
    assert "none of 2 models could be trained: training diverged" in printed.err
    assert printed.out.count("failed: training diverged") == 2


@pytest.mark.parametrize(
    "package, more, extra", [("optuna", [], "search"), ("matplotlib", [], "search"), ("ray", ["ray"], "ray")]
)
def test_what_is_not_installed_is_named_with_its_extra(
    dataset, tmp_path, error_of, monkeypatch, package, more, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    argv = arguments(dataset, tmp_path / "out", *(["--backend", *more] if more else []))
    error = error_of("search", *argv)
    assert f"the search needs {package}: pip install 'neds_hf[{extra}]'" in error


@pytest.mark.parametrize("flag", ["--sampler", "--pruner", "--backend"])
def test_what_is_not_a_choice_is_a_usage_error(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["search", "--dataset", "there", "--output", "out", flag, "best"])
    assert "usage: neds search" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, kind, other", [([], PretrainSearch, "strategy"), (["--model=m"], FinetuneSearch, "preset")]
)
def test_the_help_lists_every_flag_with_its_meaning(capsys, model, kind, other):
    with pytest.raises(SystemExit, match="0"):
        main(["search", *model, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in kind.__dataclass_fields__.items():
        assert f"--{name}" in text and field.metadata["help"].split("(")[0].strip(". ")[:60] in text
    assert f"--{other}" not in text and "--config FILE" in text and "With --model" in text


# --- on a cluster ---


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(600)
def test_ray_trains_the_same_models(dataset, tmp_path, whole):
    expected, options = whole
    table = search(dataset, tmp_path / "out", *options, "--backend", "ray")
    columns = ["state", "value", "hidden_size", "num_hidden_layers", "learning_rate"]
    assert table[columns].equals(pd.read_csv(expected / "trials.csv", dtype={"hidden_size": str})[columns])
    assert (tmp_path / "out/best/metrics.json").read_text() == (expected / "best/metrics.json").read_text()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(600)
def test_on_ray_bad_models_are_stopped_and_impossible_ones_fail(dataset, tmp_path):
    space = "{learning_rate: {choices: [1e-2, 1e-12]}, num_attention_heads: {choices: [2, 3]}}"
    options = ["--pruner", "halving", "--num_train_epochs", 8, "--seed", 1, "--trials", 6]
    argv = arguments(dataset, tmp_path, *options, "--backend", "ray", "--space", space)
    argv.remove("num_attention_heads=2")
    assert main(["search", *argv]) == 0
    table = pd.read_csv(tmp_path / "trials.csv")
    assert ((table["state"] == "fail") == (table["num_attention_heads"] == 3)).all()
    assert (
        table["reason"].dropna().str.contains("hidden_size 64 is not a multiple of twice the 3 heads").all()
    )
    assert set(table["state"]) == {"complete", "pruned", "fail"}
    assert table["learning_rate"][table["value"].idxmax()] == 1e-2


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_draws_at_random_only(dataset, tmp_path, error_of):
    error = error_of("search", *arguments(dataset, tmp_path, "--backend", "ray", "--sampler", "tpe"))
    assert "which only --sampler random can" in error
