"""`neds finetune --strategy lora`: an adapter repository that loads with peft and with ours, merged or not."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from small_dataset import pretrain_arguments

import neds_hf
from neds_hf.cli.main import main
from neds_hf.data.collator import NEDSCollator
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.training.inference import score_batches, split_loader
from neds_hf.training.sessions import load_model
from neds_hf.training.strategies import LORA_RANK, with_adapter

peft = pytest.importorskip("peft")

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def run(dataset, model_folder, tmp_path_factory):
    """A short training of an adapter on the new animal `cat`, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("lora") / "adapter"
    argv = f"--model {model_folder} --dataset {dataset} --session cat --strategy lora --learning_rate 0.01"
    training = "--num_train_epochs 12 --per_device_train_batch_size 8 --use_cpu --disable_tqdm true --seed 3"
    argv = [*argv.split(), *training.split()]
    assert main(["finetune", *argv, "--output", str(out)]) == 0
    return out, argv


@pytest.fixture(scope="module")
def batch(dataset, run):
    """Test trials of `cat` and `ann`, of as many units."""
    rows = load_dataset(str(dataset), "trials")["test"].filter(lambda row: row["session"] in ("ann", "cat"))
    return NEDSCollator(NEDSProcessor.from_pretrained(run[0]))(list(rows))


def with_new_animals(model_folder, adapter):
    """As the README shows it."""
    model, processor = NEDSModel.from_pretrained(model_folder), NEDSProcessor.from_pretrained(adapter)
    new = [session for session in processor.session_ids if session not in model.config.session_ids]
    assert new == ["cat"]
    model.add_sessions({session: len(processor.session(session)["units"]) for session in new})
    return model


def predictions(model, batch):
    """The classes' logits, the continuous behaviours and the log rates."""
    with torch.no_grad():
        decoded, encoded = (model(**batch, scheme=scheme) for scheme in ("decoding", "encoding"))
    return {"spikes": encoded.log_rates, **decoded.predictions}


def assert_same(model, other, batch):
    found, expected = predictions(model, batch), predictions(other, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **ROUNDING)


def test_the_folder_is_an_adapter_repository_of_what_was_trained(run, model_folder):
    files = {file.name for file in run[0].iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= files
    assert {"run.json", "metrics.json", "trainer_state.json"} <= files
    assert "model.safetensors" not in files and not [name for name in files if name.endswith((".bin", ".pt"))]
    assert json.loads((run[0] / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        model_folder
    )
    weights = load_file(run[0] / "adapter_model.safetensors")
    block, rows = "base_model.model.encoder.blocks.0", "token_adapter.trainable_tokens_delta"
    layers = {"attention.qkv_proj": (48, 16), "attention.out_proj": (16, 16), "up_proj": (32, 16)}
    layers["down_proj"] = (16, 32)
    expected = {}
    for name, (outputs, inputs) in layers.items():
        expected[f"{block}.{name}.lora_A.weight"] = (LORA_RANK, inputs)
        expected[f"{block}.{name}.lora_B.weight"] = (outputs, LORA_RANK)
    # Rows of the five units of `cat`, and its session's.
    for name, width in {"unit_embedding": 16, "unit_readout": 16, "unit_bias": 1}.items():
        expected[f"base_model.model.{name}.{rows}"] = (5, width)
    expected[f"base_model.model.session_embedding.{rows}"] = (1, 5 * 16)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected


def test_it_learns_and_what_it_was_made_from_stays_as_it_was(run, model_folder, dataset):
    before = with_new_animals(model_folder, run[0])
    merged, processor = load_model(str(run[0]))
    assert type(merged) is NEDSModel and merged.config.session_ids == ["ann", "bob", "cat"]
    weights, others = merged.state_dict(), before.state_dict()
    changed = {name for name, weight in weights.items() if not torch.equal(weight, others[name])}
    tables = {"unit_embedding", "unit_readout", "unit_bias", "session_embedding"}
    assert {name.removesuffix(".weight") for name in changed if "encoder" not in name} == tables
    assert {name for name in changed if "encoder" in name} == {
        f"encoder.blocks.0.{name}.weight"
        for name in ("attention.qkv_proj", "attention.out_proj", "up_proj", "down_proj")
    }
    for name in ("unit_embedding", "unit_readout", "unit_bias"):
        assert torch.equal(weights[f"{name}.weight"][:14], others[f"{name}.weight"][:14])
    before.set_mean_counts("cat", processor.mean_counts("cat"))
    batches = split_loader(processor, open_recordings(dataset).only(["cat"]), "train")
    trained, untrained = (score_batches(model, processor, batches)[1]["loss"] for model in (merged, before))
    assert trained < 0.95 * untrained


def test_peft_loads_it_and_merging_changes_nothing_but_rounding(run, model_folder, batch, tmp_path):
    ours, _ = load_model(str(run[0]))
    theirs = peft.PeftModel.from_pretrained(with_new_animals(model_folder, run[0]), str(run[0]))
    assert_same(theirs, ours.cpu(), batch)
    low_rank = predictions(theirs, batch)
    with theirs.disable_adapter():
        assert not torch.allclose(predictions(theirs, batch)["spikes"], low_rank["spikes"], atol=0.01)
    merged = theirs.merge_and_unload()
    for name, value in predictions(merged, batch).items():
        torch.testing.assert_close(value, low_rank[name], **ROUNDING)
    merged.save_pretrained(tmp_path)
    assert_same(NEDSModel.from_pretrained(tmp_path), merged, batch)


def test_sessions_are_added_once_the_adapter_is_merged(run, model_folder):
    model = peft.PeftModel.from_pretrained(with_new_animals(model_folder, run[0]), str(run[0]))
    with pytest.raises(ValueError, match=r"an adapter holds the model's rows: merge it \(merge_and_unload\)"):
        model.add_sessions({"dan": 2}, {"dan": [0.1, 0.2]})
    merged = model.merge_and_unload()
    assert merged.config.session_ids == ["ann", "bob", "cat"]
    merged.add_sessions({"dan": 2}, {"dan": [0.1, 0.2]})
    assert merged.unit_rows("dan") == slice(19, 21)


def test_it_loads_by_its_name_like_any_model(run, batch, monkeypatch):
    monkeypatch.chdir(run[0].parent)
    model, processor = neds_hf.load("adapter")
    assert processor.session_ids == model.config.session_ids == ["ann", "bob", "cat"]
    assert_same(model.cpu(), load_model(str(run[0]))[0].cpu(), batch)


def test_once_it_is_loaded_the_whole_model_learns_like_any(run, batch):
    model = neds_hf.load(run[0])[0].cpu()
    model.add_sessions({"dan": 2})
    model(**batch, scheme="decoding").loss.backward()
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.encoder.blocks[0].up_proj.weight.grad.any()


def test_evaluate_finds_the_metrics_of_the_training_and_predict_predicts(run, dataset, tmp_path):
    where = ["--model", str(run[0]), "--dataset", str(dataset), "--session", "cat"]
    assert main(["evaluate", *where, "--output", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())["sessions"]["cat"]
    expected = json.loads((run[0] / "metrics.json").read_text())["sessions"]["cat"]
    assert set(expected) < set(found)
    for name, value in expected.items():
        assert found[name] == (value if value is None else pytest.approx(value, abs=1e-4)), name
    predict = ["predict", *where, "--task", "encoding", "--output", str(tmp_path / "rates.npz")]
    assert main(predict) == 0
    with np.load(tmp_path / "rates.npz") as rates:
        assert rates["log_rates"].shape == (8, 20, 5)


def test_it_is_found_from_anywhere_where_its_model_was_named_by_a_relative_path(
    run, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(model_folder.parent)
    argv = [*run[1], "--output", str(tmp_path), "--model", model_folder.name, "--num_train_epochs", "1"]
    assert main(["finetune", *argv]) == 0
    monkeypatch.chdir(tmp_path)
    assert load_model(str(tmp_path))[0].config.session_ids == ["ann", "bob", "cat"]
    assert json.loads((tmp_path / "run.json").read_text())["base"]["name"] == model_folder.name
    assert str(model_folder.parent) not in (tmp_path / "README.md").read_text()


def test_a_known_session_gets_an_adapter_of_its_own_rows(run, model_folder, tmp_path):
    argv = [*run[1], "--output", str(tmp_path), "--session", "bob", "--num_train_epochs", "1"]
    assert main(["finetune", *argv]) == 0
    rows = json.loads((tmp_path / "adapter_config.json").read_text())["trainable_token_indices"]
    assert rows["unit_readout"] == list(range(5, 14)) and rows["session_embedding"] == [1]
    assert load_model(str(tmp_path))[0].config.session_ids == ["ann", "bob"]


def test_an_adapter_fine_tunes_to_a_whole_model(run, tmp_path, finetune_arguments):
    assert main(["finetune", *finetune_arguments(run[0], tmp_path), "--strategy", "session"]) == 0
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter_config.json").exists()
    encoder, adapted = (
        load_model(str(folder))[0].cpu().encoder.blocks[0].up_proj.weight for folder in (tmp_path, run[0])
    )
    assert torch.equal(encoder, adapted)


@pytest.mark.parametrize("options", [{"tied_units": True}, {"tokenizer": "mlp"}, {"spike_smoothing": 1.0}])
def test_every_kind_of_model_takes_an_adapter(options):
    """With trained rows that are unlike the others; merged and apart, the predictions are the same."""
    sizes = {"num_bins": 10, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = NEDSModel(NEDSConfig(session_ids=["a", "b"], unit_counts=[3, 4], **sizes, **options)).eval()
    adapted = with_adapter(model, ["b"])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    batch = {
        "session_index": torch.tensor([1, 0]),
        "spike_counts": torch.randint(0, 3, (2, 10, 4)),
        "unit_mask": torch.tensor([[True] * 4, [True] * 3 + [False]]),
        "behaviors": {"choice": torch.tensor([0, 1]), "wheel_speed": torch.randn(2, 10)},
    }
    with adapted.disable_adapter():
        before = predictions(adapted, batch)
    expected = predictions(adapted, batch)
    assert not torch.allclose(before["spikes"], expected["spikes"], atol=0.01)
    merged = predictions(adapted.merge_and_unload(), batch)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, **ROUNDING)


# --- what is wrong ---


def test_without_peft_it_is_said_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it raises, finding it fails
    assert main(["finetune", *run[1], "--output", str(tmp_path)]) == 2
    assert "--strategy lora needs peft: pip install 'neds_hf[lora]'" in capsys.readouterr().err
    with pytest.raises(
        NEDSError, match=r"adapter is an adapter, which needs peft: pip install 'neds_hf\[lora"
    ):
        load_model(str(run[0]))


def test_an_adapter_of_an_adapter_is_refused(run, tmp_path, capsys):
    argv = [*run[1], "--output", str(tmp_path), "--model", str(run[0])]
    assert main(["finetune", *argv]) == 2
    assert f"{run[0]} is an adapter itself" in capsys.readouterr().err


def test_an_adapter_of_a_model_of_this_machine_is_not_trained_to_be_pushed(
    run, model_folder, tmp_path, capsys
):
    argv = [*run[1], "--output", str(tmp_path / "out"), "--push_to_hub", "--hub_model_id", "lab/adapter"]
    assert main(["finetune", *argv]) == 2
    assert f"an adapter of {model_folder} is of no use without that model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def moved(run, tmp_path, base):
    """A copy of the adapter that names another model."""
    folder = shutil.copytree(run[0], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return folder


def test_a_model_that_is_not_there_is_named_and_where_its_new_place_is_to_be_written(
    run, model_folder, batch, tmp_path
):
    folder = moved(run, tmp_path, "nowhere")
    with pytest.raises(
        NEDSError,
        match=f"{folder} is an adapter of nowhere: no model folder nowhere; .*; where that was moved, write its "
        f"place as base_model_name_or_path of {folder}/adapter_config.json",
    ):
        load_model(str(folder))
    with pytest.raises(
        NEDSError, match=r"mask_ratio must be at least 0 and below 1, not 5.0$"
    ):  # it is there
        load_model(str(run[0]), {"mask_ratio": 5.0})
    shutil.rmtree(folder)
    folder = moved(run, tmp_path, shutil.copytree(model_folder, tmp_path / "other disc"))
    assert_same(*(load_model(str(place))[0].cpu() for place in (folder, run[0])), batch)


def test_a_model_that_was_trained_anew_is_not_the_one_it_was_made_from(run, model_folder, tmp_path):
    other = shutil.copytree(model_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.norm.bias"] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    folder = moved(run, tmp_path, other)
    with pytest.raises(NEDSError, match=f"adapter of {other}, whose weights are no longer the same"):
        load_model(str(folder))


def test_a_model_of_other_sizes_is_refused(run, dataset, tmp_path):
    argv = [*pretrain_arguments(dataset, tmp_path / "wide"), "intermediate_size=48", "--max_steps", "1"]
    assert main(["pretrain", *argv, "--sessions", "ann", "bob"]) == 0
    folder = moved(run, tmp_path, tmp_path / "wide")
    (folder / "run.json").unlink()  # as where the adapter alone was copied
    with pytest.raises(
        NEDSError, match=r"adapter does not fit .*wide, which it says it is an adapter of: .*size"
    ):
        load_model(str(folder))
