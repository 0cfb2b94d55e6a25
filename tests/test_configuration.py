"""The configuration: what it refuses, what it keeps, and the sizes of the presets."""

import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from neds_hf.models import NEDSConfig, NEDSModel

MODALITIES = [
    {"name": "spikes", "kind": "spikes"},
    {"name": "running", "kind": "continuous"},
    {"name": "choice", "kind": "categorical", "classes": ["right", "left"]},
    {"name": "arousal", "kind": "continuous"},
]


def test_order_of_sessions_and_modalities_survives_saving(tmp_path):
    config = NEDSConfig(session_ids=["z", "a", "m"], unit_counts=[3, 1, 2], modalities=MODALITIES)
    config.save_pretrained(tmp_path)
    loaded = NEDSConfig.from_pretrained(tmp_path)
    assert loaded.session_ids == ["z", "a", "m"]
    assert loaded.unit_counts == [3, 1, 2]
    assert loaded.modalities == MODALITIES
    assert list(loaded.behaviors.items()) == [("running", 0), ("choice", 2), ("arousal", 0)]
    assert loaded.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "neds"


def test_every_option_survives_saving(tmp_path):
    options = {
        "num_bins": 20,
        "bins_per_token": 4,
        "categorical_tokens": "trial",
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_dropout": 0.15,
        "attention_dropout": 0,
        "unit_dropout": 0.3,
        "spike_smoothing": 1.5,
        "prediction_smoothing": 1.0,
        "tied_units": True,
        "stabilized_counts": True,
        "label_smoothing": 0.1,
        "temporal_embedding": False,
        "rope_theta": 100,
        "layer_norm_eps": 1e-6,
        "scheme_weights": {"encoding": 2.0, "cross_modal": 1.0},
        "mask_ratio": 0.4,
        "single_behavior_probability": 1,
        "within_modality_context": True,
        "masks_per": "batch",
        "loss": "published",
        "loss_weights": {"spikes": 3.0},
        "initial_mean_count": 0.2,
    }
    NEDSConfig(**options).save_pretrained(tmp_path)
    loaded = NEDSConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in options} == options


def test_width_of_the_mlp_tokenizer_is_twice_the_largest_session_and_stays(tmp_path):
    config = NEDSConfig(session_ids=["a", "b"], unit_counts=[3, 7], tokenizer="mlp")
    assert config.tokenizer_width == 14
    config.session_ids.append("c")
    config.unit_counts.append(50)
    config.save_pretrained(tmp_path)
    assert NEDSConfig.from_pretrained(tmp_path).tokenizer_width == 14
    assert (
        NEDSConfig(session_ids=["a"], unit_counts=[3], tokenizer="mlp", tokenizer_width=5).tokenizer_width
        == 5
    )
    assert NEDSConfig(session_ids=["a"], unit_counts=[3]).tokenizer_width is None


def test_tokens_per_trial_follow_bins_and_categorical_tokens():
    assert list(NEDSConfig().tokens_per_trial.values()) == [100] * 5
    assert NEDSConfig(modalities=MODALITIES[:2]).tokens_per_trial == {"spikes": 100, "running": 100}
    grouped = NEDSConfig(modalities=MODALITIES, num_bins=20, bins_per_token=5, categorical_tokens="trial")
    assert grouped.tokens_per_trial == {"spikes": 4, "running": 4, "choice": 1, "arousal": 4}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"session_ids": ["a"]}, "1 session_ids, but 0 unit_counts"),
        ({"session_ids": ["a", "a"], "unit_counts": [1, 2]}, "session_ids holds a session twice"),
        ({"session_ids": ["a"], "unit_counts": [0]}, "unit_counts must be positive, not 0"),
        ({"modalities": MODALITIES[1:]}, "modalities must be 'spikes' and then distinct behaviours"),
        ({"modalities": MODALITIES[:1]}, "modalities must be 'spikes' and then distinct behaviours"),
        ({"modalities": [*MODALITIES, MODALITIES[1]]}, "modalities must be 'spikes' and then distinct"),
        ({"modalities": [*MODALITIES, {"name": "paw.x", "kind": "continuous"}]}, "cannot be named 'paw.x'"),
        ({"modalities": [*MODALITIES, {"name": "type", "kind": "continuous"}]}, "cannot be named 'type'"),
        ({"modalities": [*MODALITIES, {"name": "lick (Hz)", "kind": "continuous"}]}, "cannot be named 'lick"),
        ({"modalities": [*MODALITIES, {"name": "lick[", "kind": "continuous"}]}, "cannot be named 'lick"),
        ({"modalities": [*MODALITIES, {"name": "training", "kind": "continuous"}]}, "named 'training'"),
        ({"modalities": [*MODALITIES, {"name": "x", "kind": "spikes"}]}, "modality 'x' has kind 'spikes'"),
        ({"modalities": [*MODALITIES, {"name": "x"}]}, "modality 'x' has kind None"),
        (
            {"modalities": [*MODALITIES, {"name": "x", "kind": "categorical"}]},
            "'x' needs at least two classes",
        ),
        *(
            (
                {"modalities": [*MODALITIES, {"name": "x", "kind": "categorical", "classes": classes}]},
                f"'x' needs at least two classes, a list of distinct names, not {re.escape(repr(classes))}",
            )
            for classes in (3, "left", [0, 1], ["left", "left"])
        ),
        (
            {"modalities": [*MODALITIES, {"name": "x", "kind": "continuous", "classes": ["left", "right"]}]},
            "modality 'x' is continuous, but has classes",
        ),
        ({"num_bins": 0}, "num_bins must be positive, not 0"),
        ({"bins_per_token": 0}, "bins_per_token must be positive, not 0"),
        ({"num_attention_heads": 0}, "num_attention_heads must be positive, not 0"),
        ({"intermediate_size": -3}, "intermediate_size must be positive, not -3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive, not 0"),
        ({"tokenizer_width": -8}, "tokenizer_width must be positive, not -8"),
        ({"rope_theta": 0}, "rope_theta must be positive, not 0"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be positive, not -1e-05"),
        ({"initial_mean_count": float("nan")}, "initial_mean_count must be positive, not nan"),
        ({"num_bins": 100, "bins_per_token": 3}, "num_bins 100 is not a multiple of bins_per_token 3"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "hidden_size 24 is not a multiple"),
        ({"categorical_tokens": "session"}, "categorical_tokens is 'bin' or 'trial', not 'session'"),
        ({"tokenizer": "conv"}, "tokenizer is 'linear' or 'mlp', not 'conv'"),
        ({"loss": "mean"}, "loss is 'per_trial' or 'published', not 'mean'"),
        ({"masks_per": "epoch"}, "masks_per is 'trial' or 'batch', not 'epoch'"),
        ({"tokenizer": "mlp"}, "tokenizer_width is None, expected a positive number"),
        ({"tokenizer": "mlp", "tokenizer_width": 0}, "tokenizer_width must be positive, not 0"),
        ({"tokenizer": "mlp", "tokenizer_width": 8, "bins_per_token": 2}, "'mlp' goes with bins_per_token 1"),
        ({"tokenizer": "mlp", "tokenizer_width": 8, "categorical_tokens": "trial"}, "'mlp' goes with"),
        ({"tokenizer": "mlp", "tokenizer_width": 8, "tied_units": True}, "'mlp' goes with"),
        ({"hidden_dropout": 1.0}, "hidden_dropout must be at least 0 and below 1, not 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must be at least 0"),
        ({"spike_smoothing": -1.0}, "spike_smoothing must be finite and not negative, but is -1.0"),
        ({"prediction_smoothing": -1.0}, "prediction_smoothing must be finite and not negative, but is -1.0"),
        ({"unit_dropout": 2}, "unit_dropout must be at least 0 and below 1, not 2"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
        ({"mask_ratio": 30}, "mask_ratio must be at least 0 and below 1, not 30"),
        ({"single_behavior_probability": 1.5}, "single_behavior_probability must be from 0 to 1, not 1.5"),
        ({"initial_mean_count": 0.0}, "initial_mean_count must be positive"),
        ({"scheme_weights": {"encodign": 1.0}}, "scheme_weights .*encodign"),
        (
            {"scheme_weights": {"encoding": 2.0, "decoding": -1.0}},
            "scheme_weights must be .*'decoding' has -1.0",
        ),
        ({"scheme_weights": {"encoding": 0.0}}, "scheme_weights .* not all zero"),
        ({"scheme_weights": {"encoding": "often"}}, "scheme_weights must be numbers.*'encoding' has 'often'"),
        ({"loss_weights": {"spikes": -1}}, "loss_weights must be numbers, none negative, .*'spikes' has -1"),
        ({"loss_weights": {"spikes": [1]}}, r"loss_weights must be numbers.*'spikes' has \[1\]"),
        ({"spike_smoothing": float("inf")}, "spike_smoothing must be finite and not negative, but is inf"),
        ({"loss_weights": {"wheel": 1.0}}, "loss_weights .*wheel.* names a modality that is not in"),
        ({"num_bins": 10.5}, "num_bins"),
        ({"session_ids": [1], "unit_counts": [1]}, "session_ids"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_the_name_of_the_field(options, message):
    with pytest.raises(Exception, match=message):
        NEDSConfig(**options)


def test_options_given_at_loading_are_looked_at_too(tmp_path):
    NEDSModel(NEDSConfig.from_preset("tiny", session_ids=["a"], unit_counts=[4])).save_pretrained(tmp_path)
    assert NEDSModel.from_pretrained(tmp_path, mask_ratio=0.3).config.mask_ratio == 0.3
    for options, message in [
        ({"loss": "mean"}, "loss is 'per_trial' or"),
        ({"mask_ratio": 3.0}, "mask_ratio must"),
    ]:
        with pytest.raises(StrictDataclassClassValidationError, match=message):
            NEDSModel.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("preset, millions", [("small", 3), ("base", 12)])
def test_presets_have_the_size_that_the_paper_gives(preset, millions):
    model = NEDSModel(NEDSConfig.from_preset(preset, session_ids=["a"], unit_counts=[10]))
    assert round(sum(weight.numel() for weight in model.encoder.parameters()) / 1e6) == millions


def test_configurations_do_not_share_their_classes():
    NEDSConfig().modalities[1]["classes"].append("nogo")
    assert NEDSConfig().modalities[1]["classes"] == ["right", "left"]


def test_from_preset_takes_options_over_those_of_the_preset():
    config = NEDSConfig.from_preset("tiny", num_hidden_layers=7, session_ids=["a"], unit_counts=[4])
    assert (config.hidden_size, config.num_hidden_layers, config.session_ids) == (64, 7, ["a"])
    assert NEDSConfig.from_preset("tiny").num_hidden_layers == 2
    with pytest.raises(ValueError, match="no preset 'huge'; there are: tiny, compact, small, base"):
        NEDSConfig.from_preset("huge")
