"""`neds report`: what its page says of hand-made and of real runs, its flags and its errors."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (neds_hf[report])")
pytest.importorskip("jinja2", reason="Jinja2 is not installed (neds_hf[report])")

from neds_hf.analysis.runs import (
    VARIES,
    cautions,
    differences,
    means_of,
    read_runs,
    shared_sessions,
    values_of,
)
from neds_hf.cli.main import main

HARDWARE = {"cpu": "Abacus 9000", "cpus": 2, "torch_threads": 1, "gpus": []}

LINEAR = {
    "s1": {"bits_per_spike": 0.1, "wheel_speed_r2": 0.5, "choice_accuracy": 0.8, "psth_r2": 0.4},
    "s2": {"bits_per_spike": 0.3, "wheel_speed_r2": 0.7, "choice_accuracy": None, "psth_r2": 0.6},
}
NEDS = {
    "s1": {"bits_per_spike": 0.2, "wheel_speed_r2": 0.5, "choice_accuracy": 0.9, "psth_r2": 0.5},
    "s2": {"bits_per_spike": 0.6, "wheel_speed_r2": 0.9, "choice_accuracy": 0.7, "psth_r2": 0.5},
    "s3": {"bits_per_spike": 9.0, "wheel_speed_r2": 9.0, "choice_accuracy": 9.0, "psth_r2": 9.0},
}


def write_run(folder: Path, scores: dict, history=None, **configuration) -> Path:
    """What training and baselines write."""
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"mean": {}, "sessions": scores}))
    if configuration:
        configuration = {"sessions": list(scores), **configuration}
        run = {"configuration": configuration, "hardware": HARDWARE, "started": 1000.0, "finished": 1090.0}
        (folder / "run.json").write_text(json.dumps(run))
    if history:
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def report(out: Path, *argv) -> tuple[str, dict[str, dict[str, list[str]]]]:
    """The page, and of each section the table: row to cells, the headings under the corner's name."""
    assert main(["report", *map(str, argv), "--output", str(out)]) == 0
    page = unescape(out.read_text(encoding="utf-8")).replace("\N{NO-BREAK SPACE}", " ")
    tables = {}
    for section in re.findall("<section>(.*?)</section>", page, re.DOTALL):
        (heading,) = re.findall("<h2>(.*?)</h2>", section)
        rows = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", section)]
        tables[heading] = {first: rest for first, *rest in rows}
    return page, tables


@pytest.fixture
def two(tmp_path):
    """A linear baseline of two sessions, and a model of these and a third."""
    linear = write_run(tmp_path / "linear", LINEAR, command="baselines", data_fingerprint="aa")
    history = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 2.0, "eval_bits_per_spike": 0.1}]
    neds = write_run(tmp_path / "neds", NEDS, history, command="pretrain", data_fingerprint="bb", seed=3)
    return linear, neds


# --- the page ---


def test_means_and_standard_errors_are_over_the_sessions_that_all_runs_score(two, tmp_path, capsys):
    page, tables = report(tmp_path / "new" / "page.html", *two)
    assert tables["Result"] == {
        "run": ["bits/spike", "wheel speed R²", "choice accuracy"],
        "linear": ["0.200 ± 0.100", "0.600 ± 0.100", "0.800"],
        "neds": ["0.400 ± 0.200", "0.700 ± 0.200", "0.900"],  # choice: s1 alone, as linear lacks it in s2
    }
    assert re.findall('<td class="best">(.*?)</td>', page)[:3] == ["0.400 ± 0.200", "0.700 ± 0.200", "0.900"]
    assert "Mean ± standard error over the 2 sessions that all runs score, test trials." in page
    assert "are not defined in all of these sessions, but in fewer: choice accuracy 1." in page
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "0.400 ± 0.200" in printed and f"{tmp_path / 'new' / 'page.html'} shows more." in printed


def test_the_page_has_every_session_the_other_metrics_and_the_figures(two, tmp_path):
    page, tables = report(tmp_path / "page.html", *two)
    assert list(tables) == [
        "Before comparing",
        "Result",
        "Session by session",
        "More of encoding",
        "Training",
        "Settings that differ",
        "Runs",
        "Session s1",
        "Session s2",
        "Session s3",
    ]
    assert tables["Session s2"]["linear"] == ["0.300", "0.700", "–"]
    assert tables["Session s2"]["neds"] == ["0.600", "0.900", "0.700"]
    assert set(tables["Session s3"]) == {"run", "neds"}
    assert tables["More of encoding"] == {
        "run": ["PSTH R²"],
        "linear": ["0.500 ± 0.100"],
        "neds": ["0.500 ± 0.000"],
    }
    assert re.findall('<img alt="(.*?)"', page) == ["Session by session", "Training"]
    assert tables["Runs"]["neds"] == [
        "pretrain",
        "3",
        "Abacus 9000, 1 of 2 cores",
        "1.5",
        "bb",
        str(two[1]),
    ]


def test_what_stands_in_the_way_of_a_comparison_comes_first(two, tmp_path, capsys):
    page, _ = report(tmp_path / "page.html", *two)
    said = "The runs are not of the same sessions (linear 2, neds 3); the means are over the 2 that all have."
    assert page.index(said) < page.index("<table>")
    assert "Whether these are all of the same data cannot be told: linear, neds." in page
    assert capsys.readouterr().out.startswith(said)


def test_runs_that_share_no_session_have_no_means(tmp_path):
    one = write_run(tmp_path / "one", {"s1": LINEAR["s1"]})
    other = write_run(tmp_path / "other", {"s2": LINEAR["s2"]})
    said = "The runs are not of the same sessions (one 1, other 1); no session is in all of them."
    assert cautions(runs_of(one, other)) == [said]
    page, tables = report(tmp_path / "page.html", one, other)
    assert said in page
    assert list(tables) == ["Before comparing", "Runs", "Session s1", "Session s2"]


def test_one_run_alone_is_shown_too(two, tmp_path):
    page, tables = report(tmp_path / "page.html", two[1])
    assert "<title>neds</title>" in page and "Before comparing" not in tables
    assert "the 3 sessions that the run scores" in page and 'class="best"' not in page
    assert tables["Result"]["neds"][0] == "3.267 ± 2.869"  # of 0.2, 0.6, 9


def test_a_real_model_and_its_evaluation_say_the_same(model_folder, dataset, tmp_path):
    scores = tmp_path / "scores.json"
    argv = ["--model", model_folder, "--dataset", dataset, "--output", scores]
    assert main(["evaluate", *map(str, argv)]) == 0
    page, tables = report(tmp_path / "page.html", model_folder, scores)
    assert tables["Result"]["model"] == tables["Result"]["scores"]
    mean = json.loads(scores.read_text())["mean"]["bits_per_spike"]
    assert tables["Result"]["scores"][0].startswith(f"{mean:.3f} ± ")
    assert "Before comparing" not in tables  # the same sessions, of the same fingerprint
    assert "bits/spike from wheel speed" in tables["More of encoding"]["run"]
    assert tables["Settings that differ"]["command"] == ["pretrain", "evaluate"]
    assert re.findall('<img alt="(.*?)"', page) == ["Session by session", "Training"]


# --- which runs ---


def test_a_folder_of_baselines_is_all_of_them(tmp_path):
    write_run(tmp_path / "base" / "linear", LINEAR)
    write_run(tmp_path / "base" / "glm", LINEAR)
    (tmp_path / "base" / "log").mkdir()  # no run
    assert [run.name for run in read_runs(tmp_path / "base")] == ["glm", "linear"]
    _, tables = report(tmp_path / "page.html", tmp_path / "base", "--names", "mine")
    assert list(tables["Result"]) == ["run", "mine: glm", "mine: linear"]


def test_a_folder_of_models_of_one_session_each_is_one_run(tmp_path):
    history = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0}]
    for session, seed in (("s1", 0), ("s2", 1)):
        scores, about = {session: LINEAR[session]}, {"seed": seed, "data_fingerprint": session}
        write_run(tmp_path / "new" / session, scores, history, command="finetune", **about)
    (run,) = read_runs(tmp_path / "new")
    assert (run.name, list(run.scores), run.seconds) == ("new", ["s1", "s2"], 180.0)
    assert (run.split, run.hardware) == ("test", "Abacus 9000, 1 of 2 cores")
    assert run.settings == {"command": "finetune", "seed": VARIES}
    assert run.fingerprints == {frozenset({"s1"}): "s1", frozenset({"s2"}): "s2"}
    losses = [entry["loss"] for entry in run.history]
    np.testing.assert_array_equal(losses, [2, 1, np.nan, 2, 1])  # two curves, not one
    _, tables = report(tmp_path / "page.html", tmp_path / "new")
    assert tables["Result"]["new"] == ["0.200 ± 0.100", "0.600 ± 0.100", "0.800"]
    assert tables["Runs"]["new"][4] == "2 different"


def test_models_of_one_session_each_are_named_together_and_what_differs_is_said(tmp_path):
    one = write_run(tmp_path / "new" / "s1", {"s1": LINEAR["s1"]}, command="finetune", split="test")
    write_run(tmp_path / "new" / "s2", {"s2": LINEAR["s2"]}, command="finetune", split="validation")
    run = json.loads((one / "run.json").read_text())
    run["hardware"] |= {"gpus": ["NVIDIA H200", "NVIDIA H200"]}
    (one / "run.json").write_text(json.dumps(run))
    assert [part.hardware for part in read_runs(one)] == ["NVIDIA H200, NVIDIA H200"]
    (joined,) = read_runs(tmp_path / "new", "mine")
    assert (joined.name, joined.split, joined.hardware) == ("mine", VARIES, VARIES)


def test_a_folder_is_named_as_it_is_called_also_from_within(tmp_path, monkeypatch):
    write_run(tmp_path / "base" / "linear", LINEAR)
    monkeypatch.chdir(tmp_path / "base" / "linear")
    assert [run.name for run in read_runs(Path("."))] == ["linear"]
    monkeypatch.chdir(tmp_path / "base")
    assert [run.name for run in read_runs(Path("."))] == ["linear"]  # of one baseline: it, not a run `base`
    write_run(tmp_path / "base" / "other", {"s9": LINEAR["s1"]})
    assert [run.name for run in read_runs(Path("."))] == ["base"]


def test_names_are_given_in_order(two, tmp_path):
    _, tables = report(tmp_path / "page.html", *two, "--names", "ridge", "NEDS <3M>")
    assert list(tables["Result"]) == ["run", "ridge", "NEDS <3M>"]


# --- what is compared ---


def runs_of(*folders):
    return [run for folder in folders for run in read_runs(folder)]


def test_values_are_of_sessions_where_every_run_that_has_the_metric_has_it(tmp_path):
    scores = {
        "a": {"s1": {"m": 1.0, "n": 1.0}, "s2": {"m": 2.0, "n": 2.0}},
        "b": {"s1": {"m": 3.0}, "s2": {"m": None}},
        "c": {"s1": {"m": None, "n": 5.0}, "s2": {"n": 6.0}},
    }
    runs = runs_of(*(write_run(tmp_path / name, of) for name, of in scores.items()))
    shared = shared_sessions(runs)
    assert shared == ["s1", "s2"]
    m, n = (values_of(runs, metric, shared) for metric in "mn")
    np.testing.assert_array_equal(m, [[1, 3, np.nan]])  # s1
    np.testing.assert_array_equal(n, [[1, np.nan, 5], [2, np.nan, 6]])
    means = means_of(runs, ["m", "n"], shared).astype(float)
    np.testing.assert_array_equal(means, [[1, 1.5], [3, np.nan], [np.nan, 5.5]])


def test_only_settings_that_say_something_are_listed(tmp_path):
    pretrained = {"command": "pretrain", "learning_rate": 1e-3, "seed": 0, "model": {"hidden_size": 64}}
    runs = runs_of(
        write_run(tmp_path / "a", LINEAR, **pretrained, data_fingerprint="x"),
        write_run(tmp_path / "b", LINEAR, **{**pretrained, "model": {"hidden_size": 128, "mask_ratio": 0.3}}),
        write_run(tmp_path / "c", LINEAR, command="baselines", seed=0, folds=5),
        write_run(tmp_path / "d", LINEAR),
    )
    table = differences(runs)
    assert list(table) == ["a", "b", "c"]  # nothing is known of d
    shown = {name: row.fillna("–").tolist() for name, row in table.iterrows()}
    assert shown == {
        "command": ["pretrain", "pretrain", "baselines"],
        "model.hidden_size": ["64", "128", "–"],
        "model.mask_ratio": [
            "–",
            "0.3",
            "–",
        ],  # in a the default; of c nobody expects it, nor of a and b the folds
    }


def test_values_of_settings_are_said_in_short_and_those_of_sessions_not(tmp_path):
    runs = runs_of(
        write_run(
            tmp_path / "a",
            LINEAR,
            rate=1 / 8100,
            note="x" * 70,
            sizes=[*range(9)],
            model={"session_ids": ["s1"], "unit_counts": [5]},
        ),
        write_run(tmp_path / "b", LINEAR, rate=0.5, note="y" * 60, sizes=[], model={"session_ids": []}),
    )
    assert {name: row.tolist() for name, row in differences(runs).iterrows()} == {
        "rate": ["0.0001235", "0.5"],
        "note": ["'" + "x" * 27 + "..." + "x" * 28 + "'", "y" * 60],
        "sizes": ["[0, 1, 2, 3, 4, 5, ...]", "[]"],
    }


def test_other_data_and_another_split_are_said(tmp_path):
    one = write_run(tmp_path / "one", LINEAR, data_fingerprint="x")
    other = write_run(tmp_path / "other", LINEAR, data_fingerprint="y")
    same = write_run(tmp_path / "same", LINEAR, data_fingerprint="x")
    assert cautions(runs_of(one, same)) == []
    (said,) = cautions(runs_of(one, other))
    assert said.startswith("These are of different data, by their fingerprints") and "one and other." in said
    validation = write_run(tmp_path / "validation", LINEAR, data_fingerprint="x", split="validation")
    assert cautions(runs_of(one, validation)) == [
        "The runs are not of the same split of the trials (one test, validation validation)."
    ]


def test_other_nulls_and_what_evaluation_warned_of_are_said(tmp_path):
    linear = write_run(tmp_path / "linear", LINEAR, data_fingerprint="x", train_null=["train"])
    neds = write_run(tmp_path / "neds", LINEAR, data_fingerprint="x", train_splits=["train", "validation"])
    scored = tmp_path / "scored.json"
    known = {"data_fingerprint": "x"}
    scored.write_text(json.dumps({"sessions": LINEAR, "configuration": known, "warnings": ["known trials"]}))
    assert cautions(runs_of(linear, neds, scored)) == [
        "Bits/spike train null are not of the same null, the mean of some trials (linear train, neds train and "
        "validation).",
        "scored: known trials.",
    ]
    assert cautions(runs_of(linear)) == []


# --- errors and flags ---


def test_what_is_no_run_is_one_line_that_names_it(two, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"sessions": {"NEDS": {"s1": {"bits_per_spike": 1.0}}}}')
    write_run(tmp_path / "unscored", {})
    for path, message in {
        "nowhere": "there is no run",
        "empty": "has no metrics.json, nor has any folder in it",
        "broken.json": "cannot be read as JSON",
        "list.json": "expected a mapping, found []",
        "other.json": "expected a number 'sessions.NEDS.s1', found {'bits_per_spike': 1.0}",
        "unscored": "has the metrics of no session",
    }.items():
        assert (
            main(["report", str(two[0]), str(tmp_path / path), "--output", str(tmp_path / "page.html")]) == 2
        )
        error = capsys.readouterr().err
        assert str(tmp_path / path) in error and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("scores.json", {}, "expected a mapping 'sessions', found None"),
        ("scores.json", {"sessions": [LINEAR]}, "expected a mapping 'sessions', found [{"),
        ("scores.json", {"sessions": {"s1": ["m"]}}, "expected a mapping 'sessions.s1', found ['m']"),
        ("scores.json", {"sessions": {"s1": {"m": "0.3"}}}, "expected a number 'sessions.s1.m', found '0.3'"),
        (
            "scores.json",
            {"sessions": LINEAR, "configuration": []},
            "expected a mapping 'configuration', found []",
        ),
        (
            "scores.json",
            {"sessions": LINEAR, "configuration": {"split": 7}},
            "expected text 'configuration.split', found 7",
        ),
        (
            "scores.json",
            {"sessions": LINEAR, "configuration": {"sessions": 7}},
            "expected a list 'configuration.sessions', found 7",
        ),
        (
            "scores.json",
            {"sessions": LINEAR, "configuration": {"train_null": [7]}},
            "text 'configuration.train_null[0]', found 7",
        ),
        ("scores.json", {"sessions": LINEAR, "warnings": None}, "expected a list 'warnings', found None"),
        (
            "scores.json",
            {"sessions": LINEAR, "hardware": {"gpus": 7}},
            "expected a list 'hardware.gpus', found 7",
        ),
        ("run.json", {"configuration": {}, "hardware": []}, "expected a mapping 'hardware', found []"),
        ("run.json", {"configuration": {"command": {}}}, "expected text 'configuration.command', found {}"),
        ("run.json", {"finished": "soon"}, "expected a number 'finished', found 'soon'"),
        ("trainer_state.json", {}, "expected a list 'log_history', found None"),
        ("trainer_state.json", {"log_history": [7]}, "expected a mapping 'log_history[0]', found 7"),
        ("trainer_state.json", {"log_history": [{}]}, "expected a number 'log_history[0].epoch', found None"),
        (
            "trainer_state.json",
            {"log_history": [{"epoch": 1.0, "eval_mean": [0.5]}]},
            "expected a number 'log_history[0].eval_mean', found [0.5]",
        ),
    ],
)
def test_a_file_with_another_kind_of_value_is_named_with_it(tmp_path, error_of, name, content, message):
    folder = write_run(tmp_path / "run", LINEAR)
    (folder / name).write_text(json.dumps(content))
    source = folder / name if name == "scores.json" else folder
    error = error_of("report", source, "--output", tmp_path / "page.html")
    assert error.startswith(f"neds report: {folder / name}: expected ") and message in error
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "names, message",
    [
        (["--names", "one"], "--names has 1 names for 2 DIR"),
        (["--names", "same", "same"], "several runs are called same; --names gives them others"),
    ],
)
def test_names_that_do_not_fit_are_refused(two, tmp_path, capsys, names, message):
    argv = ["report", *map(str, two), "--output", str(tmp_path / "page.html"), *names]
    assert main(argv) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_without_matplotlib_it_says_what_to_install(two, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    assert main(["report", *map(str, two), "--output", str(tmp_path / "page.html")]) == 2
    assert "a report needs matplotlib: pip install 'neds_hf[report]'" in capsys.readouterr().err


def test_the_output_is_required(two, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(two[0])])
    assert "required: --output" in capsys.readouterr().err


def test_a_run_that_left_out_all_its_sessions_still_has_a_page(tmp_path):
    run = write_run(tmp_path / "neds_decoding", {"s1": {}, "s2": {}})
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "Session s2" in (tmp_path / "page.html").read_text()


def test_the_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    text = capsys.readouterr().out
    assert all(
        name in text for name in ("  DIR ", "  --names ", "  --dataset ", "  --session ", "  --output ")
    )
