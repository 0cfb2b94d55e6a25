"""Figures hold the numbers they are given; reports and tables say them rounded, escaped and marked."""

import base64
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (neds_hf[report])")
pytest.importorskip("jinja2", reason="Jinja2 is not installed (neds_hf[report])")

from neds_hf.analysis import figures
from neds_hf.analysis.report import text_table, write_report
from neds_hf.analysis.summary import Estimate, grouped, is_headline, metric_label, summary

TIMES_S = np.array([-0.01, 0.01, 0.03])
TABLE = pd.DataFrame(
    {"bits/spike": [0.1, 0.25], "loss": [0.31, 0.2], "wheel R²": [np.nan, 0.5], "trials": [7, 9]},
    index=pd.Index(["linear", "NEDS"], name="model"),
)


def titles(figure):
    return [panel.get_title() for panel in figure.axes if panel.get_title()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def saved(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    return (tmp_path / "figure.png").stat().st_size


def test_text_table_rounds_aligns_and_marks_what_is_undefined():
    assert text_table(TABLE).splitlines() == [
        "       bits/spike   loss wheel R² trials",
        "model                                   ",
        "linear      0.100  0.310        –      7",
        "NEDS        0.250  0.200    0.500      9",
    ]


def test_text_table_breaks_headings_between_words():
    table = TABLE.rename(columns={"loss": "loss of validation"})
    assert text_table(table, heading_width=10).splitlines() == [
        "                     loss of                ",
        "       bits/spike validation wheel R² trials",
        "model                                       ",
        "linear      0.100      0.310        –      7",
        "NEDS        0.250      0.200    0.500      9",
    ]


def test_report_is_one_file_with_escaped_text_the_table_and_the_figure(tmp_path):
    path = tmp_path / "new" / "report.html"
    bars = figures.metric_bars(TABLE[["bits/spike"]])
    sections = [("Result & more", "First <b>.\n\nSecond.", TABLE, None), ("Picture", "", None, bars)]
    write_report(path, "Mice < men", sections)
    page = path.read_text(encoding="utf-8")
    assert "<title>Mice &lt; men</title>" in page and "<h2>Result &amp; more</h2>" in page
    assert "<p>First &lt;b&gt;.</p>" in page and "<p>Second.</p>" in page
    assert re.findall('<th scope="col">(.*?)</th>', page) == ["model", *TABLE.columns]
    assert re.findall('<th scope="row">(.*?)</th>', page) == ["linear", "NEDS"]
    assert re.findall("<td.*?>(.*?)</td>", page) == [
        "0.100",
        "0.310",
        "–",
        "7",
        "0.250",
        "0.200",
        "0.500",
        "9",
    ]
    (image,) = re.findall('<img alt="Picture" src="data:image/png;base64,(.*?)">', page)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_report_marks_the_highest_fraction_of_each_column(tmp_path):
    write_report(tmp_path / "r.html", "t", [("h", "", TABLE, None)])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall('<td class="best">(.*?)</td>', page) == ["0.310", "0.250", "0.500"]


def test_report_marks_values_that_look_equal_alike_and_nothing_in_a_single_row(tmp_path):
    tie = pd.DataFrame({"a": [0.1231, 0.1229, 0.1]})
    write_report(tmp_path / "r.html", "t", [("h", "", tie, None), ("h", "", TABLE[:1], None)])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall('<td class="best">(.*?)</td>', page) == ["0.123", "0.123"]


def test_a_reference_row_is_never_the_best(tmp_path):
    table = pd.DataFrame({"bits/spike": [0.1, 0.2, 0.3]}, index=["linear", "NEDS", "true rates"])
    write_report(tmp_path / "r.html", "t", [("h", "", table, None)], reference_rows=["true rates"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall('<td class="best">(.*?)</td>', page) == ["0.200"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_estimate_is_a_mean_with_its_standard_error():
    estimate = Estimate([0.1, 0.5, np.nan])
    assert (estimate, estimate.num_sessions) == (pytest.approx(0.3), 2)
    assert estimate.standard_error == pytest.approx(0.2)  # standard deviation 0.4/√2, over √2
    assert f"{estimate:.2f}" == "0.30\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.20"
    assert f"{Estimate([0.25]):.3f}" == "0.250"  # one session has no standard error
    assert np.isnan(Estimate([np.nan])) and Estimate([np.nan]).num_sessions == 0


def test_a_summary_is_over_the_sessions_that_define_a_metric():
    scores = {"s1": {"a": 1.0, "b": 2.0}, "s2": {"a": 3.0, "b": np.nan}, "s3": {"a": 5.0}}
    of_all = summary(scores)
    assert of_all["mean"] == {"a": 3.0, "b": 2.0}
    assert of_all["num_sessions"] == {"a": 3, "b": 1}
    assert of_all["standard_error"]["a"] == pytest.approx(2 / 3**0.5) and np.isnan(
        of_all["standard_error"]["b"]
    )


def test_report_marks_the_best_mean_among_those_with_standard_errors(tmp_path):
    means = [Estimate([0.1, 0.3]), Estimate([0.3, 0.5]), Estimate([np.nan])]
    table = pd.DataFrame({"bits/spike": means}, index=["linear", "NEDS", "none"], dtype=object)
    write_report(tmp_path / "r.html", "t", [("h", "", table, None)])
    page = (tmp_path / "r.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert re.findall("<td.*?</td>", page) == [
        "<td>0.200 ± 0.100</td>",
        '<td class="best">0.400 ± 0.100</td>',
        "<td>–</td>",
    ]


def test_metrics_are_named_and_grouped_for_a_reader():
    names = [
        "bits_per_spike",
        "silent_units",
        "bits_per_spike_train_null",
        "psth_r2",
        "wheel_speed_r2",
        "mean",
    ]
    names += ["wheel_speed_r2_beyond_average", "choice_accuracy", "choice_balanced_accuracy"]
    names += ["bits_per_spike_from_choice", "attainable_bits_per_spike", "share_of_attainable"]
    groups = {group: [metric_label(name) for name in found] for group, found in grouped(names).items()}
    assert groups == {
        "encoding": [
            "bits/spike",
            "bits/spike train null",
            "PSTH R²",
            "bits/spike from choice",
            "attainable bits/spike",
            "share of attainable",
        ],
        "decoding": [
            "wheel speed R²",
            "wheel speed R² beyond average",
            "choice accuracy",
            "choice balanced accuracy",
        ],
    }
    assert [name for name in names if is_headline(name)] == [
        "bits_per_spike",
        "wheel_speed_r2",
        "choice_accuracy",
    ]


def test_paired_sessions_have_a_line_a_session_and_the_mean_of_every_method(tmp_path):
    bits = pd.DataFrame({"linear": [0.1, 0.3], "none": [np.nan] * 2, "NEDS": [0.2, 0.6]}, index=["s1", "s2"])
    figure = figures.paired_sessions({"bits_per_spike": bits, "wheel_speed_r2": bits + 0.5})
    assert titles(figure) == ["bits/spike", "wheel speed R²"]
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["linear", "none", "NEDS"]
    assert not any(label.get_text() for label in right.get_yticklabels())
    first, second, *_ = left.lines
    np.testing.assert_array_equal(first.get_xydata(), [[0.1, 0], [0.2, 2]])
    np.testing.assert_array_equal(second.get_xydata(), [[0.3, 0], [0.6, 2]])
    means = [container.lines[0].get_xydata()[0] for container in left.containers]
    np.testing.assert_allclose(means, [[0.2, 0], [np.nan, 1], [0.4, 2]])
    (whisker,) = left.containers[2].lines[2]
    np.testing.assert_allclose(whisker.get_segments()[0], [[0.2, 2], [0.6, 2]])  # 0.4 ± 0.2
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first method on top
    assert saved(figure, tmp_path)


def test_training_curves_show_the_mean_metrics_of_every_run(tmp_path):
    history = [
        {"loss": 2.0, "epoch": 0.5, "step": 1},
        {
            "eval_loss": 1.9,
            "eval_mean": 0.1,
            "eval_a/wheel_speed_r2": 0.3,
            "eval_wheel_speed_r2": 0.2,
            "epoch": 1.0,
        },
        {"loss": 1.0, "epoch": 1.5, "step": 3},
        {"eval_loss": 1.5, "eval_mean": 0.4, "eval_wheel_speed_r2_beyond_average": 0.3, "epoch": 2.0},
    ]
    figure = figures.training_curves({"scratch": history, "fine-tuned": history[:2]})
    assert titles(figure) == ["loss", "validation\nmean of metrics", "validation\nwheel speed R²"]
    assert legend(figure) == ["scratch", "fine-tuned", "loss: training", "loss: validation"]
    training, validation = figure.axes[0].lines[:2]
    np.testing.assert_array_equal(training.get_xydata(), [[0.5, 2], [1.5, 1]])
    np.testing.assert_array_equal(validation.get_xydata(), [[1, 1.9], [2, 1.5]])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xydata(), [[1, 0.1], [2, 0.4]])
    assert saved(figure, tmp_path)


def test_every_one_of_many_runs_has_a_colour_of_its_own_and_its_name_in_the_figure():
    names = [f"trial {number}, of a search with a long name" for number in range(12)]
    figure = figures.training_curves(
        {name: [{"loss": 1.0, "eval_mean": 0.1, "epoch": 1.0}] for name in names}
    )
    assert legend(figure)[:12] == names
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width
    assert len({line.get_color() for line in figure.axes[1].lines}) == 12
    assert figure.axes[0].get_window_extent().height > figure.dpi  # an inch, as with a legend of one line


def test_training_curves_of_a_run_without_validation_show_its_loss_alone():
    figure = figures.training_curves({"run": [{"loss": 1.0, "epoch": 1.0}]})
    assert titles(figure) == ["loss"]
    assert legend(figure) == ["run"]


def test_long_names_of_behaviours_cover_no_other_and_are_not_cut_off():
    name = "odour_identity_of_the_first_sample"
    names = [f"eval_{name}_r2", f"eval_other_{name}_accuracy"]
    curves = figures.training_curves({"run": [{"loss": 1.0, "epoch": 1.0, **dict.fromkeys(names, 0.1)}]})
    curves.canvas.draw()
    left, right = (panel.title.get_window_extent() for panel in curves.axes[1:])
    assert left.x1 < right.x0
    values = np.zeros((1, 3))
    traces = figures.behavior_traces(
        TIMES_S, {name: values, "pupil": values}, {}, [12], {name: "", "pupil": ""}
    )
    traces.canvas.draw()
    above, below = (panel.yaxis.label.get_window_extent() for panel in traces.axes)
    assert below.y1 < above.y0 and above.y1 < traces.bbox.y1


def test_a_single_evaluation_and_a_single_bin_are_dots_and_more_are_lines():
    history = [{"loss": 2.0, "epoch": 1.0}, {"loss": 1.0, "epoch": 2.0}, {"eval_loss": 1.5, "epoch": 2.0}]
    curves = figures.training_curves({"run": history})
    assert [line.get_marker() for line in curves.axes[0].lines] == ["", "o"]
    one_bin = {"pupil": np.ones((1, 1))}
    traces = figures.behavior_traces(TIMES_S[:1], one_bin, {"NEDS": one_bin}, [12], {"pupil": "px"})
    assert [line.get_marker() for line in traces.axes[0].lines[:2]] == ["o", "o"]
    counts, log_rates = np.ones((2, 1, 1), np.uint8), np.zeros((2, 1, 1))
    psths = figures.psths(counts, log_rates, TIMES_S[:1], ["PO 1"], 0.5, np.array(["all", "all"]))
    recorded, predicted = psths.axes[0].lines[:2]
    assert [recorded.get_marker(), predicted.get_marker()] == ["o", "o"]
    assert (
        recorded.get_markersize() < predicted.get_markersize()
    )  # beside lines of these widths in the legend


def test_rates_of_a_single_bin_are_as_wide_as_it():
    figure = figures.raster_with_rates(
        np.ones((1, 2)), np.ones((1, 2)), np.array([0.5]), np.array(["CA1", "PO"]), 0.5
    )
    np.testing.assert_allclose(figure.axes[1].images[0].get_extent(), [0.25, 0.75, -0.5, 1.5])


def test_raster_sorts_units_by_region_then_rate(tmp_path):
    counts = np.array([[1, 0, 0], [0, 0, 0], [0, 2, 0]])
    rates_hz = np.array([[9.0, 2, 1], [9, 2, 1], [9, 2, 1]])
    figure = figures.raster_with_rates(counts, rates_hz, TIMES_S, np.array(["CA1", "PO", "CA1"]), 0.02)
    raster, image = figure.axes[:2]
    # sorted: unit 2 (CA1, 1 Hz), unit 0 (CA1, 9 Hz), unit 1 (PO)
    np.testing.assert_array_equal(raster.collections[0].get_offsets(), [[-0.01, 1], [0.03, 2]])
    np.testing.assert_array_equal(image.images[0].get_array()[:, 0], [1, 9, 2])
    assert [label.get_text() for label in raster.get_yticklabels()] == ["CA1", "PO"]
    np.testing.assert_allclose(image.images[0].get_extent(), [-0.02, 0.04, -0.5, 2.5])
    assert saved(figure, tmp_path)


def test_raster_draws_regions_too_small_for_a_name_together():
    regions = np.array(["VISa"] * 60 + ["A", "B"])
    figure = figures.raster_with_rates(np.zeros((3, 62)), np.ones((3, 62)), TIMES_S, regions, 0.02)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["VISa", "other"]


def test_colour_bar_of_rates_names_each_rate_at_its_own_height():
    """Above the highest of 36.5 Hz as well: what lies there is not drawn, and not drawn over the label below."""
    rates_hz = np.linspace(0, 36.5, 300).reshape(3, 100)
    figure = figures.raster_with_rates(np.zeros((3, 100)), rates_hz, TIMES_S, np.array(["PO"] * 100), 0.02)
    bar = figure.axes[2]
    heights = bar.transData.transform([(0, rate) for rate in bar.get_yticks()])[:, 1]
    assert bar.get_yticks()[-1] > 36.5 and np.diff(heights).min() > 10


def test_psths_are_averages_in_hertz_by_condition(tmp_path):
    counts = np.zeros((3, 3, 2), np.uint8)
    counts[0, 1, 0] = 1
    log_rates = np.full(counts.shape, np.log(0.1))
    choices = np.array(["left", "left", "right"])
    figure = figures.psths(counts, log_rates, TIMES_S, ["PO 1", "PO 2"], 0.02, choices)
    assert titles(figure) == ["PO 1", "PO 2"] and legend(figure) == ["left", "right", "recorded", "predicted"]
    recorded, predicted = figure.axes[0].lines[:2]
    np.testing.assert_allclose(recorded.get_ydata(), [0, 25, 0])  # one spike in two trials of 20 ms
    np.testing.assert_allclose(predicted.get_ydata(), [5, 5, 5])
    assert saved(figure, tmp_path)


def test_behavior_traces_have_a_row_a_variable_and_a_column_a_trial(tmp_path):
    real = {"wheel_speed": np.arange(6.0).reshape(2, 3), "pupil": np.ones((2, 3))}
    predicted = {"NEDS": {name: values + 1 for name, values in real.items()}}
    figure = figures.behavior_traces(
        TIMES_S, real, predicted, [12, 40], {"wheel_speed": "rad/s", "pupil": "px"}
    )
    assert titles(figure) == ["trial 12", "trial 40"] and legend(figure) == ["recorded", "NEDS"]
    assert [figure.axes[i].get_ylabel() for i in (0, 2)] == ["wheel speed\n(rad/s)", "pupil\n(px)"]
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [3, 4, 5])
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), [4, 5, 6])
    assert saved(figure, tmp_path)


def test_metric_bars_say_their_values_and_mark_missing_ones(tmp_path):
    table = pd.DataFrame(
        {"bits_per_spike": [0.14, -0.3], "wheel_r2": [np.nan, 0.5]}, index=["linear", "NEDS"]
    )
    figure = figures.metric_bars(table)
    assert titles(figure) == ["bits/spike", "wheel R²"] and legend(figure) == ["linear", "NEDS"]
    assert [[text.get_text() for text in panel.texts] for panel in figure.axes] == [
        ["0.14", "-0.30"],
        ["–", "0.50"],
    ]
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.14, -0.3]
    assert saved(figure, tmp_path)


def test_tables_need_neither_matplotlib_nor_jinja2():
    script = (
        "import sys; sys.modules.update(matplotlib=None, jinja2=None)\n"
        "import pandas; from neds_hf.analysis.report import text_table\n"
        "print(text_table(pandas.DataFrame({'a': [1.0]})))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "1.000" in run.stdout
