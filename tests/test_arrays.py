"""Trial arrays of any rig become recordings, or one clear error."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from neds_hf.data.arrays import array_sources, classes_of, read_arrays
from neds_hf.data.schema import ConversionOptions
from neds_hf.errors import NEDSError

SHARED = Path(__file__).resolve().parents[2] / "shared"
OPTIONS = ConversionOptions()
META = {"session": "s1", "subject": "m", "date": "2020-01-01", "bin_size_s": 0.1, "align_event": "go"}
META |= {"window_s": [0.0, 0.2], "source": "a rig", "lab": "ours"}
# Three trials, two bins, two units.
ARRAYS = {
    "spike_counts": np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 255]]]),
    "wheel_speed": np.array([[0.5, 1.5], [2.5, 3.5], [np.nan, np.nan]]),
    "choice": np.array([-1, 1, 1]),
    "probability_left": np.array([0.5, 0.2, 0.8], np.float32),
    "trial_index": np.array([2, 5, 6]),
}


def write(path: Path, meta: dict | str = META, **arrays) -> Path:
    """Write trial arrays; an array given as None is left out."""
    arrays = {name: value for name, value in {**ARRAYS, **arrays}.items() if value is not None}
    np.savez(path, meta=meta if isinstance(meta, str) else json.dumps(meta), **arrays)
    return path


def test_every_array_arrives_as_written(tmp_path):
    path = write(tmp_path / "a.npz")
    recording = read_arrays(path, OPTIONS)
    assert (recording.session, recording.subject, recording.date) == ("s1", "m", "2020-01-01")
    assert recording.lab == "ours"
    assert (recording.window_s, recording.bin_size_s, recording.align_event) == ((0.0, 0.2), 0.1, "go")
    np.testing.assert_array_equal(recording.spike_counts, ARRAYS["spike_counts"])
    np.testing.assert_array_equal(recording.trial_index, [2, 5, 6])
    np.testing.assert_array_equal(
        recording.continuous["wheel_speed"], [[0.5, 1.5], [2.5, 3.5], [np.nan, np.nan]]
    )
    np.testing.assert_array_equal(recording.categorical["choice"], [0, 1, 1])
    np.testing.assert_array_equal(recording.categorical["block"], [1, 0, 2])
    assert recording.classes == {"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")}
    assert list(recording.units["uuid"]) == ["s1/0", "s1/1"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert recording.provenance == {"files": [{"name": "a.npz", "sha256": sha256}], "source": "a rig"}


def test_a_no_go_trial_is_dropped_and_counted(tmp_path):
    recording = read_arrays(write(tmp_path / "a.npz", choice=np.array([1, 0, -1])), OPTIONS)
    np.testing.assert_array_equal(recording.trial_index, [2, 6])
    np.testing.assert_array_equal(recording.categorical["choice"], [1, 0])
    np.testing.assert_array_equal(recording.spike_counts, ARRAYS["spike_counts"][[0, 2]])
    assert recording.dropped_trials == {"no choice": 1}


def test_reaction_times_outside_the_limits_drop_trials_where_the_file_has_them(tmp_path):
    path = write(tmp_path / "a.npz", reaction_time_s=np.array([0.05, 0.3, np.nan]))
    recording = read_arrays(path, OPTIONS)
    np.testing.assert_array_equal(recording.trial_index, [5])
    assert recording.dropped_trials == {"reaction time": 2}
    write(path, reaction_time_s=np.array([0.08, 2.0, 2.01]))  # the limits themselves are kept
    np.testing.assert_array_equal(read_arrays(path, OPTIONS).trial_index, [2, 5])


def test_without_options_no_trial_is_dropped(tmp_path):
    times = {"reaction_time_s": np.array([0.05, 0.3, np.nan])}
    recording = read_arrays(write(tmp_path / "a.npz", choice=np.array([1, 0, -1]), **times), None)
    np.testing.assert_array_equal(recording.categorical["choice"], [1, -1, 0])
    assert recording.dropped_trials == {}
    few = read_arrays(write(tmp_path / "a.npz", choice=np.array([1, 0, 1])), None)
    np.testing.assert_array_equal(few.categorical["choice"], [1, -1, 1])


def test_what_is_null_in_meta_is_not_known(tmp_path):
    recording = read_arrays(write(tmp_path / "a.npz", {**META, "lab": None, "source": None}), OPTIONS)
    assert (recording.lab, recording.provenance["source"]) == ("", "")


def test_trials_without_an_index_are_counted_from_zero(tmp_path):
    path = write(tmp_path / "a.npz", trial_index=None, choice=np.array([1, 0, -1]))
    np.testing.assert_array_equal(read_arrays(path, OPTIONS).trial_index, [0, 2])


def test_a_behaviour_of_the_ibl_may_be_named_too(tmp_path):
    path = write(tmp_path / "a.npz")
    named = read_arrays(path, OPTIONS, ["block", "choice", "wheel_speed"])
    assert named.classes == read_arrays(path, OPTIONS).classes and list(named.continuous) == ["wheel_speed"]


def test_an_array_block_is_read_as_probability_left_is(tmp_path):
    path = write(tmp_path / "a.npz", probability_left=None, block=np.array([0.8, np.nan, 0.2]))
    np.testing.assert_array_equal(read_arrays(path, OPTIONS).categorical["block"], [2, -1, 0])


def test_a_named_behavior_is_continuous_with_bins_and_categorical_without(tmp_path):
    path = write(tmp_path / "a.npz", lick=np.ones((3, 2)), odor=np.array(["b", "a", "b"]))
    recording = read_arrays(path, OPTIONS, ["lick", "odor"])
    np.testing.assert_array_equal(recording.continuous["lick"], np.ones((3, 2)))
    np.testing.assert_array_equal(recording.categorical["odor"], [1, 0, 1])
    assert recording.classes["odor"] == ("a", "b")


def test_class_names_are_the_sorted_values_of_all_files(tmp_path):
    one = write(tmp_path / "a.npz", contrast=np.array([0.25, 1, np.nan], np.float32))
    two = write(tmp_path / "b.npz", {**META, "session": "s2"}, contrast=np.array([0.0625, 0, 10], np.float32))
    assert classes_of([one, two], ["contrast"]) == {"contrast": ("0", "0.0625", "0.25", "1", "10")}
    sources, _, behaviors = array_sources([one, two], OPTIONS, ["contrast"])
    assert behaviors["contrast"] == ("0", "0.0625", "0.25", "1", "10")
    np.testing.assert_array_equal(sources[0].read().categorical["contrast"], [2, 3, -1])
    np.testing.assert_array_equal(sources[1].read().categorical["contrast"], [1, 0, 4])


@pytest.mark.parametrize("kind", ["U", "S"])
@pytest.mark.parametrize("missing", ["", "nan"])
def test_empty_text_and_nan_are_missing_in_text_and_bytes(tmp_path, kind, missing):
    path = write(tmp_path / "a.npz", odor=np.array(["b", missing, "a"]).astype(kind))
    recording = read_arrays(path, OPTIONS, ["odor"])
    np.testing.assert_array_equal(recording.categorical["odor"], [1, -1, 0])
    assert recording.classes["odor"] == ("a", "b")


def test_whole_numbers_are_one_class_whatever_their_type(tmp_path):
    one = write(tmp_path / "a.npz", go=np.array([0, 1, 1]))
    two = write(tmp_path / "b.npz", go=np.array([0.0, 1.0, 0.0]))
    assert classes_of([one, two], ["go"]) == {"go": ("0", "1")}


def test_without_iblatlas_regions_are_one_line_that_says_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "iblatlas", None)
    path = write(tmp_path / "a.npz", unit_region=np.array(["CA1", "PO"]))
    with pytest.raises(NEDSError, match=r"a.npz: unit_region needs iblatlas: pip install 'neds_hf\[ibl\]'"):
        read_arrays(path, OPTIONS)


def test_known_regions_are_mapped_and_others_kept(tmp_path):
    path = write(tmp_path / "a.npz", unit_region=np.array(["VISp6a", "my tumour"]))
    units = read_arrays(path, OPTIONS).units
    assert units[["allen", "beryl", "cosmos"]].values.tolist() == [
        ["VISp6a", "VISp", "Isocortex"],
        ["my tumour", "my tumour", "my tumour"],
    ]


def test_units_keep_the_ids_that_the_file_names(tmp_path):
    path = write(tmp_path / "a.npz", unit_uuid=np.array(["left-7", "right-0"]))
    assert list(read_arrays(path, OPTIONS).units["uuid"]) == ["left-7", "right-0"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spike_counts": None}, "'spike_counts' is missing"),
        ({"spike_counts": np.zeros((3, 2))}, r"spike_counts is \(3, 2\), expected \(trials, bins, units\)"),
        ({"spike_counts": np.zeros((3, 3, 2))}, "spike_counts has 3 bins"),
        ({"spike_counts": np.full((3, 2, 2), 0.5)}, "not whole numbers"),
        ({"spike_counts": np.full((3, 2, 2), np.nan)}, "not whole numbers"),
        ({"spike_counts": np.full((3, 2, 2), -1)}, "from -1 to -1, expected 0 to 255"),
        ({"spike_counts": np.full((3, 2, 2), 256)}, "from 256 to 256, expected 0 to 255"),
        ({"spike_counts": np.full((3, 2, 2), "a")}, "expected whole numbers"),
        ({"spike_counts": np.full((3, 2, 2), None)}, "'spike_counts' cannot be read"),
        ({"wheel_speed": np.zeros((3, 4))}, r"wheel_speed is \(3, 4\), expected \(3, 2\)"),
        (
            {"wheel_speed": np.array([[np.nan, 1], [0, 0], [0, 0]])},
            "wheel_speed holds values that are not finite",
        ),
        ({"wheel_speed": np.full((3, 2), np.inf)}, "wheel_speed holds values that are not finite"),
        ({"wheel_speed": np.full((3, 2), "fast")}, "wheel_speed is <U4, expected numbers"),
        ({"choice": np.array([1, 2, -1])}, "choice holds 2, expected one of -1, 1, 0"),
        ({"choice": np.array(["l", "r", "l"])}, "choice is <U1, expected numbers"),
        ({"choice": np.array([True, False, True])}, "choice is bool, expected numbers, one of -1, 1, 0"),
        ({"choice": np.array([1, 0, 1])}, r"choice holds 0 and 1 only, expected -1 right and \+1 left"),
        ({"choice": np.array([1, -1])}, r"choice is \(2,\), expected \(3,\)"),
        ({"probability_left": np.array([0.2, 0.3, 0.5])}, "block holds 0.3, expected one of 0.2, 0.5, 0.8"),
        ({"trial_index": np.array([2, 1, 3])}, r"whole numbers below 2\*\*31 that increase"),
        ({"trial_index": np.array([0, 1, 2**31])}, r"whole numbers below 2\*\*31 that increase"),
        ({"unit_region": np.array(["CA1"])}, r"unit_region is \(1,\), expected \(2,\)"),
        ({"unit_uuid": np.array(["a"])}, r"unit_uuid is \(1,\), expected \(2,\)"),
        ({"unit_uuid": np.array(["a", "a"])}, "unit_uuid holds 'a' more than once"),
        ({"unit_uuid": np.array(["a", ""])}, "unit_uuid is missing for 1 of 2 units"),
        ({"meta": "session 1"}, "meta is not JSON"),
        ({"meta": "3"}, "meta lacks session, bin_size_s, align_event, window_s; it holds int"),
        ({"meta": {k: v for k, v in META.items() if k != "window_s"}}, "meta lacks window_s"),
        ({"meta": {**META, "session": 7}}, "session of meta must be text, found 7"),
        ({"meta": {**META, "subject": 12}}, "subject of meta must be text, found 12"),
        ({"meta": {**META, "date": 20240101}}, "date of meta must be text, found 20240101"),
        ({"meta": {**META, "source": ["a", "b"]}}, r"source of meta must be text, found \['a', 'b'\]"),
        ({"meta": {**META, "align_event": None}}, "meta lacks align_event"),
        ({"meta": {**META, "window_s": 2}}, "window_s of meta must be two numbers, found 2"),
        ({"meta": {**META, "window_s": [0.0, 0.1, 0.2]}}, "window_s of meta must be two numbers"),
        ({"meta": {**META, "window_s": [0.0, "0.2"]}}, "window_s of meta must be two numbers"),
        ({"meta": {**META, "bin_size_s": "20 ms"}}, "bin_size_s of meta must be a number, found '20 ms'"),
    ],
)
def test_an_impossible_file_gives_one_error_that_names_it(tmp_path, changes, message):
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(NEDSError, match=message) as error:
        read_arrays(path, OPTIONS)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_npz_is_named(tmp_path):
    with pytest.raises(NEDSError, match=r"none\.npz: no such file"):
        read_arrays(tmp_path / "none.npz", OPTIONS)
    (tmp_path / "text.npz").write_text("spikes")
    with pytest.raises(NEDSError, match=r"text\.npz: expected an \.npz of trial arrays, found another kind"):
        read_arrays(tmp_path / "text.npz", OPTIONS)
    whole = write(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NEDSError, match=r"half\.npz: expected an \.npz"):
        read_arrays(tmp_path / "half.npz", OPTIONS)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(NEDSError, match=r"one\.npy: expected an \.npz of trial arrays, found a single array"):
        read_arrays(tmp_path / "one.npy", OPTIONS)


def test_a_behavior_that_is_not_there_or_no_behavior_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", video=np.zeros((3, 2, 2, 2)))
    with pytest.raises(NEDSError, match="'pupil' is missing"):
        read_arrays(path, OPTIONS, ["pupil"])
    with pytest.raises(NEDSError, match="no array 'pupil' in"):
        array_sources([path], OPTIONS, ["pupil"])
    with pytest.raises(NEDSError, match="trial_index is not a behaviour"):
        array_sources([path], OPTIONS, ["trial_index"])
    with pytest.raises(NEDSError, match=r"video is \(3, 2, 2, 2\), expected"):
        read_arrays(path, OPTIONS, ["video"])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("paw.x", "with a dot, a round"),
        ("paw/x", "with a slash"),  # <session>/<metric> in the log of a training
        ("times_s", "with a slash, .* or as spikes, times_s"),
        ("choice_classes", "with a slash, with _classes at its end"),
    ],
)
def test_a_name_that_stands_for_something_else_later_on_is_refused_at_once(tmp_path, name, reason):
    path = write(tmp_path / "a.npz", **{name: np.zeros((3, 2))})
    with pytest.raises(NEDSError, match=f"a behaviour cannot be named '{name}': {reason}"):
        array_sources([path], OPTIONS, [name])


def test_a_number_a_trial_that_hardly_recurs_is_no_categorical_behaviour(tmp_path):
    trials = 30
    arrays = {"spike_counts": np.zeros((trials, 2, 2)), "wheel_speed": None, "probability_left": None}
    arrays |= {"choice": np.resize([-1, 1], trials), "trial_index": None}
    path = write(tmp_path / "a.npz", **arrays, latency=np.linspace(0, 1, trials), odor=np.arange(trials) % 20)
    with pytest.raises(
        NEDSError, match=r"latency holds 30 different values in 30 trials: .* is \(trials, bins\)"
    ):
        array_sources([path], OPTIONS, ["latency"])
    # Missing trials do not count.
    latency = np.where(np.arange(2 * trials) < trials, np.linspace(0, 2, 2 * trials), np.nan)
    assert len(np.unique(latency[:trials])) == trials
    arrays |= {"spike_counts": np.zeros((2 * trials, 2, 2)), "choice": np.resize([-1, 1], 2 * trials)}
    with pytest.raises(NEDSError, match="latency holds 30 different values in 30 trials"):
        array_sources([write(tmp_path / "b.npz", **arrays, latency=latency)], OPTIONS, ["latency"])
    _, _, behaviors = array_sources([path], OPTIONS, ["odor"])  # few enough to be classes
    assert len(behaviors["odor"]) == 20


def test_a_behaviour_that_is_the_same_in_all_trials_is_refused_before_a_model_would_be(tmp_path):
    one = write(tmp_path / "a.npz", rule=np.array(["go", "", "go"]))
    two = write(tmp_path / "b.npz", rule=np.array(["stop", "stop", "go"]))
    with pytest.raises(NEDSError, match="rule is go in all trials that have it: leave it out"):
        array_sources([one], OPTIONS, ["rule"])
    assert array_sources([one, two], OPTIONS, ["rule"])[2]["rule"] == ("go", "stop")
    assert array_sources([one], OPTIONS, there={"rule": ("go", "stop")})[2]["rule"] == ("go", "stop")


def test_a_value_without_a_class_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", odor=np.array(["b", "a", "c"]))
    with pytest.raises(NEDSError, match="odor holds c, expected one of a, b"):
        read_arrays(path, OPTIONS, ["odor"], {"odor": ("a", "b")})


def test_files_of_one_dataset_must_share_bins_and_kinds(tmp_path):
    one = write(tmp_path / "a.npz", cue=np.zeros((3, 2)))
    two = write(tmp_path / "b.npz", {**META, "window_s": [0.1, 0.3]}, cue=np.zeros((3, 2)))
    with pytest.raises(
        NEDSError, match=r"window_s is \[0\.0, 0\.2\] in .*a\.npz and \[0\.1, 0\.3\] in .*b\.npz"
    ):
        array_sources([one, two], OPTIONS)
    three = write(tmp_path / "c.npz", cue=np.zeros(3))
    with pytest.raises(NEDSError, match=r"c\.npz: cue is categorical, but continuous in another file"):
        array_sources([one, three], OPTIONS, ["cue"])
    four = write(tmp_path / "d.npz", cue=np.array(["a", "b", "c"]))
    with pytest.raises(NEDSError, match="cue is text in one file and numbers in another"):
        array_sources([three, four], OPTIONS, ["cue"])


def test_the_bins_of_the_files_are_those_of_the_dataset(tmp_path):
    _, options, behaviors = array_sources([write(tmp_path / "a.npz")], ConversionOptions(seed=3))
    assert options == ConversionOptions("go", (0.0, 0.2), 0.1, seed=3)
    assert behaviors == {
        "choice": ("right", "left"),
        "block": ("0.2", "0.5", "0.8"),
        "wheel_speed": None,
    }


@pytest.mark.skipif(not SHARED.exists(), reason="the folder of real recordings is not beside the project")
def test_real_arrays_of_dy016_are_read_whole():
    path = SHARED / "data/ibl_dy016/dy016.npz"
    recording = read_arrays(path, OPTIONS, ["pupil_diameter"])
    with np.load(path) as arrays:
        np.testing.assert_array_equal(recording.spike_counts, arrays["spike_counts"])
        np.testing.assert_array_equal(recording.continuous["pupil_diameter"], arrays["pupil_diameter"])
        np.testing.assert_array_equal(recording.categorical["choice"], arrays["choice"] > 0)
    assert set(recording.units["cosmos"]) == {"TH", "HPF", "Isocortex"}
