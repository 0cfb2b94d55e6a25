"""`load_dataset("ibl_repeated_site", data_dir=ONE_CACHE)` converts a ONE cache, and follows its changes."""

import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from tiny_alf import TRIALS, write_session

import neds_hf  # noqa: F401  registers the dataset
from neds_hf.data.alf import read_session
from neds_hf.data.one_cache import fingerprint, list_sessions, open_local
from neds_hf.data.schema import ConversionOptions, split_of_trials
from neds_hf.errors import NEDSError


def load(cache, name=None, **kwargs):
    return load_dataset(
        "ibl_repeated_site", name, data_dir=str(cache), cache_dir=str(cache.parent / "hf"), **kwargs
    )


def test_trials_units_and_sessions_of_a_cache_load_by_name(cache):
    trials, units, sessions = load(cache), load(cache, "units"), load(cache, "sessions")
    one = open_local(cache)
    eids = list_sessions(one)
    assert set(sessions["train"]["session"]) == set(eids)
    assert [rows.num_rows for rows in trials.values()] == [18, 2, 4]
    assert units["train"].num_rows == 4  # the silent unit of each session is dropped
    recording = read_session(one, eids[0], ConversionOptions())
    test = trials["test"].filter(lambda session: session == eids[0], input_columns="session")
    expected = recording.spike_counts[split_of_trials(eids[0], TRIALS) == "test"][:, :, :2]
    np.testing.assert_array_equal(np.array(test["spike_counts"]).reshape(expected.shape), expected)
    assert test["whisker_motion_energy"][:] == [None, None]
    assert test.features["block"].names == ["0.2", "0.5", "0.8"]


def test_the_cache_may_lie_in_a_folder_that_datasets_would_take_for_a_pattern(cache, tmp_path):
    hf = str(tmp_path / "hf [1]")
    assert load_dataset("ibl_repeated_site", data_dir=str(cache), cache_dir=hf)["train"].num_rows == 18


def test_every_option_reaches_the_conversion(cache):
    options = {
        "align_event": "firstMovement_times",
        "window_s": [-0.2, 0.2],
        "bin_size_s": 0.1,
        "min_rate_hz": 0.0,
        "reaction_time_s": [0.1, 1.0],
        "trial_split": "blocked",
        "seed": 7,
        "fold": 1,
        "whisker_camera": "right",
    }
    (row, _) = load(cache, "sessions", split="train", **options)
    asked = ConversionOptions("firstMovement_times", (-0.2, 0.2), 0.1, 0.0, (0.1, 1.0), "blocked", 7)
    assert (row["align_event"], row["num_bins"], row["num_units"]) == (
        "firstMovement_times",
        asked.num_bins,
        3,
    )
    assert (
        '"reaction_time_s": [0.1, 1.0], "split": "blocked", "seed": 7, "fold": 1, "whisker_camera": "right"'
        in row["provenance"]
    )
    trials = load(cache, split="test", **options)
    assert trials["trial_index"][:3] == [7, 8, 9]


def test_a_changed_cache_is_not_served_stale(cache):
    before = load(cache, "sessions", split="train")["provenance"][:]
    again = load(cache, "sessions", split="train")["provenance"][:]
    assert again == before
    session = write_session(cache.parent / "new", "mouse_a")
    times = np.load(session / "alf/probe00/pykilosort/spikes.times.npy") + 0.01
    np.save(next(cache.rglob("mouse_a")) / "2020-01-01/001/alf/probe00/pykilosort/spikes.times.npy", times)
    after = load(cache, "sessions", split="train")["provenance"][:]
    assert sum(old != new for old, new in zip(before, after)) == 1


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path):
    (tmp_path / "a").write_text("x")
    seen = {fingerprint(tmp_path)}
    (tmp_path / "a").write_text("xy")
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(fingerprint(tmp_path))
    (tmp_path / ".hidden").write_text("x")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 3


def test_streaming_gives_the_same_trials(cache):
    rows = list(load(cache, split="test", streaming=True))
    assert rows == load(cache, split="test").to_list()


def test_a_cache_without_the_papers_sessions_has_no_pretrain_and_held_out(cache):
    for name in ("pretrain", "held_out"):
        with pytest.raises(NEDSError, match=f"none of the .* sessions of '{name}' is there"):
            load(cache, name)


def test_without_data_dir_the_error_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.txt").write_text("load_dataset lists the working folder")
    with pytest.raises(NEDSError, match=r"needs data_dir"):
        load_dataset("ibl_repeated_site")


def test_several_processes_in_a_script_without_a_guard_are_one_error(cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import datasets, neds_hf\n"
        f"datasets.load_dataset('ibl_repeated_site', data_dir={str(cache)!r}, num_proc=2, "
        f"cache_dir={str(tmp_path / 'hf')!r})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert 'load_dataset belongs under `if __name__ == "__main__":`' in done.stderr
    assert "NEDSError: a worker process was ended" in done.stderr.splitlines()[-1]
