"""What a recording and the options of its conversion may be, and the split, which is the same for ever."""

import numpy as np
import pandas as pd
import pytest

from neds_hf.data.schema import ConversionOptions, Recording, split_of_trials
from neds_hf.errors import NEDSError


def test_bins_are_those_of_the_window():
    assert ConversionOptions().num_bins == 100
    assert ConversionOptions(window_s=(-0.3, 0.1), bin_size_s=0.1).num_bins == 4
    assert ConversionOptions(window_s=(0.525, 0.725), bin_size_s=0.1).num_bins == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window_s": (0.0, np.inf)}, r"expected finite numbers, found the window \(0.0, inf\)"),
        ({"bin_size_s": np.nan}, "expected finite numbers, .* bins of nan s"),
        ({"min_rate_hz": np.inf}, "expected finite numbers, .* the rate floor inf Hz"),
        ({"bin_size_s": 0.0}, "is empty"),
        ({"window_s": (1.0, 1.0)}, "is empty"),
        ({"window_s": (1.0, 0.5), "bin_size_s": -0.1}, "is empty"),
        (
            {"window_s": (0.0, 0.25), "bin_size_s": 0.1},
            r"\(0.0, 0.25\) s is not a whole number of 0.1 s bins",
        ),
        ({"window_s": (0.0, 0.28), "bin_size_s": 0.1}, "is not a whole number of 0.1 s bins"),
        ({"split": "odd"}, "split must be 'random' or 'blocked', not 'odd'"),
        ({"fold": 5}, "fold must be 0 to 4, not 5"),
        ({"fold": -1}, "fold must be 0 to 4, not -1"),
        ({"whisker_camera": "body"}, "the whisker camera must be 'left' or 'right', not 'body'"),
        ({"min_rate_hz": -0.5}, "the rate floor must not be negative, but is -0.5 Hz"),
        ({"reaction_time_s": (2.0, 0.1)}, r"from shortest to longest, not \(2.0, 0.1\) s"),
        ({"reaction_time_s": (np.nan, 1.0)}, "from shortest to longest"),
    ],
)
def test_options_that_make_no_trials_are_refused(options, message):
    with pytest.raises(NEDSError, match=message):
        ConversionOptions(**options)


def test_options_at_their_limits_are_taken():
    ConversionOptions(
        min_rate_hz=0.0, reaction_time_s=(0.5, 0.5), fold=4, split="blocked", whisker_camera="right"
    )


def recording(**changes):
    """Two trials of three bins and one unit."""
    values = {
        "session": "s1",
        "spike_counts": np.zeros((2, 3, 1), np.uint8),
        "trial_index": np.arange(2),
        "units": pd.DataFrame({"uuid": ["u"]}),
        "window_s": (0.0, 0.3),
        "bin_size_s": 0.1,
        "align_event": "go",
        "continuous": {"wheel": np.zeros((2, 3))},
        "categorical": {"choice": np.array([-1, 1])},
        "classes": {"choice": ("right", "left")},
    }
    return Recording(**{**values, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spike_counts": np.zeros((2, 3, 1))}, "s1: spike counts are float64, expected uint8"),
        (
            {"trial_index": np.arange(3)},
            "2 trials x 1 units, but there are 3 trial indices and 1 rows of units",
        ),
        ({"units": pd.DataFrame({"uuid": ["u", "v"]})}, "there are 2 trial indices and 2 rows of units"),
        ({"continuous": {"wheel": np.zeros((3, 2))}}, r"s1: wheel is \(3, 2\), expected \(2, 3\)"),
        ({"categorical": {"choice": np.zeros((2, 3), int)}}, r"s1: choice is \(2, 3\), expected \(2,\)"),
        ({"categorical": {"choice": np.array([0, 2])}}, "s1: choice holds a class that has no name"),
        ({"classes": {}}, "s1: choice holds a class that has no name"),
    ],
)
def test_a_recording_whose_parts_do_not_fit_is_refused(changes, message):
    recording()
    with pytest.raises(NEDSError, match=message):
        recording(**changes)


def test_a_recording_may_have_no_trials():
    none = {"continuous": {}, "categorical": {"choice": np.zeros(0, int)}, "trial_index": np.zeros(0)}
    recording(spike_counts=np.zeros((0, 3, 1), np.uint8), **none)


@pytest.mark.parametrize(
    "seed, fold, expected", [(0, 0, "etvtttettt"), (1, 0, "tetttetvtt"), (0, 1, "ttevettttt")]
)
def test_the_split_of_a_session_stays_what_it_is(seed, fold, expected):
    """Models were chosen and scored by it: t train, v validation, e test."""
    letters = {"train": "t", "validation": "v", "test": "e"}
    assert "".join(letters[part] for part in split_of_trials("s1", 10, seed=seed, fold=fold)) == expected


def test_fewer_than_ten_trials_cannot_be_split():
    with pytest.raises(NEDSError, match="s1: 9 trials are left, at least 10 are needed"):
        split_of_trials("s1", 9)
