"""Regions are predicted where features tell them, not where they do not, and a session's identity is no help."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from neds_hf.analysis.figures import draw_confusion
from neds_hf.analysis.regions import (
    Predictions,
    predict_regions,
    unit_features,
    unit_regions,
    unit_statistics,
)
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSConfig, NEDSModel

REGIONS = np.repeat(["CA1", "LP", "VISp"], 60)
SESSIONS = np.tile(["a", "b", "c", "d", "e", "f"], 30)  # ten units of each region in every session


def table(values) -> pd.DataFrame:
    return pd.DataFrame(values).add_prefix("column_")


def planted(spread=4.0, seed=0) -> pd.DataFrame:
    """Eight numbers a unit, noise around the centre of its region."""
    rng = np.random.default_rng(seed)
    centers = dict(zip(np.unique(REGIONS), spread * rng.normal(size=(3, 8))))
    return table(np.stack([centers[region] for region in REGIONS]) + rng.normal(size=(len(REGIONS), 8)))


@pytest.mark.parametrize("by", ["unit", "session"])
def test_regions_that_features_tell_apart_are_predicted(by):
    scores = predict_regions({"planted": planted()}, REGIONS, SESSIONS, by)["planted"].scores
    assert scores["accuracy"] > 0.98 and scores["balanced_accuracy"] > 0.98
    assert scores["accuracy"].standard_error < 0.02


@pytest.mark.parametrize("by", ["unit", "session"])
def test_shuffled_regions_are_predicted_by_chance(by):
    shuffled = np.random.default_rng(1).permutation(REGIONS)
    scores = predict_regions({"planted": planted()}, shuffled, SESSIONS, by)["planted"].scores
    assert scores["accuracy"] == pytest.approx(1 / 3, abs=0.11)  # three standard deviations of 180 units
    assert scores["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.13)


def test_what_tells_the_session_helps_over_all_units_and_not_by_session():
    """Sessions differ in where their probes were, and features say which session it is and nothing else."""
    sessions = np.repeat([f"s{place}" for place in range(10)], 20)
    mostly = np.repeat(["CA1", "VISp"] * 5, 20)  # 18 of 20 units of a session are in one region
    regions = np.where(np.arange(200) % 10 == 0, np.where(mostly == "CA1", "VISp", "CA1"), mostly)
    features = {"session": table(np.eye(10)[np.arange(200) // 20])}
    scores = {
        by: predict_regions(features, regions, sessions, by)["session"].scores for by in ("unit", "session")
    }
    assert scores["unit"]["accuracy"] == pytest.approx(0.9)
    assert scores["session"]["balanced_accuracy"] == 0.5  # an unknown session: the same for all of its units


def test_no_unit_of_a_test_session_is_in_training():
    folds = predict_regions({"planted": planted()}, REGIONS, SESSIONS, "session")["planted"].folds
    of_sessions = pd.Series(folds).groupby(SESSIONS).unique()
    assert (of_sessions.map(len) == 1).all() and len(np.unique(folds)) == 5
    by_unit = predict_regions({"planted": planted()}, REGIONS, SESSIONS, "unit")["planted"].folds
    assert (pd.crosstab(by_unit, REGIONS) == 12).all(axis=None)


def test_fewer_sessions_than_folds_are_left_out_one_by_one_and_their_own_regions_do_not_matter():
    sessions = np.repeat(["a", "b", "c"], 60)[np.argsort(np.tile(np.arange(60), 3), kind="stable")]
    first = predict_regions({"planted": planted()}, REGIONS, sessions, "session")["planted"]
    assert [set(sessions[first.folds == fold]) for fold in range(3)] == [{"a"}, {"b"}, {"c"}]
    changed = REGIONS.copy()
    changed[sessions == "b"] = np.roll(REGIONS[sessions == "b"], 7)
    second = predict_regions({"planted": planted()}, changed, sessions, "session")["planted"]
    np.testing.assert_array_equal(second.predicted[sessions == "b"], first.predicted[sessions == "b"])
    assert second.scores["accuracy"] < first.scores["accuracy"]


def test_two_sessions_are_enough_for_a_split_by_session_and_one_is_not():
    two = np.where(np.isin(SESSIONS, ["a", "b", "c"]), "first", "second")
    scores = predict_regions({"planted": planted()}, REGIONS, two, "session")["planted"].scores
    assert scores["accuracy"] > 0.98
    with pytest.raises(NEDSError, match="needs two sessions at least"):
        predict_regions({"planted": planted()}, REGIONS, np.repeat("a", 180), "session")


def test_training_sessions_of_one_region_are_an_error():
    regions, sessions = np.repeat(["CA1", "VISp"], [15, 5]), np.repeat(["a", "b"], 10)
    with pytest.raises(NEDSError, match="too few units to learn from in the sessions a: CA1 10"):
        predict_regions({"one": table(np.ones((20, 1)))}, regions, sessions, "session")


def test_chance_is_the_commonest_region():
    regions = np.repeat(["CA1", "VISp"], [135, 45])
    chance = predict_regions({"chance": table(np.empty((180, 0)))}, regions, SESSIONS, "unit")["chance"]
    assert set(chance.predicted) == {"CA1"}
    assert chance.scores["accuracy"] == 0.75 and chance.scores["balanced_accuracy"] == 0.5


def test_the_seed_shuffles_and_repeats():
    weak = planted(spread=0.5)
    one, again, other = (
        predict_regions({"weak": weak}, REGIONS, SESSIONS, "unit", seed)["weak"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.predicted, again.predicted)
    assert (one.folds != other.folds).any()


def test_scores_are_means_over_folds_and_the_confusion_counts_all_units():
    predictions = Predictions(
        regions=np.array(["CA1", "CA1", "CA1", "VISp", "CA1", "VISp", "VISp", "VISp"]),
        predicted=np.array(["CA1", "CA1", "CA1", "CA1", "VISp", "VISp", "VISp", "VISp"]),
        folds=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
    )
    # First fold: 3 of 4 units; of CA1 all, of VISp none. Second: 3 of 4; none of CA1, all of VISp.
    assert predictions.metrics == {
        "num_folds": 2,
        "accuracy": 0.75,
        "accuracy_standard_error": 0.0,
        "balanced_accuracy": 0.5,
        "balanced_accuracy_standard_error": 0.0,
    }
    assert predictions.confusion.to_dict("index") == {
        "CA1": {"CA1": 3, "VISp": 1},
        "VISp": {"CA1": 1, "VISp": 3},
    }


def test_a_region_that_is_never_predicted_has_its_column():
    confusion = Predictions(np.array(["a", "b"]), np.array(["a", "a"]), np.array([0, 0])).confusion
    assert confusion.to_dict("index") == {"a": {"a": 1, "b": 0}, "b": {"a": 1, "b": 0}}


def test_the_drawn_confusion_has_every_number_and_is_darker_where_units_are(tmp_path):
    confusion = pd.DataFrame([[9, 1], [0, 5]], ["CA1", "VISp"], ["CA1", "VISp"])
    figure = draw_confusion(confusion, "readout")
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.texts] == ["9", "1", "0", "5"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["CA1", "VISp"]
    np.testing.assert_allclose(panel.images[0].get_array(), [[0.9, 0.1], [0, 1]])
    figure.savefig(tmp_path / "confusion.png")
    pixels = imread(tmp_path / "confusion.png")[..., :3]
    assert pixels.min() == 0 and pixels.max() == 1 and pixels.std() > 0.1


def test_the_title_of_the_confusion_of_two_long_named_regions_is_not_cut_off():
    confusion = pd.DataFrame([[9, 1], [0, 5]], ["HPF", "Isocortex"], ["HPF", "Isocortex"])
    title = "readout + statistics, split by session\naccuracy 0.415 ± 0.115, balanced accuracy 0.545 ± 0.018"
    figure = draw_confusion(confusion, title)
    figure.canvas.draw()
    extent = figure.axes[0].title.get_window_extent()
    assert figure.bbox.x0 < extent.x0 and extent.x1 < figure.bbox.x1


UNITS = pd.DataFrame(
    {
        "allen": ["CA1", "CA3", "CA1", "VISp", "root", None, "VISp", "void", "", "LP", "CA3"],
        "cosmos": ["HPF", "HPF", "HPF", "Isocortex", "root", None, "Isocortex", "void", "", "TH", "HPF"],
    },
    index=range(100, 111),
)


def test_units_without_a_region_or_in_a_rare_one_are_left_out_and_counted():
    regions, left_out = unit_regions(UNITS, min_units=2)
    assert regions.to_dict() == {100: "CA1", 101: "CA3", 102: "CA1", 103: "VISp", 106: "VISp", 110: "CA3"}
    assert left_out == {"no region": 4, "in a region of fewer than 2 units": 1}
    regions, _ = unit_regions(UNITS, "cosmos", min_units=2)
    assert regions.value_counts().to_dict() == {"HPF": 4, "Isocortex": 2}


def test_acronyms_are_grouped_and_chosen():
    groups = {"CA1": "hippocampus", "CA3": "hippocampus", "LP": "thalamus", "AUD": "cortex"}
    regions, left_out = unit_regions(UNITS, groups=groups, min_units=1)
    assert regions.value_counts().to_dict() == {"hippocampus": 4, "thalamus": 1}
    assert left_out == {"no region": 4, "not in a group": 2}
    regions, left_out = unit_regions(UNITS, regions=["CA1", "VISp"], min_units=1)
    assert regions.to_dict() == {100: "CA1", 102: "CA1", 103: "VISp", 106: "VISp"}
    assert left_out == {"no region": 4, "not among the chosen regions": 3}


@pytest.mark.parametrize(
    ("units", "options", "message"),
    [
        (UNITS.iloc[4:6], {}, "none of the 2 units has a region in the mapping 'allen'"),
        (UNITS, {"min_units": 3}, "two regions of 3 units or more are needed; units of each: CA1 2, "),
        (UNITS, {"regions": ["CA1", "AUD"]}, "no unit is in AUD; regions of the units: CA1, CA3, LP, VISp"),
        (UNITS, {"groups": {"AUD": "cortex"}}, "units of each: none"),
        (UNITS, {"groups": {"CA1": "x", "CA3": "x"}, "min_units": 1}, "units of each: x 4"),
    ],
)
def test_too_few_regions_are_an_error(units, options, message):
    with pytest.raises(NEDSError, match=message):
        unit_regions(units, **options)


def test_statistics_of_units_made_by_hand():
    counts = np.zeros((4, 10, 3))
    counts[..., 0] = 2  # always two spikes
    counts[:2, :, 1] = 1  # in half of the trials one spike a bin
    counts[:, 7, 2] = 5  # in one bin only
    statistics = unit_statistics(counts.astype(np.uint8))
    np.testing.assert_allclose(np.exp(statistics["rate"]), [2, 0.5, 0.5], rtol=0.01)
    np.testing.assert_allclose(np.exp(statistics["fano_bins"]), [0, 0.5, 4.5], atol=0.01)
    np.testing.assert_allclose(np.exp(statistics["fano_trials"]), [0, 5, 0], atol=0.01)
    peak = 5 * 0.399  # smoothed by one bin
    np.testing.assert_allclose(np.exp(statistics["modulation"]), [0, 0, peak / 0.5], atol=0.02)
    assert statistics["peak_bin"][2] == 7
    shapes = statistics.filter(like="average_trial_").to_numpy()
    assert shapes.shape == (3, 10) and shapes[2].argmax() == 7
    np.testing.assert_allclose(shapes[:2], 0, atol=1e-6)
    np.testing.assert_allclose(shapes.sum(1), 0, atol=1e-6)


def test_the_average_trial_is_used_however_long_it_is():
    """A region's units fire early or late; only that tells them apart, in 3 bins or in 40."""
    for num_bins in (3, 40):
        rng = np.random.default_rng(0)
        late = np.arange(60) % 2 == 0
        rates = np.where(late[:, None] == (np.arange(num_bins) >= num_bins / 2), 3, 1)
        counts = rng.poisson(rates.T, (60, num_bins, 60))
        statistics = unit_statistics(counts).filter(like="average_trial_")
        predictions = predict_regions(
            {"shape": statistics}, np.where(late, "late", "early"), np.tile(["a", "b", "c"], 20), "unit"
        )
        assert predictions["shape"].scores["accuracy"] > 0.95


@pytest.mark.parametrize("tied_units", [True, False])
def test_features_are_the_rows_of_the_model_in_the_order_of_the_table(dataset, tied_units):
    recordings = open_recordings(dataset)
    shuffled = recordings.units.sample(frac=1, random_state=0)
    recordings.units = shuffled
    config = NEDSConfig.from_preset(
        "tiny", session_ids=["bob", "ann", "cat"], unit_counts=[9, 5, 5], num_bins=20, tied_units=tied_units
    )
    model = NEDSModel(config)
    with torch.no_grad():
        model.unit_readout.weight[:, 0] = torch.arange(19)
    features = unit_features(model, recordings)
    rows = ["tokenizer", "readout"] if not tied_units else ["readout"]
    together = dict.fromkeys([*rows, " + ".join(rows)])  # of tied units there is one
    assert list(features) == ["chance", "rate", "statistics", *together, " + ".join([*rows, "statistics"])]
    assert all(table.index.equals(shuffled.index) for table in features.values())
    starts = shuffled["session"].map({"bob": 0, "ann": 9, "cat": 14})
    np.testing.assert_array_equal(features["readout"]["readout_0"], starts + shuffled["unit_index"])
    assert features["readout"].shape == (19, 64) and features["chance"].shape == (19, 0)
    rates = np.exp(features["rate"]["rate"]) / 0.05
    np.testing.assert_allclose(rates, shuffled["rate_hz"], rtol=0.01)
    assert features[" + ".join(rows)].shape == (19, 64 * len(rows))
    everything = features[" + ".join([*rows, "statistics"])]
    assert everything.shape == (19, 64 * len(rows) + 5 + 20)
