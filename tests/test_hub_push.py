"""`neds push`: what it sends and what not, in one commit or none; every flag and every refusal."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hub.processes import neds, python
from hub.server import Hub
from safetensors.numpy import save_file
from small_dataset import write_dataset

from neds_hf.errors import NEDSError
from neds_hf.hub.push import push

SESSIONS = ("ann", "bob", "cat")
DATASET = {"README.md", "dropped_sessions.json", "held_out.json"}
DATASET |= {f"trials/{split}/{s}.parquet" for split in ("train", "validation", "test") for s in SESSIONS}
DATASET |= {f"{table}/{session}.parquet" for table in ("units", "sessions") for session in SESSIONS}
# The waits between attempts are cut; everything else is `neds push`.
IMPATIENT = (
    "import sys, time; time.sleep = lambda _: None\n"
    "from neds_hf.cli.main import main; sys.exit(main(['push', *sys.argv[1:]]))"
)


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def lab(hub, tmp_path_factory):
    """Environment of the user `lab`."""
    return hub.environment(tmp_path_factory.mktemp("home"), token="hf_lab")


@pytest.fixture
def model(tmp_path):
    """What lies in a model folder, and may lie there besides."""
    folder = tmp_path / "my-neds"
    texts = {
        "README.md": "---\nlibrary_name: transformers\n---\n# a model\n",
        "config.json": "{}",
        "processor_config.json": "{}",
        "modeling_neds.py": "",
        "runs/monday/events.out.tfevents.1": "curves",
        "training_args.bin": "pickle",
        "pytorch_model.bin": "pickle",
        "checkpoint-3/config.json": "{}",
        "checkpoint-3/optimizer.pt": "pickle",
        "scores/test.json": "{}",
        "notes.txt": "private",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    save_file({"weight": np.arange(1000.0)}, folder / "model.safetensors")
    save_file({"weight": np.arange(1000.0)}, folder / "checkpoint-3" / "model.safetensors")
    return folder


MODEL = {"README.md", "config.json", "processor_config.json", "modeling_neds.py", "model.safetensors"}
MODEL |= {"runs/monday/events.out.tfevents.1"}


def error_of(done) -> str:
    """The one line that a refused push prints."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_dataset_in_one_commit_then_only_what_changed(hub, lab, tmp_path):
    folder = write_dataset(tmp_path / "data")
    done = neds(lab, "push", folder, "lab/recordings")
    assert done.returncode == 0, done.stderr[-3000:]
    (commit,) = hub.commits("dataset", "lab/recordings")
    assert commit.written == DATASET and commit.message == "Upload data"
    assert done.stdout.strip().endswith(f"/commit/{commit.oid}")
    for path, content in hub.files("dataset", "lab/recordings").items():
        assert content == (folder / path).read_bytes()

    again = neds(lab, "push", folder, "lab/recordings")
    assert again.returncode == 0 and again.stderr == ""
    assert again.stdout == f"lab/recordings holds all of {folder} already; no commit\n"
    assert len(hub.commits("dataset", "lab/recordings")) == 1

    other = write_dataset(tmp_path / "other" / "data", sessions=("ann", "bob"))
    assert neds(lab, "push", other, "lab/recordings").returncode == 0
    last = hub.commits("dataset", "lab/recordings")[-1]
    assert last.deleted == {path for path in DATASET if "cat" in path}
    assert last.written == {"README.md", "held_out.json"}


def test_a_model_without_checkpoints_pickles_and_private_files(hub, lab, model):
    assert neds(lab, "push", model, "lab/shared").returncode == 0
    assert set(hub.files("model", "lab/shared")) == MODEL

    # What somebody put into the repository by hand stays; what only a model folder can have brought goes.
    files = hub.repositories["model", "lab/shared"].at("main").files
    files |= {"figures/raster.png": files["config.json"], "old.json": files["config.json"]}
    assert neds(lab, "push", model, "lab/shared").returncode == 0
    assert set(hub.files("model", "lab/shared")) == MODEL | {"figures/raster.png"}


def test_private_on_a_branch_with_a_message(hub, lab, model):
    where = ("push", model, "lab/drafts", "--revision", "v2", "--private")
    assert neds(lab, *where, "--message", "larger model").returncode == 0
    assert hub.repositories["model", "lab/drafts"].private
    (commit,) = hub.commits("model", "lab/drafts", "v2")
    assert commit.message == "larger model" and commit.written == MODEL
    assert hub.commits("model", "lab/drafts") == []

    (model / "new.json").write_text("{}")
    (model / "modeling_neds.py").unlink()
    assert neds(lab, *where).returncode == 0  # the branch is there now
    commit = hub.commits("model", "lab/drafts", "v2")[-1]
    assert commit.written == {"new.json"} and commit.deleted == {"modeling_neds.py"}
    assert hub.commits("model", "lab/drafts") == []


def test_private_is_not_pushed_into_a_public_repository(hub, lab, model):
    assert neds(lab, "push", model, "lab/public").returncode == 0
    (model / "config.json").write_text('{"secret": 1}')
    error = error_of(neds(lab, "push", model, "lab/public", "--private"))
    assert error == "neds push: lab/public is there already, and public: nothing was pushed"
    assert len(hub.commits("model", "lab/public")) == 1


@pytest.mark.parametrize("request_", ["PUT /large", "POST .*/commit/"])
def test_a_dropped_connection_publishes_nothing_and_the_next_push_completes(hub, lab, model, request_):
    name = f"lab/dropped-{request_[:4].strip().lower()}"
    save_file({"weight": np.random.default_rng(len(name)).random(100_000)}, model / "model.safetensors")
    hub.drops[request_] = float("inf")
    error = error_of(python(lab, "-c", IMPATIENT, model, name))
    del hub.drops[request_]
    assert error.startswith(f"neds push: {model} is not pushed to {name}, where nothing is half published;")
    assert re.search("disconnected|Broken pipe|reset by peer", error), error
    assert hub.files("model", name) == {}

    sent = len(hub.requests)
    assert neds(lab, "push", model, name).returncode == 0
    assert set(hub.files("model", name)) == MODEL
    assert hub.files("model", name)["model.safetensors"] == (model / "model.safetensors").read_bytes()
    uploads = sum(request.startswith("PUT") for request in hub.requests[sent:])
    assert uploads == (request_ == "PUT /large")  # what had arrived is not sent again


def test_a_connection_that_drops_once_is_tried_again_and_a_bare_name_is_ones_own(hub, lab, model):
    save_file({"weight": np.arange(7.0)}, model / "model.safetensors")
    hub.drops["PUT /large"] = 1
    assert python(lab, "-c", IMPATIENT, model, "patient").returncode == 0
    assert set(hub.files("model", "lab/patient")) == MODEL


@pytest.mark.parametrize(
    "name, environment, reason",
    [
        ("lab/x", {"HF_TOKEN": ""}, "401"),
        ("lab/x", {"HF_TOKEN": "hf_eve"}, "403"),
        ("lab/x", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(hub, lab, model, name, environment, reason):
    error = error_of(neds(lab | environment, "push", model, name))
    assert error.startswith(f"neds push: {model} is not pushed to {name}") and reason in error
    assert ("model", name) not in hub.repositories


def test_metadata_that_the_hub_does_not_read_stops_the_push(hub, lab, model):
    (model / "README.md").write_text("---\ntags: [a\n---\n")
    assert "Invalid metadata in README.md" in error_of(neds(lab, "push", model, "lab/invalid"))
    assert hub.files("model", "lab/invalid") == {}


@pytest.mark.parametrize(
    "name, reason", [("a/b/c", "Repo id must be in the form"), ("lab/x", "offline mode is enabled")]
)
def test_what_is_refused_before_the_hub_is_asked(model, name, reason):
    with pytest.raises(NEDSError, match=reason):  # the tests' own process is offline
        push(model, name)


# --- folders ---


def test_a_folder_that_is_neither_model_nor_dataset(tmp_path):
    (tmp_path / "trials").mkdir()  # as in a search's folder
    with pytest.raises(NEDSError, match=f"{tmp_path} is neither a model folder .* nor a dataset folder"):
        push(tmp_path, "lab/x")


def test_a_dataset_whose_conversion_was_cut_off(tmp_path):
    folder = write_dataset(tmp_path / "data", sessions=("ann",))
    (folder / "README.md").unlink()
    with pytest.raises(NEDSError, match=r"no whole dataset: it has no README.md"):
        push(folder, "lab/x")


def test_a_dataset_of_which_a_file_is_gone(tmp_path):
    """Or it would be deleted in the repository too."""
    folder = write_dataset(tmp_path / "data")
    (folder / "units" / "bob.parquet").unlink()
    with pytest.raises(NEDSError, match=f"there is no file {folder / 'units' / 'bob.parquet'}$"):
        push(folder, "lab/x")


def test_a_dataset_in_a_folder_named_as_a_builder_is_looked_through(tmp_path, monkeypatch):
    write_dataset(tmp_path / "parquet")
    (tmp_path / "parquet" / "units" / "bob.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NEDSError, match=r"there is no file .*bob\.parquet$"):
        push(Path("parquet"), "lab/x")


def test_a_run_that_was_cut_off(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(NEDSError, match="neither a model folder"):
        push(model, "lab/x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_copy_that_was_cut_off(model, name):
    (model / "README.md").unlink()
    (model / name).write_text("{")
    with pytest.raises(NEDSError, match=f"{model} is no whole model folder: "):
        push(model, "lab/x")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "[]", "AttributeError: 'list' object has no attribute 'get'"),
        ("metrics.json", "[]", "TypeError: list indices must be integers"),
        ("metrics.json", "{}", "KeyError: 'mean'"),
        ("config.json", '{"session_ids": ["ann"]}', "UndefinedError: 'dict object' has no attribute 'num"),
    ],
)
def test_files_of_which_no_card_can_be_made(model, name, content, reason):
    (model / "README.md").unlink()
    (model / "config.json").write_text('{"session_ids": ["ann"], "unit_counts": [5]}')
    (model / name).write_text(content)
    message = f"{model} is no whole model folder: no card can be made of its JSON files ({reason}"
    with pytest.raises(NEDSError, match=re.escape(message)):
        push(model, "lab/x")


def test_an_adapter_configuration_that_is_none(model):
    for text, reason in (("{", " cannot be read as JSON"), ("[]", ": expected a mapping, found")):
        (model / "adapter_config.json").write_text(text)
        with pytest.raises(NEDSError, match=f"{model / 'adapter_config.json'}{reason}"):
            push(model, "lab/x")


@pytest.mark.parametrize("base", ["/home/me/neds-ibl", "/neds-ibl", "neds-ibl", None])
def test_an_adapter_of_a_model_that_is_not_on_the_hub(model, base):
    config = model / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": base}))
    message = (
        f"is an adapter of {base}, which only this machine has: push that first, and write its USER/NAME as"
    )
    with pytest.raises(NEDSError, match=message):
        push(model, "lab/x")
    config.write_text(json.dumps({"base_model_name_or_path": "lab/neds-ibl"}))
    with pytest.raises(NEDSError, match="offline mode is enabled"):  # asked of the Hub
        push(model, "lab/x")
