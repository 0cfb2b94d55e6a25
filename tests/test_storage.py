"""Recordings become a folder that plain `datasets` loads, session by session, and can be resumed."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, load_dataset
from huggingface_hub import DatasetCard
from tqdm.auto import tqdm

from neds_hf.data import storage
from neds_hf.data.folder import summary
from neds_hf.data.schema import ConversionOptions, Recording, split_of_trials
from neds_hf.data.storage import Source, convert
from neds_hf.errors import NEDSError

# 10 trials of 2 bins of 0.5 s.
OPTIONS = ConversionOptions("go", (0.0, 1.0), 0.5, min_rate_hz=2.0)
BEHAVIORS = {"wheel_speed": None, "pupil": None, "choice": ("right", "left"), "odor": ("a", "b", "c")}
CONTINUOUS = ["wheel_speed", "pupil"]


def recording(session: str = "s1", **changes) -> Recording:
    """Three units: 4 Hz and 2 Hz, and one that is silent in the training trials only."""
    train = split_of_trials(session, 10) == "train"
    counts = np.zeros((10, 2, 3), np.uint8)
    counts[:, :, 0], counts[:, 0, 1], counts[~train, :, 2] = 2, 2, 200
    values = {
        "session": session,
        "spike_counts": counts,
        "trial_index": np.arange(5, 15, dtype=np.int32),
        "units": pd.DataFrame({"uuid": [f"{session}/{i}" for i in range(3)], "allen": ["CA1", None, "PO"]}),
        "window_s": (0.0, 1.0),
        "bin_size_s": 0.5,
        "align_event": "go",
        "subject": "mouse",
        "date": "2020-01-01",
        "continuous": {"wheel_speed": np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)},
        "categorical": {"choice": np.array([0, 1, -1, 0, 1, 0, 1, 0, 1, 1])},
        "classes": {"choice": ("right", "left")},
        "dropped_trials": {"no choice": 2},
        "provenance": {"files": [{"name": "raw.npz", "sha256": "ab"}]},
    }
    return Recording(**{**values, **changes})


def fail(session: str) -> Recording:
    raise NEDSError(f"{session}: the disk is full of cheese")


def not_to_be_read(session: str) -> Recording:
    raise AssertionError(f"{session} should not be read again")


def source(session: str, read=recording, fingerprint: str = "1") -> Source:
    return Source(session, fingerprint, partial(read, session))


def load(out: Path, config: str, **kwargs):
    return load_dataset(str(out), config, cache_dir=str(out.parent / "cache"), **kwargs)


def test_what_is_loaded_equals_the_recording(tmp_path):
    out, original = tmp_path / "out", recording()
    counts = convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    assert counts == {"converted": 1, "unchanged": 0}
    trials = load(out, "trials")
    assert {split: rows.num_rows for split, rows in trials.items()} == {
        "train": 7,
        "validation": 1,
        "test": 2,
    }
    splits = split_of_trials("s1", 10)
    for split, rows in trials.items():
        expected = np.flatnonzero(splits == split)
        assert rows["trial_index"] == original.trial_index[expected].tolist()
        assert rows["num_units"] == [2] * len(expected)
        spikes = np.array(rows["spike_counts"]).reshape(-1, 2, 2)
        np.testing.assert_array_equal(spikes, original.spike_counts[expected][:, :, :2])
        wheel = np.array(rows["wheel_speed"], np.float32)
        np.testing.assert_array_equal(wheel, original.continuous["wheel_speed"][expected])
        choice = [None if i == -1 else i for i in original.categorical["choice"][expected].tolist()]
        assert rows["choice"] == choice
        assert rows["pupil"] == rows["odor"] == [None] * len(expected)
    assert trials["train"].features["choice"] == ClassLabel(names=["right", "left"])
    assert trials["train"].features["odor"].names == ["a", "b", "c"]


def test_units_are_kept_by_their_rate_in_training_trials_only(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    units = load(out, "units", split="train").to_pandas()
    assert units["uuid"].tolist() == ["s1/0", "s1/1"]
    assert units["unit_index"].tolist() == [0, 1]
    assert units["rate_hz"].tolist() == [4.0, 2.0]
    assert units["allen"].fillna("null").tolist() == ["CA1", "null"]
    assert units["beryl"].isna().all() and units["depth_um"].isna().all()


def test_where_every_unit_is_kept_none_is_counted_as_dropped(tmp_path):
    read = partial(recording, spike_counts=np.ones((10, 2, 3), np.uint8))
    convert(tmp_path / "out", [Source("s1", "1", read)], OPTIONS, BEHAVIORS)
    (row,) = load(tmp_path / "out", "sessions", split="train")
    assert (row["num_units"], json.loads(row["dropped_units"])) == (3, {})


def test_a_session_is_marked_as_converted_after_all_its_files_are_written(tmp_path, monkeypatch):
    written, write = [], storage.write_table

    def slowly(path, table):
        time.sleep(0.1 if "trials" in path.parts else 0)
        write(path, table)
        written.append(path.relative_to(tmp_path).parts[0])

    monkeypatch.setattr(storage, "write_table", slowly)
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert sorted(written) == ["sessions", "trials", "trials", "trials", "units"]
    assert written[-1] == "sessions"


def test_the_sessions_table_counts_what_was_dropped_and_says_where_data_came_from(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1", fingerprint="f")], OPTIONS, BEHAVIORS)
    (row,) = load(out, "sessions", split="train")
    assert (row["subject"], row["lab"], row["num_units"], row["num_bins"]) == ("mouse", "", 2, 2)
    assert (row["train_trials"], row["validation_trials"], row["test_trials"]) == (7, 1, 2)
    assert (row["window_start_s"], row["window_end_s"], row["bin_size_s"]) == (0.0, 1.0, 0.5)
    assert json.loads(row["dropped_trials"]) == {"no choice": 2}
    assert json.loads(row["dropped_units"]) == {"rate below 2 Hz": 1}
    provenance = json.loads(row["provenance"])
    assert provenance["files"] == [{"name": "raw.npz", "sha256": "ab"}]
    assert provenance["fingerprint"] == "f"
    assert provenance["options"]["align_event"] == "go"


def test_a_trial_without_a_continuous_behavior_is_null(tmp_path):
    wheel = np.ones((10, 2), np.float32)
    wheel[3] = np.nan
    read = partial(recording, continuous={"wheel_speed": wheel})
    convert(tmp_path / "out", [Source("s1", "1", read)], OPTIONS, BEHAVIORS)
    rows = [row for split in load(tmp_path / "out", "trials").values() for row in split]
    by_trial = {row["trial_index"]: row["wheel_speed"] for row in rows}
    assert by_trial == {index: None if index == 8 else [1.0, 1.0] for index in range(5, 15)}


def test_a_process_without_this_package_loads_and_streams_every_config(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1"), source("s2")], OPTIONS, BEHAVIORS, held_out=["s2"])
    code = """
import sys
from datasets import load_dataset
out, cache = sys.argv[1:]
whole = load_dataset(out, "trials", cache_dir=cache)
print({split: len(rows) for split, rows in whole.items()}, whole["train"].features["choice"].names)
stream = load_dataset(out, "trials", split="test", streaming=True, cache_dir=cache)
print(len(list(stream)), stream.features["choice"].names)
for config in ("pretrain", "held_out"):
    print(config, set(load_dataset(out, config, split="train", cache_dir=cache)["session"]))
print(len(load_dataset(out, "units", split="train", cache_dir=cache)))
assert "neds_hf" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(out), str(tmp_path / "cache")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.stdout.splitlines() == [
        "{'train': 14, 'validation': 2, 'test': 4} ['right', 'left']",
        "4 ['right', 'left']",
        "pretrain {'s1'}",
        "held_out {'s2'}",
        "4",
    ], result.stderr


def test_without_held_out_sessions_there_is_no_config_of_them(tmp_path):
    convert(tmp_path / "out", [source("s1")], OPTIONS, BEHAVIORS)
    with pytest.raises(ValueError, match="BuilderConfig 'held_out' not found"):
        load(tmp_path / "out", "held_out")


def test_where_all_sessions_are_held_out_there_is_no_config_to_pretrain_on(tmp_path):
    convert(tmp_path / "out", [source("s1")], OPTIONS, BEHAVIORS, held_out=["s1"])
    assert load(tmp_path / "out", "held_out").num_rows == {"train": 7, "validation": 1, "test": 2}
    with pytest.raises(ValueError, match="BuilderConfig 'pretrain' not found"):
        load(tmp_path / "out", "pretrain")


def test_a_folder_that_cannot_be_written_to_is_one_error_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(NEDSError, match=f"^{out}: expected a folder that can be written to"):
            convert(out, [source("s1", not_to_be_read)], OPTIONS, BEHAVIORS)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("sessions/s1.parquet", "PAR1", ": expected a Parquet file"),
        ("held_out.json", '["s1",]', " cannot be read as JSON"),
        ("dropped_sessions.json", '{"s1":', " cannot be read as JSON"),
    ],
)
def test_a_file_that_is_damaged_is_named(tmp_path, file, content, message):
    """As by a copy that was cut off, or by hand."""
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    (tmp_path / file).write_text(content)
    with pytest.raises(NEDSError, match=f"^{tmp_path / file}{message}"):
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("held_out.json", '"s1"', "a list, found 's1'"),
        ("held_out.json", '[["s1"]]', "text '[0]', found ['s1']"),
        ("dropped_sessions.json", '["s1"]', "a mapping, found ['s1']"),
    ],
)
def test_a_list_of_another_kind_is_named_and_left_as_it_was(tmp_path, file, content, message):
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    (tmp_path / file).write_text(content)
    with pytest.raises(NEDSError) as error:
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert str(error.value) == f"{tmp_path / file}: expected {message}"
    assert (tmp_path / file).read_text() == content


@pytest.mark.parametrize(
    "column, change, message",
    [
        ("provenance", lambda text: "by hand", "expected JSON 'provenance', found 'by hand'"),
        ("provenance", lambda text: None, "expected JSON 'provenance', found "),
        ("provenance", lambda text: "[]", "expected a mapping 'provenance', found []"),
        (
            "provenance",
            lambda text: text.replace('"version"', '"edition"'),
            "expected text 'provenance.version', found None",
        ),
        (
            "provenance",
            lambda text: text.replace('["right", "left"]', "2"),
            "expected a list or null 'provenance.behaviors.choice', found 2",
        ),
        (
            "dropped_units",
            lambda text: '{"quiet": "1"}',
            "expected a whole number 'dropped_units.quiet', found '1'",
        ),
        ("dropped_units", None, "expected a column 'dropped_units', found session, subject, "),
    ],
)
def test_a_row_of_a_session_that_was_edited_by_hand_is_named(tmp_path, column, change, message):
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    file = tmp_path / "sessions" / "s1.parquet"
    table = pq.read_table(file)
    if change:
        (row,) = table.to_pylist()
        pq.write_table(pa.Table.from_pylist([row | {column: change(row[column])}], table.schema), file)
    else:
        pq.write_table(table.drop_columns(column), file)
    with pytest.raises(NEDSError) as error:
        convert(tmp_path, [source("s1", not_to_be_read)], OPTIONS, BEHAVIORS)
    assert str(error.value).startswith(f"{file}: {message}")


def test_an_option_that_this_version_does_not_have_is_another_conversion(tmp_path):
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    file = tmp_path / "sessions" / "s1.parquet"
    row = pq.read_table(file).to_pylist()[0]
    row["provenance"] = row["provenance"].replace('"options": {', '"options": {"jitter_s": 0.1, ')
    pq.write_table(pa.Table.from_pylist([row], schema=pq.read_schema(file)), file)
    with pytest.raises(
        NEDSError, match=r"session s1 with jitter_s = 0\.1, this conversion has jitter_s = None"
    ):
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)


@pytest.mark.parametrize(
    "header, message",
    [
        ("configs: [a", r"expected the card of a dataset \(while parsing"),
        ("- configs", r"expected the card of a dataset \("),
        ("configs: 3", "expected a list 'configs', found 3"),
        ("configs: [3]", r"expected a mapping 'configs\[0\]', found 3"),
        ("configs: [{config_name: held_out}]", "expected a list 'held_out.data_files', found None"),
    ],
)
def test_a_card_that_was_edited_by_hand_is_named_where_it_is_read(tmp_path, header, message):
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    (tmp_path / "held_out.json").unlink()  # as in a folder of before there was the list
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(NEDSError, match=f"^{tmp_path / 'README.md'}: {message}"):
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)


def test_two_conversions_into_one_folder_come_one_after_the_other(tmp_path, monkeypatch, capsys):
    """Neither takes the other's files for those of an interrupted one."""
    writing, write = threading.Event(), tqdm.write

    def wait_until_the_other_waits(session):
        writing.set()
        assert waiting.wait(60)
        return recording(session)

    def say(*args, **kwargs):
        waiting.set()
        write(*args, **kwargs)

    waiting = threading.Event()
    monkeypatch.setattr(tqdm, "write", say)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(convert, tmp_path, [source("s1", wait_until_the_other_waits)], OPTIONS, BEHAVIORS)
        assert writing.wait(60)
        assert convert(tmp_path, [source("s2")], OPTIONS, BEHAVIORS)["converted"] == 1
        assert first.result()["converted"] == 1
    assert "another process converts into it; waiting" in capsys.readouterr().err
    for folder in ("trials/train", "trials/validation", "trials/test", "units", "sessions"):
        assert sorted(file.stem for file in (tmp_path / folder).glob("*")) == ["s1", "s2"]


@pytest.mark.parametrize("writes", range(6))
def test_a_full_disc_is_one_error_and_the_next_run_goes_on(tmp_path, monkeypatch, writes):
    """Whichever of the five tables, or the card, it has no room for."""
    out, left, write = tmp_path / "out", iter(range(writes)), storage.write_table

    def write_while_there_is_room(*what):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(*what)

    def write_no_card(out):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_table", write_while_there_is_room)
        patch.setattr(storage, "write_card", write_no_card)
        with pytest.raises(NEDSError, match=f"^{out}: .*No space left on device.*; run again to go on"):
            convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    assert summary(out).startswith("sessions: 1 kept, 0 dropped\ntrials: 10 kept")


def test_an_unknown_held_out_session_is_refused(tmp_path):
    """Before anything is read."""
    with pytest.raises(NEDSError, match="held-out session s9 is not among the sessions"):
        convert(tmp_path / "out", [source("s1", not_to_be_read)], OPTIONS, BEHAVIORS, held_out=["s9"])


def pretrain_and_held_out(out: Path) -> list[list[str] | None]:
    """Sessions of either config, as the card has them; None where it has no such config."""
    configs = {config["config_name"]: config for config in DatasetCard.load(out / "README.md").data.configs}
    files = [name in configs and configs[name]["data_files"][0]["path"] for name in ("pretrain", "held_out")]
    return [paths and [Path(path).stem for path in paths] for paths in files]


def test_a_held_out_session_that_was_dropped_is_held_out_when_it_comes_back(tmp_path):
    convert(tmp_path, [source("s1", fail), source("s2")], OPTIONS, BEHAVIORS, held_out=["s1"])
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert pretrain_and_held_out(tmp_path) == [["s2"], ["s1"]]


def test_another_list_of_held_out_sessions_replaces_the_one_of_the_folder(tmp_path):
    convert(tmp_path, [source("s1"), source("s2")], OPTIONS, BEHAVIORS, held_out=["s1"])
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS, held_out=["s2"])
    assert pretrain_and_held_out(tmp_path) == [["s1"], ["s2"]]


def test_a_folder_from_before_the_list_has_the_held_out_sessions_of_its_card(tmp_path):
    convert(tmp_path, [source("s1"), source("s2")], OPTIONS, BEHAVIORS, held_out=["s1"])
    (tmp_path / "held_out.json").unlink()
    convert(tmp_path, [source("s3")], OPTIONS, BEHAVIORS)
    assert pretrain_and_held_out(tmp_path) == [["s2", "s3"], ["s1"]]


def test_held_out_sessions_are_kept_when_the_first_conversion_is_interrupted(tmp_path):
    with pytest.raises(AssertionError):
        convert(tmp_path, [source("s1"), source("s2", not_to_be_read)], OPTIONS, BEHAVIORS, held_out=["s2"])
    convert(tmp_path, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    assert pretrain_and_held_out(tmp_path) == [["s1"], ["s2"]]


def test_a_converted_session_is_not_read_again_until_its_data_change(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    counts = convert(out, [source("s1", not_to_be_read), source("s2")], OPTIONS, BEHAVIORS)
    assert counts == {"unchanged": 1, "converted": 1}
    assert load(out, "sessions", split="train")["session"][:] == ["s1", "s2"]
    with pytest.raises(AssertionError, match="s1 should not be read again"):
        convert(out, [source("s1", not_to_be_read, fingerprint="2")], OPTIONS, BEHAVIORS)


def test_what_an_interrupted_conversion_left_is_converted_again(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    (out / "sessions/s2.parquet").unlink()  # as if stopped before the mark
    (out / "trials/train/.s2.parquet.unfinished").write_bytes(b"half")
    counts = convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    assert counts == {"unchanged": 1}
    assert not list(out.rglob("*s2*"))
    assert convert(out, [source("s2")], OPTIONS, BEHAVIORS)["converted"] == 1
    assert load(out, "trials", split="train").num_rows == 14


@pytest.mark.parametrize("folder", ["trials/train", "trials/test", "units", "sessions"])
def test_a_session_of_which_a_file_is_gone_is_converted_again(tmp_path, folder):
    convert(tmp_path, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    file = tmp_path / folder / "s2.parquet"
    before = file.read_bytes()
    file.unlink()
    counts = convert(tmp_path, [source("s1", not_to_be_read), source("s2")], OPTIONS, BEHAVIORS)
    assert counts == {"unchanged": 1, "converted": 1} and file.read_bytes() == before


def test_a_session_of_which_a_file_is_gone_is_not_passed_over(tmp_path):
    convert(tmp_path, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    (tmp_path / "units/s2.parquet").unlink()
    with pytest.raises(
        NEDSError, match=f"there is no file {tmp_path}/units/s2.parquet: convert session s2 again"
    ):
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    (tmp_path / "sessions/s2.parquet").unlink()  # as the error proposes
    assert convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS) == {"unchanged": 1}
    assert load(tmp_path, "trials", split="train").num_rows == 7


def test_files_of_the_user_s_own_are_left_where_they_are(tmp_path):
    files = [tmp_path / name for name in ("trials/m1/day0.npz", "trials/train/a.txt", "units/my/units.csv")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert [file.read_text() for file in files] == ["mine"] * 3


def test_a_folder_may_have_any_other_name(tmp_path):
    out = tmp_path / "a b#c%20dé" / "{x}~1"
    convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    assert load_dataset(str(out), "trials")["train"].num_rows == 7


def test_a_folder_with_parquet_files_of_another_origin_is_refused(tmp_path):
    file = tmp_path / "units" / "mine.parquet"
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(
        NEDSError, match=r"units/mine.parquet is no file of `neds build`: convert into another"
    ):
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert file.exists()


@pytest.mark.parametrize(
    "options, behaviors, message",
    [
        (replace(OPTIONS, min_rate_hz=5.0), BEHAVIORS, "min_rate_hz = 2.0, .* min_rate_hz = 5.0"),
        (replace(OPTIONS, split="blocked"), BEHAVIORS, "split = random, .* split = blocked"),
        (OPTIONS, {"wheel_speed": None}, r"odor \(a/b/c\), .* the behaviours wheel_speed \(continuous\)"),
    ],
)
def test_a_folder_takes_no_sessions_converted_otherwise(tmp_path, options, behaviors, message):
    convert(tmp_path / "out", [source("s1")], OPTIONS, BEHAVIORS)
    with pytest.raises(NEDSError, match=message + ": convert into another folder"):
        convert(tmp_path / "out", [source("s2")], options, behaviors)


def test_a_folder_from_before_an_option_existed_has_its_default(tmp_path, monkeypatch):
    current = storage._conversion

    def before(options, behaviors):
        conversion = current(options, behaviors)
        del conversion["options"]["whisker_camera"]
        return conversion

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_conversion", before)
        convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    assert convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS) == {"unchanged": 1}
    right = replace(OPTIONS, whisker_camera="right")
    with pytest.raises(NEDSError, match=r"whisker_camera = left, .* whisker_camera = right"):
        convert(tmp_path, [source("s1")], right, BEHAVIORS)


def test_a_failing_session_is_recorded_and_stops_no_other(tmp_path):
    out = tmp_path / "out"
    counts = convert(out, [source("s1", fail), source("s2")], OPTIONS, BEHAVIORS)
    assert (counts["dropped"], counts["converted"]) == (1, 1)
    dropped = out / "dropped_sessions.json"
    assert json.loads(dropped.read_text()) == {"s1": "the disk is full of cheese"}
    assert summary(out).splitlines() == [
        "sessions: 1 kept, 1 dropped",
        "  dropped s1: the disk is full of cheese",
        "trials: 10 kept (7 train, 1 validation, 2 test)",
        "  2 dropped: no choice",
        "units: 2 kept",
        "  1 dropped: rate below 2 Hz",
    ]
    convert(out, [source("s1")], OPTIONS, BEHAVIORS)
    assert json.loads(dropped.read_text()) == {}


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, MemoryError])
def test_a_session_that_fails_unexpectedly_stops_no_other(tmp_path, error):
    def read():
        raise error("cheese")

    counts = convert(tmp_path, [Source("s1", "1", read), source("s2")], OPTIONS, BEHAVIORS)
    assert counts["converted"] == 1
    reason = json.loads((tmp_path / "dropped_sessions.json").read_text())["s1"]
    assert reason.startswith(f"cannot be read: {error.__name__}: ") and "cheese" in reason


def test_a_session_that_fails_after_a_change_leaves_nothing_stale(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    convert(out, [source("s1", fail, fingerprint="2"), source("s2")], OPTIONS, BEHAVIORS)
    assert not list(out.rglob("s1.parquet"))


def test_a_session_that_fails_alone_leaves_the_others_to_be_loaded(tmp_path):
    out = tmp_path / "out"
    convert(out, [source("s1"), source("s2")], OPTIONS, BEHAVIORS)
    with pytest.raises(NEDSError, match="none of 1 sessions could be converted"):
        convert(out, [source("s1", fail, fingerprint="2")], OPTIONS, BEHAVIORS)
    assert set(load(out, "trials", split="train")["session"]) == {"s2"}


def test_when_no_session_converts_the_reasons_are_raised(tmp_path):
    with pytest.raises(NEDSError, match="none of 1 sessions could be converted:\n  s1: the disk is full"):
        convert(tmp_path / "out", [source("s1", fail)], OPTIONS, BEHAVIORS)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {"window_s": (0.0, 0.5), "bin_size_s": 0.25},
            "2 bins of 0.25 s, (0.0, 0.5) s around go; all sessions",
        ),
        ({"align_event": "stop"}, "around stop; all sessions of this dataset have 2 bins of 0.5 s"),
        ({"spike_counts": np.zeros((10, 2, 3), np.uint8)}, "none of 3 units reaches 2 Hz"),
        ({"continuous": {"lick": np.ones((10, 2))}}, "lick is continuous, the dataset has no column"),
        (
            {"classes": {"choice": ("left", "right")}},
            "choice is ('left', 'right'), the dataset has ('right', 'left')",
        ),
        (
            {"continuous": {"pupil": np.resize([1, np.nan], (10, 2))}},
            "pupil has a trial that is missing in part",
        ),
    ],
)
def test_a_recording_that_does_not_fit_the_dataset_is_dropped(tmp_path, changes, reason):
    sources = [Source("s1", "1", partial(recording, **changes)), source("s2")]
    convert(tmp_path, sources, OPTIONS, BEHAVIORS)
    assert reason in json.loads((tmp_path / "dropped_sessions.json").read_text())["s1"]


def test_too_few_trials_to_split_drop_the_session(tmp_path):
    whole = recording()
    few = Recording(
        "s1", whole.spike_counts[:9], whole.trial_index[:9], whole.units, (0.0, 1.0), 0.5, align_event="go"
    )
    convert(tmp_path, [Source("s1", "1", lambda: few), source("s2")], OPTIONS, BEHAVIORS)
    assert "9 trials are left" in json.loads((tmp_path / "dropped_sessions.json").read_text())["s1"]


@pytest.mark.parametrize(
    "sessions, message", [(["s1", "s1"], "session s1 is given 2 times"), (["a/b"], "session id 'a/b': only")]
)
def test_session_ids_must_be_unique_file_names(tmp_path, sessions, message):
    with pytest.raises(NEDSError, match=message):
        convert(tmp_path, [source(session) for session in sessions], OPTIONS, BEHAVIORS)


@pytest.mark.parametrize("how", ["random", "blocked"])
@pytest.mark.parametrize("num_trials", [10, 13, 294])
def test_the_test_parts_of_the_folds_hold_every_trial_once(how, num_trials):
    parts = [split_of_trials("s", num_trials, how, seed=1, fold=fold) for fold in range(5)]
    tested = np.concatenate([np.flatnonzero(part == "test") for part in parts])
    assert sorted(tested) == list(range(num_trials))
    for part in parts:
        assert (part == "validation").sum() == max(1, round(num_trials / 10))
        assert abs((part == "test").sum() - num_trials / 5) < 1
    assert parts[0].tolist() == split_of_trials("s", num_trials, how, seed=1).tolist()


def test_folds_of_a_blocked_split_move_round():
    letters = {"train": "t", "validation": "v", "test": "x"}
    folds = ["".join(letters[s] for s in split_of_trials("s", 10, "blocked", fold=fold)) for fold in range(5)]
    assert folds == ["tttttttvxx", "tttttvxxtt", "tttvxxtttt", "tvxxtttttt", "xxtttttttv"]


def test_a_blocked_split_keeps_trials_in_time_order(tmp_path):
    counts = np.full((10, 2, 3), 5, np.uint8)
    read = partial(recording, spike_counts=counts)
    convert(tmp_path / "out", [Source("s1", "1", read)], replace(OPTIONS, split="blocked"), BEHAVIORS)
    trials = load(tmp_path / "out", "trials")
    assert {split: rows["trial_index"][:] for split, rows in trials.items()} == {
        "train": [5, 6, 7, 8, 9, 10, 11],
        "validation": [12],
        "test": [13, 14],
    }


def test_long_sessions_are_written_in_row_groups_that_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ROW_GROUP_BYTES", 150)
    convert(tmp_path, [source("s1")], OPTIONS, BEHAVIORS)
    file = pq.ParquetFile(tmp_path / "trials/train/s1.parquet")
    sizes = [file.read_row_group(group).nbytes for group in range(file.num_row_groups)]
    assert len(sizes) > 1 and max(sizes) < 200
    assert file.metadata.num_rows == 7
