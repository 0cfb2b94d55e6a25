"""From rows of a `trials` table to a batch."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Value

from neds_hf.data.schema import behaviors_of
from neds_hf.data.trials import continuous_values, flat_values, one_array, whole_numbers
from neds_hf.errors import NEDSError
from neds_hf.models.processing_neds import NEDSProcessor

NEEDED = ("session", "num_units", "spike_counts")


class ArrowTrials(torch.utils.data.Dataset):
    """A `datasets.Dataset` whose batches are Arrow tables: tens of times faster to collate than rows.

    Only for map-style datasets; `NEDSCollator` takes the rows of any other as they come.

    Raises:
        NEDSError: The dataset has a transform, which would be left out.
    """

    def __init__(self, dataset: Dataset):
        if dataset.format["type"] == "custom":
            raise NEDSError(
                "a dataset with a transform (with_transform), which Arrow tables would come without: apply it by "
                "`map`, or give NEDSCollator the dataset's own rows"
            )
        self.features: Features = dataset.features
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> pa.Table:
        return self.dataset[[index]]

    def __getitems__(self, indices: list[int]) -> pa.Table:
        return self.dataset[indices]


def class_indices(processor: NEDSProcessor, features: Features) -> dict[str, np.ndarray]:
    """Of every categorical behaviour that both have: the processor's index of each class of a dataset, then -1.

    Args:
        features: Of the dataset. Its classes may be some of the processor's, in any order.

    Raises:
        NEDSError: A class that the processor does not know, or a behaviour that is continuous for one of them.
    """
    indices = {}
    for name, classes in behaviors_of(features).items():
        if name not in processor.behaviors:
            continue
        known = processor.behaviors[name]
        if (classes is None) != (known is None) or not {*(classes or ())} <= {*(known or ())}:
            kind = features[name]  # a column that went through pandas or JSON has no names of classes
            unnamed = f"{kind.dtype} without ClassLabel" if isinstance(kind, Value) else "continuous"
            found, expected = ", ".join(classes or [unnamed]), ", ".join(known or ["continuous"])
            raise NEDSError(f"{name} is {found}, the model was trained with {expected}")
        if classes is not None:
            indices[name] = np.array([*map(known.index, classes), -1])
    return indices


class NEDSCollator:
    """Collate rows of a `trials` table to the inputs of `NEDSModel`.

    Works as `data_collator` of any `transformers.Trainer` with `remove_unused_columns=False`. Takes an Arrow
    table (what `ArrowTrials` gives) or a list of rows (what any dataset gives).

    Args:
        processor: Knows the sessions and scales the behaviours.
        features: Of the dataset, whose classes are then matched with the processor's by name. None: they are the
            same. A streamed dataset forgets them in `map`: take them from before.

    Raises:
        NEDSError: On classes that cannot be matched, on what are no rows of a `trials` table, and on a batch that
            does not fit the processor: session, number of units, bins, or a class that does not exist.
    """

    def __init__(self, processor: NEDSProcessor, features: Features | None = None):
        self.processor = processor
        self.class_indices = class_indices(processor, features or {})

    def __call__(self, rows: pa.Table | list[dict]) -> dict:
        if not isinstance(rows, pa.Table):
            if not len(rows) or not all(isinstance(row, Mapping) for row in rows):
                of = "" if isinstance(rows, Mapping) or not len(rows) else f" {type(rows[0]).__name__}"
                raise NEDSError(
                    "expected a list of one or more rows, dictionaries, found a "
                    f"{type(rows).__name__} of {len(rows)}{of}"
                )
            # Not all rows have the same, and what is not needed may be what Arrow does not take.
            names = [
                name for name in (*NEEDED, *self.processor.behaviors) if any(name in row for row in rows)
            ]
            try:
                rows = pa.Table.from_pylist([{name: _plain(row.get(name)) for name in names} for row in rows])
            except pa.ArrowException as error:
                raise NEDSError(f"rows that make no table: {error}") from error
        missing = [name for name in NEEDED if name not in rows.column_names]
        if missing:
            raise NEDSError(
                f"rows without {', '.join(missing)}; a Trainer leaves them with remove_unused_columns=False"
            )
        counts = flat_values(one_array(rows["spike_counts"]), "spike_counts")
        num_units = whole_numbers(rows, "num_units")
        num_bins = self.processor.num_bins
        if counts.size != num_bins * num_units.sum():
            raise NEDSError(
                f"the trials of sessions {sorted(set(rows['session'].to_pylist()))} do not have the "
                f"{num_bins} bins that this model was made for"
            )
        ends = np.cumsum(num_bins * num_units)
        spike_counts = [
            counts[end - num_bins * units : end].reshape(num_bins, units)
            for end, units in zip(ends, num_units)
        ]
        behaviors = {
            name: continuous_values(rows, name, num_bins) if classes is None else whole_numbers(rows, name)
            for name, classes in self.processor.behaviors.items()
            if name in rows.column_names
        }
        for name in self.class_indices.keys() & behaviors.keys():
            indices, found = self.class_indices[name], behaviors[name]
            if not (-1 <= found.min() and found.max() < len(indices) - 1):
                raise NEDSError(
                    f"{name} holds class indices {np.unique(found)}, but the features that the collator was given "
                    f"have {len(indices) - 1} classes: give it those of the dataset that the rows are of"
                )
            behaviors[name] = indices[found]
        try:
            return dict(self.processor(rows["session"].to_pylist(), spike_counts, behaviors))
        except ValueError as error:  # the processor also serves where there is no NEDSError
            raise NEDSError(str(error)) from error


def _plain(value):
    """What Arrow takes, of what a row holds in any format of datasets or pandas."""
    if isinstance(value, torch.Tensor):
        value = value.numpy() if value.ndim else value.item()
    return None if isinstance(value, float | np.floating) and np.isnan(value) else value
