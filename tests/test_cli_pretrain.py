"""`neds pretrain`: every flag of its own, its errors and its exit status."""

import json

import pytest
from small_dataset import SIZES, pretrain_arguments, write_dataset

from neds_hf.cli.main import main
from neds_hf.cli.pretrain import PretrainArguments
from neds_hf.models import NEDSConfig
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.training.sessions import load_model


def pretrain(dataset, out, *more) -> NEDSConfig:
    """Two steps of pretraining; the configuration of the model that they make."""
    assert main(["pretrain", *pretrain_arguments(dataset, out), "--max_steps", "2", *more]) == 0
    return NEDSConfig.from_pretrained(out)


def error_of(capsys, *argv) -> str:
    """The one line that a wrong call prints."""
    assert main(["pretrain", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


def test_all_sessions_are_trained_on_by_default(dataset, tmp_path):
    config = pretrain(dataset, tmp_path)
    assert config.session_ids == ["ann", "bob", "cat"] and config.unit_counts == [5, 9, 5]
    assert (config.num_bins, config.hidden_size, config.mask_ratio) == (20, 16, 0.3)
    model, processor = load_model(str(tmp_path))
    assert processor.session_ids == model.config.session_ids


def test_the_sessions_of_a_configuration(dataset, tmp_path):
    assert pretrain(dataset, tmp_path, "--dataset_config", "pretrain").session_ids == ["ann", "bob"]


def test_named_sessions_in_the_order_of_the_dataset(dataset, tmp_path):
    config = pretrain(dataset, tmp_path, "--sessions", "cat", "ann")
    assert config.session_ids == ["ann", "cat"] and config.unit_counts == [5, 5]


def test_a_preset_gives_the_sizes_that_are_not_set(dataset, tmp_path):
    sizes = "hidden_size=16 num_attention_heads=2 intermediate_size=16".split()
    config = pretrain(dataset, tmp_path, "--preset", "small", "--set", *sizes)
    assert config.num_hidden_layers == PRESETS["small"]["num_hidden_layers"]
    assert config.attention_dropout == PRESETS["small"]["attention_dropout"]
    assert config.hidden_size == 16 and config.bins_per_token == 1


def test_values_of_any_kind_can_be_set(dataset, tmp_path):
    config = pretrain(
        *(dataset, tmp_path, "--set", *SIZES),
        *("temporal_embedding=false", "categorical_tokens=bin", "layer_norm_eps=1e-6"),
        *('scheme_weights={"encoding": 2, "decoding": 1}', 'loss_weights={"spikes": 0.5}'),
    )
    assert config.temporal_embedding is False and config.categorical_tokens == "bin"
    assert config.layer_norm_eps == 1e-6 and config.loss_weights == {"spikes": 0.5}
    assert config.scheme_weights == {"encoding": 2, "decoding": 1}


def test_the_seed_decides_the_weights(dataset, tmp_path):
    runs = {name: tmp_path / name for name in ("one", "same", "other")}
    for name, out in runs.items():
        pretrain(dataset, out, "--sessions", "ann", "--seed", "4" if name == "other" else "3")
    one, same, other = ((out / "model.safetensors").read_bytes() for out in runs.values())
    assert one == same != other


def test_a_dataset_without_a_behaviour_makes_a_model_without_it(tmp_path):
    out = tmp_path / "model"
    config = pretrain(write_dataset(tmp_path / "dataset", ["bob"]), out)
    assert list(config.behaviors) == ["choice", "block", "wheel_speed"]
    assert "whisker_motion_energy_r2" not in json.loads((out / "metrics.json").read_text())["mean"]


@pytest.mark.parametrize(
    "change, message",
    [
        (["--sessions", "ann", "eve"], "does not have session eve"),
        (["--dataset_config", "nights"], "is no dataset with a configuration 'nights'"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--set", "hiden_size=8"], "--set takes NAME=VALUE with a name of NEDSConfig"),
        (["--set", "hidden_size"], "not 'hidden_size'"),
        (["--set", "num_bins=10"], "that the data do not give, not 'num_bins=10'"),
        (["--set", *SIZES, "bins_per_token=3"], "num_bins 20 is not a multiple of bins_per_token 3"),
        (["--set", *SIZES, "hidden_size=big"], "hidden_size"),
        (["--save_strategy", "steps"], "requires the save and eval strategy to match"),
        (["--hiden_size", "8"], "--hiden_size"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(dataset, tmp_path, capsys, change, message):
    error = error_of(capsys, *pretrain_arguments(dataset, tmp_path / "out"), *change)
    assert error.startswith("neds pretrain: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [["--output", "out"], ["--dataset", "somewhere"], ["--preset", "huge"]])
def test_what_is_missing_or_not_a_choice_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", *argv])
    assert "usage: neds pretrain" in capsys.readouterr().err


def test_the_help_lists_every_flag_with_its_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in PretrainArguments.__dataclass_fields__.items():
        assert f"--{name}" in text and field.metadata["help"].split("(")[0].strip(". ") in text
    assert "--output" in text and "--seed" in text and "--push_to_hub" in text
