"""The search by itself: what is drawn, what is stopped early, what is written down, what is done again."""

import math
import os
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from transformers import TrainerControl, TrainerState

from neds_hf.analysis.figures import search_figure
from neds_hf.data.files import write_json
from neds_hf.errors import NEDSError
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.runs import alone
from neds_hf.training.search import (
    Reports,
    best_of,
    distribution_of,
    in_words,
    open_study,
    place_of,
    results_of,
    search,
    table_of,
    unfinished,
    usable_database,
)

SPACE = {"x": FloatDistribution(0.0, 1.0), "size": CategoricalDistribution(["8", "16"])}


# --- what settings are drawn from ---


@pytest.mark.parametrize(
    "values, number, expected",
    [
        ({"choices": [128, "256", 1e-3]}, int, CategoricalDistribution(["128", "256", "0.001"])),
        ({"choices": [True, {"encoding": 1}]}, None, CategoricalDistribution(["true", '{"encoding": 1}'])),
        ({"low": 0, "high": 1}, float, FloatDistribution(0.0, 1.0)),
        ({"low": "1e-4", "high": 0.01, "log": True}, float, FloatDistribution(1e-4, 0.01, log=True)),
        ({"low": 2, "high": 6, "log": False}, int, IntDistribution(2, 6)),
        ({"low": 2, "high": 600, "log": True}, int, IntDistribution(2, 600, log=True)),
    ],
)
def test_choices_are_text_and_ranges_numbers(values, number, expected):
    assert distribution_of(values, number) == expected


@pytest.mark.parametrize(
    "values, number, message",
    [
        ({"low": 0.4, "high": 0.1}, float, "with low below high, and above 0 where log is true, not {'low'"),
        ({"low": 0.1, "high": 0.1}, float, "with low below high"),
        ({"low": 0, "high": 1, "log": True}, float, "above 0 where log is true"),
        ({"low": 0, "high": float("inf")}, float, "low below high"),
        ({"low": 0.1, "high": 1, "log": "maybe"}, float, "low below high"),
        ({"low": 0.1}, float, "expected {choices: [...]} or {low: ..., high: ..., log: ...}"),
        ({"low": 0.1, "high": 1, "step": 0.1}, float, "expected {choices: [...]} or {low"),
        ({"low": "few", "high": 1}, float, "could not convert string to float: 'few'"),
        ({"low": 0.5, "high": 3}, int, "invalid literal for int() with base 10: '0.5'"),
        ({"low": 0, "high": 1}, None, "expected {choices: [...]}, not {'low': 0, 'high': 1}"),
        ({"choices": []}, float, "expected {choices: [...]}"),
        ({"choices": 3}, float, "expected {choices: [...]}"),
        ({"choices": [1], "low": 0}, float, "expected {choices: [...]}"),
        ([1, 2], float, "expected {choices: [...]} or"),
        (None, float, "expected {choices: [...]} or"),
    ],
)
def test_anything_else_is_refused(values, number, message):
    with pytest.raises(ValueError) as error:
        distribution_of(values, number)
    assert message in str(error.value)


# --- what is drawn ---


def drawn(folder, num_models, sampler="random", seed=0, value=None) -> list[dict]:
    """Settings of all models of the folder's study, which are told to be worth `value` of them, if given."""
    folder.mkdir(exist_ok=True)
    study = open_study(folder, "none", maximize=True)
    for trial in unfinished(study, SPACE, num_models, sampler, seed):
        if value:
            study.tell(trial, value(trial.params))
    return [trial.params for trial in study.trials]


def test_the_nth_model_is_the_same_however_often_the_search_was_cut_off(tmp_path):
    whole = drawn(tmp_path / "whole", 6)
    for num_models in (1, 2, 6):
        cut = drawn(tmp_path / "cut", num_models)
    assert cut == whole
    assert len({params["x"] for params in whole}) == 6
    assert {params["size"] for params in whole} == {"8", "16"}


def test_other_seeds_draw_others(tmp_path):
    one, other = ({params["x"] for params in drawn(tmp_path / f"{seed}", 6, seed=seed)} for seed in (0, 1))
    assert not one & other


def test_what_was_cut_off_comes_first_with_its_settings_and_what_was_not_drawn_yet_is(tmp_path):
    study = open_study(tmp_path, "none", maximize=True)
    first, second = unfinished(study, SPACE, 2, "random", 0)
    study.tell(first, 0.5)
    study.ask()  # a kill between the number of a model and its settings
    again = list(unfinished(study, SPACE, 4, "random", 0))
    assert [trial.number for trial in again] == [1, 2, 3]
    assert again[0].params == second.params
    assert all(set(trial.params) == set(SPACE) for trial in again)


def test_tpe_draws_near_what_was_good(tmp_path):
    def near(params):
        return -((params["x"] - 0.3) ** 2)

    tpe = [params["x"] for params in drawn(tmp_path, 30, "tpe", value=near)]
    assert np.abs(np.array(tpe[10:]) - 0.3).mean() < 0.2  # evenly drawn: 0.29


# --- one model after the other ---


def finish(place, value):
    """What `fit` leaves of a finished training."""
    write_json(place / "run.json", {"configuration": {}, "results": {"best_validation": value, "test": {}}})
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "metrics.json").write_text("{}")
    (place / "trainer_state.json").write_text("{}")
    (place / "checkpoint-3").mkdir()


def run(folder, train, num_models=4, pruner="none", maximize=True):
    """A search whose models `train` trains: it gets the number of the model, its folder, and a function that
    reports a value at a percent of the training."""

    def trained(settings, place, callbacks):
        train(int(place.name), place, callbacks[0].report)

    with alone(folder), usable_database(folder):
        study = open_study(folder, pruner, maximize)
        models = unfinished(study, SPACE, num_models, "random", 0)
        search(study, models, folder, num_models, trained)
    return study


def states_of(study) -> list[str]:
    return [trial.state.name.lower() for trial in study.trials]


@pytest.mark.parametrize("maximize, best", [(True, 2), (False, 1)])
def test_the_best_is_the_highest_or_the_lowest(tmp_path, maximize, best):
    values = [0.2, 0.1, 0.4, 0.3]
    study = run(tmp_path, lambda number, place, report: finish(place, values[number]), maximize=maximize)
    assert best_of(study).number == best and best_of(study).value == values[best]


def test_the_table_says_everything_and_of_a_model_only_the_records_are_kept(tmp_path, capsys):
    def train(number, place, report):
        if number == 1:
            raise NEDSError("it does not\nfit")
        finish(place, float("nan") if number == 2 else 0.25 * number)

    study = run(tmp_path, train)
    table = pd.read_csv(tmp_path / "trials.csv", dtype={"size": str})
    assert table["trial"].tolist() == [0, 1, 2, 3]
    assert table["state"].tolist() == ["complete", "fail", "fail", "complete"]
    assert table["value"].tolist() == pytest.approx([0, math.nan, math.nan, 0.75], nan_ok=True)
    assert table["reason"].tolist()[1:3] == ["it does not fit", "its metric on validation is not a number"]
    assert [dict(row) for _, row in table[list(SPACE)].iterrows()] == [t.params for t in study.trials]
    records = {"run.json", "metrics.json", "trainer_state.json"}
    assert {path.name for path in (tmp_path / "trials" / "003").iterdir()} == records
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"2/4  {in_words(study.trials[1].params)}: failed: it does not fit"
    assert lines[3] == f"4/4  {in_words(study.trials[3].params)}: 0.7500"


def test_settings_in_words():
    assert in_words({"learning_rate": 0.000354321, "size": "16", "depth": 5}) == (
        "learning_rate 0.000354, size 16, depth 5"
    )


def test_what_is_finished_is_not_trained_again(tmp_path):
    def cut_off(number, place, report):
        finish(place, 0.1 * number)
        if number == 1:
            raise KeyboardInterrupt  # after the training, before the database knows

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cut_off)
    trained = []

    def train(number, place, report):
        trained.append(number)
        finish(place, 0.1 * number)

    study = run(tmp_path, train)
    assert trained == [2, 3]
    assert [trial.value for trial in study.trials] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("error", [NEDSError("no such sizes"), torch.OutOfMemoryError("no such sizes")])
def test_when_the_first_model_fails_the_search_does(tmp_path, error):
    def train(number, place, report):
        raise error

    for _ in range(2):  # and so again, when it is run again
        with pytest.raises(NEDSError, match=r"^x 0\.\d+, size \d+: no such sizes$"):
            run(tmp_path, train)


def test_a_model_that_does_not_fit_into_memory_does_not_end_the_search(tmp_path):
    def train(number, place, report):
        if number == 1:
            raise torch.OutOfMemoryError("out of memory")
        finish(place, 0.1)

    assert states_of(run(tmp_path, train)) == ["complete", "fail", "complete", "complete"]


def test_other_errors_are_not_swallowed(tmp_path):
    def train(number, place, report):
        finish(place, 0.1)
        if number == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, train)


def test_when_every_value_is_no_number_there_is_no_best(tmp_path):
    study = run(tmp_path, lambda number, place, report: finish(place, float("nan")))
    with pytest.raises(NEDSError, match="none of 4 models could be trained: its metric on validation is not"):
        best_of(study)


def test_two_searches_of_one_folder_exclude_each_other(tmp_path):
    script = f"""
from pathlib import Path
from neds_hf.training.runs import alone
with alone(Path({str(tmp_path)!r})):
    print("in", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(NEDSError, match=f"another process trains in {tmp_path}"):
            alone(tmp_path)
        process.kill()
    with alone(tmp_path):  # a kill leaves nothing behind
        pass
    with alone(tmp_path):
        pass


def test_the_database_lies_in_the_folder_whatever_that_is_called(tmp_path):
    folder = tmp_path / "a?b#c%41 é {x}"
    run(folder, lambda number, place, report: finish(place, 0.5), num_models=1)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(open_study(folder).trials) == 1 and (folder / "search.db").exists()


def test_damaged_records_are_named_and_a_search_goes_on_without_its_database(tmp_path):
    first = table_of(run(tmp_path, lambda number, place, report: finish(place, number / 10)))
    database = tmp_path / "search.db"

    def not_again(number, place, report):
        raise AssertionError

    for size in (database.stat().st_size // 2, 5):
        os.truncate(database, size)
        with pytest.raises(NEDSError, match=f"^{database} cannot be used as a database"):
            run(tmp_path, not_again)
    database.unlink()
    again = run(tmp_path, not_again)
    assert table_of(again).equals(first)
    (place_of(tmp_path, 2) / "run.json").write_text('{"resu')
    with pytest.raises(NEDSError, match="cannot be read as JSON"):
        results_of(place_of(tmp_path, 2))


def test_a_database_that_cannot_be_written_any_more_is_named_and_the_search_goes_on_later(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number, place, report):
        finish(place, number / 10)
        if number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # as on a full disc

    try:
        with pytest.raises(
            NEDSError, match=f"^{tmp_path}/search.db cannot be used as a database .*run again"
        ):
            run(tmp_path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    later = run(tmp_path, lambda number, place, report: finish(place, number / 10))
    assert [trial.value for trial in later.trials] == pytest.approx([0, 0.1, 0.2, 0.3])


# --- early stopping ---

EVERY_TENTH = range(10, 100, 10)


def curves(*ends):
    """Training of models whose value grows evenly to these ends; notes the last percent that each reached."""
    reached = {}

    def train(number, place, report):
        place.mkdir(parents=True)
        (place / "run.json").write_text("{}")
        (place / "checkpoint-1").mkdir()
        for percent in EVERY_TENTH:
            reached[number] = percent
            report(ends[number] * percent / 100, percent)
        (place / "checkpoint-1").rmdir()
        finish(place, ends[number])

    return train, reached


def test_below_the_median_of_the_others_is_stopped_after_a_quarter(tmp_path, capsys):
    train, reached = curves(0.5, 0.1, 0.2, 0.3, 0.4, 0.25, 0.35, 0.9)
    study = run(tmp_path, train, 8, "median")
    assert states_of(study) == [*["complete"] * 5, "pruned", "complete", "complete"]
    assert reached == {**dict.fromkeys(range(8), 90), 5: 30}
    assert study.trials[5].value == pytest.approx(0.25 * 0.3)
    assert capsys.readouterr().out.splitlines()[5].endswith(": 0.0750, stopped at 30 %")
    assert [path.name for path in (tmp_path / "trials" / "005").iterdir()] == ["run.json"]
    assert best_of(study).number == 7


def test_below_the_better_half_is_stopped_at_a_quarter_and_a_half(tmp_path):
    train, reached = curves(0.5, 0.1, 0.6, 0.55)
    study = run(tmp_path, train, 4, "halving")
    # At 30 %: 0.1 is not the better of two, 0.55 is of the better two of four; at 50 % 0.55 is not the best of
    # three.
    assert states_of(study) == ["complete", "pruned", "complete", "pruned"]
    assert reached == {0: 90, 1: 30, 2: 90, 3: 50}


def test_without_a_pruner_nothing_is_stopped(tmp_path):
    train, reached = curves(0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01)
    assert set(states_of(run(tmp_path, train, 7, "none"))) == {"complete"}
    assert set(reached.values()) == {90}


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_what_is_no_number_is_stopped_and_never_the_best(tmp_path, pruner, capsys):
    train, reached = curves(*[0.5] * 5, float("nan"))
    study = run(tmp_path, train, 6, pruner)
    assert states_of(study)[5] == "pruned" and reached[5] == 30
    assert best_of(study).number < 5
    assert capsys.readouterr().out.splitlines()[5].endswith(": nan, stopped at 30 %")


def test_evaluations_are_reported_once_a_percent_and_not_at_the_end(tmp_path):
    args = NEDSTrainingArguments(output_dir=str(tmp_path), metric_for_best_model="mean")

    def reported(after, steps):
        found = []
        callback = Reports(lambda value, percent: found.append((value, percent)), after)
        for step in steps:
            state = TrainerState(global_step=step, max_steps=800)  # 8 steps a percent
            callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_mean": step, "eval_loss": -1})
        return found

    assert reported(0, [0, 5, 10, 11, 16, 400, 799, 800]) == [(10, 1), (16, 2), (400, 50), (799, 99)]
    assert reported(50, [396, 400, 407, 408]) == [(408, 51)]  # going on after 50 %


# --- the figure ---


def test_the_figure_has_a_panel_a_setting_with_every_model_and_the_best(tmp_path):
    table = pd.DataFrame(
        {
            "state": ["complete", "pruned", "fail", "complete"],
            "value": [0.1, 0.05, math.nan, 0.3],
            "hidden_size": ["128", "64", "64", "64"],
            "learning_rate": [1e-3, 1e-4, 1e-3, 1e-2],
            "num_hidden_layers": [1, 2, 1, 3],
        }
    )
    logarithmic = {"hidden_size": None, "learning_rate": True, "num_hidden_layers": False}
    figure = search_figure(table, logarithmic, best=3, metric="eval_mean")
    size, rate, depth = figure.axes
    assert [label.get_text() for label in size.get_xticklabels()] == ["64", "128"]
    assert (rate.get_xscale(), depth.get_xscale(), rate.get_xlabel()) == ("log", "linear", "learning rate")
    complete, pruned, best = (collection.get_offsets().tolist() for collection in rate.collections)
    assert complete == [[1e-3, 0.1], [1e-2, 0.3]] and pruned == [[1e-4, 0.05]] and best == [[1e-2, 0.3]]
    assert size.collections[0].get_offsets().tolist() == [[1, 0.1], [0, 0.3]]
    figure.savefig(tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 5000


def test_choices_of_long_names_are_slanted_and_short_ones_are_not():
    choices = ["z_score", "zero_one", "minus_one_one"]
    table = pd.DataFrame(
        {"state": ["complete"] * 3, "value": [0.1, 0.2, 0.3], "scaling": choices, "depth": [1, 2, 3]}
    )
    figure = search_figure(table, {"scaling": None, "depth": False}, best=2, metric="eval_mean")
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    slants = [label.get_rotation() for label in labels]
    assert [label.get_text() for label in labels] == choices and slants == [30] * 3
    table["scaling"] = ["1", "10", "20"]
    assert [
        label.get_rotation()
        for label in search_figure(table, {"scaling": None}, 2, "eval_mean").axes[0].get_xticklabels()
    ] == [0] * 3
