"""What transformers checks of every model of its own, of this one; test_modeling.py has the rest."""

import copy
import inspect
import json

import pytest
import torch
from safetensors import safe_open
from test_modeling import (
    MISSING,
    ROUNDING,
    assert_same,
    gradients,
    make_batch,
    make_config,
    make_model,
    predictions_of,
    styles,
)
from transformers import AutoModel
from transformers.modeling_flash_attention_utils import is_flash_attn_available

from neds_hf.models import NEDSModel


def assert_equal(output, other):
    for name, value in predictions_of(output).items():
        torch.testing.assert_close(value, predictions_of(other)[name], rtol=0, atol=0)


# --- saving and loading ---


@styles
def test_every_weight_is_in_the_file_once_and_nothing_else_is(style, tmp_path):
    model = make_model(style)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
        assert file.metadata() == {"format": "pt"}
    _, loading = NEDSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())


@styles
def test_no_two_weights_share_memory(style):
    """Units that are tied are one parameter, used twice, and not two that must be kept equal."""
    model = make_model(style)
    places = [weight.data_ptr() for weight in model.parameters()]
    assert len(set(places)) == len(places)
    assert hasattr(model, "unit_embedding") != model.config.tied_units
    assert not model.all_tied_weights_keys


def test_a_model_in_several_files_is_the_same(tmp_path):
    model, batch = make_model(), make_batch()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    loaded = NEDSModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert_same(loaded(**batch), model(**batch), **ROUNDING)


def test_copies_are_models_of_their_own():
    model, batch = make_model(), make_batch()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.unit_bias.weight.add_(1)
    copied.add_sessions({"c": 3})
    assert model.config.session_ids == ["a", "b"] and len(model.unit_bias.weight) == 19
    before, after = copied(**batch).log_rates, model(**batch).log_rates
    assert not torch.allclose(before, after)


# --- devices and dtypes ---


@styles
def test_a_model_built_without_memory_gets_all_of_its_weights(style, tmp_path):
    """On the meta device, as `from_pretrained` builds it: nothing that is not in a file may be needed."""
    model, batch = make_model(style), make_batch(missing=MISSING)
    with torch.device("meta"):
        empty = NEDSModel(make_config(style))
    assert {weight.device.type for weight in empty.parameters()} == {"meta"} and not list(empty.buffers())
    empty.config._attn_implementation = "eager"
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_equal(empty.eval()(**batch), model(**batch))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="cpu", attn_implementation="eager")
    assert_same(loaded(**batch), model(**batch), **ROUNDING)


def test_the_model_that_was_saved_last_is_loaded_in_one_file_or_in_several(tmp_path):
    model = make_model("paper")
    for size, files in (("50GB", 1), ("4KB", None), ("50GB", 1)):
        with torch.no_grad():
            model.unit_bias.weight += 1
        model.save_pretrained(tmp_path, max_shard_size=size)
        written = len([*tmp_path.glob("*.safetensors")])
        assert written == files or (files is None and written > 2)
        loaded = NEDSModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.unit_bias.weight, model.unit_bias.weight)


@styles
def test_weights_may_stay_on_the_disk_until_they_are_needed(style, tmp_path):
    model, batch = make_model(style), make_batch(missing=MISSING)
    model.save_pretrained(tmp_path)
    where = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
    loaded = AutoModel.from_pretrained(tmp_path, **where, attn_implementation="eager")
    assert {weight.device.type for weight in loaded.parameters()} == {"meta"}
    assert_same(loaded(**batch), model(**batch), **ROUNDING)


@styles
@pytest.mark.parametrize("how", ["dtype=", "to"])
def test_bfloat16_is_kept_by_saving_loading_and_new_animals(style, how, tmp_path):
    model, batch = make_model(style), make_batch(missing=MISSING)
    model.save_pretrained(tmp_path / "single")
    options = {"attn_implementation": "eager"}
    if how == "to":
        half = model.to(torch.bfloat16)
    else:
        half = NEDSModel.from_pretrained(tmp_path / "single", dtype=torch.bfloat16, **options)
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = NEDSModel.from_pretrained(tmp_path / "half", **options)
    assert loaded.dtype == torch.bfloat16
    assert_equal(loaded(**batch), half(**batch))
    loaded.add_sessions({"c": 3})
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    loaded.train()(**batch).loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loaded).values())


# --- exported ---


@pytest.mark.parametrize(
    ("style", "scheme"), [("paper", "encoding"), ("mlp", "encoding"), ("stabilized", "decoding")]
)
def test_an_exported_model_predicts_the_same_for_any_number_of_trials_and_units(style, scheme):
    model, batch, others = make_model(style, "sdpa"), make_batch(), make_batch((0, 0, 0, 0), MISSING)
    options, any_size = {"scheme": scheme, "return_loss": False}, torch.export.Dim.AUTO
    shapes = dict.fromkeys(batch | options) | {
        "session_index": {0: any_size},
        "spike_counts": {0: any_size, 2: any_size},
        "unit_mask": {0: any_size, 1: any_size},
        "behaviors": {name: {0: any_size} for name in batch["behaviors"]},
        "available": {name: {0: any_size} for name in batch["available"]},
    }
    exported = torch.export.export(model, (), batch | options, dynamic_shapes=shapes).module()
    assert_same(exported(**others, **options), model(**others, **options), **ROUNDING)
    too_many = torch.ones(3, 12, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="assertion failed"):
        exported(**batch | options | {"unit_mask": too_many})


# --- outputs ---


@styles
def test_hidden_states_and_attentions_by_argument_and_by_configuration(style):
    batch, model = make_batch(), make_model(style)
    asked = model(**batch, output_hidden_states=True, output_attentions=True)
    configured = make_model(style, output_hidden_states=True, output_attentions=True)(**batch)
    plain = model(**batch)
    assert plain.hidden_states is None and plain.attentions is None
    assert len(asked.hidden_states) == 3 and len(asked.attentions) == 2
    torch.testing.assert_close(asked.hidden_states, configured.hidden_states, rtol=0, atol=0)
    torch.testing.assert_close(asked.attentions, configured.attentions, rtol=0, atol=0)
    assert_equal(asked, plain)
    torch.testing.assert_close(model.encoder.norm(asked.hidden_states[-1]), asked.last_hidden_state)
    for attention in asked.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_gradients_reach_hidden_states_and_attentions():
    model, batch = make_model(), make_batch()
    output = model.train()(**batch, output_hidden_states=True, output_attentions=True)
    inner = [*output.hidden_states, *output.attentions]
    for states in inner:
        states.retain_grad()
    output.loss.backward()
    assert all(states.grad is not None and states.grad.abs().max() > 0 for states in inner)


def test_outputs_are_a_tuple_too_in_the_order_of_the_names():
    model = make_model()
    output = model(**make_batch())
    assert list(output) == ["loss", "losses", "log_rates", "predictions", "last_hidden_state"]
    assert output.to_tuple()[2] is output.log_rates is output["log_rates"]
    as_tuple = model(**make_batch(), return_dict=False)
    model.config.return_dict = False
    for outputs in (as_tuple, model(**make_batch())):
        assert type(outputs) is tuple and torch.equal(outputs[2], output.log_rates)


def test_the_main_input_is_an_argument():
    assert NEDSModel.main_input_name in inspect.signature(NEDSModel.forward).parameters


# --- attention ---


@styles
@pytest.mark.parametrize("missing", [[], MISSING])
def test_attention_can_be_chosen_at_loading_and_changed_later(style, missing, tmp_path):
    model, batch = make_model(style), make_batch(missing=missing)
    model.save_pretrained(tmp_path)
    expected = model(**batch)
    assert NEDSModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    loaded = NEDSModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert_same(loaded(**batch), expected, **ROUNDING)
    loaded.set_attn_implementation("sdpa")
    assert_same(loaded(**batch), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_available()), reason="needs a GPU and flash-attn"
)
@styles
@pytest.mark.parametrize("missing", [[], MISSING])
def test_flash_attention_equals_eager(style, missing):
    batch = make_batch(missing=missing)
    batch = {
        name: {key: one.cuda() for key, one in value.items()} if isinstance(value, dict) else value.cuda()
        for name, value in batch.items()
    }
    outputs = []
    for attention in ("eager", "flash_attention_2"):
        model = make_model(style).to("cuda", torch.bfloat16)
        model.set_attn_implementation(attention)
        outputs.append(model(**batch))
    assert_same(*outputs, rtol=0, atol=0.1)


# --- training ---


@styles
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_equal_in_every_kind_of_model(style, reentrant):
    results = []
    for checkpointing in (False, True):
        model = make_model(style, hidden_dropout=0.3).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_activation_checkpointing
        torch.manual_seed(5)
        model(**make_batch(missing=MISSING)).loss.backward()
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    torch.testing.assert_close(results[1], results[0])


# --- resizing ---


@styles
def test_sessions_one_by_one_or_together_give_the_same_tables(style):
    one, together = make_model(style), make_model(style)
    one.add_sessions({"c": 2})
    one.add_sessions({"d": 5})
    together.add_sessions({"c": 2, "d": 5})
    assert one.config.to_dict() == together.config.to_dict()
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (one, together)]
    assert shapes[0] == shapes[1]
    for name, weight in one.named_parameters():
        before = dict(make_model(style).named_parameters())[name]
        assert torch.equal(weight[: len(before)], before), name


def test_frozen_rows_stay_frozen_and_new_ones_with_them():
    model = make_model()
    model.unit_readout.requires_grad_(False)
    model.add_sessions({"c": 2})
    assert not model.unit_readout.weight.requires_grad and model.unit_embedding.weight.requires_grad
