"""Models over a Hub on this machine, in fresh processes: pushed by a run, loaded in every way, also offline."""

import json
import re
import shutil

import numpy as np
import pytest
from hub.processes import neds, result_of
from hub.server import Hub
from small_dataset import pretrain_arguments

import neds_hf
from neds_hf.cli.main import main
from neds_hf.errors import NEDSError

CODE = ("configuration", "masking", "modeling", "pipelines", "processing")
FOLDER = {"config.json", "model.safetensors", "processor_config.json", *(f"{name}_neds.py" for name in CODE)}
FOLDER |= {"run.json", "metrics.json", "trainer_state.json", "README.md"}

# Predicted wheel speed of one trial, by a model from anywhere.
PREDICT = """
import json, sys, time
import numpy as np
from transformers import AutoConfig, AutoModel, AutoProcessor

def predict(model, processor):
    counts = np.random.default_rng(0).poisson(0.5, (1, 20, 5))
    return model(**processor("ann", counts), scheme="decoding").predictions["wheel_speed"][0].tolist()

def auto(source, **options):
    config = AutoConfig.from_pretrained(source, **options)
    model, processor = (kind.from_pretrained(source, **options) for kind in (AutoModel, AutoProcessor))
    assert config.session_ids == model.config.session_ids == processor.session_ids == ["ann"]
    return predict(model, processor)

slept = []
time.sleep = slept.append  # as between attempts

def error_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (OSError, ValueError) as error:
        return [type(error).__name__, str(error), slept]
"""
WAYS = ("neds demo", "pushed to the Hub", "neds convert")


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the processes with this package keep what they download."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def folder(hub, dataset, tmp_path_factory):
    """Model folder of a run that pushed itself to `lab/neds-ibl`."""
    folder = tmp_path_factory.mktemp("run") / "neds-ibl"
    argv = [*pretrain_arguments(dataset, folder), "--num_train_epochs", "2", "--sessions", "ann"]
    push = ("--push_to_hub", "--hub_model_id", "lab/neds-ibl", "--hub_token", "hf_lab")
    done = neds(hub.environment(tmp_path_factory.mktemp("training")), "pretrain", *argv, *push)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def loaded(hub, dataset, folder, home, tmp_path_factory):
    """What a process with this package gets from repositories and names, without a token but where it is said."""
    larger = shutil.copytree(folder, tmp_path_factory.mktemp("larger") / "neds-ibl")
    config = json.loads((larger / "config.json").read_text()) | {"mask_ratio": 0.7}
    (larger / "config.json").write_text(json.dumps(config))
    lab = hub.environment(home, token="hf_lab")
    for argv in ([folder, "lab/secret", "--private"], [larger, "lab/neds-ibl", "--revision", "v2"]):
        assert neds(lab, "push", *argv).returncode == 0
    script = f"""
import neds_hf, neds_hf.models
from datasets import load_dataset
from neds_hf.data.collator import NEDSCollator
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from transformers import Trainer, TrainingArguments

model, processor = AutoModel.from_pretrained("lab/neds-ibl"), AutoProcessor.from_pretrained("lab/neds-ibl")
rows = load_dataset({str(dataset)!r}, split="train").select(range(4))  # of `ann`
arguments = TrainingArguments(
    "trained", max_steps=1, learning_rate=0.0, remove_unused_columns=False, report_to="none", use_cpu=True,
    disable_tqdm=True, push_to_hub=True, hub_model_id="lab/by-trainer", hub_token="hf_lab",
)
trainer = Trainer(model, arguments, data_collator=NEDSCollator(processor), train_dataset=rows)
trainer.train()
trainer.push_to_hub()
processor.push_to_hub("lab/by-trainer", token="hf_lab")

mask_ratios = [
    kind.from_pretrained("lab/neds-ibl", revision="v2") for kind in (AutoConfig, AutoModel)
] + [neds_hf.load("lab/neds-ibl", revision="v2")[0]]
print(json.dumps({{
    "folder": auto({str(folder)!r}),
    "hub": auto("lab/neds-ibl"),
    "trainer": auto("lab/by-trainer"),
    "v2": [getattr(found, "config", found).mask_ratio for found in mask_ratios],
    "no token": error_of(auto, "lab/secret"),
    "load without token": error_of(neds_hf.load, "secret"),
    "private": auto("lab/secret", token="hf_lab"),
    "load": predict(*neds_hf.load("lab/neds-ibl")),
    "load by organisation": predict(*neds_hf.load("neds-ibl")),
    "load what is not there": error_of(neds_hf.load, "lab/nothing"),
    "bare": [error_of(kind.from_pretrained, "neds-ibl") for kind in (NEDSModel, NEDSConfig, NEDSProcessor)],
    "bare auto": [error_of(kind.from_pretrained, "neds-ibl") for kind in (AutoModel, AutoConfig, AutoProcessor)],
}}))
"""
    environment = hub.environment(home) | {"NEDS_HF_ORGANISATION": "lab"}
    return result_of(environment, PREDICT + script, cwd=tmp_path_factory.mktemp("elsewhere"))


def test_a_finished_run_is_pushed_once_and_whole_and_without_a_pickle(hub, folder):
    (commit,) = hub.commits("model", "lab/neds-ibl")
    assert commit.written == FOLDER
    for path, content in hub.files("model", "lab/neds-ibl").items():
        assert content == (folder / path).read_bytes()


def test_pushing_that_run_again_makes_no_commit_and_a_card_that_is_missing_is_written(
    hub, folder, home, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "neds-ibl")
    card = (copy / "README.md").read_bytes()
    (copy / "README.md").unlink()
    done = neds(hub.environment(home, token="hf_lab"), "push", copy, "lab/neds-ibl")
    assert done.stdout == f"lab/neds-ibl holds all of {copy} already; no commit\n", done.stderr[-3000:]
    assert (copy / "README.md").read_bytes() == card
    assert len(hub.commits("model", "lab/neds-ibl")) == 1


def test_what_the_hub_gives_predicts_as_the_folder_does(loaded):
    assert np.ptp(loaded["folder"]) > 0
    assert loaded["hub"] == loaded["load"] == loaded["load by organisation"] == loaded["folder"]


def test_what_a_plain_trainer_pushed_loads(loaded):
    np.testing.assert_allclose(loaded["trainer"], loaded["folder"], atol=1e-6)  # its learning rate was 0


def test_a_revision(loaded):
    assert loaded["v2"] == [0.7, 0.7, 0.7]


def test_a_private_repository_needs_a_token(loaded):
    assert loaded["private"] == loaded["folder"]
    assert loaded["no token"][0] == "OSError" and "lab/secret" in loaded["no token"][1]
    kind, message, slept = loaded["load without token"]
    assert kind == "NEDSError" and "lab/secret is no model folder and no model on the Hub" in message
    assert slept == []


def test_a_name_that_is_nowhere_says_the_three_ways_at_once(loaded):
    kind, message, slept = loaded["load what is not there"]
    assert kind == "NEDSError" and all(way in message for way in WAYS) and slept == []
    for kind, message, slept in loaded["bare"]:
        assert kind == "OSError" and message.startswith("there is no folder 'neds-ibl'") and slept == []
        assert all(way in message for way in WAYS)
    for kind, message, slept in loaded["bare auto"]:  # transformers' own, before it knows that it is NEDS
        assert kind == "OSError" and "neds-ibl" in message and slept == []


def test_without_this_package_the_code_of_the_repository_is_trusted(hub, loaded, tmp_path):
    script = """
sources = {"lab/neds-ibl": {}, "lab/secret": {"token": "hf_lab"}, "lab/by-trainer": {}}
print(json.dumps([auto(name, trust_remote_code=True, **token) for name, token in sources.items()]))
"""
    block = "import sys; sys.modules['neds_hf'] = None  # importing it raises\n"
    predicted = result_of(hub.environment(tmp_path), block + PREDICT + script, cwd=tmp_path)
    assert predicted == [loaded["folder"], loaded["folder"], loaded["trainer"]]


def test_finetuning_from_the_hub_to_the_hub(hub, dataset, folder, finetune_arguments, home, tmp_path):
    lab = hub.environment(home, token="hf_lab")
    assert neds(lab, "push", dataset, "lab/recordings").returncode == 0
    argv = finetune_arguments("lab/neds-ibl", tmp_path / "cat")
    argv[argv.index("--dataset") + 1] = "lab/recordings"
    done = neds(lab, "finetune", *argv, "--push_to_hub", "--hub_private_repo", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.repositories["model", "lab/cat"].private
    files = hub.files("model", "lab/cat")
    assert files.keys() == FOLDER and json.loads(files["config.json"])["session_ids"] == ["ann", "cat"]


def test_what_was_downloaded_once_loads_offline(hub, loaded, home):
    script = """
import neds_hf, neds_hf.models
print(json.dumps([auto("lab/neds-ibl"), predict(*neds_hf.load("lab/neds-ibl"))]))
"""
    asked = len(hub.requests)
    predicted = result_of(hub.environment(home) | {"HF_HUB_OFFLINE": "1"}, PREDICT + script)
    assert predicted == [loaded["folder"]] * 2
    assert len(hub.requests) == asked


def test_load_does_not_wait_for_a_hub_that_cannot_be_reached(hub, loaded, home):
    script = """
import neds_hf.hub.load
print(json.dumps([error_of(neds_hf.load, "lab/nothing"), predict(*neds_hf.load("lab/neds-ibl")), slept]))
"""
    environment = hub.environment(home) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (kind, message, _), predicted, slept = result_of(environment, PREDICT + script)
    assert kind == "NEDSError" and all(way in message for way in WAYS)
    assert predicted == loaded["folder"] and slept == []


# --- in the process of the tests, which is offline ---


def test_load_finds_a_folder_then_one_in_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NEDS_HF_ORGANISATION", raising=False)
    monkeypatch.chdir(folder.parent)
    assert neds_hf.load("neds-ibl")[1].session_ids == neds_hf.load(folder)[1].session_ids == ["ann"]
    with pytest.raises(NEDSError, match="revision v2 is of the Hub, but neds-ibl is the folder neds-ibl"):
        neds_hf.load("neds-ibl", revision="v2")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEDS_HF_HOME", str(tmp_path / "mine"))
    with pytest.raises(NEDSError, match=r"no model folder neds-ibl here or in .*/mine") as error:
        neds_hf.load("neds-ibl")
    assert all(way in str(error.value) for way in WAYS) and "NEDS_HF_ORGANISATION" in str(error.value)
    shutil.copytree(folder, tmp_path / "mine" / "neds-ibl")
    assert neds_hf.load("neds-ibl")[1].session_ids == ["ann"]

    monkeypatch.delenv("NEDS_HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.move(tmp_path / "mine", tmp_path / ".cache" / "neds_hf")
    assert neds_hf.load("neds-ibl")[1].session_ids == ["ann"]


@pytest.mark.parametrize(
    "more, reason",
    [
        ([], "--push_to_hub: no repository to push to: .*offline"),
        (["--hub_strategy", "every_save"], "--hub_strategy every_save: a run is pushed at its end"),
    ],
)
def test_a_run_that_could_not_be_pushed_does_not_start(dataset, tmp_path, capsys, more, reason):
    argv = [*pretrain_arguments(dataset, tmp_path), "--push_to_hub", "--hub_model_id", "lab/x", *more]
    assert main(["pretrain", *argv]) == 2
    assert re.search(reason, capsys.readouterr().err)
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("checkpoint-*"))
