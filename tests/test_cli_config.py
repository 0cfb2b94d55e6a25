"""`--config FILE`: options from YAML files, where the command line wins over them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from alf_folder import write_camera
from small_dataset import TRAINING
from tiny_alf import write_session

from neds_hf.cli.main import main
from neds_hf.models import NEDSConfig
from neds_hf.training.sessions import load_model

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "configs"
SHORT = "--num_train_epochs 1 --per_device_train_batch_size 8 --use_cpu --disable_tqdm true".split()
SMALL = "hidden_size=16 intermediate_size=32 num_hidden_layers=1 num_attention_heads=2".split()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def configuration(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["configuration"]


# --- what reaches the commands ---


@pytest.fixture(scope="module")
def from_file(tmp_path_factory, dataset):
    """A run of which the file says everything, and the command line some of it otherwise."""
    folder = tmp_path_factory.mktemp("config")
    text = f"""
        # other commands' sections are left alone, whatever they hold
        build: {{no_such_option: 1}}
        search: [1, 2]
        pretrain:
          dataset: {dataset}
          output: {folder / "model"}
          sessions: [ann, bob]
          learning-rate: 2e-3         # text in YAML 1.1
          weight_decay: 1e-1
          num_train_epochs: 7
          max_steps: 2
          per_device_train_batch_size: 8
          eval_strategy: no           # false in YAML 1.1
          save_strategy: no
          load_best_model_at_end: false
          use_cpu: yes
          disable_tqdm: true
          lr_scheduler_type: linear
          scaling: zero_one
          set:
            hidden_size: 32
            intermediate_size: 32
            num_hidden_layers: 1
            num_attention_heads: 2
            bins_per_token: 5
            mask_ratio: 3e-1
            layer_norm_eps: 1e-6
            tied_units: False
            categorical_tokens: bin
            scheme_weights: {{encoding: 2, decoding: 5e-1}}
            loss_weights:
              spikes: 0.5
    """
    file = write(folder / "all.yaml", text)
    overridden = ["--weight_decay", "0.2", "--set", "hidden_size=16", "unit_dropout=0.25"]
    assert main(["pretrain", "--seed", "5", "--config", file, *overridden]) == 0
    return folder / "model"


def test_values_of_the_file_are_used_and_the_command_line_wins(from_file):
    run = configuration(from_file)
    assert run["learning_rate"] == 0.002 and run["weight_decay"] == 0.2
    assert (run["seed"], run["max_steps"], run["train_batch_size"]) == (5, 2, 8)
    assert run["sessions"] == ["ann", "bob"] and run["scaling"] == "zero_one"
    assert run["eval_strategy"] == "no" and run["lr_scheduler_type"] == "linear"
    assert run["load_best_model_at_end"] is False


def test_what_is_set_wins_name_by_name(from_file):
    config = NEDSConfig.from_pretrained(from_file)
    assert (config.hidden_size, config.unit_dropout) == (16, 0.25)  # of the command line
    assert (config.intermediate_size, config.mask_ratio, config.layer_norm_eps) == (32, 0.3, 1e-6)
    assert config.tied_units is False and config.categorical_tokens == "bin"
    assert config.scheme_weights == {"encoding": 2, "decoding": 0.5}
    assert config.loss_weights == {"spikes": 0.5}


def test_finetune_reads_its_own_section(tmp_path, dataset, model_folder):
    text = f"""
        pretrain: {{strategy: unheard-of}}
        finetune:
          model: {model_folder}
          dataset: {dataset}
          session: cat
          strategy: session
          max_steps: 1
          set: {{mask_ratio: 0.45, unit_dropout: 0.05}}
    """
    file = write(tmp_path / "finetune.yaml", text)
    out = tmp_path / "out"
    argv = ["finetune", f"--config={file}", "--output", str(out), "--set", "mask_ratio=0.5", *TRAINING]
    assert main(argv) == 0
    run = configuration(out)
    assert (run["strategy"], run["max_steps"], run["sessions"]) == ("session", 1, ["cat"])
    assert run["set"] == {"mask_ratio": 0.5, "unit_dropout": 0.05}
    config = load_model(str(out))[0].config
    assert (config.mask_ratio, config.unit_dropout) == (0.5, 0.05)


def test_build_reads_its_own_section(tmp_path):
    write_session(tmp_path / "one", "mouse")
    text = f"""
        build:
          alf: {tmp_path / "one"}
          window: [-2e-1, 0.4]
          bin-size: 0.05
          min_rate: 1
          reaction_time: [0.1, 1]
          split: blocked
          workers: 1
    """
    file = write(tmp_path / "build.yaml", text)
    assert main(["build", str(tmp_path / "out"), "--config", file, "--min-rate", "0"]) == 0
    (row,) = pq.read_table(next((tmp_path / "out" / "sessions").glob("*"))).to_pylist()
    assert (row["window_start_s"], row["window_end_s"], row["num_bins"]) == (-0.2, 0.4, 12)
    options = json.loads(row["provenance"])["options"]
    assert (options["min_rate_hz"], options["split"]) == (0.0, "blocked")
    assert options["reaction_time_s"] == [0.1, 1.0]


def test_a_source_of_the_command_line_replaces_that_of_the_file(tmp_path):
    meta = {"session": "s1", "bin_size_s": 0.1, "align_event": "go", "window_s": [0.0, 0.4]}
    counts = np.ones((20, 4, 2), np.uint8)
    np.savez(tmp_path / "s1.npz", meta=json.dumps(meta), spike_counts=counts)
    file = write(tmp_path / "build.yaml", "build: {alf: nowhere, seed: 3}")
    argv = ["build", str(tmp_path / "out"), "--arrays", str(tmp_path / "s1.npz"), "--config", file]
    assert main(argv) == 0
    assert [path.stem for path in (tmp_path / "out" / "sessions").iterdir()] == ["s1"]


# --- what is wrong with a file ---


@pytest.mark.parametrize(
    "command, text, message",
    [
        ("pretrain", "pretrain: [", "expected a YAML file (while parsing"),
        ("pretrain", "pretrain", "expected a section 'pretrain', a mapping"),
        ("pretrain", "", "expected a section 'pretrain', a mapping"),
        ("pretrain", "finetune: {seed: 1}", "expected a section 'pretrain', a mapping"),
        ("pretrain", "pretrain: [seed]", "expected a section 'pretrain', a mapping"),
        ("pretrain", "pretrain: {hiden_size: 8}", "`neds pretrain` has no option 'hiden_size'"),
        ("pretrain", "pretrain: {strategy: full}", "`neds pretrain` has no option 'strategy'"),
        ("pretrain", "pretrain: {config: other.yaml}", "`neds pretrain` has no option 'config'"),
        ("pretrain", "pretrain: {help: true}", "`neds pretrain` has no option 'help'"),
        ("build", "build: {preset: tiny}", "`neds build` has no option 'preset'"),
        ("build", "build: {set: {hidden_size: 8}}", "`neds build` has no option 'set'"),
        ("build", "build: {out: here}", "`neds build` has no option 'out'"),
        ("pretrain", "pretrain: {seed: big}", "seed of section 'pretrain': invalid literal for int()"),
        (
            "pretrain",
            "pretrain: {learning_rate: }",
            "learning_rate of section 'pretrain': expected one value",
        ),
        ("pretrain", "pretrain: {learning_rate: [1, 2]}", "expected one value, not ['1', '2']"),
        ("pretrain", "pretrain: {learning_rate: {a: 1}}", "expected one value, not {'a': '1'}"),
        ("pretrain", "pretrain: {sessions: []}", "expected values, not []"),
        ("pretrain", "pretrain: {sessions: [[ann]]}", "expected values, not [['ann']]"),
        ("pretrain", "pretrain: {use_cpu: 3}", "use_cpu of section 'pretrain': Truthy value expected: got 3"),
        ("pretrain", "pretrain: {preset: huge}", "'huge' is none of tiny, compact, small, base"),
        ("pretrain", "pretrain: {set: mask_ratio=0.1}", "expected a mapping of names to values"),
        ("pretrain", "pretrain: {set: {hiden_size: 8}}", "not 'hiden_size=8'; the names are bins_per_token"),
        ("finetune", "finetune: {set: {hidden_size: 8}}", "not 'hidden_size=8'; the names are mask_ratio"),
        ("build", "build: {window: 1}", "window of section 'build': expected 2 values, not '1'"),
        ("build", "build: {window: [0, a]}", "could not convert string to float: 'a'"),
        ("build", "build: {alf: a, arrays: b}", "alf and arrays of section 'build' exclude each other"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path, error_of, command, text, message):
    file = write(tmp_path / "file.yaml", text)
    error = error_of(command, "--config", file)
    assert error.startswith(f"neds {command}: {file}: ") and message in error


def test_a_file_that_is_none_is_named(tmp_path, error_of):
    missing = tmp_path / "none.yaml"
    assert f"{missing}: expected a YAML file" in error_of("pretrain", "--config", missing)
    assert f"{tmp_path}: expected a YAML file" in error_of("build", "--config", tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    assert "binary: expected a YAML file" in error_of("finetune", "--config", tmp_path / "binary")


def test_a_value_that_the_model_does_not_take_is_refused(tmp_path, dataset, error_of):
    file = write(tmp_path / "file.yaml", "pretrain: {set: {hidden_size: 2020-99-99}}")
    where = ["--dataset", dataset, "--output", tmp_path / "out"]
    assert "hidden_size" in error_of("pretrain", *where, "--config", file)


@pytest.mark.parametrize("command", ["build", "pretrain", "finetune"])
def test_what_neither_gives_is_still_required(tmp_path, capsys, command):
    file = write(tmp_path / "file.yaml", f"{command}: {{seed: 1}}")
    with pytest.raises(SystemExit, match="2"):
        main([command, "--config", file])
    assert "required: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([command, "--config"])
    assert "argument --config: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "pretrain", "finetune"])
def test_abbreviated_options_are_refused(capsys, command):
    """Or `--conf FILE` would be read, and its file would not."""
    argv = [command, "out"] if command == "build" else [command, "--output", "out", "--dataset", "there"]
    argv += {"build": ["--alf", "a"], "pretrain": [], "finetune": ["--model", "m", "--session", "s"]}[command]
    try:
        assert main([*argv, "--conf", "file.yaml"]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert "--conf" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "pretrain", "finetune"])
def test_the_help_says_it(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"--config FILE YAML file with options in a section `{command}:`" in text


# --- the paper's recipes, with the sizes and epochs of a test ---


def recipes(command: str) -> list[Path]:
    return [file for file in sorted(RECIPES.glob("*.yaml")) if command in yaml.safe_load(file.read_text())]


def check_run(folder: Path, file: Path, command: str) -> None:
    """The run's settings are those of the recipe, but for `SHORT` and `SMALL`."""
    section = yaml.safe_load(file.read_text())[command]
    values = section.pop("set", {})
    run, config = configuration(folder), NEDSConfig.from_pretrained(folder)
    if "lr_scheduler_kwargs" in section:
        section["lr_scheduler_kwargs"] = json.loads(section["lr_scheduler_kwargs"])
    names = [name for name in section if name in run and f"--{name}" not in SHORT]
    assert len(names) >= 3
    assert {name: run[name] for name in names} == {name: section[name] for name in names}
    assert {name: getattr(config, name) for name in values} == values
    assert (config.hidden_size, config.num_hidden_layers) == (16, 1)


@pytest.mark.parametrize("file", recipes("build"), ids=lambda file: file.stem)
def test_recipes_build(tmp_path, file):
    alf = write_session(tmp_path / "one", "mouse") / "alf"
    write_camera(alf, "left")
    write_camera(alf, "right")
    where = [str(tmp_path / "out"), "--alf", str(tmp_path / "one"), "--workers", "1"]
    assert main(["build", *where, "--config", str(file)]) == 0
    (row,) = pq.read_table(next((tmp_path / "out" / "sessions").glob("*"))).to_pylist()
    options = json.loads(row["provenance"])["options"]
    recipe = yaml.safe_load(file.read_text())["build"]
    assert options["reaction_time_s"] == recipe["reaction_time"]
    assert options["min_rate_hz"] == recipe["min_rate"]
    assert options["whisker_camera"] == recipe.get("whisker_camera", "left")


@pytest.mark.parametrize("file", recipes("pretrain"), ids=lambda file: file.stem)
def test_recipes_pretrain(tmp_path, dataset, file):
    where = ["--dataset", str(dataset), "--output", str(tmp_path)]
    assert main(["pretrain", *where, "--config", str(file), *SHORT, "--set", *SMALL]) == 0
    check_run(tmp_path, file, "pretrain")


@pytest.mark.parametrize("file", recipes("finetune"), ids=lambda file: file.stem)
def test_recipes_fine_tune(tmp_path, dataset, model_folder, file):
    where = ["--dataset", str(dataset), "--session", "cat", "--model", str(model_folder)]
    assert main(["finetune", *where, "--output", str(tmp_path), "--config", str(file), *SHORT]) == 0
    check_run(tmp_path, file, "finetune")
