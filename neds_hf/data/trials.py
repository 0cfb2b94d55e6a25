"""Rows of a `trials` table as arrays."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from neds_hf.data.schema import behaviors_of
from neds_hf.errors import NEDSError


@dataclass
class SessionTrials:
    """Trials of one session.

    Attributes:
        session: Session id.
        trial_index: (B,) row among the session's trials.
        spike_counts: (B, T, N) uint8.
        continuous: Name to (B, T) float32; a trial without the variable is all NaN.
        categorical: Name to (B,) int64 class index, -1 where missing.
        classes: Name of each categorical variable to its class names.
    """

    session: str
    trial_index: np.ndarray
    spike_counts: np.ndarray
    continuous: dict[str, np.ndarray] = field(default_factory=dict)
    categorical: dict[str, np.ndarray] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one Arrow array (no copy where it has one chunk)."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def flat_values(array: pa.Array, name: str) -> np.ndarray:
    """All numbers of the list column `array`, one row after the other; errors call it `name`.

    Raises:
        NEDSError: It holds no lists of numbers.
    """
    kind = getattr(array.type, "value_type", pa.string())
    if not pa.types.is_primitive(kind) and not pa.types.is_null(kind):
        raise NEDSError(f"{name} is of type {array.type}, expected a list of numbers a trial")
    return array.flatten().to_numpy(zero_copy_only=False)


def continuous_values(table: pa.Table, name: str, num_bins: int) -> np.ndarray:
    """(B, T) float32 of the continuous behaviour `name`; a null row becomes NaN.

    Raises:
        NEDSError: A row of another number of bins, or what is no list of numbers.
    """
    array = one_array(table[name])
    values = np.full((len(array), num_bins), np.nan, np.float32)
    if pa.types.is_null(array.type):
        return values
    numbers = flat_values(array, name)
    lengths = pc.list_value_length(array).drop_null().to_numpy()
    if (lengths != num_bins).any():
        raise NEDSError(f"{name} has {lengths[lengths != num_bins][0]} bins, expected {num_bins}")
    values[array.is_valid().to_numpy(zero_copy_only=False)] = numbers.reshape(-1, num_bins)
    return values


def whole_numbers(table: pa.Table, name: str) -> np.ndarray:
    """(B,) int64 of the column `name`, such as class indices; null becomes -1.

    Raises:
        NEDSError: It holds something else than whole numbers.
    """
    array = one_array(table[name])
    try:
        return array.cast(pa.int64()).fill_null(-1).to_numpy()
    except pa.ArrowException as error:
        raise NEDSError(f"{name} is of type {array.type}, expected a whole number a trial") from error


def session_trials(dataset: Dataset, session: str) -> SessionTrials:
    """All trials of one session of a `trials` split, in the order of the table.

    Raises:
        NEDSError: The split holds no trial of the session, or is streamed.
    """
    if not isinstance(dataset, Dataset):
        raise NEDSError(
            f"trials are taken from a split that is not streamed, but this is a {type(dataset).__name__}"
        )
    sessions = dataset.select_columns("session").with_format("arrow")[:]["session"].to_numpy()
    rows = np.flatnonzero(sessions == session)
    if len(rows) == 0:
        raise NEDSError(f"session {session} has no trial in this split of the dataset")
    table = dataset.select(rows).with_format("arrow")[:]
    num_units = table["num_units"][0].as_py()
    counts = flat_values(one_array(table["spike_counts"]), "spike_counts").reshape(len(table), -1, num_units)
    behaviors = behaviors_of(dataset.features)
    return SessionTrials(
        session=session,
        trial_index=table["trial_index"].to_numpy(),
        spike_counts=counts,
        continuous={
            name: continuous_values(table, name, counts.shape[1])
            for name, classes in behaviors.items()
            if classes is None
        },
        categorical={name: whole_numbers(table, name) for name, c in behaviors.items() if c is not None},
        classes={name: classes for name, classes in behaviors.items() if classes is not None},
    )
