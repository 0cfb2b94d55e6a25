"""A saved model loads where this package is not installed, and by its folder's bare name where it is."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor

# Both print nothing and leave what they predict in `predicted.npz`.
PREDICT = """
import sys
import numpy as np
{before}
from transformers import AutoConfig, AutoModel, AutoProcessor

config = AutoConfig.from_pretrained("{name}", {options})
model = AutoModel.from_pretrained("{name}", {options})
processor = AutoProcessor.from_pretrained("{name}", {options})
assert config.session_ids == model.config.session_ids == processor.session_ids == ["mouse-2", "mouse-1"]
assert type(processor).__name__ == "NEDSProcessor"
inputs = np.load("inputs.npz")
output = model(
    **processor("mouse-1", inputs["spike_counts"], {{"wheel_speed": inputs["wheel_speed"]}}), scheme="decoding"
)
arrays = {{"log_rates": output.log_rates, "loss": output.loss, **output.predictions}}
np.savez("predicted.npz", **{{name: value.detach().numpy() for name, value in arrays.items()}})
{after}
"""


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
    with torch.no_grad():
        output = model(**processor("mouse-1", counts, {"wheel_speed": wheel}), scheme="decoding")
    expected = {"log_rates": output.log_rates, "loss": output.loss, **output.predictions}
    return folder, {name: value.numpy() for name, value in expected.items()}


def predict_in_another_process(folder, **script):
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # as many as sum in the same order
    }
    # Isolated: neither the current directory nor PYTHONPATH is searched for modules.
    done = subprocess.run(
        [sys.executable, "-I", "-c", PREDICT.format(**script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "predicted.npz") as predicted:
        return dict(predicted)


def assert_equal(predicted, expected):
    assert predicted.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(predicted[name], value, err_msg=name)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_saved_model_loads_and_predicts_without_this_package(saved):
    folder, expected = saved
    predicted = predict_in_another_process(
        folder,
        name="./neds-ibl",
        options="trust_remote_code=True",
        before="sys.modules['neds_hf'] = None  # importing it raises",
        after="assert type(model).__module__.startswith('transformers_modules.')",
    )
    assert_equal(predicted, expected)


def test_a_folder_loads_by_its_bare_name_and_untrusted_with_this_package(saved):
    folder, expected = saved
    predicted = predict_in_another_process(
        folder,
        name="neds-ibl",
        options="",
        before="import neds_hf.models",
        after="assert type(model) is neds_hf.models.NEDSModel",
    )
    assert_equal(predicted, expected)
