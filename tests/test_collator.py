"""Rows of a `trials` table become the arrays that they were, by either way."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.schema import trial_features
from neds_hf.data.trials import session_trials
from neds_hf.errors import NEDSError
from neds_hf.models import NEDSProcessor

MODALITIES = [
    {"name": "spikes", "kind": "spikes"},
    {"name": "choice", "kind": "categorical", "classes": ["right", "left"]},
    {"name": "wheel", "kind": "continuous"},
    {"name": "pupil", "kind": "continuous"},  # not in the table
]
FEATURES = trial_features({"wheel": None, "choice": ("right", "left")})
ROWS = [
    # spike_counts: bins by units, flat
    ("z", 0, 2, [1, 2, 3, 4], [1.0, 3.0], 0),
    ("a", 5, 3, [5, 6, 7, 8, 9, 255], None, 1),
    ("z", 1, 2, [0, 0, 0, 9], [3.0, 5.0], None),
]


def make_dataset(rows=ROWS):
    return Dataset.from_list([dict(zip(FEATURES, row)) for row in rows], features=FEATURES)


def make_processor(num_bins=2):
    processor = NEDSProcessor(MODALITIES, num_bins=num_bins)
    for session, num_units in (("a", 3), ("z", 2)):
        wheel = np.tile([2.0, 4.0], num_bins // 2)[None]  # mean 3, deviation 1
        processor.add_session(
            session,
            [str(unit) for unit in range(num_units)],
            np.ones((1, num_bins, num_units)),
            {"wheel": wheel},
        )
    return processor


def collate_rows(dataset, indices):
    return NEDSCollator(make_processor())([dataset[index] for index in indices])


def collate_arrow(dataset, indices):
    loader = torch.utils.data.DataLoader(
        ArrowTrials(dataset), batch_sampler=[indices], collate_fn=NEDSCollator(make_processor())
    )
    return next(iter(loader))


ways = pytest.mark.parametrize("collate", [collate_rows, collate_arrow])


@ways
@pytest.mark.parametrize("dataset", [make_dataset(), make_dataset(ROWS[:1] + ROWS).select([1, 2, 3])])
def test_a_batch_equals_the_rows_of_the_table(collate, dataset):
    batch = collate(dataset, [2, 1, 0])
    assert set(batch) == {"session_index", "spike_counts", "unit_mask", "behaviors", "available"}
    assert batch["session_index"].tolist() == [1, 0, 1]
    assert batch["spike_counts"].dtype == torch.uint8
    assert batch["spike_counts"].tolist() == [
        [[0, 0, 0], [0, 9, 0]],
        [[5, 6, 7], [8, 9, 255]],
        [[1, 2, 0], [3, 4, 0]],
    ]
    assert batch["unit_mask"].tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert {name: values.tolist() for name, values in batch["behaviors"].items()} == {
        "choice": [0, 1, 0],
        "wheel": [[0, 2], [0, 0], [-2, 0]],
        "pupil": [[0, 0], [0, 0], [0, 0]],
    }
    assert {name: has.tolist() for name, has in batch["available"].items()} == {
        "choice": [False, True, True],
        "wheel": [True, False, True],
        "pupil": [False, False, False],
    }


@pytest.mark.parametrize("form", [list, ArrowTrials])
def test_classes_are_those_of_the_model_by_name_whatever_their_order_in_the_dataset(form):
    """A new animal's dataset has the classes that it was seen to have, in the order of its own."""
    processor = make_processor()
    processor.modalities[1] = {
        "name": "choice",
        "kind": "categorical",
        "classes": ["no", "left", "up", "right"],
    }
    dataset = make_dataset()  # right, left, missing
    trials = form(dataset)
    rows = trials.__getitems__([0, 1, 2]) if form is ArrowTrials else trials
    batch = NEDSCollator(processor, dataset.features)(rows)
    assert batch["behaviors"]["choice"].tolist() == [3, 1, 0]
    assert batch["available"]["choice"].tolist() == [True, True, False]


def test_a_class_that_the_dataset_does_not_have_is_refused():
    dataset = make_dataset()
    rows = [{**dataset[0], "choice": index} for index in (0, 2)]
    with pytest.raises(
        NEDSError, match=r"choice holds class indices \[0 2\], but the features .* have 2 classes"
    ):
        NEDSCollator(make_processor(), dataset.features)(rows)


def test_classes_that_lost_their_names_on_the_way_are_said_so():
    dataset = Dataset.from_pandas(make_dataset().to_pandas())
    with pytest.raises(
        NEDSError, match=r"choice is float64 without ClassLabel, the model was trained with right, left"
    ):
        NEDSCollator(make_processor(), dataset.features)


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas"])
def test_rows_in_any_format_of_datasets(form):
    formatted = make_dataset().with_format(form)
    rows = [formatted[index] for index in range(3)]
    if form == "pandas":
        rows = [row.to_dict("records")[0] for row in rows]
    batch, expected = NEDSCollator(make_processor())(rows), collate_rows(make_dataset(), range(3))
    assert batch["available"]["choice"].tolist() == [True, True, False]
    assert batch["available"]["wheel"].tolist() == [True, False, True]
    for name in ("choice", "wheel"):
        assert torch.equal(batch["behaviors"][name], expected["behaviors"][name])
    assert torch.equal(batch["spike_counts"], expected["spike_counts"])


@pytest.mark.parametrize("extra", [np.ones((2, 2)), torch.ones(2, 2), object()])
def test_columns_that_are_not_needed_may_hold_anything(extra):
    rows, expected = [row | {"mine": extra} for row in make_dataset()], collate_rows(make_dataset(), range(3))
    assert torch.equal(NEDSCollator(make_processor())(rows)["spike_counts"], expected["spike_counts"])


def test_rows_of_a_dataset_that_gives_floating_point_numbers_only():
    rows = make_dataset().with_format("torch", dtype=torch.float32)
    batch, expected = NEDSCollator(make_processor())(list(rows)), collate_rows(make_dataset(), range(3))
    assert torch.equal(batch["spike_counts"], expected["spike_counts"])
    assert torch.equal(batch["behaviors"]["choice"], expected["behaviors"]["choice"])


@pytest.mark.parametrize("nothing", [None, np.nan, np.float32("nan"), torch.tensor(np.nan)])
def test_a_class_that_is_missing_may_be_said_so_in_any_way(nothing):
    rows = [row | {"choice": nothing if row["choice"] is None else row["choice"]} for row in make_dataset()]
    batch = NEDSCollator(make_processor())(rows)
    assert batch["available"]["choice"].tolist() == [True, True, False]
    assert batch["behaviors"]["choice"].tolist() == [0, 1, 0]


def test_a_behaviour_that_is_none_in_every_bin_is_missing_also_where_it_is_in_all_rows():
    rows = [row | {"wheel": [None, None]} for row in make_dataset()]
    batch = NEDSCollator(make_processor())(rows)
    assert not batch["available"]["wheel"].any() and not batch["behaviors"]["wheel"].any()


def test_rows_need_not_have_the_same_columns():
    rows = [dict(row) for row in make_dataset()]
    del rows[0]["wheel"]
    batch = NEDSCollator(make_processor())(rows)
    assert batch["available"]["wheel"].tolist() == [False, False, True]


@ways
def test_a_batch_in_which_a_behaviour_is_missing_everywhere(collate):
    missing = [(*row[:4], None, None) for row in ROWS]
    batch = collate(make_dataset(missing), [0, 1])
    assert batch["behaviors"]["wheel"].tolist() == [[0, 0], [0, 0]]
    assert not batch["available"]["wheel"].any() and not batch["available"]["choice"].any()


@ways
@pytest.mark.parametrize(
    "row, message",
    [
        (("z", 0, 2, [1, 2, 3, 4, 5, 6], None, 0), r"sessions \['z'\] do not have the 2 bins"),
        (("z", 0, 2, [1, 2, 3, 4], [1.0, 2.0, 3.0], 0), "wheel has 3 bins, expected 2"),
        (("z", 0, 2, [1, 2, 3, 4], [1.0], 0), "wheel has 1 bins, expected 2"),
        (("x", 0, 2, [1, 2, 3, 4], None, 0), "does not know session 'x'"),
        (("a", 0, 2, [1, 2, 3, 4], None, 0), r"session 'a': .* are \(2, 2\), expected \(2, 3\)"),
    ],
)
def test_trials_of_another_length_or_of_an_unknown_session_are_refused(collate, row, message):
    with pytest.raises(NEDSError, match=message):
        collate(make_dataset([row]), [0])


def test_two_rows_of_half_the_bins_are_not_taken_for_one():
    dataset = make_dataset([("z", 0, 2, [1, 2, 3, 4], [1.0], 0), ("z", 1, 2, [1, 2, 3, 4], [2.0], 0)])
    with pytest.raises(NEDSError, match="wheel has 1 bins, expected 2"):
        collate_arrow(dataset, [0, 1])


ROW = {"session": "a", "num_units": 3, "spike_counts": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "expected a list of one or more rows, dictionaries, found a list of 0"),
        (make_dataset()[:2], "expected a list of one or more rows, dictionaries, found a dict of 6"),
        (make_dataset()[0], "expected a list of one or more rows, dictionaries, found a dict of 6"),
        (list(make_dataset().with_format("arrow").select(range(2))), "found a list of 2 Table"),
        # What a Trainer leaves of rows by default.
        (
            make_dataset().select_columns("spike_counts"),
            "rows without session, num_units; .*remove_unused_columns",
        ),
        ([ROW | {"choice": "left"}], "choice is of type string, expected a whole number a trial"),
        ([ROW | {"choice": 0.5}], "choice is of type double, expected a whole number a trial"),
        ([ROW | {"num_units": "three"}], "num_units is of type string, expected a whole number a trial"),
        ([ROW | {"wheel": 0.5}], "wheel is of type double, expected a list of numbers"),
        ([ROW | {"spike_counts": "[1 2 3]"}], "spike_counts is of type string, expected a list of numbers"),
        (
            [ROW | {"spike_counts": [[1, 2, 3]] * 2}],
            "spike_counts is of type list.*, expected a list of numbers",
        ),
        ([ROW | {"spike_counts": np.ones((2, 3))}], "rows that make no table: .*1-dimensional"),
        ([ROW | {"choice": 1}, ROW | {"choice": "left"}], "rows that make no table: .*'left'"),
    ],
)
def test_what_are_no_rows_is_said_so(rows, message):
    with pytest.raises(NEDSError, match=message):
        NEDSCollator(make_processor())(rows)


def test_a_streamed_split_is_not_taken_for_one_of_arrays():
    with pytest.raises(NEDSError, match="not streamed, but this is a IterableDataset"):
        session_trials(make_dataset().to_iterable_dataset(), "z")


def test_one_row_of_arrow_trials_is_a_table_of_one_row():
    trials = ArrowTrials(make_dataset())
    assert len(trials) == 3
    assert NEDSCollator(make_processor())(trials[1])["session_index"].tolist() == [0]


def test_a_transform_of_a_dataset_is_not_left_out():
    changed = make_dataset().with_transform(lambda rows: rows | {"wheel": [None] * len(rows["session"])})
    with pytest.raises(NEDSError, match=r"a dataset with a transform .*: apply it by `map`, or give"):
        ArrowTrials(changed)
    assert not NEDSCollator(make_processor())([*changed])["available"]["wheel"].any()


def test_trials_of_one_session_as_arrays():
    trials = session_trials(make_dataset(), "z")
    assert trials.session == "z" and trials.trial_index.tolist() == [0, 1]
    assert trials.spike_counts.dtype == np.uint8
    assert trials.spike_counts.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 9]]]
    np.testing.assert_array_equal(trials.continuous["wheel"], [[1, 3], [3, 5]])
    assert trials.categorical["choice"].tolist() == [0, -1]
    assert trials.classes == {"choice": ("right", "left")}
    alone = session_trials(make_dataset(), "a")
    assert np.isnan(alone.continuous["wheel"]).all() and alone.spike_counts.shape == (1, 2, 3)
    with pytest.raises(NEDSError, match="session x has no trial in this split"):
        session_trials(make_dataset(), "x")
