"""Offline, one thread, a cache of its own; and one small dataset and model that many tests share."""

import os
import re
import tempfile

CACHE = tempfile.TemporaryDirectory(prefix="neds_hf_tests_")
# Before anything imports these libraries; what the tests start inherits it.
for name in [name for name in os.environ if re.match("(?i)(neds_)?hf_|accelerate_|.*_proxy$", name)]:
    del os.environ[name]  # the user's own caches, tokens and servers
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": CACHE.name, "OMP_NUM_THREADS": "1"}

import pytest  # noqa: E402
from small_dataset import OF_MODEL, TRAINING, pretrain_arguments, write_dataset  # noqa: E402
from tiny_alf import write_session  # noqa: E402


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Dataset folder of `small_dataset`."""
    return write_dataset(tmp_path_factory.mktemp("small") / "dataset")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, dataset):
    """Model folder that `neds pretrain` wrote, of the sessions `ann` and `bob`."""
    from neds_hf.cli.main import main

    out = tmp_path_factory.mktemp("small") / "model"
    assert main(["pretrain", *pretrain_arguments(dataset, out), *OF_MODEL]) == 0
    return out


@pytest.fixture
def cache(tmp_path):
    """A ONE cache with a session of `mouse_a` and one of `mouse_b`."""
    for subject in ("mouse_a", "mouse_b"):
        write_session(tmp_path / "one", subject)
    return tmp_path / "one"


@pytest.fixture
def error_of(capsys):
    """The one line that a wrong call of `neds` prints, and nothing else."""
    from neds_hf.cli.main import main

    def call(*argv) -> str:
        capsys.readouterr()
        assert main([*map(str, argv)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.strip().splitlines()[-1]

    return call


@pytest.fixture
def finetune_arguments(dataset):
    """Arguments of a short `neds finetune` of a model folder on `cat`, into a folder."""

    def arguments(model, out):
        where = ["--model", str(model), "--dataset", str(dataset), "--output", str(out)]
        return [*where, "--session", "cat", "--num_train_epochs", "1", *TRAINING]

    return arguments
