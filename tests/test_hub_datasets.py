"""A dataset over a Hub on this machine: pushed, loaded by plain `datasets`, streamed, offline."""

import pytest
from hub.processes import neds, result_of
from hub.server import Hub
from small_dataset import write_dataset

ROWS = {  # trials of `small_dataset`: of all sessions, of `ann` and `bob`, of `cat`
    "trials": {"train": 89, "validation": 13, "test": 25},
    "pretrain": {"train": 61, "validation": 9, "test": 17},
    "held_out": {"train": 28, "validation": 4, "test": 8},
    "units": {"train": 19},
    "sessions": {"train": 3},
}
LOAD = """
import json
from datasets import get_dataset_config_names, load_dataset

def rows(config, **options):
    splits = load_dataset("lab/ibl-repeated-site", config, **options)
    return {name: sum(1 for _ in split) for name, split in splits.items()}
"""


@pytest.fixture(scope="module")
def hub(dataset, tmp_path_factory):
    """With the dataset, pushed, and once more in a private repository."""
    with Hub() as hub:
        lab = hub.environment(tmp_path_factory.mktemp("pushing"), token="hf_lab")
        for argv in (["lab/ibl-repeated-site"], ["lab/unpublished", "--private"]):
            assert neds(lab, "push", dataset, *argv).returncode == 0
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def loaded(hub, home):
    script = """
names = get_dataset_config_names("lab/ibl-repeated-site")
first = next(iter(load_dataset("lab/ibl-repeated-site", "trials", split="test", streaming=True)))
try:
    refused = len(load_dataset("lab/unpublished", "sessions", split="train"))
except Exception as error:
    refused = type(error).__name__
print(json.dumps({
    "downloaded": {name: rows(name) for name in names},
    "streamed": {name: rows(name, streaming=True) for name in ("trials", "units")},
    "first": first,
    "default": len(load_dataset("lab/ibl-repeated-site", split="test")),
    "private": len(load_dataset("lab/unpublished", "sessions", split="train", token="hf_lab")),
    "no token": refused,
}))
"""
    return result_of(hub.environment(home), LOAD + script)


def test_every_configuration_and_split(loaded):
    assert loaded["downloaded"] == ROWS
    assert loaded["default"] == ROWS["trials"]["test"]


def test_streamed(loaded):
    assert loaded["streamed"] == {name: ROWS[name] for name in ("trials", "units")}
    trial = loaded["first"]
    assert len(trial["spike_counts"]) == 20 * trial["num_units"] and len(trial["wheel_speed"]) == 20


def test_a_private_dataset_needs_a_token(loaded):
    assert loaded["private"] == 3 and loaded["no token"] == "DatasetNotFoundError"


def test_what_was_downloaded_once_loads_offline(hub, loaded, home):
    asked = len(hub.requests)
    script = "print(json.dumps([rows('trials'), rows('units')]))"
    offline = result_of(hub.environment(home) | {"HF_HUB_OFFLINE": "1"}, LOAD + script)
    assert offline == [ROWS["trials"], ROWS["units"]]
    assert len(hub.requests) == asked


def test_a_branch_holds_other_sessions(hub, home, tmp_path):
    folder = write_dataset(tmp_path / "data", sessions=("ann",))
    push = ("push", folder, "lab/ibl-repeated-site", "--revision", "one-mouse")
    assert neds(hub.environment(home, token="hf_lab"), *push).returncode == 0
    script = "print(json.dumps([rows('sessions', revision='one-mouse'), rows('sessions')]))"
    assert result_of(hub.environment(home), LOAD + script) == [{"train": 1}, {"train": 3}]
