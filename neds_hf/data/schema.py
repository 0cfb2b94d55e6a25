"""What a recording is between its source and Parquet: names, options, columns, splits.

Axes are always in the order trials, bins, units. Nothing here reads or writes a file.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Features, List, Value

from neds_hf.errors import NEDSError

SPLITS = ("train", "validation", "test")
NUM_FOLDS = 5  # a test part is one of them
VALIDATION_FRACTION = 0.1
CAMERAS = ("left", "right")
SIMULATED_LAB = "simlab"  # of `neds simulate`; no recording is from a lab of that name

# Columns of the `trials` table that are not behaviours.
TRIAL_COLUMNS = ("session", "trial_index", "num_units", "spike_counts")

# Name of each behaviour to its class names, or to None for a continuous one.
Behaviors = dict[str, tuple[str, ...] | None]

# `choice` is stored by IBL as -1 (the wheel turned for a stimulus on the right) and +1 (left); `block` as the
# prior probability of a left stimulus.
IBL_CLASSES = {"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")}
IBL_BEHAVIORS: Behaviors = {**IBL_CLASSES, "wheel_speed": None, "whisker_motion_energy": None}


@dataclass(frozen=True)
class ConversionOptions:
    """How recordings become trials.

    Attributes:
        align_event: Trial event at time zero, a column of the trials table.
        window_s: Start and end of a trial around the event, in seconds.
        bin_size_s: Bin width in seconds.
        min_rate_hz: Units below this mean rate over the training trials are dropped (paper: 2 Hz).
        reaction_time_s: Trials whose first movement comes earlier or later after the stimulus are dropped.
        split: `"random"` (paper) or `"blocked"` (contiguous in time).
        seed: Changes the random split.
        fold: 0 to 4: which fifth of the trials is the test part; the five together hold every trial once.
        whisker_camera: `"left"` or `"right"`, the camera of the whisker motion energy; the other one where it has
            none.

    Raises:
        NEDSError: A value that is not possible; the message names it.
    """

    align_event: str = "stimOn_times"
    window_s: tuple[float, float] = (-0.5, 1.5)
    bin_size_s: float = 0.02
    min_rate_hz: float = 2.0
    reaction_time_s: tuple[float, float] = (0.08, 2.0)
    split: str = "random"
    seed: int = 0
    fold: int = 0
    whisker_camera: str = "left"

    def __post_init__(self) -> None:
        start, end = self.window_s
        if not np.isfinite([start, end, self.bin_size_s, self.min_rate_hz]).all():
            raise NEDSError(
                f"expected finite numbers, found the window {self.window_s} s, bins of {self.bin_size_s} s and "
                f"the rate floor {self.min_rate_hz} Hz"
            )
        if self.bin_size_s <= 0 or end <= start:
            raise NEDSError(f"window {self.window_s} s with bins of {self.bin_size_s} s is empty")
        bins = (end - start) / self.bin_size_s
        if abs(bins - round(bins)) > 1e-6:
            raise NEDSError(f"window {self.window_s} s is not a whole number of {self.bin_size_s} s bins")
        if self.split not in ("random", "blocked"):
            raise NEDSError(f"split must be 'random' or 'blocked', not {self.split!r}")
        if self.fold not in range(NUM_FOLDS):
            raise NEDSError(f"fold must be 0 to {NUM_FOLDS - 1}, not {self.fold}")
        if self.whisker_camera not in CAMERAS:
            raise NEDSError(f"the whisker camera must be 'left' or 'right', not {self.whisker_camera!r}")
        if self.min_rate_hz < 0:
            raise NEDSError(f"the rate floor must not be negative, but is {self.min_rate_hz} Hz")
        if not self.reaction_time_s[0] <= self.reaction_time_s[1]:
            raise NEDSError(f"reaction times go from shortest to longest, not {self.reaction_time_s} s")

    @classmethod
    def of(cls, values: Mapping) -> "ConversionOptions":
        """From values by name, of which it takes its own, lists for tuples; None is the default."""
        given = {field.name: values.get(field.name) for field in fields(cls)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def num_bins(self) -> int:
        """Bins of a trial."""
        return round((self.window_s[1] - self.window_s[0]) / self.bin_size_s)


@dataclass
class Recording:
    """One session as a reader (ALF or arrays) returns it: kept trials, all units, no split yet.

    Attributes:
        session: Session id (eid).
        subject, lab, date: Who, where, when; empty where unknown. `date` is ISO.
        spike_counts: (trials, bins, units) uint8, spikes per bin.
        trial_index: (trials,) int32, row among the session's trials, in time order.
        continuous: Name to (trials, bins) float32. A trial without the variable is all NaN.
        categorical: Name to (trials,) int64 class indices, -1 where missing.
        classes: Name of each categorical variable to its class names, in class order.
        units: One row a unit, in the order of the last axis of `spike_counts`; columns of `UNIT_FEATURES`
            that the reader knows (not `session`, `unit_index`, `rate_hz`).
        window_s, bin_size_s, align_event: What the bins mean.
        dropped_trials: Reason to number of trials.
        provenance: Where the data came from: source files with revision and hash.

    Raises:
        NEDSError: Arrays that do not fit together.
    """

    session: str
    spike_counts: np.ndarray
    trial_index: np.ndarray
    units: pd.DataFrame
    window_s: tuple[float, float]
    bin_size_s: float
    align_event: str
    subject: str = ""
    lab: str = ""
    date: str = ""
    continuous: dict[str, np.ndarray] = field(default_factory=dict)
    categorical: dict[str, np.ndarray] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped_trials: dict[str, int] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        trials, bins, units = self.spike_counts.shape
        if self.spike_counts.dtype != np.uint8:
            raise NEDSError(f"{self.session}: spike counts are {self.spike_counts.dtype}, expected uint8")
        if len(self.trial_index) != trials or len(self.units) != units:
            raise NEDSError(
                f"{self.session}: spike counts are {trials} trials x {units} units, but there are "
                f"{len(self.trial_index)} trial indices and {len(self.units)} rows of units"
            )
        for name, values in self.continuous.items():
            if values.shape != (trials, bins):
                raise NEDSError(f"{self.session}: {name} is {values.shape}, expected {(trials, bins)}")
        for name, values in self.categorical.items():
            if values.shape != (trials,):
                raise NEDSError(f"{self.session}: {name} is {values.shape}, expected {(trials,)}")
            if name not in self.classes or values.max(initial=-1) >= len(self.classes[name]):
                raise NEDSError(f"{self.session}: {name} holds a class that has no name")


UNIT_FEATURES = Features(
    {
        "session": Value("string"),
        "unit_index": Value("int32"),
        "uuid": Value("string"),
        "probe": Value("string"),
        "allen": Value("string"),
        "beryl": Value("string"),
        "cosmos": Value("string"),
        "depth_um": Value("float32"),
        "x_um": Value("float32"),
        "y_um": Value("float32"),
        "z_um": Value("float32"),
        "rate_hz": Value("float32"),
        "label": Value("float32"),
    }
)

SESSION_FEATURES = Features(
    {
        "session": Value("string"),
        "subject": Value("string"),
        "lab": Value("string"),
        "date": Value("string"),
        "num_units": Value("int32"),
        "num_bins": Value("int32"),
        "bin_size_s": Value("float64"),
        "window_start_s": Value("float64"),
        "window_end_s": Value("float64"),
        "align_event": Value("string"),
        "train_trials": Value("int32"),
        "validation_trials": Value("int32"),
        "test_trials": Value("int32"),
        "dropped_trials": Value("string"),  # JSON, reason to count
        "dropped_units": Value("string"),  # JSON, reason to count
        "provenance": Value("string"),  # JSON: sources with hashes, options, version
    }
)


def trial_features(behaviors: Behaviors) -> Features:
    """Columns of the `trials` table, for these behaviours, the continuous ones first.

    `spike_counts` is flat, (bins, units) in C order; `num_units` gives the shape back. A continuous behaviour
    is (bins,) or null, a categorical one a class index or null.
    """
    columns = {
        "session": Value("string"),
        "trial_index": Value("int32"),
        "num_units": Value("int32"),
        "spike_counts": List(Value("uint8")),
    }
    columns |= {name: List(Value("float32")) for name, names in behaviors.items() if names is None}
    columns |= {name: ClassLabel(names=list(names)) for name, names in behaviors.items() if names is not None}
    return Features(columns)


def behaviors_of(features: Features) -> Behaviors:
    """Behaviours of a `trials` table: name to class names, or None for a continuous one."""
    return {
        name: tuple(feature.names) if isinstance(feature, ClassLabel) else None
        for name, feature in features.items()
        if name not in TRIAL_COLUMNS
    }


def kept_trials(reasons: Mapping[str, np.ndarray], num_trials: int) -> tuple[np.ndarray, dict[str, int]]:
    """Which trials to keep, and how many are dropped for which reason (the first that applies).

    Args:
        reasons: Reason to (trials,) bool, True for a trial that it drops.
        num_trials: How many there are.

    Returns:
        (trials,) bool, True to keep; and reason to number of trials.
    """
    keep = np.ones(num_trials, dtype=bool)
    dropped = {}
    for reason, applies in reasons.items():
        if (keep & applies).any():
            dropped[reason] = int((keep & applies).sum())
        keep &= ~applies
    return keep, dropped


def split_of_trials(
    session: str, num_trials: int, how: str = "random", seed: int = 0, fold: int = 0
) -> np.ndarray:
    """Split of every kept trial: (trials,) array of `"train"`, `"validation"`, `"test"`, 70/10/20 %.

    Depends on the session id, the seed and the fold only, never on the order of conversion. `"blocked"` keeps
    the parts contiguous in time: in fold 0 train, then validation, then test, in the others moved round.

    Raises:
        NEDSError: Fewer than 10 trials: no split of 70/10/20 % leaves every part a trial.
    """
    if num_trials < 10:
        raise NEDSError(f"{session}: {num_trials} trials are left, at least 10 are needed to split them")
    after, with_it = (round(part * num_trials / NUM_FOLDS) for part in (fold, fold + 1))
    num_validation = round(VALIDATION_FRACTION * num_trials)
    num_train = num_trials - num_validation - (with_it - after)
    labels = np.repeat(np.array(SPLITS), [num_train, num_validation, with_it - after])
    labels = np.roll(labels, -after)
    if how == "blocked":
        return labels
    digest = hashlib.sha256(f"{session}/{seed}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(labels)


def check_path(folder: Path) -> None:
    """Make sure that `datasets` finds the files of this folder, and no others.

    Raises:
        NEDSError: It would take the path for a pattern.
    """
    if re.search(r"[*?[]|::", str(folder.absolute())):
        raise NEDSError(
            f"{folder.absolute()}: datasets cannot load a folder whose path has *, ?, [ or :: in it; take another"
        )
