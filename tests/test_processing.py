"""The processor: scaling by hand-made numbers, what counts as missing, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from neds_hf.models import NEDSConfig, NEDSProcessor

NAN = np.nan
MODALITIES = [
    {"name": "spikes", "kind": "spikes"},
    {"name": "wheel", "kind": "continuous"},
    {"name": "choice", "kind": "categorical", "classes": ["right", "left"]},
]


def make_processor():
    """Session z with 2 units and the wheel, session a with 3 units and no wheel, trials of 2 bins."""
    processor = NEDSProcessor(MODALITIES, num_bins=2, bin_size_s=0.5, window_start_s=-0.5, align_event="go")
    processor.add_session(
        "z",
        ["z/0", "z/1"],
        np.array([[[0, 4], [1, 4]], [[0, 4], [2, 0]]], np.uint8),
        {"wheel": np.array([[1.0, 3.0], [3.0, 1.0]]), "choice": np.array([0, 1])},  # mean 2, deviation 1
    )
    processor.add_session("a", ["a/0", "a/1", "a/2"], np.ones((1, 2, 3), np.uint8), {"wheel": [[NAN, NAN]]})
    return processor


COUNTS = [np.array([[1, 2], [3, 4]], np.uint8), np.array([[5, 6, 7], [8, 9, 255]], np.uint8)]


def test_a_batch_of_two_sessions():
    inputs = make_processor()(
        ["z", "a"],
        COUNTS,
        {"wheel": np.array([[2.0, 4.0], [NAN, NAN]]), "choice": np.array([-1, 1])},
    )
    assert inputs["session_index"].tolist() == [0, 1]
    assert inputs["spike_counts"].dtype == torch.uint8
    assert inputs["spike_counts"].tolist() == [[[1, 2, 0], [3, 4, 0]], [[5, 6, 7], [8, 9, 255]]]
    assert inputs["unit_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert inputs["behaviors"]["wheel"].tolist() == [[0.0, 2.0], [0.0, 0.0]]
    assert inputs["behaviors"]["wheel"].dtype == torch.float32
    assert inputs["behaviors"]["choice"].tolist() == [0, 1]
    assert inputs["behaviors"]["choice"].dtype == torch.int64
    assert {name: has.tolist() for name, has in inputs["available"].items()} == {
        "wheel": [True, False],
        "choice": [False, True],
    }


@pytest.mark.parametrize("where, how", [(["meta"], {}), ([], {"device": "meta"})])
def test_inputs_move_with_what_they_hold(where, how):
    inputs = make_processor()("z", [COUNTS[0]], {"wheel": np.array([[2.0, 4.0]])}).to(*where, **how)
    tensors = [value for value in inputs.values() if not isinstance(value, dict)]
    tensors += [*inputs["behaviors"].values(), *inputs["available"].values()]
    assert len(tensors) == 7
    assert all(tensor.device.type == "meta" for tensor in tensors)
    doubled = make_processor()("z", [COUNTS[0]]).to(torch.float64)
    assert doubled["behaviors"]["wheel"].dtype == torch.float64
    assert doubled["spike_counts"].dtype == torch.uint8


def test_constants_of_a_scale_may_be_an_array():
    processor = make_processor()
    processor.session("z")["scaling"]["wheel"] = np.array([4.0, 2.0])
    inputs = processor("z", [COUNTS[0]], {"wheel": np.array([[2.0, 8.0]])})
    assert inputs["behaviors"]["wheel"].tolist() == [[-1.0, 2.0]]


def test_one_session_and_one_array_for_all_trials():
    inputs = make_processor()("z", np.stack([COUNTS[0]] * 3))
    assert inputs["session_index"].tolist() == [0, 0, 0]
    assert inputs["unit_mask"].all() and inputs["unit_mask"].shape == (3, 2)
    assert not inputs["available"]["wheel"].any() and not inputs["available"]["choice"].any()


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
def test_a_trial_that_is_not_finite_in_one_bin_is_without_the_behaviour(value):
    inputs = make_processor()("z", np.stack([COUNTS[0]] * 2), {"wheel": np.array([[2, value], [2, 3]])})
    assert inputs["available"]["wheel"].tolist() == [False, True]
    assert inputs["behaviors"]["wheel"].tolist() == [[0, 0], [0, 1]]


def test_the_mean_of_a_unit_that_hardly_fires_is_not_rounded_away():
    processor = NEDSProcessor(MODALITIES, num_bins=2)
    counts = np.zeros((300_000, 2, 1), np.uint8)
    counts[0, 0, 0] = 1
    processor.add_session("q", ["q/0"], counts, {})
    np.testing.assert_allclose(processor.mean_counts("q"), [1 / 600_000], rtol=1e-3)


def test_statistics_are_those_of_the_training_trials():
    processor = make_processor()
    assert processor.session_ids == ["z", "a"]
    assert processor.session("z")["scaling"] == {"wheel": [2.0, 1.0]}
    assert processor.session("a")["scaling"] == {}
    np.testing.assert_allclose(processor.mean_counts("z"), [0.75, 3.0])
    np.testing.assert_allclose(processor.times_s, [-0.25, 0.25])
    processor.add_session(
        "n", ["n/0"], np.zeros((3, 2, 1), np.uint8), {"wheel": np.array([[0, 8], [NAN, 100], [NAN, NAN]])}
    )
    assert processor.session("n")["scaling"] == {"wheel": [4.0, 4.0]}


def test_unscale_inverts_scale():
    processor = make_processor()
    values = np.random.default_rng(0).normal(5, 3, (4, 2))
    scaled = processor.scale("z", "wheel", values)
    np.testing.assert_allclose(scaled, values - 2)
    np.testing.assert_allclose(processor.unscale("z", "wheel", scaled), values)


def test_predictions_in_the_data_s_own_units():
    processor = make_processor()
    predictions = {"wheel": torch.tensor([[0.0, 1.5]]), "choice": torch.tensor([[np.log(3.0), 0.0]])}
    known = processor.in_data_units("z", predictions)
    assert known["wheel"].tolist() == [[2.0, 3.5]]
    np.testing.assert_allclose(known["choice"], [[0.75, 0.25]], rtol=1e-6)
    assert list(processor.in_data_units("a", predictions)) == ["choice"]  # it has no scale of the wheel


# Training trials of 2, 4, 4 and 10: mean 5, deviation 3.
@pytest.mark.parametrize(
    "scaling, constants, scaled",
    [
        ("z_score", [5.0, 3.0], [-1.0, -1 / 3, 5 / 3, 3.0]),
        ("minus_one_one", [6.0, 4.0], [-1.0, -0.5, 1.0, 2.0]),
        ("zero_one", [2.0, 8.0], [0.0, 0.25, 1.0, 1.5]),
    ],
)
def test_each_scaling_uses_the_training_trials_alone_and_is_saved(tmp_path, scaling, constants, scaled):
    processor = NEDSProcessor(MODALITIES, num_bins=2, scaling=scaling)
    train = {"wheel": np.array([[2.0, 4.0], [10.0, 4.0], [NAN, 100.0]])}
    processor.add_session("n", ["n/0"], np.zeros((3, 2, 1), np.uint8), train)
    assert processor.session("n")["scaling"] == {"wheel": pytest.approx(constants)}
    other_trials = np.array([[2.0, 4.0], [10.0, 14.0]])  # beyond what training saw
    np.testing.assert_allclose(processor.scale("n", "wheel", other_trials).ravel(), scaled)
    inputs = processor("n", np.zeros((2, 2, 1), np.uint8), {"wheel": other_trials})
    np.testing.assert_allclose(inputs["behaviors"]["wheel"].numpy().ravel(), scaled, rtol=1e-6)
    back = processor.unscale("n", "wheel", processor.scale("n", "wheel", other_trials))
    np.testing.assert_allclose(back, other_trials)
    processor.save_pretrained(tmp_path)
    loaded = NEDSProcessor.from_pretrained(tmp_path)
    loaded.add_session("new", ["new/0"], np.zeros((3, 2, 1), np.uint8), train)
    assert loaded.session("new")["scaling"] == processor.session("n")["scaling"]


def test_a_processor_saved_before_there_was_a_choice_is_z_scored(tmp_path):
    make_processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    content = json.loads(file.read_text())
    assert content.pop("scaling") == "z_score"
    file.write_text(json.dumps(content))
    assert NEDSProcessor.from_pretrained(tmp_path).scaling == "z_score"


def test_a_scaling_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="scaling is z_score, minus_one_one, zero_one, not 'log'"):
        NEDSProcessor(MODALITIES, scaling="log")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_counts": [0.5]}, "has 2 units, expected as many mean_counts, found 1"),
        ({"mean_counts": [0.5, 1.0, 2.0]}, "has 2 units, expected as many mean_counts, found 3"),
        (
            {"mean_counts": [-0.5, 1.0]},
            ": expected mean_counts of 0 or more, null where not known, found -0.5",
        ),
        (
            {"mean_counts": [1.0, NAN]},
            ": expected mean_counts of 0 or more, null where not known, found nan",
        ),
        ({"scaling": {"wheel": [1.0]}}, r": expected an offset and a scale of wheel, found \[1.0\]"),
        (
            {"scaling": {"wheel": [1.0, 0.0]}},
            r": expected an offset and a scale of wheel, found \[1.0, 0.0\]",
        ),
        (
            {"scaling": {"wheel": [NAN, 1.0]}},
            r": expected an offset and a scale of wheel, found \[nan, 1.0\]",
        ),
    ],
)
def test_statistics_that_were_damaged_are_refused_where_they_are_read(tmp_path, change, message):
    processor = make_processor()
    processor.session("z").update(change)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"session 'z' ?{message}$"):
        AutoProcessor.from_pretrained(tmp_path)


def test_a_session_whose_counts_are_none_is_refused_where_it_is_learned():
    counts = np.ones((3, 2, 2))
    counts[1, 0, 1] = NAN
    with pytest.raises(ValueError, match=r"session 'new': expected mean_counts of 0 or more, .*found nan"):
        make_processor().add_session("new", ["a", "b"], counts, {})


def test_order_and_statistics_survive_saving(tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), NEDSProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, NEDSProcessor)
        assert loaded.session_ids == ["z", "a"]
        assert loaded.modalities == MODALITIES
        assert list(loaded.behaviors.items()) == [("wheel", None), ("choice", ["right", "left"])]
        assert loaded.sessions == processor.sessions
        np.testing.assert_array_equal(loaded.times_s, processor.times_s)
        assert loaded.align_event == "go"


@pytest.mark.parametrize(
    "counts",
    [
        np.array([[0.5, 1], [1, 1]]),
        np.array([[-1, 1], [1, 1]]),
        np.array([[256, 1], [1, 1]], np.int32),
        np.array([[NAN, 1], [1, 1]]),
    ],
)
def test_counts_that_a_byte_cannot_hold_are_refused(counts):
    with pytest.raises(ValueError, match="'z': spike counts of a trial are not whole numbers from 0 to 255"):
        make_processor()("z", [counts])


def test_whole_numbers_of_any_type_are_counts():
    for dtype in (np.int64, np.float32, np.uint16, bool):
        counts = np.array([[0, 1], [1, 0]], dtype)
        assert make_processor()("z", [counts])["spike_counts"].tolist() == [[[0, 1], [1, 0]]]
        assert make_processor()("z", [counts.tolist()])["spike_counts"].tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize(
    "sessions, counts, behaviors, message",
    [
        ("x", COUNTS[:1], {}, "does not know session 'x'"),
        (["z"], COUNTS, {}, "there are 1 sessions, but spike counts of 2 trials"),
        ("a", COUNTS[:1], {}, r"session 'a': spike counts of a trial are \(2, 2\), expected \(2, 3\)"),
        ("z", [np.zeros((3, 2), np.uint8)], {}, r"are \(3, 2\), expected \(2, 2\), bins by units"),
        ("z", COUNTS[:1], {"pupil": np.zeros((1, 2))}, r"behaviours \['pupil'\] are not among"),
        ("z", COUNTS[:1], {"wheel": np.zeros((1, 3))}, r"wheel is \(1, 3\), expected \(1, 2\)"),
        ("z", COUNTS[:1], {"choice": np.zeros((1, 2))}, r"choice is \(1, 2\), expected \(1,\)"),
        ("z", COUNTS[:1], {"choice": np.array([2])}, r"choice has classes \[2\], but only 2 classes"),
        ("z", COUNTS[:1], {"choice": np.array([-2])}, r"choice has classes \[-2\]"),
        ("z", COUNTS[:1], {"choice": np.array([0.5])}, r"choice has classes \[0.5\]"),
        (
            "z",
            COUNTS[:1],
            {"choice": ["left"]},
            "choice is of type <U4, expected class indices, -1 where missing",
        ),
        ("z", COUNTS[:1], {"choice": [None]}, "choice is of type object, expected class indices"),
        (
            "z",
            COUNTS[:1],
            {"wheel": [[1.0, None]]},
            "wheel is of type object, expected numbers, NaN where missing",
        ),
        ("z", [], {}, "there are no trials"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(sessions, counts, behaviors, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(sessions, counts, behaviors)


@pytest.mark.parametrize(
    "session, counts, behaviors, message",
    [
        ("z", np.ones((1, 2, 2)), {}, "session 'z' is already in this processor"),
        ("n", np.ones((1, 2, 3)), {}, r"spike counts are \(1, 2, 3\), expected \(trials, 2, 2\)"),
        ("n", np.ones((1, 3, 2)), {}, r"spike counts are \(1, 3, 2\), expected \(trials, 2, 2\)"),
        ("n", np.ones((0, 2, 2)), {}, r"spike counts are \(0, 2, 2\)"),
        ("n", np.ones((1, 2, 2)), {"wheel": np.ones((2, 2))}, r"wheel is \(2, 2\), expected \(1, 2\)"),
        ("n", np.ones((1, 2, 2)), {"wheel": np.full((1, 2), 0.1)}, "'n': wheel is 0.1 in every bin"),
    ],
)
def test_sessions_without_usable_statistics_are_refused(session, counts, behaviors, message):
    processor = make_processor()
    with pytest.raises(ValueError, match=message):
        processor.add_session(session, ["0", "1"], counts, behaviors)
    assert processor.session_ids == ["z", "a"]


def test_a_behaviour_that_a_session_did_not_have_in_training_is_missing():
    behaviors = {"wheel": np.ones((2, 2)), "choice": [0, 1]}
    inputs = make_processor()(["z", "a"], [np.ones((2, 2)), np.ones((2, 3))], behaviors)
    assert inputs["available"]["wheel"].tolist() == [True, False]
    assert inputs["available"]["choice"].tolist() == [True, True]
    assert inputs["behaviors"]["wheel"].tolist() == [[-1.0, -1.0], [0.0, 0.0]]


def test_numbers_of_numpy_and_tensors_can_be_saved(tmp_path):
    window = {"num_bins": np.int64(3), "bin_size_s": np.float32(0.5), "window_start_s": np.float32(-0.5)}
    processor = NEDSProcessor(MODALITIES, **window)
    processor.add_session("z", ["0"], torch.ones(4, 3, 1, dtype=torch.uint8), {})
    processor.save_pretrained(tmp_path / "inner")
    saved = NEDSProcessor.from_pretrained(tmp_path, subfolder="inner")
    assert (saved.num_bins, saved.bin_size_s, saved.mean_counts("z").tolist()) == (3, 0.5, [1.0])


def test_a_folder_without_its_file_is_no_processor_that_knows_nothing(tmp_path):
    NEDSConfig().save_pretrained(tmp_path)
    for kind in (NEDSProcessor, AutoProcessor):
        with pytest.raises(OSError, match=f"{tmp_path} has no processor_config.json"):
            kind.from_pretrained(tmp_path)


def test_scales_that_are_not_known_are_not_made_up():
    for method in (make_processor().scale, make_processor().unscale):
        with pytest.raises(ValueError, match="session 'a' had no wheel to train on"):
            method("a", "wheel", np.zeros(2))
        with pytest.raises(ValueError, match="no statistics of session 'x'"):
            method("x", "wheel", np.zeros(2))
