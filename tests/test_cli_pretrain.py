"""`neds pretrain`: every flag of its own, its errors and its exit status."""

import json

import numpy as np
import pytest
import torch
from small_dataset import OF_MODEL, SIZES, TRAINING, pretrain_arguments, without_validation, write_dataset

from neds_hf.cli.main import main
from neds_hf.cli.pretrain import PretrainArguments
from neds_hf.data.recordings import open_recordings
from neds_hf.models import NEDSConfig, modeling_neds
from neds_hf.models.configuration_neds import PRESETS
from neds_hf.models.modeling_neds import eager_attention
from neds_hf.training.sessions import load_model


def pretrain(dataset, out, *more) -> NEDSConfig:
    """Two steps of pretraining; the configuration of the model that they make."""
    assert main(["pretrain", *pretrain_arguments(dataset, out), "--max_steps", "2", *more]) == 0
    return NEDSConfig.from_pretrained(out)


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
    where = ["--dataset", str(dataset), "--output", str(tmp_path)]
    argv = [*where, *TRAINING, "--max_steps", "2", "--preset", "small", "--set", *sizes]
    assert main(["pretrain", *argv]) == 0
    config = NEDSConfig.from_pretrained(tmp_path)
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


def test_what_is_set_adds_up_and_the_last_of_a_name_counts(dataset, tmp_path):
    config = pretrain(dataset, tmp_path, "--set", "mask_ratio=0.2", "--set", "hidden_dropout=0.1")
    assert (config.hidden_size, config.mask_ratio, config.hidden_dropout) == (16, 0.2, 0.1)


def test_the_scaling_of_behaviours_is_that_of_the_training_trials_and_saved(dataset, tmp_path):
    pretrain(dataset, tmp_path, "--sessions", "ann", "--scaling", "minus_one_one")
    _, processor = load_model(str(tmp_path))
    train = open_recordings(dataset).trials("ann", "train").continuous["whisker_motion_energy"]
    scaled = processor.scale("ann", "whisker_motion_energy", train)
    assert (scaled.min(), scaled.max()) == pytest.approx((-1, 1), abs=1e-6)
    assert processor.scaling == "minus_one_one"
    assert json.loads((tmp_path / "run.json").read_text())["configuration"]["scaling"] == "minus_one_one"


def test_another_scaling_is_another_run(model_folder, dataset, error_of):
    argv = [*pretrain_arguments(dataset, model_folder), *OF_MODEL, "--scaling", "zero_one"]
    error = error_of("pretrain", *argv)
    assert "scaling 'z_score' there, 'zero_one' asked for" in error


def test_the_seed_decides_the_weights(dataset, tmp_path):
    runs = {name: tmp_path / name for name in ("one", "same", "other")}
    for name, out in runs.items():
        pretrain(dataset, out, "--sessions", "ann", "--seed", "4" if name == "other" else "3")
    one, same, other = ((out / "model.safetensors").read_bytes() for out in runs.values())
    assert one == same != other


def test_the_rows_of_units_have_a_weight_decay_of_their_own(dataset, tmp_path):
    """The second of two steps, at the peak of the learning rate: 0.01 times 50 halves them."""
    norms = []
    for decay in ("0", "50"):
        pretrain(dataset, tmp_path / decay, "--sessions", "ann", "--unit_weight_decay", decay)
        norms.append(load_model(str(tmp_path / decay))[0].unit_embedding.weight.norm().item())
    assert norms[1] == pytest.approx(norms[0] / 2, rel=0.01)


@pytest.mark.parametrize(
    "options, attention",
    [
        ([], "sdpa"),
        (["--bf16"], "eager"),  # the faster one there on a CPU
        (["--attn_implementation", "eager"], "eager"),
        (["--bf16", "--attn_implementation", "sdpa"], "sdpa"),
    ],
)
def test_the_attention_is_the_one_asked_for_or_the_fastest(
    dataset, tmp_path, monkeypatch, options, attention
):
    shapes = []

    def noted(module, query, *args, **kwargs):
        shapes.append(query.shape)
        return eager_attention(module, query, *args, **kwargs)

    monkeypatch.setattr(modeling_neds, "eager_attention", noted)
    pretrain(dataset, tmp_path, "--sessions", "ann", *options)
    assert bool(shapes) == (attention == "eager")
    configuration = json.loads((tmp_path / "run.json").read_text())["configuration"]
    assert configuration["attn_implementation"] == attention


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
def test_bf16_needs_no_other_option_on_a_cpu(dataset, tmp_path):
    argv = [option for option in pretrain_arguments(dataset, tmp_path) if option != "--use_cpu"]
    assert main(["pretrain", *argv, "--max_steps", "2", "--bf16"]) == 0
    (logged,) = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][:1]
    assert np.isfinite(logged["loss"])
    assert load_model(str(tmp_path))[0].dtype == torch.float32  # the weights themselves


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
        (
            ["--set", "hiden_size=8"],
            "--set takes NAME=VALUE, not 'hiden_size=8'; the names are bins_per_token",
        ),
        (["--set", "hidden_size"], "not 'hidden_size'"),
        (
            ["--set", "num_bins=10"],
            "--set takes NAME=VALUE, not 'num_bins=10'; the names are bins_per_token, ",
        ),
        (["--set", *SIZES, "scheme_weights={encoding"], "scheme_weights"),
        (["--set", *SIZES, "bins_per_token=3"], "num_bins 20 is not a multiple of bins_per_token 3"),
        (["--set", *SIZES, "hidden_size=big"], "hidden_size"),
        (["--save_strategy", "steps"], "requires the save and eval strategy to match"),
        (["--hiden_size", "8"], "--hiden_size"),
        (["--attn_implementation", "fast"], "--attn_implementation: "),
        (
            ["--metric_for_best_model", "accuracy"],
            "there is no 'accuracy'; there are, also as eval_NAME: bits_",
        ),
        (["--metric_for_best_model", "eve/mean"], "there is no 'eve/mean'"),
        (["--resume_from_checkpoint", "true"], "--resume_from_checkpoint: true is no whole checkpoint"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1, not 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be at least 1, not 0"),
        (["--learning_rate", "-1"], "--learning_rate must be finite and not negative, but is -1.0"),
        (["--weight_decay", "nan"], "--weight_decay must be finite and not negative, but is nan"),
        (["--mixup", "inf"], "--mixup must be finite and not negative, but is inf"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers must be finite and not negative"),
        (["--adam_beta1", "2"], "--adam_beta1 must be at least 0 and below 1, not 2.0"),
        (["--seed", "-1"], "--seed must be from 0 to 2**32 - 1, not -1"),
        (["--num_train_epochs", "0"], "--num_train_epochs must be finite and above 0, but is 0.0"),
        (["--max_steps", "0"], "--max_steps must be at least 1, not 0"),
        (["--label_smoothing_factor", "0.1"], "smoothed by --set label_smoothing=VALUE"),
        (["--auto_find_batch_size"], "with more --gradient_accumulation_steps are the same"),
        (["--dataloader_drop_last"], "--dataloader_drop_last cannot be used: batches are whole"),
        (["--neftune_noise_alpha", "5"], "--neftune_noise_alpha cannot be used: there is no vocabulary"),
        (["--debug", "underflow_overflow"], "--debug cannot be used: it takes no boolean masks"),
        (["--save_only_model"], "--save_only_model cannot be used: a run that is cut off goes on from"),
        (["--use_liger_kernel"], "--use_liger_kernel cannot be used"),
        (["--remove_unused_columns"], "--remove_unused_columns cannot be used: every column"),
        (["--train_sampling_strategy", "group_by_length"], "all trials are of one length"),
        (
            ["--optim_args", "eps=1e-6"],
            "--optim_args: adamw_torch_fused takes none; its settings are --adam_beta1",
        ),
        (["--fsdp", "full_shard"], "--fsdp divides a model among several processes"),
        (
            ["--report_to", "carrier_pigeon"],
            "--report_to: no carrier_pigeon is installed; loggers that are: ",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(dataset, tmp_path, error_of, change, message):
    error = error_of("pretrain", *pretrain_arguments(dataset, tmp_path / "out"), *change)
    assert error.startswith("neds pretrain: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--optim", "adamw_anyprecision"], "--optim adamw_anyprecision: "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "One of min_lr or min_lr_rate should be set"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "missing 1 required positional argument"),
    ],
)
def test_an_optimizer_or_schedule_that_cannot_be_is_one_line(dataset, tmp_path, error_of, change, message):
    assert message in error_of(
        "pretrain", *pretrain_arguments(dataset, tmp_path), "--sessions", "ann", *change
    )


def test_a_training_that_diverges_ends_with_one_line(dataset, tmp_path, capsys):
    argv = [*pretrain_arguments(dataset, tmp_path), "--sessions", "ann", "--learning_rate", "1e6"]
    assert main(["pretrain", *argv, "--max_grad_norm", "0"]) == 2
    assert "neds pretrain: training diverged: by step " in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "argv", [["--output", "out"], ["--dataset", "somewhere"], ["--preset", "huge"], ["--scaling", "log"]]
)
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
    assert "in one commit, when the run is finished" in text


def test_that_no_evaluation_chose_a_checkpoint_is_said(dataset, tmp_path, capsys):
    argv = [*pretrain_arguments(dataset, tmp_path), "--sessions", "ann", "--num_train_epochs", "1"]
    assert main(["pretrain", *argv, "--eval_delay", "9"]) == 0
    said = f"{tmp_path}: no evaluation gave eval_mean, so the last checkpoint is kept"
    assert said in capsys.readouterr().err.splitlines()
    assert (tmp_path / "model.safetensors").exists()


def test_validation_trials_can_be_trained_on_too(dataset, tmp_path):
    """Means and scales are then of both parts; the last checkpoint is kept, as there is nothing to choose by."""
    pretrain(dataset, tmp_path, "--train_splits", "train", "validation")
    recordings = open_recordings(str(dataset))
    parts = [recordings.trials("bob", split).spike_counts for split in ("train", "validation")]
    expected = np.concatenate(parts).mean((0, 1))
    np.testing.assert_allclose(load_model(str(tmp_path))[1].mean_counts("bob"), expected, atol=1e-6)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["configuration"]["train_splits"] == ["train", "validation"]
    assert run["configuration"]["load_best_model_at_end"] is False
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_loss" in entry for entry in log)
    assert json.loads((tmp_path / "metrics.json").read_text())["mean"]["bits_per_spike"] is not None


@pytest.mark.parametrize("metric", ["eval_ann/choice_accuracy", "loss_spikes", "eval_psth_r2"])
def test_a_checkpoint_can_be_chosen_by_any_metric_of_evaluation(dataset, tmp_path, metric):
    pretrain(dataset, tmp_path, "--metric_for_best_model", metric)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    (value,) = [
        entry[key]
        for entry in log
        for key in entry
        if key.removeprefix("eval_") == metric.removeprefix("eval_")
    ]
    assert json.loads((tmp_path / "run.json").read_text())["results"]["best_validation"] == value


def test_a_split_to_train_on_that_is_not_there(dataset, tmp_path, capsys):
    argv = [*pretrain_arguments(dataset, tmp_path / "out"), "--train_splits", "train", "later"]
    with pytest.raises(SystemExit):
        main(["pretrain", *argv])
    assert "later" in capsys.readouterr().err


def test_without_validation_trials_there_is_nothing_to_choose_a_checkpoint_by(tmp_path, error_of):
    source = without_validation(write_dataset(tmp_path / "dataset", ["ann"]))
    out = tmp_path / "out"
    error = error_of("pretrain", *pretrain_arguments(source, out))
    assert f"{source} has no validation trials to choose a checkpoint by" in error and not out.exists()
    pretrain(source, out, *error.partition("the last one: ")[2].split())
    assert "finished" in json.loads((out / "run.json").read_text())
