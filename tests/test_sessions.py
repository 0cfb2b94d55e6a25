"""Sessions of a model: opening it, checking that recordings fit, and bringing it new animals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from small_dataset import BEHAVIORS, OPTIONS, UNITS, write_dataset
from transformers import Trainer, TrainingArguments

from neds_hf.cli.main import main
from neds_hf.data.collator import NEDSCollator
from neds_hf.data.recordings import open_recordings
from neds_hf.data.schema import TRIAL_COLUMNS
from neds_hf.errors import NEDSError
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.sessions import add_sessions, check_fits, load_model, new_processor
from neds_hf.training.strategies import freeze
from neds_hf.training.trainer import NEDSTrainer

OLD_ROWS = {"unit_embedding.weight": 14, "unit_readout.weight": 14, "unit_bias.weight": 14}  # 5 + 9 units
OLD_ROWS |= {"session_embedding.weight": 2}


# --- opening ---


def test_what_is_no_model_is_refused(tmp_path, model_folder):
    with pytest.raises(NEDSError, match="no model folder nowhere"):
        load_model("nowhere")
    with pytest.raises(NEDSError, match="not/there is no model folder and no model on the Hub"):
        load_model("not/there")
    with pytest.raises(NEDSError, match=f"{tmp_path} is no model folder"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 16}')
    with pytest.raises(NEDSError, match=f"{tmp_path} is no "):
        load_model(str(tmp_path))
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    for change, message in [
        ({"session_ids": ["ann", "eve"]}, "the processor has the sessions"),
        ({"unit_counts": [6, 8]}, r"the processor has the numbers of units \[5, 9\], the model \[6, 8\]"),
        ({"architectures": ["Mine"]}, "it is a Mine, not a NEDSModel; its own from_pretrained opens it"),
        ({"num_hidden_layers": 2}, "its weights are not those of its config"),
        ({"hidden_size": 8}, "its weights are not those of its config"),
        ({"temporal_embedding": False}, "its weights are not those of its config"),
    ]:
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(NEDSError, match=message):
            load_model(str(copy))
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "processor_config.json").rename(tmp_path / "processor_config.json")
    with pytest.raises(
        NEDSError, match=r"has no processor_config\.json; the processor's save_pretrained writes it$"
    ):
        load_model(str(copy))
    (tmp_path / "processor_config.json").rename(copy / "processor_config.json")
    processor = json.loads((copy / "processor_config.json").read_text())
    processor["sessions"][0]["mean_counts"].pop()
    (copy / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(
        NEDSError, match=f"{copy} is no model folder: session 'ann' has 5 units, expected as many"
    ):
        load_model(str(copy))
    # As cloned without LFS.
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(NEDSError, match=f"{copy} is no model folder: .*header"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("config.json", [], r": expected a mapping, found \[\]"),
        ("processor_config.json", [], r": expected a mapping, found \[\]"),
        ("processor_config.json", {"num_bins": [20]}, r": expected a whole number 'num_bins', found \[20\]"),
        ("processor_config.json", {"sessions": [{}]}, r": expected text 'sessions\[0\].session', found None"),
        (
            "adapter_config.json",
            {"base_model_name_or_path": 7},
            ": expected text 'base_model_name_or_path', found 7",
        ),
    ],
)
def test_a_file_of_a_model_with_another_kind_of_value_is_named(tmp_path, model_folder, name, change, message):
    file = shutil.copytree(model_folder, tmp_path / "copy") / name
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | change if change else change))
    with pytest.raises(NEDSError, match=f"{file}{message}$"):
        load_model(str(tmp_path / "copy"))


# --- a processor for new sessions ---


def test_a_new_processor_has_every_modality_that_any_session_has(dataset):
    processor = new_processor(open_recordings(dataset))
    assert list(processor.behaviors) == list(BEHAVIORS)
    assert processor.session_ids == ["ann", "bob", "cat"]
    assert set(processor.session("bob")["scaling"]) == {"wheel_speed"}
    assert (processor.num_bins, processor.bin_size_s, processor.window_start_s) == (20, 0.05, -0.2)
    train = open_recordings(dataset).trials("cat", "train").continuous["wheel_speed"]
    assert processor.session("cat")["scaling"]["wheel_speed"] == pytest.approx([train.mean(), train.std()])


def test_a_modality_that_no_session_has_is_left_out(dataset):
    assert "whisker_motion_energy" not in new_processor(open_recordings(dataset).only(["bob"])).behaviors


def test_sessions_without_any_behaviour_are_refused(dataset):
    recordings = open_recordings(dataset)
    recordings.splits["train"] = recordings.splits["train"].select_columns(list(TRIAL_COLUMNS))
    with pytest.raises(NEDSError, match="dataset has no behaviour in its training trials"):
        new_processor(recordings)


# --- whether they fit ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window_s": (-0.3, 0.7)}, r"\(bins, bin size, window start, event\) \(20, 0.05, -0.3, 'go'\)"),
        (
            {"window_s": (-0.2, 0.3)},
            r"cat has .* \(10, 0.05, -0.2, 'go'\), the model \(20, 0.05, -0.2, 'go'\)",
        ),
        ({"align_event": "stop"}, "'stop'"),
    ],
)
def test_sessions_of_other_trials_are_refused(tmp_path, model_folder, options, message):
    other = replace(OPTIONS, **options)

    def change(recording):
        recording.spike_counts = recording.spike_counts[:, : other.num_bins]
        recording.continuous = {k: v[:, : other.num_bins] for k, v in recording.continuous.items()}
        recording.window_s, recording.align_event = other.window_s, other.align_event
        return recording

    model, processor = load_model(str(model_folder))
    recordings = open_recordings(write_dataset(tmp_path, ["cat"], other, change=change))
    with pytest.raises(NEDSError, match=message):
        add_sessions(model, processor, recordings)
    assert processor.session_ids == model.config.session_ids == ["ann", "bob"]


def test_other_units_under_a_known_session_are_refused(tmp_path, model_folder):
    def change(recording):
        recording.units = recording.units.assign(uuid=[f"sorted again/{unit}" for unit in range(9)])
        return recording

    _, processor = load_model(str(model_folder))
    recordings = open_recordings(write_dataset(tmp_path, ["bob"], change=change))
    with pytest.raises(NEDSError, match=r"bob has other units .*: 9 there, 9 in the model, 0 of both"):
        check_fits(processor, recordings)


@pytest.mark.parametrize(
    "modality, expected",
    [
        ({"kind": "categorical", "classes": ["left", "no"]}, "left, no"),
        ({"kind": "continuous"}, "continuous"),
    ],
)
def test_a_class_that_the_model_does_not_know_is_refused(dataset, model_folder, modality, expected):
    _, processor = load_model(str(model_folder))
    processor.modalities[1] = {"name": "choice", **modality}
    with pytest.raises(
        NEDSError, match=f"dataset: choice is right, left, the model was trained with {expected}"
    ):
        check_fits(processor, open_recordings(dataset))


def test_a_behaviour_that_never_changes_is_refused_with_its_session(tmp_path, model_folder):
    def change(recording):
        recording.continuous["wheel_speed"][:] = 1.0
        return recording

    model, processor = load_model(str(model_folder))
    recordings = open_recordings(write_dataset(tmp_path, ["cat"], change=change))
    said = r"session 'cat': wheel_speed is 1.0 in every bin .* NaN says that it was not"
    with pytest.raises(NEDSError, match=said):
        add_sessions(model, processor, recordings)
    assert model.config.session_ids == ["ann", "bob"]


def test_a_new_animal_gets_rows_and_starts_from_its_rates(dataset, model_folder):
    model, processor = load_model(str(model_folder))
    assert add_sessions(model, processor, open_recordings(dataset)) == ["cat"]
    assert processor.session_ids == model.config.session_ids == ["ann", "bob", "cat"]
    bias = model.unit_bias.weight[model.unit_rows("cat"), 0].detach().numpy()
    counts = open_recordings(dataset).trials("cat", "train").spike_counts
    np.testing.assert_allclose(np.exp(bias), counts.mean((0, 1)), rtol=1e-4)


# --- training a new animal ---


@pytest.mark.parametrize("strategy", ["session", "full"])
def test_fine_tuning_changes_what_the_strategy_names_and_never_the_old_animals(
    dataset, model_folder, tmp_path, strategy
):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only(["cat"])
    add_sessions(model, processor, recordings)
    freeze(model, strategy)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    args = NEDSTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        weight_decay=0.5,
        learning_rate=0.01,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    NEDSTrainer(model, args, processor, recordings).train()
    for name, weight in model.state_dict().items():
        if name in OLD_ROWS:
            old = OLD_ROWS[name]
            assert torch.equal(weight[:old], before[name][:old]), name
            assert not torch.equal(weight[old:], before[name][old:]), name
        elif strategy == "session":
            assert torch.equal(weight, before[name]), name
        elif "encoder" in name:
            assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plain_trainer_fine_tunes_a_new_animal(dataset, model_folder, tmp_path, checkpointing):
    """As in a script that knows transformers and datasets only: rows of load_dataset, sessions mixed."""
    model, processor = load_model(str(model_folder))
    trials = load_dataset(str(dataset), "trials")
    units = load_dataset(str(dataset), "units", split="train").to_pandas()
    cat = [row for row in trials["train"] if row["session"] == "cat"]
    counts = np.reshape([row["spike_counts"] for row in cat], (len(cat), -1, UNITS["cat"]))
    continuous = {
        name: np.array([row[name] for row in cat]) for name in ("wheel_speed", "whisker_motion_energy")
    }
    processor.add_session("cat", units[units["session"] == "cat"]["uuid"].tolist(), counts, continuous)
    model.add_sessions({"cat": UNITS["cat"]}, mean_counts={"cat": processor.mean_counts("cat")})

    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=24,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=3,  # batches of one session and of several, of 5 and of 9 units
        learning_rate=5e-3,
        remove_unused_columns=False,
        activation_checkpointing=checkpointing,  # once called gradient_checkpointing
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        args,
        data_collator=NEDSCollator(processor),
        train_dataset=trials["train"],
        eval_dataset=trials["validation"],
        processing_class=processor,
    )
    new = trials["train"].filter(lambda trial: trial["session"] == "cat")
    before = trainer.evaluate(new)["eval_loss"]
    trainer.train()
    after = trainer.evaluate(new)["eval_loss"]
    assert after < before and np.isfinite(trainer.evaluate()["eval_loss"])
    assert all("loss" not in entry or np.isfinite(entry["loss"]) for entry in trainer.state.log_history)
    trainer.save_model(str(tmp_path / "saved"))
    assert load_model(str(tmp_path / "saved"))[0].config.session_ids == ["ann", "bob", "cat"]


def test_fine_tuned_models_can_be_fine_tuned_again(model_folder, tmp_path, finetune_arguments):
    first = finetune_arguments(model_folder, tmp_path / "first")
    assert main(["finetune", *first]) == 0
    assert main(["finetune", *finetune_arguments(tmp_path / "first", tmp_path / "second")]) == 0
    assert load_model(str(tmp_path / "second"))[0].config.session_ids == ["ann", "bob", "cat"]
    assert Path(tmp_path / "second" / "metrics.json").exists()
