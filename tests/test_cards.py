"""Cards say what the files beside them say: metadata for the Hub, kind of recordings, numbers, how to use it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, ModelCard
from safetensors.numpy import load_file
from small_dataset import write_dataset
from tiny_alf import write_session

from neds_hf.cards.model import write_model_card
from neds_hf.cards.rendering import origin_in_words
from neds_hf.cli.main import main
from neds_hf.data.folder import write_card
from neds_hf.data.origin import license_of, origins, repeated_site_sessions
from neds_hf.data.simulation import simulate
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSModel, NEDSProcessor
from neds_hf.training.runs import hub_id

ALF = {"files": [], "signals": {"wheel_speed": "wheel"}}


def heading(folder: Path) -> str:
    return ModelCard.load(folder / "README.md").text.strip().splitlines()[0]


def snippet(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return code


@pytest.fixture
def model(model_folder, tmp_path) -> Path:
    """A copy, to change."""
    return shutil.copytree(model_folder, tmp_path / "copy")


def change(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def changed_data(model: Path, **changes) -> ModelCard:
    """The card of a model that was trained on other data."""
    data = json.loads((model / "run.json").read_text())["data"]
    change(model / "run.json", data=data | changes)
    write_model_card(model)
    return ModelCard.load(model / "README.md")


# --- simulated or real, and the licence ---


def sessions(*rows: tuple[str, str, dict]) -> pd.DataFrame:
    return pd.DataFrame(
        [(s, lab, json.dumps(p)) for s, lab, p in rows], columns=["session", "lab", "provenance"]
    )


@pytest.mark.parametrize(
    "lab, provenance, kind",
    [
        ("simlab", ALF, "simulated"),
        ("churchlandlab", ALF, "real"),
        ("", {"files": [], "source": "Simulated by our model"}, "simulated"),
        ("", {"files": [], "source": "dandi 000409"}, "real"),
        ("", {"files": [], "source": ""}, "unknown"),
        ("", {"files": [], "source": None}, "unknown"),
    ],
)
def test_recordings_are_told_apart(lab, provenance, kind):
    assert origins(sessions(("a", lab, provenance), ("b", "churchlandlab", ALF))) == (
        {"real": 2} if kind == "real" else {kind: 1, "real": 1}
    )


def test_a_table_of_sessions_that_does_not_say_what_they_are_is_refused():
    with pytest.raises(
        NEDSError, match=r"^table sessions: expected a column 'lab', found session, provenance$"
    ):
        origins(sessions(("a", "", ALF)).drop(columns="lab"))


@pytest.mark.parametrize(
    "found, words",
    [
        ({"simulated": 3}, "simulated recordings"),
        ({"real": 1}, "real recordings"),
        ({"real": 1, "simulated": 3}, "simulated and real recordings"),
        ({"unknown": 1}, "recordings that do not say whether they are simulated or real"),
    ],
)
def test_the_first_line_says_whether_recordings_were_simulated(model, found, words):
    assert origin_in_words(found) == words
    changed_data(model, origins=found)
    assert heading(model) == f"# copy: NEDS, trained on {words}"


def test_what_is_built_from_simulated_and_from_other_alf_folders(tmp_path):
    simulate(tmp_path / "simulated", sessions=1, trials=30, units=12)
    write_session(tmp_path / "real", "mouse_a")
    for kind in ("simulated", "real"):
        out = tmp_path / f"{kind}_mice"
        argv = ["build", out, "--alf", tmp_path / kind, "--workers", 1, "--min-rate", 0.1]
        assert main([*map(str, argv)]) == 0
        assert heading(out) == f"# {kind}_mice: {kind} recordings"


def test_the_licence_is_known_of_simulations_and_of_the_public_sessions_only():
    first, *_ = repeated_site_sessions()["pretrain"]
    public, private = (first, "churchlandlab", ALF), ("b", "churchlandlab", ALF)
    assert license_of(sessions(("a", "simlab", ALF))) == "apache-2.0"
    assert license_of(sessions(public)) == "cc-by-4.0"
    assert license_of(sessions(public, private)) == "unknown"
    assert license_of(sessions(("a", "simlab", ALF), private)) == "unknown"


# --- models ---


def test_the_metadata_hold_the_numbers_of_the_test_trials(model_folder):
    mean = json.loads((model_folder / "metrics.json").read_text())["mean"]
    data = ModelCard.load(model_folder / "README.md").data
    assert data.to_dict().keys() == {"library_name", "license", "pipeline_tag", "tags", "model-index"}
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "other", "unknown")
    assert data.model_name == "model"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {
        name: value for name, value in mean.items() if name not in ("mean", "silent_units")
    }
    assert {r.metric_type for r in data.eval_results if r.task_type == "neural-encoding"} == {
        "bits_per_spike",
        "bits_per_spike_train_null",
        "psth_r2",
    }
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in data.eval_results} == {
        ("dataset", "dataset", "test")
    }


def test_the_table_of_results_is_that_of_the_file(model):
    scores = {"ann": {"bits_per_spike": 0.25, "wheel_speed_r2": None}, "bob": {"bits_per_spike": 0.75}}
    mean = {"bits_per_spike": 0.5, "wheel_speed_r2": None}
    (model / "metrics.json").write_text(json.dumps({"mean": mean, "sessions": scores}))
    write_model_card(model)
    card = ModelCard.load(model / "README.md")
    rows = re.findall(r"^\| (\w+) \| ([-\d.]+) \| ([-\d.]+) \| ([-\d.]+) \|$", card.text, flags=re.MULTILINE)
    assert rows == [("bits_per_spike", "0.500", "0.250", "0.750")]
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("bits_per_spike", 0.5)]


def test_a_card_says_what_the_model_is_and_was_trained_on(model_folder):
    text = (model_folder / "README.md").read_text()
    parameters = NEDSModel.from_pretrained(model_folder).num_parameters()
    for line in (
        "| encoder | 1 layers of 16, 2 heads, feed-forward 32 |",
        f"| parameters | {parameters} |",
        "| sessions, units | 2, 14 |",
        "| trial | 20 bins of 50 ms from -0.2 s around `go` |",
        "| modalities | spikes, choice (right, left), block (0.2, 0.5, 0.8), wheel_speed, whisker_motion_energy |",
    ):
        assert line in text.splitlines()
    assert "dataset `dataset`, 2 sessions, 14 units, 61 training trials (9 validation trials" in text
    assert "On the 17 test trials of 2 sessions" in text


def test_validation_trials_are_not_said_to_have_chosen_the_last_checkpoint(model):
    configuration = json.loads((model / "run.json").read_text())["configuration"]
    change(model / "run.json", configuration=configuration | {"load_best_model_at_end": False})
    write_model_card(model)
    assert "14 units, 61 training trials.\n" in (model / "README.md").read_text()


def test_names_on_the_hub_are_metadata_and_folders_are_not(model):
    card = changed_data(model, hub_id="lab/ibl", name="ibl", origins={"real": 2}, license="cc-by-4.0")
    assert (card.data.datasets, card.data.license) == (["lab/ibl"], "cc-by-4.0")
    assert {"real", "neds"} <= set(card.data.tags) and "unknown" not in card.data.tags
    assert {(r.dataset_name, r.dataset_type) for r in card.data.eval_results} == {("ibl", "lab/ibl")}
    change(model / "run.json", base={"name": "neds-ibl", "hub_id": "lab/neds-ibl"})
    write_model_card(model)
    assert ModelCard.load(model / "README.md").data.base_model == "lab/neds-ibl"


def test_what_is_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("lab/neds") == "lab/neds"
    (tmp_path / "lab" / "neds").mkdir(parents=True)
    assert hub_id("lab/neds") is None
    assert hub_id("neds") is None and hub_id("/home/lab/neds") is None


def test_a_fine_tuned_model_names_the_one_it_started_from(model_folder, finetune_arguments, tmp_path):
    assert main(["finetune", *finetune_arguments(model_folder, tmp_path / "cat")]) == 0
    card = ModelCard.load(tmp_path / "cat" / "README.md")
    assert heading(tmp_path / "cat").startswith("# cat: NEDS, fine-tuned on recordings")
    assert "dataset `dataset`, 1 session, 5 units" in card.text
    assert "The weights that it started from are those of `model`" in card.text
    assert card.data.base_model is None


def test_an_adapter_names_what_it_adapts_and_loads_as_its_card_says(
    model_folder, finetune_arguments, tmp_path, monkeypatch
):
    pytest.importorskip("peft")
    argv = finetune_arguments(model_folder, tmp_path / "cat")
    assert main(["finetune", *argv, "--strategy", "lora"]) == 0
    card = ModelCard.load(tmp_path / "cat" / "README.md")
    assert heading(tmp_path / "cat").startswith("# cat: NEDS adapter, fine-tuned on recordings")
    assert card.data.library_name == "peft"
    weights = load_file(tmp_path / "cat" / "adapter_model.safetensors").values()
    assert f"| parameters | {sum(weight.size for weight in weights)} of the adapter |" in card.text
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(tmp_path / "cat"), names)
    assert type(names["model"]) is NEDSModel and names["values"].shape == (2, 20)


def test_evaluations_in_the_folder_are_on_the_card(model, dataset):
    argv = [
        "--model",
        model,
        "--dataset",
        dataset,
        "--split",
        "validation",
        "--output",
        model / "scores.json",
    ]
    assert main(["evaluate", *map(str, argv)]) == 0
    write_model_card(model)
    text = (model / "README.md").read_text()
    mean = json.loads((model / "scores.json").read_text())["mean"]
    assert "By `neds evaluate` on the validation trials of" in text
    for name in ("bits_per_spike", "choice_accuracy"):
        assert f"{name} {mean[name]:.3f}" in text


def test_a_model_saved_without_a_run_gets_a_card_without_claims(model_folder, tmp_path):
    NEDSModel.from_pretrained(model_folder).save_pretrained(tmp_path / "bare")
    NEDSProcessor.from_pretrained(model_folder).save_pretrained(tmp_path / "bare")
    write_model_card(tmp_path / "bare")
    card = ModelCard.load(tmp_path / "bare" / "README.md")
    assert heading(tmp_path / "bare") == "# bare: NEDS, trained on recordings that this folder does not name"
    assert card.data.to_dict().keys() == {"library_name", "license", "pipeline_tag", "tags"}
    assert "## Results" not in card.text
    assert "## What it was trained on" not in card.text
    # A run of before runs noted their data.
    run = json.loads((model_folder / "run.json").read_text())
    del run["data"], run["base"]
    (tmp_path / "bare" / "run.json").write_text(json.dumps(run))
    write_model_card(tmp_path / "bare")
    assert heading(tmp_path / "bare") == "# bare: NEDS, trained on recordings that this folder does not name"
    (tmp_path / "bare" / "processor_config.json").unlink()
    with pytest.raises(NEDSError, match=r"bare is no model folder: it has no processor_config\.json"):
        write_model_card(tmp_path / "bare")


def test_a_card_unscales_what_its_first_session_has(model):
    processor = json.loads((model / "processor_config.json").read_text())
    del processor["sessions"][0]["scaling"]["wheel_speed"]
    (model / "processor_config.json").write_text(json.dumps(processor))
    write_model_card(model)
    text = (model / "README.md").read_text()
    assert 'processor.unscale("ann", "whisker_motion_energy"' in text and '"wheel_speed"' not in text


def test_the_code_on_a_card_is_python_whatever_behaviours_are_called(model):
    processor = json.loads((model / "processor_config.json").read_text())
    processor["sessions"][0]["scaling"] = {"pupil diameter": [0.0, 1.0]}
    (model / "processor_config.json").write_text(json.dumps(processor))
    write_model_card(model)
    assert 'decoded["pupil diameter"]' in snippet(model)
    compile(snippet(model), "card", "exec")


def test_a_model_without_sessions_has_no_card(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"session_ids": [], "unit_counts": []}))
    with pytest.raises(NEDSError, match="the model has no sessions"):
        write_model_card(model)


def test_a_converted_model_names_its_source_and_the_ranges_that_it_lacks(model):
    (model / "run.json").unlink()
    (model / "metrics.json").unlink()
    known = {"wheel_speed": [0, 9]}
    sessions = {"ann": {"ranges": known | {"whisker_motion_energy": [0, 1]}}, "bob": {"ranges": known}}
    source = {"source": "best.pt", "sha256": "ab12", "bytes": 345, "versions": {"neds_hf": "0.1.0"}}
    (model / "conversion.json").write_text(json.dumps({**source, "sessions": sessions}))
    write_model_card(model)
    assert heading(model) == (
        "# copy: NEDS, converted from a checkpoint that does not say what recordings it was trained on"
    )
    text = (model / "README.md").read_text()
    assert "| source | `best.pt`, 345 bytes |\n| SHA-256 of the source | `ab12` |" in text
    assert "The range of whisker_motion_energy was not given for every session." in text


# --- datasets ---


def test_the_metadata_of_a_dataset(dataset):
    card = DatasetCard.load(dataset / "README.md")
    assert card.text.strip().splitlines()[0].startswith("# dataset: recordings that do not say whether")
    assert [config["config_name"] for config in card.data.configs] == [
        *("trials", "units", "sessions", "pretrain", "held_out")
    ]
    assert (card.data.pretty_name, card.data.license) == ("dataset", "unknown")
    assert (card.data.size_categories, card.data.task_categories) == (["n<1K"], ["other"])
    assert "sessions: 3 kept, 0 dropped" in card.text
    assert "| `block` | class, prior probability of a stimulus on the left: 0.2, 0.5, 0.8 |" in card.text
    assert "| `wheel_speed` | float32, one value a bin |" in card.text  # of arrays: in units of their own


def test_the_unit_of_wheel_speed_that_was_read_from_alf(tmp_path):
    def from_alf(recording):
        recording.provenance |= ALF
        return recording

    out = write_dataset(tmp_path / "mice", ["ann"], change=from_alf)
    assert "| `wheel_speed` | float32, one value a bin, rad/s |" in (out / "README.md").read_text()


@pytest.mark.parametrize("trials, size", [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M")])
def test_the_size_category_of_a_dataset(tmp_path, trials, size):
    out = write_dataset(tmp_path / "one", ["ann"])
    file = out / "sessions" / "ann.parquet"
    table = pq.read_table(file)
    counts = {"train_trials": trials - 2, "validation_trials": 1, "test_trials": 1}
    for name, number in counts.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array([number], pa.int32()))
    pq.write_table(table, file)
    write_card(out)
    assert DatasetCard.load(out / "README.md").data.size_categories == [size]


def test_the_first_line_and_the_licence_of_a_simulated_dataset(tmp_path):
    def simulated(recording):
        recording.lab = "simlab"
        return recording

    out = write_dataset(tmp_path / "mice", ["ann"], change=simulated)
    card = DatasetCard.load(out / "README.md")
    assert card.text.strip().splitlines()[0] == "# mice: simulated recordings"
    assert card.data.license == "apache-2.0" and "simulated" in card.data.tags
    assert "says nothing of the brain" in card.text and "spike sorter" not in card.text


# --- the code on both ---


def test_the_code_on_the_cards_runs_as_it_stands(model_folder, dataset, tmp_path):
    """Isolated from this checkout; the model by its own code, the dataset by plain `datasets`."""
    script = f"""
import os, sys
sys.modules["neds_hf"] = None  # importing it raises
os.chdir({str(dataset.parent)!r})
{snippet(dataset)}
assert counts.shape == (20, units.groupby("session").size()[trial["session"]])
os.chdir({str(model_folder.parent)!r})
{snippet(model_folder)}
assert values.shape == (2, 20) and decoded["choice"].shape == (2, 2)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
