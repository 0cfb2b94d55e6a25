"""The published code's own figures: losses, counts, predictions, logits and gradient norms, to 1e-5."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neds_hf.hub.original import convert, read_sessions, write_converted
from neds_hf.models import NEDSModel
from neds_hf.models.masking_neds import count_targets

REFERENCE = Path(__file__).resolve().parents[2] / "shared/reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published code's figures are not here")

SCHEMES = ("encoding", "decoding", "random")
# Modality there to its name here.
NAMES = {
    "spike": "spikes",
    "choice": "choice",
    "block": "block",
    "wheel": "wheel_speed",
    "whisker": "whisker_motion_energy",
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((REFERENCE / "tiny_forward.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "tiny_forward.safetensors")


@pytest.fixture(scope="module")
def folder(figures, tmp_path_factory) -> Path:
    """The reference checkpoint, converted."""
    root = tmp_path_factory.mktemp("converted")
    (root / "sessions.json").write_text(json.dumps(figures["sessions"]))
    sessions = read_sessions(root / "sessions.json")
    checkpoint = REFERENCE / "model_best_avg.pt"
    model, processor = convert(checkpoint, sessions, num_heads=figures["num_heads"])
    write_converted(model, processor, checkpoint, sessions, root / "model")
    return root / "model"


def inputs(figures, tensors, scheme: str, trials=slice(None), num_units: int = 12) -> dict:
    """The reference batch; the padded inputs of -1 there are units that are not there here."""
    spikes = tensors["spikes"][trials, :, :num_units]
    sessions = list(figures["sessions"])
    return {
        "session_index": torch.tensor([sessions.index(eid) for eid in figures["batch_sessions"]])[trials],
        "spike_counts": spikes.clamp(min=0),
        "unit_mask": spikes[:, 0] != figures["padding_value"],
        "behaviors": {
            "choice": tensors["choice"][trials].long(),
            "block": tensors["block"][trials].long(),
            "wheel_speed": tensors["wheel"][trials],
            "whisker_motion_energy": tensors["whisker"][trials],
        },
        "hidden": {ours: tensors[f"{scheme}/mask/{theirs}"][trials].bool() for theirs, ours in NAMES.items()},
    }


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Largest difference against the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def assert_outputs_equal(output, figures, tensors, scheme, unit_mask) -> None:
    expected = figures["losses"][scheme]
    assert float(output.loss) == pytest.approx(expected["loss"], rel=TOLERANCE)
    for theirs, ours in NAMES.items():
        loss = float(output.losses[ours])
        assert loss == pytest.approx(expected[f"loss_{theirs}"], rel=TOLERANCE, abs=0), ours
    real = unit_mask[:, None].expand_as(output.log_rates)
    assert_equal(output.log_rates[real], tensors[f"{scheme}/prediction/spike"][real])
    for theirs in ("wheel", "whisker"):
        assert_equal(output.predictions[NAMES[theirs]], tensors[f"{scheme}/prediction/{theirs}"][..., 0])
    for name in ("choice", "block"):
        assert_equal(output.predictions[name], tensors[f"{scheme}/logits/{name}"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_counts_and_predictions(folder, figures, tensors, scheme, attention):
    model = NEDSModel.from_pretrained(folder, attn_implementation=attention)
    batch = inputs(figures, tensors, scheme)
    with torch.no_grad():
        output = model(**batch)
    assert_outputs_equal(output, figures, tensors, scheme, batch["unit_mask"])
    available = dict.fromkeys(model.config.behaviors, torch.ones(6, dtype=torch.bool))
    counts = count_targets(batch["hidden"], available, batch["unit_mask"])
    assert {theirs: int(counts[ours]) for theirs, ours in NAMES.items()} == figures["losses"][scheme][
        "n_examples"
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_session_without_padding(folder, figures, tensors, scheme):
    """The seven units of the first session, alone in a batch."""
    model = NEDSModel.from_pretrained(folder)
    trials = [0, 3, 5]
    with torch.no_grad():
        output = model(**inputs(figures, tensors, scheme, trials, num_units=7))
    assert output.log_rates.shape == (3, 100, 7)
    assert_equal(output.log_rates, tensors[f"{scheme}/prediction/spike"][trials, :, :7])
    assert_equal(output.predictions["block"], tensors[f"{scheme}/logits/block"][trials])


def original_gradient_norms(model: NEDSModel, figures) -> dict[str, float]:
    """Norm of the gradient of every tensor of the published model, from those of ours.

    The columns of its first layer that belong to absent units see inputs of -1, so that each has the gradient of
    the bias times -1; the readout rows of absent units have none.
    """
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
    hidden, bins = figures["hidden_size"], figures["num_bins"]
    norms = {
        "mask_token": gradient["mask_embedding.weight"].norm(),
        "encoder_norm.weight": gradient["encoder.norm.weight"].norm(),
        "encoder_norm.bias": gradient["encoder.norm.bias"].norm(),
    }
    for layer in range(figures["num_layers"]):
        ours, theirs = f"encoder.blocks.{layer}", f"encoder.{layer}"
        for part in ("weight", "bias"):
            qkv = gradient[f"{ours}.attention.qkv_proj.{part}"].split(hidden)
            for kind, rows in zip(("query", "key", "value"), qkv):
                norms[f"{theirs}.attn.{kind}.{part}"] = rows.norm()
            for here, there in {
                "attention_norm": "ln1",
                "attention.out_proj": "attn.out_proj",
                "feed_forward_norm": "ln2",
                "up_proj": "mlp.up_proj",
                "down_proj": "mlp.down_proj",
            }.items():
                norms[f"{theirs}.{there}.{part}"] = gradient[f"{ours}.{here}.{part}"].norm()

    session_embedding = gradient["session_embedding.weight"].view(2, 5, hidden)
    temporal_embedding = gradient["temporal_embedding.weight"].view(5, bins, hidden)
    units = (gradient["unit_embedding.weight"].split([7, 12]), gradient["unit_readout.weight"].split([7, 12]))
    for place, (theirs, ours) in enumerate(NAMES.items()):
        modality = f"encoder_embeddings.{theirs}"
        norms[f"{modality}.embedder.mod_emb.weight"] = gradient["modality_embedding.weight"][place].norm()
        norms[f"{modality}.embedder.session_emb.weight"] = session_embedding[:, place].norm()
        norms[f"{modality}.embedder.pos_embed.weight"] = temporal_embedding[place].norm()
        for row, (session, num_units) in enumerate(figures["sessions"].items()):
            stitch = f"{modality}.embedder.mod_stitch_encoder"
            readout = f"{modality}.mod_stitcher_proj_dict.stitch_decoder_dict.{session}"
            if theirs == "spike":
                bias = gradient["session_spike_bias.weight"][row]
                absent = (12 - num_units) * bias.square().sum()
                norms[f"{stitch}.stitcher_dict.{session}.weight"] = (
                    units[0][row].square().sum() + absent
                ).sqrt()
                norms[f"{stitch}.stitcher_dict.{session}.bias"] = bias.norm()
                norms[f"{readout}.weight"] = units[1][row].norm()
                norms[f"{readout}.bias"] = gradient["unit_bias.weight"].split([7, 12])[row].norm()
                second = "session_spike_projection"
            else:
                second = f"session_tokenizer.{ours}.second"
                for part in ("weight", "bias"):
                    first = gradient[f"session_tokenizer.{ours}.first.{part}.weight"][row]
                    norms[f"{stitch}.stitcher_dict.{session}.{part}"] = first.norm()
                    norms[f"{readout}.{part}"] = gradient[f"session_readout.{ours}.{part}.weight"][row].norm()
            for part in ("weight", "bias"):
                norms[f"{stitch}.project_dict.{session}.{part}"] = gradient[f"{second}.{part}.weight"][
                    row
                ].norm()
            if theirs in ("choice", "block"):
                weights = gradient[f"session_token_weights.{ours}.weight"][row]
                norms[f"{modality}.mod_static_weight_dict.{session}"] = weights.norm()
    return {name: float(norm) for name, norm in norms.items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_norms(folder, figures, tensors, scheme, attention):
    model = NEDSModel.from_pretrained(folder, attn_implementation=attention)
    model(**inputs(figures, tensors, scheme)).loss.backward()
    found = original_gradient_norms(model, figures)
    prefix = f"{scheme}/grad_norm/"
    expected = {name.removeprefix(prefix): float(t) for name, t in tensors.items() if name.startswith(prefix)}
    assert set(expected) <= set(found)
    # What the loss does not reach has no gradient there, and a gradient of zero here.
    assert {name: found[name] for name in set(found) - set(expected) if found[name]} == {}
    far = {
        name: (found[name], norm)
        for name, norm in expected.items()
        if abs(found[name] - norm) > TOLERANCE * abs(norm)
    }
    assert not far


FRESH = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

folder, source, target = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
given = load_file(source)
batch = {"behaviors": {}, "hidden": {}}
for name, tensor in given.items():
    group, _, modality = name.partition("/")
    if modality:
        batch[group][modality] = tensor
    else:
        batch[name] = tensor
assert processor.session_ids == model.config.session_ids
assert "neds_hf" not in sys.modules
with torch.no_grad():
    output = model(**batch)
save_file(
    {"loss": output.loss, "log_rates": output.log_rates, "last_hidden_state": output.last_hidden_state}
    | {f"losses/{name}": loss for name, loss in output.losses.items()}
    | {f"predictions/{name}": prediction for name, prediction in output.predictions.items()},
    target,
)
"""


def test_auto_model_by_the_code_in_the_folder_alone(folder, figures, tensors, tmp_path):
    """In a process that does not import this package."""
    batch = inputs(figures, tensors, "random")
    flat = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    for group in ("behaviors", "hidden"):
        flat |= {f"{group}/{name}": value for name, value in batch[group].items()}
    save_file({name: value.contiguous() for name, value in flat.items()}, tmp_path / "batch.safetensors")
    arguments = [folder, tmp_path / "batch.safetensors", tmp_path / "output.safetensors"]
    done = subprocess.run([sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "output.safetensors")
    expected = figures["losses"]["random"]
    assert float(found["loss"]) == pytest.approx(expected["loss"], rel=TOLERANCE)
    for theirs, ours in NAMES.items():
        assert float(found[f"losses/{ours}"]) == pytest.approx(expected[f"loss_{theirs}"], rel=TOLERANCE)
    real = batch["unit_mask"][:, None].expand_as(found["log_rates"])
    assert_equal(found["log_rates"][real], tensors["random/prediction/spike"][real])
    assert_equal(found["predictions/choice"], tensors["random/logits/choice"])
    assert_equal(found["predictions/wheel_speed"], tensors["random/prediction/wheel"][..., 0])
