"""`neds regions`: every flag, what it writes, its errors and its exit status."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_dataset import write_dataset

pytest.importorskip("matplotlib", reason="matplotlib is not installed (neds_hf[report])")

from matplotlib.image import imread

import neds_hf.analysis.regions as analysis
import neds_hf.cli.regions as regions_command
from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings

REPOSITORY = Path(__file__).resolve().parents[1]
# The third unit of `ann` is silent and dropped; the model does not know `cat`, which has no regions. In the other
# mappings regions have other names.
ALLEN = {"ann": ["CA1", "CA3", "CA1", "VISp", "VISp", "VISp"], "bob": [*["CA1", "VISp"] * 4, "root"]}
BERYL = {"CA1": "CA1", "CA3": "CA3", "VISp": "VIS", "root": "root"}
COSMOS = {"CA1": "HPF", "CA3": "HPF", "VISp": "Isocortex", "root": "root"}
FEATURES = [
    "chance",
    "rate",
    "statistics",
    "tokenizer",
    "readout",
    "tokenizer + readout",
    "tokenizer + readout + statistics",
]


@pytest.fixture(autouse=True, scope="module")
def one_penalty():
    """To be quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "INVERSE_PENALTIES", (1.0,))
        yield


def with_regions(recording):
    if recording.session in ALLEN:
        recording.units["allen"] = ALLEN[recording.session]
        recording.units["beryl"] = recording.units["allen"].map(BERYL)
        recording.units["cosmos"] = recording.units["allen"].map(COSMOS)
    return recording


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    """The small dataset, with regions."""
    return write_dataset(tmp_path_factory.mktemp("located") / "dataset", change=with_regions)


@pytest.fixture
def groups(tmp_path):
    file = tmp_path / "groups.yaml"
    file.write_text("CA1: hippocampus\nCA3: another hippocampus\nVIS: cortex\nno: thalamus\n")
    return file


@pytest.fixture(scope="module")
def regions(located, model_folder, tmp_path_factory):
    """Run it with more arguments; its folder and the metrics there."""

    def run(*more) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp("new") / "deep" / "regions"
        argv = ["--model", model_folder, "--dataset", located, "--output", folder, "--min-units", 5, *more]
        assert main(["regions", *map(str, argv)]) == 0
        return folder, json.loads((folder / "metrics.json").read_text())

    return run


@pytest.fixture(scope="module")
def by_default(regions):
    """Folder and metrics of a run, and the recordings that its features are of."""
    seen, features = [], regions_command.unit_features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            regions_command, "unit_features", lambda model, of: seen.append(of) or features(model, of)
        )
        return *regions(), seen[0]


@pytest.fixture(scope="module")
def by_cosmos(regions):
    """Folder and metrics of a run with that mapping, and what it printed."""
    with redirect_stdout(StringIO()) as printed:
        return *regions("--mapping", "cosmos"), printed.getvalue()


def test_both_splits_are_scored_written_drawn_and_printed(by_cosmos):
    folder, metrics, printed = by_cosmos
    assert metrics["regions"] == {"Isocortex": 7, "HPF": 6}
    assert metrics["left_out"] == {"no region": 1} and metrics["left_out_by_session"] == {}
    lines = printed.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert lines[:2] == ["13 units in Isocortex 7, HPF 6", "left out: no region 1"]
    for by, num_folds in (("unit", 5), ("session", 2)):
        assert list(metrics[f"by_{by}"]) == FEATURES
        for name, scores in metrics[f"by_{by}"].items():
            assert scores["num_folds"] == num_folds and 0 <= scores["balanced_accuracy"] <= 1
            file = folder / f"confusion_by_{by}_{name.replace(' + ', '_')}.csv"
            confusion = pd.read_csv(file, index_col=0)
            assert confusion.sum(axis=1).to_dict() == {"Isocortex": 7, "HPF": 6}
            pixels = imread(file.with_suffix(".png"))[..., :3]
            assert pixels.min() == 0 and pixels.std() > 0.1
        assert metrics[f"by_{by}"]["chance"]["balanced_accuracy"] == 0.5
        (row,) = [line for line in lines if line.startswith("readout ")]
        scores = metrics[f"by_{by}"]["readout"]
        assert f"{scores['accuracy']:.3f} ± {scores['accuracy_standard_error']:.3f}" in row
    run = json.loads((folder / "run.json").read_text())
    assert run["configuration"]["mapping"] == "cosmos" and run["configuration"]["sessions"] == ["ann", "bob"]
    assert "finished" in run and run["versions"]["neds_hf"]


def test_the_mapping_is_allen_where_none_is_named_and_rare_regions_are_left_out(by_default):
    _, metrics, _ = by_default
    assert metrics["regions"] == {"VISp": 7, "CA1": 5}
    assert metrics["left_out"] == {"no region": 1, "in a region of fewer than 5 units": 1}


def test_a_choice_of_classes_of_a_group_file_of_another_mapping(regions, groups):
    _, metrics = regions("--mapping", "beryl", "--group", groups, "--regions", "cortex", "hippocampus")
    assert metrics["regions"] == {"cortex": 7, "hippocampus": 5}
    assert metrics["left_out"] == {"no region": 1, "not among the chosen regions": 1}


def test_regions_of_one_session_are_left_out_of_the_split_by_session(model_folder, tmp_path, capsys):
    def change(recording):
        if recording.session in ALLEN:
            recording.units["allen"] = {"ann": ["CA1"] * 6, "bob": ["CA1", "CA1", "CA1", *["LP"] * 6]}[
                recording.session
            ]
        return recording

    dataset = write_dataset(tmp_path / "dataset", change=change)
    argv = ["--model", model_folder, "--dataset", dataset, "--output", tmp_path / "out", "--min-units", 5]
    assert main(["regions", *map(str, argv)]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["regions"] == {"CA1": 8, "LP": 6} and metrics["left_out_by_session"] == {"LP": 6}
    assert "by_unit" in metrics and "by_session" not in metrics
    assert "no split by session: it needs two regions in two sessions each" in capsys.readouterr().out


def test_statistics_are_of_the_validation_trials_too(by_default, located):
    """As a model may have learned from these."""
    _, _, recordings = by_default
    splits = open_recordings(located).only(["ann", "bob"]).splits
    assert len(recordings.split("train")) == len(splits["train"]) + len(splits["validation"])


def test_the_seed_shuffles(regions, by_cosmos):
    _, metrics, _ = by_cosmos
    _, other = regions("--mapping", "cosmos", "--seed", 5)
    assert metrics["by_unit"] != other["by_unit"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--session", "cat"], "does not know session cat of"),
        (["--session", "eve"], "does not have session eve"),
        (["--model", "nowhere"], "no model folder nowhere"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--min-units", "4"], "--min-units must be at least 5, one a fold, not 4"),
        (["--regions", "LP", "CA1"], "no unit is in LP; regions of the units: CA1, CA3, VISp"),
        (
            ["--session", "ann"],
            "two regions of 20 units or more are needed; units of each: VISp 3, CA1 1, CA3 1",
        ),
        (["--group", "nowhere.yaml"], "nowhere.yaml: expected a YAML file"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    located, model_folder, tmp_path, error_of, change, message
):
    argv = ["--model", model_folder, "--dataset", located, "--output", tmp_path / "out", *change]
    assert message in error_of("regions", *argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["- CA1\n", "CA1: [hippocampus]\n", "CA1: {a: b}\n", "CA1: 'x\n"])
def test_a_group_file_that_is_no_mapping_is_an_error(
    located, model_folder, tmp_path, groups, error_of, content
):
    groups.write_text(content)
    argv = ["--model", model_folder, "--dataset", located, "--output", tmp_path / "out", "--group", groups]
    assert f"{groups}: expected a " in error_of("regions", *argv)


def test_a_dataset_without_regions_is_an_error(dataset, model_folder, tmp_path, error_of):
    argv = ["--model", model_folder, "--dataset", dataset, "--output", tmp_path / "out"]
    error = error_of("regions", *argv)
    assert f"{dataset}: none of the 14 units has a region in the mapping 'allen'" in error


def test_other_settings_in_the_same_folder_are_refused(by_default, located, model_folder, error_of):
    folder, _, _ = by_default
    argv = ["--model", model_folder, "--dataset", located, "--output", folder]
    assert "two regions of 6 units" in error_of("regions", *argv, "--min-units", 6)
    error = error_of("regions", *argv, "--min-units", 5, "--seed", 1)
    assert "holds a run with other settings: seed 0 there, 1 asked for" in error


def test_the_groups_of_steinmetz_are_of_one_division_of_the_atlas_each():
    brain = pytest.importorskip("iblatlas.regions", reason="iblatlas is not installed").BrainRegions()
    groups = yaml.safe_load((REPOSITORY / "examples/configs/steinmetz_regions.yaml").read_text())
    divisions = pd.DataFrame(
        {"group": list(groups.values()), "division": brain.acronym2acronym(list(groups), "Cosmos")}
    )
    assert divisions.groupby("group")["division"].unique().map(sorted).to_dict() == {
        "hippocampus": ["HPF"],
        "midbrain": ["MB"],
        "other cortex": ["Isocortex", "OLF"],
        "striatum and pallidum": ["CNU"],
        "thalamus": ["TH"],
        "visual cortex": ["Isocortex"],
    }
