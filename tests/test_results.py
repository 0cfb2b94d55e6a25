"""The tables of RESULTS.md come from committed files."""

import json
from functools import partial

import ablations
import checkpoints
import common
import folds
import headline
import numpy as np
import pandas as pd
import pytest
import regions
import simulation
import transfer
from PIL import Image
from small_dataset import simulate, write_arrays

from neds_hf.training.arguments import NEDSTrainingArguments


@pytest.mark.parametrize("script", [folds, ablations, checkpoints, transfer, simulation, regions])
def test_the_page_holds_the_table_of_the_committed_runs(script):
    assert script.table(pd.read_csv(script.CSV)) in common.RESULTS.read_text()


def test_readme_holds_the_headline_of_the_committed_runs():
    """The row of NEDS on the IBL session is that of the table of folds, the five columns that are shown."""
    table = headline.table()
    assert table in headline.README.read_text()
    row = next(
        line for line in folds.table(pd.read_csv(folds.CSV)).splitlines() if line.startswith("| NEDS |")
    )
    cells = row.split(" | ")
    shown = [cells[1 + list(common.METRICS).index(metric)].removesuffix(" |") for metric in headline.SHOWN]
    assert f"| IBL: NEDS | {' | '.join(shown)} |" in table.splitlines()


@pytest.mark.parametrize("script", [folds, transfer])
def test_a_line_of_the_drawn_folds_is_a_fold_under_every_method(script):
    results = pd.read_csv(script.CSV)
    figure = headline.figure(script)
    assert len(figure.axes) == (5 if script is folds else 3)
    bits, first = figure.axes[0], results[results["fold"] == 0]
    assert bits.get_title() == "bits/spike"
    linear, *_ = bits.lines[0].get_xdata()
    assert linear == pytest.approx(first.loc[first["method"] == "linear", "bits_per_spike"].mean())
    neds = "NEDS" if script is folds else "alone"
    labels = [label.get_text() for label in bits.get_yticklabels()]
    assert labels[0] == "linear" and labels.index("NEDS") == len(script.BASELINES)
    assert bits.lines[0].get_xdata()[labels.index("NEDS")] == pytest.approx(
        first.loc[first["method"] == neds, "bits_per_spike"].mean()
    )
    assert f"(benchmarks/{script.CSV.stem}.png)" in common.RESULTS.read_text()
    with Image.open(script.CSV.with_suffix(".png")) as drawn:  # not of an older file
        assert drawn.text["Source"] == headline.hash_of(script.CSV)


def test_table_of_folds_is_over_means_of_seeds_and_paired():
    """Two folds. The best baseline is the linear one, 0.1 and 0.3; NEDS has 0.2 and 0.5, the first from seeds at
    0.1 and 0.3. The Poisson GLM decodes nothing."""
    values = [
        ("linear", 0, 0, 0.1, 0.1),
        ("linear", 1, 0, 0.3, 0.3),
        ("reduced_rank", 0, 0, 0.1, 0.1),
        ("reduced_rank", 1, 0, 0.1, 0.1),
        ("poisson_glm", 0, 0, 0.2, np.nan),
        ("poisson_glm", 1, 0, 0.2, np.nan),
        ("neds_encoding", 0, 0, 0.2, np.nan),
        ("neds_decoding", 0, 0, np.nan, 0.2),
        ("NEDS", 0, 0, 0.1, 0.1),
        ("NEDS", 0, 1, 0.3, 0.3),
        ("NEDS", 1, 0, 0.5, 0.5),
        ("NEDS, no roots", 0, 0, 0.2, 0.2),
        ("NEDS, no roots", 1, 0, 0.2, 0.2),
        ("NEDS, no roots, seeds averaged", 0, 2, 0.2, 0.2),
        ("NEDS, no roots, seeds averaged", 1, 2, 0.2, 0.2),
        ("NEDS, no roots, in bf16", 0, 0, 0.2, 0.2),
        ("NEDS, no roots, in bf16", 1, 0, 0.2, 0.2),
        ("NEDS, smoothed labels", 0, 0, 0.2, 0.2),
        ("NEDS, smoothed labels", 1, 0, 0.2, 0.2),
        ("NEDS, pretrained on 12 simulated mice", 0, 0, 0.3, 0.3),
        ("NEDS, pretrained on 12 simulated mice", 1, 0, 0.3, 0.3),
        ("NEDS, pretrained on 12 simulated mice, seeds averaged", 0, 2, 0.3, 0.3),
        ("NEDS, pretrained on 12 simulated mice, seeds averaged", 1, 2, 0.4, 0.4),
        ("NEDS, pretrained on 36 simulated mice", 0, 0, 0.4, 0.4),
        ("NEDS, pretrained on 36 simulated mice", 1, 0, 0.4, 0.4),
        ("NEDS, pretrained on 36 simulated mice, seeds averaged", 0, 2, 0.4, 0.4),
        ("NEDS, pretrained on 36 simulated mice, seeds averaged", 1, 2, 0.4, 0.4),
        ("NEDS, seeds averaged", 0, 2, 0.4, 0.4),
        ("NEDS, seeds averaged", 1, 2, 0.4, 0.4),
        ("NEDS, smoothed labels, seeds averaged", 0, 2, 0.3, 0.3),
        ("NEDS, smoothed labels, seeds averaged", 1, 2, 0.3, 0.3),
    ]
    metrics = list(folds.METRICS)
    rows = [
        {"method": method, "fold": fold, "seed": seed, **dict.fromkeys(metrics, other), metrics[0]: bits}
        for method, fold, seed, bits, other in values
    ]
    lines = folds.table(pd.DataFrame(rows)).splitlines()
    assert lines[0].startswith("| | bits/spike | wheel R²")
    assert lines[2].startswith("| linear | 0.200 ± 0.100 |")
    assert lines[4].startswith("| poisson_glm | 0.200 ± 0.000 |  |")
    cells = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in lines}
    assert cells["| NEDS"][0] == "0.350 ± 0.150"
    assert cells["| NEDS, no roots, in bf16"][0] == "0.200 ± 0.000"
    assert cells["| NEDS, seeds averaged"][0] == "0.400 ± 0.000"
    assert cells["| NEDS − best baseline"] == ["0.150 ± 0.050", "0.150 ± 0.050"]
    assert cells["| NEDS, seeds averaged − best baseline"] == ["0.200 ± 0.100", "0.200 ± 0.100"]
    assert cells["| NEDS, pretrained on 12 simulated mice − best baseline"][0] == "0.100 ± 0.100"
    assert cells["| NEDS, pretrained on 36 simulated mice − best baseline"][0] == "0.200 ± 0.100"
    assert cells["| NEDS, smoothed labels − best baseline"] == ["0.000 ± 0.100", "0.000 ± 0.100"]


def test_table_of_transfer_is_over_sessions_within_folds_and_paired():
    """Two sessions, two folds. The best baseline is the linear one: 0.2 and 0.4 in the folds. Training alone has
    0.1 and 0.5 there, fine-tuning 0.4 and 0.6, in one session from seeds at 0.2 and 0.4 in fold 0."""
    values = {
        "linear": (0.2, 0.4),
        "reduced_rank": (0.1, 0.1),
        "reduced_rank_multi_session": (0.1, 0.1),
        "poisson_glm": (0.0, 0.1),
        "alone": (0.1, 0.5),
        "fine-tuned": (0.4, 0.6),
        "fine-tuned together": (0.5, 0.6),
        "fine-tuned, gradual unfreezing": (0.3, 0.3),
        "fine-tuned, weights averaged": (0.4, 0.7),
        "alone, seeds averaged": (0.3, 0.5),
        "fine-tuned, seeds averaged": (0.5, 0.7),
        "fine-tuned together, seeds averaged": (0.6, 0.7),
    }
    rows = [
        {"session": session, "fold": fold, "method": method, "seed": 0, "bits_per_spike": value + shift}
        for session, shift in (("a", -0.1), ("b", 0.1))
        for method, by_fold in values.items()
        for fold, value in enumerate(by_fold)
    ]
    (first,) = (
        row for row in rows if row["session"] == "a" and row["method"] == "fine-tuned" and row["fold"] == 0
    )
    first["bits_per_spike"] = 0.2
    rows.append({**first, "seed": 1, "bits_per_spike": 0.4})
    lines = transfer.table(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| | bits/spike |"
    assert lines[2:4] == ["| a: linear | 0.200 |", "| a: reduced_rank | 0.000 |"]
    assert "| b: linear | 0.400 |" in lines and "| a: fine-tuned | 0.400 |" in lines
    assert "| **mean: linear** | 0.300 ± 0.100 |" in lines
    assert "| **mean: fine-tuned** | 0.500 ± 0.100 |" in lines
    assert lines[-12:] == [
        "| **mean: fine-tuned − alone** | 0.200 ± 0.100 |",
        "| **mean: fine-tuned, weights averaged − alone** | 0.250 ± 0.050 |",
        "| **mean: fine-tuned together − alone** | 0.250 ± 0.150 |",
        "| **mean: fine-tuned together − fine-tuned** | 0.050 ± 0.050 |",
        "| **mean: fine-tuned, gradual unfreezing − fine-tuned** | -0.200 ± 0.100 |",
        "| **mean: fine-tuned, seeds averaged − alone, seeds averaged** | 0.200 ± 0.000 |",
        "| **mean: fine-tuned together, seeds averaged − fine-tuned, seeds averaged** | 0.050 ± 0.050 |",
        "| **mean: fine-tuned − best baseline** | 0.200 ± 0.000 |",
        "| **mean: fine-tuned, weights averaged − best baseline** | 0.250 ± 0.050 |",
        "| **mean: fine-tuned together − best baseline** | 0.250 ± 0.050 |",
        "| **mean: fine-tuned, seeds averaged − best baseline** | 0.300 ± 0.000 |",
        "| **mean: fine-tuned together, seeds averaged − best baseline** | 0.350 ± 0.050 |",
    ]


def test_table_of_ablations_is_what_a_change_adds():
    """`compact` at 0.1 and 0.3, every change at 0.5 and 0.1: 0.4 more and 0.2 less, so 0.1 in the mean. On another
    processor `compact` has 0.7 and the last change 0.8, so it adds 0.4, -0.2 and 0.1."""
    values = [
        (change, "one", fold, value)
        for change in ablations.CHANGES
        for fold, value in enumerate((0.1, 0.3) if change == "compact" else (0.5, 0.1))
    ]
    last = list(ablations.CHANGES)[-1]
    values += [("compact", "other", 0, 0.7), (last, "other", 0, 0.8)]
    rows = [
        {
            "change": change,
            "processor": cpu,
            "fold": fold,
            "seed": 0,
            **dict.fromkeys(ablations.METRICS, value),
        }
        for change, cpu, fold, value in values
    ]
    lines = ablations.table(pd.DataFrame(rows)).splitlines()
    assert lines[2].startswith("| compact | 0.367 | 0.367 |")
    assert all(" | +0.100 ± 0.300 | +0.100 ± 0.300 | " in line for line in lines[3:-1])
    assert lines[-1].startswith(f"| {last} | +0.100 ± 0.173 |")  # 0.3 / root of 3


def test_checkpoints_are_chosen_by_five_evaluations_by_one_by_the_loss_or_are_the_last():
    # Means of five: 0.1, 0.45, 0.37, 0.35, 0.36, 0.44, 0.4, 0.5, 0.46
    means = [0.1, 0.8, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.1]
    losses = [4, 3, 2, 1, 2, 3, 4, 5, 6]
    assert [choose(means, losses) for choose in checkpoints.RULES.values()] == [7, 1, 3, 8]


def test_the_default_choice_of_a_checkpoint_is_what_a_training_keeps(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "NEDSTrainingArguments", partial(NEDSTrainingArguments, num_train_epochs=3)
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "half").touch()
    found = checkpoints.evaluations(dataset, run, 0)
    assert [scores["epoch"] for scores in found] == [1, 2, 3] and not (run / "half").exists()
    assert found[-1]["averaged"].keys() == found[-1]["test"].keys()
    assert found[-1]["averaged"] != found[-1]["test"]
    means, losses = ([scores[name] for scores in found] for name in ("mean", "loss"))
    kept = found[checkpoints.RULES[checkpoints.DEFAULT](means, losses)]["test"]
    assert json.loads((run / "metrics.json").read_text())["mean"] == pytest.approx(kept, nan_ok=True)
    file = run / "evaluations.json"
    before = file.stat().st_mtime_ns
    assert checkpoints.evaluations(dataset, run, 0) == found and file.stat().st_mtime_ns == before


def test_table_of_checkpoints_is_what_another_choice_adds():
    """The default has 0.1 and 0.3 in two folds; every other choice 0.5 and 0.1: 0.4 more and 0.2 less."""
    rows = [
        {
            "checkpoint": rule,
            "fold": fold,
            "seed": 0,
            "epoch": 10,
            **dict.fromkeys(checkpoints.METRICS, value),
        }
        for rule in (*checkpoints.RULES, checkpoints.AVERAGED)
        for fold, value in enumerate((0.1, 0.3) if rule == checkpoints.DEFAULT else (0.5, 0.1))
    ]
    lines = checkpoints.table(pd.DataFrame(rows)).splitlines()
    assert lines[2].startswith("| best mean over 5 evaluations, the default | 10 | 0.200 | 0.200 |")
    assert len(lines) == 7
    assert all(" | 10 | +0.100 ± 0.300 | +0.100 ± 0.300 | " in line for line in lines[3:])


def test_table_of_simulation_is_over_the_new_mice():
    rows = [
        {
            "session": session,
            "roots": roots,
            "mice": mice,
            "how": how,
            "models": models,
            **dict.fromkeys(simulation.SHOWN, value + roots),
        }
        for roots in (False, True)
        for mice, how, models, more in (
            (0, "alone", 1, 0.0),
            (20, "full", 1, 0.0),
            (20, "session", 1, 0.2),
            (20, "session", 3, 0.3),
            (20, "averaged", 1, 0.1),
        )
        for session, value in (("a", 0.2 + more), ("b", 0.4 + more))
    ]
    lines = simulation.table(pd.DataFrame(rows)).splitlines()
    assert lines[0].startswith("| | share of the attainable | share with roots | bits/spike |")
    assert lines[2].startswith("| the new mouse alone | 0.300 | 1.300 | 0.300 |")
    assert lines[3].startswith("| 20 mice, all weights fine-tuned | 0.300 |")
    assert lines[4].startswith(
        "| 20 mice, only units' rows and session embedding fine-tuned | 0.500 | 1.500 |"
    )
    assert lines[5].endswith("| 0.600 |") and "fine-tuned, 3 seeds averaged | 0.600 |" in lines[5]
    assert "embedding fine-tuned, weights of 3 seeds averaged | 0.400 |" in lines[6]
    assert len(lines) == 7


def test_regions_that_are_listed_one_unit_late_are_moved_back_and_others_stay(tmp_path):
    """Units of a region share their ups and downs, and all units those of the whole; the last unit is silent."""
    rng = np.random.default_rng(0)
    areas = rng.permutation(np.repeat(["CA1", "LP", "VISp"], 10))
    shared = rng.normal(size=(3, 200, 10)) + rng.normal(size=(200, 10))
    log_rates = shared[np.unique(areas, return_inverse=True)[1]].transpose(1, 2, 0)
    counts = np.concatenate((rng.poisson(np.exp(log_rates)), np.zeros((200, 10, 1))), 2).astype(np.uint8)
    right, late = np.append(areas, ""), np.append("LP", areas)
    np.savez(tmp_path / "right.npz", spike_counts=counts, unit_region=right, choice=np.arange(200))
    np.savez(tmp_path / "late.npz", spike_counts=counts, unit_region=late, choice=np.arange(200))
    realigned, folder = regions.realigned, tmp_path / "realigned"
    assert realigned(tmp_path / "right.npz", folder) == tmp_path / "right.npz"
    moved = np.load(realigned(tmp_path / "late.npz", folder))
    np.testing.assert_array_equal(moved["unit_region"], right)
    np.testing.assert_array_equal(moved["spike_counts"], counts)
    assert set(moved.files) == {"spike_counts", "unit_region", "choice"}


def test_other_recordings_than_the_folder_is_of_are_refused(tmp_path):
    recording = simulate("bob")
    first, other = (write_arrays(tmp_path / f"{n}.npz", recording, np.arange(n)) for n in (40, 46))
    built = common.built
    for _ in range(2):
        assert built(tmp_path / "dataset", "--arrays", first) == tmp_path / "dataset"
    with pytest.raises(SystemExit, match=f"{tmp_path / 'dataset'} is of other recordings than these"):
        built(tmp_path / "dataset", "--arrays", other)


def test_a_table_replaces_what_was_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    common.write_table(page, "one", "| new |\n")
    assert page.read_text() == "before\n<!-- one -->\n\n| new |\n\n<!-- /one -->\nafter\n"


def test_the_table_on_the_page_is_of_what_the_file_holds(tmp_path, monkeypatch):
    page, file = tmp_path / "page.md", tmp_path / "one.csv"
    page.write_text("<!-- one -->\n<!-- /one -->\n")
    monkeypatch.setattr(common, "RESULTS", page)
    results = pd.DataFrame({"bits": [1 / 3]})
    common.publish_table(file, results, lambda read: f"| {read['bits'].item()} |\n")
    assert file.read_text() == "bits\n0.33333\n"
    assert page.read_text() == "<!-- one -->\n\n| 0.33333 |\n\n<!-- /one -->\n"
