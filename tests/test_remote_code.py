"""A saved model loads where this package is not installed, and by its folder's bare name where it is."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor

# Prints nothing and leaves what it predicts in `predicted.npz`.
PREDICT = """
import sys
import numpy as np
sys.modules["neds_hf"] = None  # importing it raises
from transformers import AutoConfig, AutoModel, AutoProcessor

options = {"trust_remote_code": True}
config = AutoConfig.from_pretrained("./neds-ibl", **options)
model = AutoModel.from_pretrained("./neds-ibl", **options)
processor = AutoProcessor.from_pretrained("./neds-ibl", **options)
assert config.session_ids == model.config.session_ids == processor.session_ids == ["mouse-2", "mouse-1"]
assert type(processor).__name__ == "NEDSProcessor"
assert type(model).__module__.startswith("transformers_modules.")
inputs = np.load("inputs.npz")
output = model(
    **processor("mouse-1", inputs["spike_counts"], {"wheel_speed": inputs["wheel_speed"]}), scheme="decoding"
)
arrays = {"log_rates": output.log_rates, "loss": output.loss, **output.predictions}
np.savez("predicted.npz", **{name: value.detach().numpy() for name, value in arrays.items()})
"""


@pytest.fixture(autouse=True)
def one_thread():
    """As the other process, whose sums are then in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with `neds-ibl/` (model and processor) and `inputs.npz`, and what the model predicts."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (4, 10, 6)).astype(np.uint8)
    wheel = rng.normal(3, 2, (4, 10))
    wheel[1] = np.nan
    sizes = {"num_bins": 10, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = NEDSConfig(session_ids=["mouse-2"], unit_counts=[3], **sizes)
    processor = NEDSProcessor(config.modalities, num_bins=10)
    processor.add_session("mouse-2", list("abc"), counts[..., :3], {"wheel_speed": wheel})
    processor.add_session("mouse-1", list("defghi"), counts, {"wheel_speed": wheel})
    torch.manual_seed(0)
    model = NEDSModel(config).eval()
    model.add_sessions({"mouse-1": 6}, {"mouse-1": processor.mean_counts("mouse-1")})
    model.save_pretrained(folder / "neds-ibl")
    processor.save_pretrained(folder / "neds-ibl")
    np.savez(folder / "inputs.npz", spike_counts=counts, wheel_speed=wheel)
    return folder, predict(model, processor, folder)


def predict(model, processor, folder):
    inputs = np.load(folder / "inputs.npz")
    behaviors = {"wheel_speed": inputs["wheel_speed"]}
    with torch.no_grad():
        output = model(**processor("mouse-1", inputs["spike_counts"], behaviors), scheme="decoding")
    arrays = {"log_rates": output.log_rates, "loss": output.loss, **output.predictions}
    return {name: value.numpy() for name, value in arrays.items()}


def assert_equal(predicted, expected):
    assert predicted.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(predicted[name], value, err_msg=name)


def test_a_saved_model_loads_and_predicts_without_this_package(saved):
    folder, expected = saved
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    # Isolated: neither the current directory nor PYTHONPATH is searched for modules.
    done = subprocess.run(
        [sys.executable, "-I", "-c", PREDICT], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "predicted.npz") as predicted:
        assert_equal(dict(predicted), expected)


def test_a_folder_loads_by_its_bare_name_and_untrusted_with_this_package(saved, monkeypatch):
    folder, expected = saved
    monkeypatch.chdir(folder)
    kinds = (AutoConfig, AutoModel, AutoProcessor)
    config, model, processor = (kind.from_pretrained("neds-ibl") for kind in kinds)
    assert [type(one) for one in (config, model, processor)] == [NEDSConfig, NEDSModel, NEDSProcessor]
    assert config.session_ids == model.config.session_ids == processor.session_ids == ["mouse-2", "mouse-1"]
    assert_equal(predict(model, processor, folder), expected)
