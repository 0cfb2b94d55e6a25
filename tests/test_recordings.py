"""Opening a converted dataset."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from small_dataset import pretrain_arguments, write_dataset

from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError


def test_a_dataset_folder_is_opened_as_it_was_written(dataset):
    recordings = open_recordings(dataset)
    assert recordings.session_ids == ["ann", "bob", "cat"]
    assert {name: len(split) for name, split in recordings.splits.items()} == {
        "train": 89,
        "validation": 13,
        "test": 25,
    }
    assert recordings.unit_ids("ann") == ["ann/0", "ann/1", "ann/3", "ann/4", "ann/5"]  # 2 is silent
    trials = recordings.trials("ann", "train")
    assert trials.spike_counts.shape == (29, 20, 5)


def test_the_configurations_of_a_dataset_hold_their_own_sessions(dataset):
    assert open_recordings(dataset, "pretrain").session_ids == ["ann", "bob"]
    held_out = open_recordings(dataset, "held_out")
    assert held_out.session_ids == ["cat"] and len(held_out.split("train")) == 28
    assert set(held_out.units["session"]) == {"cat"}
    with pytest.raises(NEDSError, match=r"is no dataset with a configuration 'nights': .*'held_out'"):
        open_recordings(dataset, "nights")


def test_some_sessions_alone(dataset):
    recordings = open_recordings(dataset)
    only = recordings.only(["cat", "ann"])
    assert only.session_ids == ["ann", "cat"] and len(only.split("validation")) == 8
    assert only.fingerprint != recordings.fingerprint
    assert only.fingerprint == open_recordings(dataset).only(["ann", "cat"]).fingerprint
    with pytest.raises(NEDSError, match=r"does not have session dan, eve; it has ann, bob, cat$"):
        recordings.only(["ann", "eve", "dan"])
    with pytest.raises(NEDSError, match="session bob has no trial in this split"):
        only.trials("bob", "train")


def test_a_dataset_whose_path_is_a_pattern_is_refused(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "data [1]")
    with pytest.raises(NEDSError, match=r"data \[1\]: datasets cannot load a folder whose path has"):
        open_recordings(copy)


def test_a_dataset_made_anew_is_not_served_from_the_cache_of_the_old_one(tmp_path):
    """Neither in the same place nor in a folder of the same name elsewhere."""

    def fewer_spikes(recording):
        recording.spike_counts = np.minimum(recording.spike_counts, 2)
        return recording

    for place, change in (("a", None), ("b", fewer_spikes)):
        write_dataset(tmp_path / place / "dataset", ["cat"], change=change)
    largest = [
        np.max(load_dataset(str(tmp_path / place / "dataset"))["train"]["spike_counts"]) for place in "ab"
    ]
    assert largest[0] > 2 and largest[1] == 2
    shutil.rmtree(tmp_path / "a" / "dataset")
    write_dataset(tmp_path / "a" / "dataset", ["cat"], change=fewer_spikes)
    assert open_recordings(tmp_path / "a" / "dataset").trials("cat", "train").spike_counts.max() == 2


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(NEDSError, match="no dataset folder nowhere"):
        open_recordings("nowhere")
    with pytest.raises(NEDSError, match="not/there is no dataset with a configuration 'trials'"):
        open_recordings("not/there")
    with pytest.raises(NEDSError, match=r"is no dataset folder: it has no README.md"):
        open_recordings(tmp_path)
    (tmp_path / "README.md").write_text("# Notes\n")
    with pytest.raises(NEDSError, match=f"{tmp_path} is no dataset with a configuration 'trials'"):
        open_recordings(tmp_path)


@pytest.mark.parametrize("file", ["trials/test/bob.parquet", "units/bob.parquet", "sessions/bob.parquet"])
@pytest.mark.parametrize("opened", ["for the first time", "again"])
def test_a_session_of_which_a_file_is_gone_is_named_and_built_again(dataset, tmp_path, file, opened):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    if opened == "again":  # and in the cache of datasets
        open_recordings(copy)
    (copy / file).unlink()
    for config in ("trials", "pretrain"):
        with pytest.raises(NEDSError) as error:
            open_recordings(copy, config)
        assert str(error.value) == (
            f"{copy} is not whole, `neds build` converts session bob again: there is no file {copy / file}"
        )
    write_dataset(copy)
    recordings = open_recordings(copy)
    assert recordings.session_ids == ["ann", "bob", "cat"]
    assert len(recordings.trials("bob", "test").trial_index) == 9 and len(recordings.unit_ids("bob")) == 9


def test_a_session_of_which_all_files_are_gone_is_named(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for gone in copy.glob("**/bob.parquet"):
        gone.unlink()
    with pytest.raises(NEDSError, match="is not whole, `neds build` converts session bob again"):
        open_recordings(copy)


@pytest.mark.parametrize("file", ["trials/train/bob.parquet", "units/bob.parquet"])
@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda content: content[:-100], "Parquet magic bytes not found"),  # cut off
        (lambda content: content[:50] + bytes(400) + content[450:], ""),  # its end is as it was
    ],
    ids=["cut off", "overwritten"],
)
def test_a_damaged_file_is_named(dataset, tmp_path, error_of, monkeypatch, file, damage, reason):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # where it is not yet
    damaged = shutil.copytree(dataset, tmp_path / "copy") / file
    damaged.write_bytes(damage(damaged.read_bytes()))
    error = error_of("pretrain", *pretrain_arguments(tmp_path / "copy", tmp_path / "out"))
    assert error.startswith(
        f"neds pretrain: {damaged} is damaged, without it `neds build` converts session bob again: "
    )
    assert reason in error


def test_a_folder_named_as_a_builder_of_datasets_is_opened(tmp_path, monkeypatch):
    write_dataset(tmp_path / "parquet", ["ann"])
    monkeypatch.chdir(tmp_path)
    assert open_recordings("parquet").session_ids == ["ann"]


def test_a_provenance_that_was_edited_by_hand_is_an_error_before_the_training(tmp_path, error_of):
    file = write_dataset(tmp_path / "dataset", ["ann"]) / "sessions" / "ann.parquet"
    row = pq.read_table(file).to_pylist()[0]
    for text, message in (("mine", "expected JSON 'provenance', found 'mine'"), ("{}]", "expected JSON")):
        pq.write_table(pa.Table.from_pylist([row | {"provenance": text}], schema=pq.read_schema(file)), file)
        shutil.copytree(tmp_path / "dataset", tmp_path / text)  # not in the cache of datasets
        error = error_of("pretrain", *pretrain_arguments(tmp_path / text, tmp_path / "out"))
        assert error.startswith(f"neds pretrain: session ann: {message}")


def test_a_cache_that_cannot_be_written_is_not_said_of_the_dataset(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    with pytest.raises(NEDSError, match=r"the cache of datasets \(in \$HF_HOME\) not be written: .*/file"):
        open_recordings(dataset)
