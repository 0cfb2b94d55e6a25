"""Original checkpoints to model folders: what is folded, what is inferred, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neds_hf.cli.main import main
from neds_hf.errors import NEDSError
from neds_hf.hub.original import read_sessions
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.strategies import freeze

BINS, HIDDEN, INNER = 4, 8, 12
UNITS = {"first": 2, "second": 3}  # the code pads every session to 3
FEATURES = {"spike": 3, "choice": 1, "block": 1, "wheel": 1, "whisker": 1}
CLASSES = {"choice": 2, "block": 3}


def original_state(modalities=FEATURES, rows: int = 2) -> dict[str, torch.Tensor]:
    """Named tensors as the published code saves them, random."""
    torch.manual_seed(0)
    modules = {"encoder_norm": nn.LayerNorm(HIDDEN)}
    token_weights = {}
    for name in modalities:
        width, modality = FEATURES[name], f"encoder_embeddings.{name}"
        first = 2 * width * (BINS if name in CLASSES else 1)
        out = CLASSES.get(name, width)
        modules[f"{modality}.embedder.mod_emb"] = nn.Embedding(5, HIDDEN)
        modules[f"{modality}.embedder.session_emb"] = nn.Embedding(rows, HIDDEN)
        modules[f"{modality}.embedder.pos_embed"] = nn.Embedding(BINS, HIDDEN)
        for session in UNITS:
            stitch = f"{modality}.embedder.mod_stitch_encoder"
            modules[f"{stitch}.stitcher_dict.{session}"] = nn.Linear(width, first)
            modules[f"{stitch}.project_dict.{session}"] = nn.Linear(2 * width, HIDDEN)
            modules[f"{modality}.mod_stitcher_proj_dict.stitch_decoder_dict.{session}"] = nn.Linear(
                HIDDEN, out
            )
            if name in CLASSES:
                token_weights[f"{modality}.mod_static_weight_dict.{session}"] = torch.rand(BINS)
    for part in ("ln1", "ln2"):
        modules[f"encoder.0.{part}"] = nn.LayerNorm(HIDDEN)
    for part in ("query", "key", "value", "out_proj"):
        modules[f"encoder.0.attn.{part}"] = nn.Linear(HIDDEN, HIDDEN)
    modules["encoder.0.mlp.up_proj"] = nn.Linear(HIDDEN, INNER)
    modules["encoder.0.mlp.down_proj"] = nn.Linear(INNER, HIDDEN)
    state = {"mask_token": torch.randn(1, 1, HIDDEN)}
    for prefix, module in modules.items():
        state |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    return state | token_weights


def save(path: Path, state: dict) -> Path:
    torch.save({"epoch": 3, "model": state, "optimizer": {}, "lr_sched": {}}, path)
    return path


def run(tmp_path: Path, state: dict, sessions: object = UNITS, *flags: str) -> int:
    (tmp_path / "sessions.json").write_text(json.dumps(sessions))
    source = save(tmp_path / "original.pt", state)
    heads = () if "--num-heads" in flags else ("--num-heads", "2")
    arguments = [source, tmp_path / "out", "--sessions", tmp_path / "sessions.json", *heads, *flags]
    return main(["convert", *map(str, arguments)])


def refused(tmp_path: Path, capsys, state: dict, *rest) -> str:
    """The error of a conversion that must fail and leave nothing behind."""
    assert run(tmp_path, state, *rest) == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def test_folder_is_complete(tmp_path, capsys):
    assert run(tmp_path, original_state()) == 0
    assert "2 sessions, 5 units, 1 layers of 8, 4 bins" in capsys.readouterr().out
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "README.md",
        "conversion.json",
    } <= names
    assert not any(name.endswith((".pt", ".bin", ".pkl")) for name in names)
    config = NEDSModel.from_pretrained(out).config
    assert (config.session_ids, config.unit_counts) == (["first", "second"], [2, 3])
    assert (config.num_bins, config.hidden_size, config.intermediate_size) == (4, 8, 12)
    assert (config.num_hidden_layers, config.num_attention_heads, config.tokenizer_width) == (1, 2, 6)
    assert (config.tokenizer, config.loss, config.temporal_embedding) == ("mlp", "published", True)
    # How it was trained, as the published code's configuration says.
    weights = {"encoding": 1.0, "decoding": 1.0, "within_modality": 2.0, "cross_modal": 1.0}
    assert (config.scheme_weights, config.within_modality_context, config.mask_ratio) == (weights, True, 0.3)
    assert (config.single_behavior_probability, config.hidden_dropout) == (0.0, 0.4)
    assert config.behaviors == {"choice": 2, "block": 3, "wheel_speed": 0, "whisker_motion_energy": 0}
    digest = hashlib.sha256((tmp_path / "original.pt").read_bytes()).hexdigest()
    assert digest in (out / "README.md").read_text()
    conversion = json.loads((out / "conversion.json").read_text())
    assert (conversion["source"], conversion["sha256"]) == ("original.pt", digest)
    assert conversion["versions"]["neds_hf"]


def test_padding_becomes_bias(tmp_path):
    """Oracle: the published tokenizer itself, on counts padded with -1."""
    state = original_state()
    run(tmp_path, state)
    model = NEDSModel.from_pretrained(tmp_path / "out")
    assert model.unit_embedding.weight.shape == (2 + 3, 6)
    assert model.unit_readout.weight.shape == (2 + 3, HIDDEN)
    counts = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 0.0]])  # (bins, units of `first`)
    padded = torch.cat((counts, torch.full((BINS, 1), -1.0)), 1)
    tokenizer = "encoder_embeddings.spike.embedder.mod_stitch_encoder"
    first, second = (
        (state[f"{tokenizer}.{part}.first.weight"], state[f"{tokenizer}.{part}.first.bias"])
        for part in ("stitcher_dict", "project_dict")
    )
    expected = F.linear(F.softsign(F.linear(padded, *first)), *second)
    index = torch.tensor([0])
    inner = counts[None] @ model.unit_embedding.weight[model.unit_rows("first")]
    inner = F.softsign(inner + model.session_spike_bias(index))
    found = model.session_spike_projection(inner, index)[0]
    torch.testing.assert_close(found, expected)


def test_json_yaml_and_sessions_that_are_not_in_the_checkpoint(tmp_path):
    """Row 1 of the session embedding is of a session that this checkpoint was not trained on."""
    state = original_state(rows=3)
    (tmp_path / "sessions.yaml").write_text(
        "second: {units: [u-a, u-b, u-c], wheel_speed: [1.0, 5.0]}\nelsewhere: null\nfirst: 2\n"
    )
    source = save(tmp_path / "original.pt", {f"module.{name}": tensor for name, tensor in state.items()})
    arguments = [source, tmp_path / "out", "--sessions", tmp_path / "sessions.yaml", "--num-heads", 2]
    assert main(["convert", *map(str, arguments)]) == 0
    model = NEDSModel.from_pretrained(tmp_path / "out")
    processor = NEDSProcessor.from_pretrained(tmp_path / "out")
    assert model.config.session_ids == processor.session_ids == ["second", "first"]
    wheel = state["encoder_embeddings.wheel.embedder.session_emb.weight"]
    embedding = model.session_embedding.weight.view(2, 5, HIDDEN)[:, 3]
    torch.testing.assert_close(embedding, wheel[[0, 2]])
    assert processor.session("second")["units"] == ["u-a", "u-b", "u-c"]
    assert processor.session("first")["units"] == ["first/0", "first/1"]
    assert np.isnan(processor.mean_counts("first")).all()
    np.testing.assert_allclose(
        processor.scale("second", "wheel_speed", np.array([1.0, 2.0, 5.0])), [0, 0.25, 1]
    )
    np.testing.assert_allclose(processor.unscale("first", "wheel_speed", np.array([0.0, 1.0])), [0, 1])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "range of wheel_speed, whisker_motion_energy was not given for every session" in card


def test_predictions_of_a_converted_model(tmp_path):
    """`neds predict` on arrays of a session; the wheel comes back in the data's own units."""
    sessions = {"first": {"units": 2, "wheel_speed": [2.0, 4.0]}, "second": 3}
    run(tmp_path, original_state(), sessions)
    meta = {"session": "first", "bin_size_s": 0.02, "align_event": "stimOn_times", "window_s": [-0.5, -0.42]}
    counts = np.random.default_rng(0).poisson(1.0, (3, BINS, 2)).astype(np.uint8)
    arrays = {"spike_counts": counts, "choice": [-1, 1, 1], "wheel_speed": np.full((3, BINS), 3.0)}
    np.savez(tmp_path / "trials.npz", meta=json.dumps(meta), **arrays)
    for task in ("decoding", "encoding"):
        flags = ["--model", tmp_path / "out", "--arrays", tmp_path / "trials.npz", "--task", task]
        assert main(["predict", *map(str, flags), "--output", str(tmp_path / f"{task}.npz")]) == 0
    model = NEDSModel.from_pretrained(tmp_path / "out")
    batch = {"session_index": torch.zeros(3, dtype=torch.long), "spike_counts": torch.from_numpy(counts)}
    behaviors = {"wheel_speed": torch.full((3, BINS), 0.5), "choice": torch.tensor([0, 1, 1])}
    with torch.no_grad():
        missing = dict.fromkeys(("block", "whisker_motion_energy"), torch.zeros(3, dtype=torch.bool))
        encoded = model(**batch, behaviors=behaviors, available=missing, scheme="encoding")
        wanted = dict.fromkeys(model.config.behaviors, torch.ones(3, dtype=torch.bool))
        values = {
            name: torch.zeros(3, *(() if c else (BINS,))).to(torch.long if c else torch.float)
            for name, c in model.config.behaviors.items()
        }
        decoded = model(**batch, behaviors=values, available=wanted, scheme="decoding")
    found = np.load(tmp_path / "encoding.npz")["log_rates"]
    np.testing.assert_allclose(found, encoded.log_rates.numpy(), rtol=1e-5, atol=1e-6)
    wheel = 2.0 + 2.0 * decoded.predictions["wheel_speed"].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "decoding.npz")["wheel_speed"], wheel, rtol=1e-5)


def test_a_new_animal_of_a_converted_model(tmp_path):
    """It gets rows, a tokenizer and readouts; the strategy `session` trains what belongs to sessions alone."""
    run(tmp_path, original_state())
    model = NEDSModel.from_pretrained(tmp_path / "out")
    processor = NEDSProcessor.from_pretrained(tmp_path / "out")
    counts, wheel = np.ones((2, BINS, 5), np.uint8), np.arange(2.0 * BINS).reshape(2, BINS)
    processor.add_session("new", list("abcde"), counts, {"wheel_speed": wheel})
    np.testing.assert_allclose(processor.scale("new", "wheel_speed", wheel), wheel / 7)  # 0...1, as published
    model.add_sessions({"new": 5}, {"new": processor.mean_counts("new")})
    freeze(model, "session")
    learning = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name.split(".")[0] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"mask_embedding", "modality_embedding", "temporal_embedding", "encoder"}
    assert learning == {
        *("unit_embedding", "unit_readout", "unit_bias", "session_embedding", "session_spike_bias"),
        *("session_spike_projection", "session_tokenizer", "session_token_weights", "session_readout"),
    }
    batch = processor("new", counts, {"wheel_speed": wheel})
    assert torch.isfinite(model(**batch, scheme="encoding").log_rates).all()


def test_without_temporal_embedding(tmp_path):
    state = {name: tensor for name, tensor in original_state().items() if ".pos_embed." not in name}
    assert run(tmp_path, state) == 0
    model = NEDSModel.from_pretrained(tmp_path / "out")
    assert (model.config.temporal_embedding, model.config.num_bins) == (False, BINS)


def test_a_checkpoint_from_before_the_mask_token_hides_by_zeros(tmp_path):
    state = original_state()
    del state["mask_token"]
    assert run(tmp_path, state) == 0
    model = NEDSModel.from_pretrained(tmp_path / "out")
    assert not model.mask_embedding.weight.any()


def test_wrong_tensors_are_listed(tmp_path, capsys):
    state = original_state()
    del state["encoder.0.ln1.bias"]
    del state["encoder_embeddings.wheel.embedder.pos_embed.weight"]
    state["decoder.0.weight"] = torch.zeros(2, 3)
    state["encoder.0.mlp.down_proj.weight"] = torch.zeros(8, 11)
    error = refused(tmp_path, capsys, state)
    assert "original.pt cannot be converted" in error
    assert "missing: encoder.0.ln1.bias (8,)" in error
    assert "missing: encoder_embeddings.wheel.embedder.pos_embed.weight (4, 8)" in error
    assert "not expected: decoder.0.weight (2, 3)" in error
    assert "of shape (8, 11), expected (8, 12): encoder.0.mlp.down_proj.weight" in error
    assert len(error.strip().splitlines()) == 1 + 4


@pytest.mark.parametrize(
    ("modalities", "task"), [(["spike"], "decoding"), (["choice", "block", "wheel", "whisker"], "encoding")]
)
def test_models_of_one_task_are_refused(tmp_path, capsys, modalities, task):
    error = refused(tmp_path, capsys, original_state(modalities))
    assert f"a model of {task} alone" in error
    assert "neither trained nor saved" in error


def test_nothing_is_unpickled(tmp_path, capsys):
    """A pickle that would write a file when loaded."""
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "sessions.json").write_text(json.dumps(UNITS))
    arguments = [tmp_path / "trap.pt", tmp_path / "out", "--sessions", tmp_path / "sessions.json"]
    assert main(["convert", *map(str, arguments)]) == 2
    assert "does not load as tensors alone" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize(
    ("sessions", "message"),
    [
        ({"first": 2}, "not given ['second']"),
        ({"first": 2, "second": 3, "third": 4}, "not in the checkpoint ['third']"),
        ({"first": 2, "second": 3, "third": None}, "2 rows, but 3 sessions are given"),
        (
            {"first": 2, "second": 2},
            "made for 3 units, those of its largest session, but the largest count given is 2",
        ),
        ({"first": 2, "second": 3.5}, "session second has units 3.5"),
        ({"first": 2, "second": ["a", "a", "b"]}, "session second has units ['a', 'a', 'b']"),
        (
            {"first": 2, "second": {"units": 3, "wheel_speed": [5, 1]}},
            "wheel_speed [5, 1], expected [smallest, ",
        ),
        (
            {"first": 2, "second": {"units": 3, "wheel_speed": ["0", 1]}},
            "wheel_speed ['0', 1], expected [smallest, ",
        ),
        ({"first": 2, "second": {"units": 3, "pupil": [0, 1]}}, "session second has a range of pupil"),
        (["first", "second"], "holds no mapping"),
    ],
)
def test_wrong_sessions(tmp_path, capsys, sessions, message):
    assert message in refused(tmp_path, capsys, original_state(), sessions)


def test_a_range_without_end(tmp_path):
    (tmp_path / "sessions.yaml").write_text("first: {units: 2, wheel_speed: [0, .inf]}")
    with pytest.raises(NEDSError, match=r"wheel_speed \[0, inf\], expected \[smallest, largest\]"):
        read_sessions(tmp_path / "sessions.yaml")


def test_heads(tmp_path, capsys):
    assert "hidden size of 8 does not divide into 8 heads" in refused(
        tmp_path, capsys, original_state(), UNITS, "--num-heads", "8"
    )
    assert "--num-heads must be at least 1" in refused(
        tmp_path, capsys, original_state(), UNITS, "--num-heads", "0"
    )


def test_wrong_files(tmp_path, capsys):
    (tmp_path / "sessions.json").write_text(json.dumps(UNITS))
    (tmp_path / "text.pt").write_text("not a checkpoint")
    save(tmp_path / "list.pt", [1, 2])
    save(tmp_path / "numbers.pt", {"epoch": 1})
    save(tmp_path / "other.pt", {"encoder.weight": torch.zeros(2)})
    for source, sessions, message in [
        ("absent.pt", "sessions.json", "no checkpoint"),
        ("text.pt", "sessions.json", "text.pt does not load as tensors alone"),
        ("list.pt", "sessions.json", 'has no "model" with named tensors'),
        ("numbers.pt", "sessions.json", 'has no "model" with named tensors'),
        ("other.pt", "sessions.json", "no encoder_embeddings"),
        ("other.pt", "absent.json", "absent.json cannot be read"),
    ]:
        arguments = [tmp_path / source, tmp_path / "out", "--sessions", tmp_path / sessions]
        assert main(["convert", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err


def test_an_existing_folder_is_kept_and_one_that_cannot_be_is_said_so(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert run(tmp_path, original_state()) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    (tmp_path / "file").touch()
    arguments = [
        tmp_path / "original.pt",
        tmp_path / "file" / "out",
        "--sessions",
        tmp_path / "sessions.json",
    ]
    assert main(["convert", *map(str, arguments), "--num-heads", "2"]) == 2
    assert f"{tmp_path / 'file' / 'out'} cannot be written: " in capsys.readouterr().err
