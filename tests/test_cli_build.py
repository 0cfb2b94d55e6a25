"""`neds build`: every flag, its errors and its exit status."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from alf_folder import write_camera
from tiny_alf import write_session

from neds_hf.cli import build
from neds_hf.cli.main import run
from neds_hf.data.folder import summary
from neds_hf.data.one_cache import list_sessions, open_local
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.errors import NEDSError

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_recordings = pytest.mark.skipif(
    not SHARED.exists(), reason="the folder of real recordings is not beside the project"
)


@pytest.fixture
def arrays(tmp_path):
    """Trial arrays of two sessions: 20 trials, 4 bins of 0.1 s, 3 units of which the last is silent."""
    files = []
    for session in ("s1", "s2"):
        rng = np.random.default_rng(len(files))
        counts = rng.poisson(1.0, (20, 4, 3)).astype(np.uint8)
        counts[:, :, 2] = 0
        meta = {"session": session, "bin_size_s": 0.1, "align_event": "go", "window_s": [0.0, 0.4]}
        files.append(tmp_path / f"{session}.npz")
        np.savez(
            files[-1],
            meta=json.dumps(meta),
            spike_counts=counts,
            wheel_speed=rng.random((20, 4)),
            odor=np.resize(["a", "b"], 20),
            reaction_time_s=np.linspace(0.1, 0.48, 20),
        )
    return files


def sessions(out: Path) -> list[dict]:
    return [row for file in sorted((out / "sessions").glob("*")) for row in pq.read_table(file).to_pylist()]


def trials(out: Path, split: str) -> list[dict]:
    return [
        row for file in sorted((out / "trials" / split).glob("*")) for row in pq.read_table(file).to_pylist()
    ]


def configs(out: Path) -> dict[str, list]:
    header = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    return {config["config_name"]: config["data_files"] for config in header["configs"]}


def test_alf_sessions_of_a_folder_are_converted_and_summed_up(cache, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("build", [str(out), "--alf", str(cache), "--workers", "1"]) == 0
    assert capsys.readouterr().out == "0 unchanged, 2 converted\n" + summary(out) + "\n"
    assert summary(out).splitlines() == [
        "sessions: 2 kept, 0 dropped",
        "trials: 24 kept (18 train, 2 validation, 4 test)",
        "units: 4 kept",
        "  2 dropped: rate below 2 Hz",
    ]
    assert {row["subject"] for row in sessions(out)} == {"mouse_a", "mouse_b"}
    assert run("build", [str(out), "--alf", str(cache)]) == 0
    assert capsys.readouterr().out.startswith("2 unchanged\n")


def test_window_bin_event_and_reaction_time_reach_alf_sessions(cache, tmp_path):
    out = tmp_path / "out"
    options = "--window -0.2 0.4 --bin-size 0.05 --align-event firstMovement_times --workers 1".split()
    assert run("build", [str(out), "--alf", str(cache), *options]) == 0
    row = sessions(out)[0]
    assert (row["window_start_s"], row["window_end_s"], row["bin_size_s"]) == (-0.2, 0.4, 0.05)
    assert (row["align_event"], row["num_bins"]) == ("firstMovement_times", 12)
    # All reaction times are 0.3 s.
    none = [str(tmp_path / "none"), "--alf", str(cache), "--reaction-time", "0.4", "1", "--workers", "1"]
    assert run("build", none) == 2


def test_the_whisker_camera_is_chosen_recorded_and_never_changed_in_a_folder(tmp_path, capsys):
    alf = write_session(tmp_path / "one", "mouse") / "alf"
    write_camera(alf, "left")
    write_camera(alf, "right")
    for asked, used in (([], "left"), (["--whisker-camera", "right"], "right")):
        out = str(tmp_path / used)
        assert run("build", [out, "--alf", str(tmp_path / "one"), "--workers", "1", *asked]) == 0
        provenance = json.loads(sessions(Path(out))[0]["provenance"])
        assert provenance["options"]["whisker_camera"] == used
        assert provenance["signals"]["whisker_motion_energy"] == f"{used}Camera"
    argv = [str(tmp_path / "right"), "--alf", str(tmp_path / "one"), "--whisker-camera", "left"]
    assert run("build", argv) == 2
    assert "with whisker_camera = right, this conversion has whisker_camera = left" in capsys.readouterr().err


def test_a_trials_table_with_text_drops_its_session_only(cache, tmp_path):
    (file,) = cache.glob("tinylab/Subjects/mouse_a/*/*/alf/_ibl_trials.table.pqt")
    pd.read_parquet(file).assign(choice="left").to_parquet(file)
    out = tmp_path / "out"
    assert run("build", [str(out), "--alf", str(cache), "--workers", "1"]) == 0
    assert [row["subject"] for row in sessions(out)] == ["mouse_b"]
    (reason,) = json.loads((out / "dropped_sessions.json").read_text()).values()
    assert "could not convert string to float: 'left'" in reason


def test_min_rate_keeps_silent_units_at_zero(arrays, tmp_path):
    for rate, kept in (("0", 3), ("2", 2)):
        out = tmp_path / rate
        assert (
            run("build", [str(out), "--arrays", *map(str, arrays), "--min-rate", rate, "--workers", "1"]) == 0
        )
        assert [row["num_units"] for row in sessions(out)] == [kept, kept]


def test_split_and_seed_choose_the_trials(arrays, tmp_path):
    def test_trials(name: str, *options: str) -> list[int]:
        assert run("build", [str(tmp_path / name), "--arrays", str(arrays[0]), *options]) == 0
        return [row["trial_index"] for row in trials(tmp_path / name, "test")]

    assert test_trials("blocked", "--split", "blocked") == [16, 17, 18, 19]
    default = test_trials("default")
    assert (
        test_trials("random", "--split", "random", "--seed", "0")
        == default
        != test_trials("1", "--seed", "1")
    )
    assert test_trials("fold", "--split", "blocked", "--fold", "2") == [8, 9, 10, 11]


def test_named_behaviors_of_arrays_become_columns(arrays, tmp_path):
    out = tmp_path / "out"
    assert (
        run("build", [str(out), "--workers", "1", "--behaviors", "odor", "--arrays", *map(str, arrays)]) == 0
    )
    assert set(trials(out, "test")[0]) == {
        "session",
        "trial_index",
        "num_units",
        "spike_counts",
        "wheel_speed",
        "odor",
    }


def test_a_new_animal_joins_a_folder_by_its_own_file_whatever_behaviours_and_classes_it_lacks(
    arrays, tmp_path, capsys
):
    def rewritten(file: Path, **changes) -> str:
        with np.load(file) as whole:
            kept = {**whole, **changes}
        np.savez(file, **{name: values for name, values in kept.items() if values is not None})
        return str(file)

    out = str(tmp_path / "out")
    first = rewritten(arrays[0], choice=np.resize([-1, 1], 20), lick=np.ones((20, 4)))
    argv = [out, "--workers", "1", "--behaviors", "odor", "lick", "--arrays"]
    assert run("build", [*argv, first]) == 0
    columns = list(trials(Path(out), "train")[0])
    new = rewritten(arrays[1], wheel_speed=None, odor=np.resize(["b", ""], 20))
    for line in (
        [out, "--workers", "1", "--arrays", new],
        [*argv, new],
    ):  # the second: again, as typed before
        assert run("build", line) == 0
    assert [row["session"] for row in sessions(Path(out))] == ["s1", "s2"]
    (of_new,) = (tmp_path / "out/trials/train").glob("s2.parquet")
    rows = pq.read_table(of_new).to_pylist()
    assert list(rows[0]) == columns
    # Of the folder's classes a and b, it is the second.
    assert all(row["odor"] == (1 if row["trial_index"] % 2 == 0 else None) for row in rows)
    assert {(row["choice"], row["lick"], row["wheel_speed"]) for row in rows} == {(None, None, None)}
    capsys.readouterr()
    argv = [out, "--workers", "1", "--arrays", new]
    rewritten(arrays[1], odor=np.resize(["b", "c"], 20))
    assert run("build", argv) == 2
    assert "odor (a/b)" in (said := capsys.readouterr().err) and "odor (b/c)" in said
    rewritten(arrays[1], lick=np.resize([0, 1], 20))
    assert run("build", argv) == 2
    assert "lick is categorical, but continuous in the dataset: convert into" in capsys.readouterr().err


def test_reaction_times_of_arrays_drop_trials(arrays, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("build", [str(out), "--arrays", str(arrays[0]), "--reaction-time", "0.15", "0.4"]) == 0
    assert "trials: 13 kept" in capsys.readouterr().out
    assert json.loads(sessions(out)[0]["dropped_trials"]) == {"reaction time": 7}
    with np.load(arrays[1]) as whole:
        np.savez(arrays[1], **{name: whole[name] for name in whole if name != "reaction_time_s"})
    assert run("build", [str(out), "--arrays", *map(str, arrays), "--reaction-time", "0.15", "0.4"]) == 2
    assert "s2.npz: --reaction-time needs an array 'reaction_time_s'" in capsys.readouterr().err


def test_sessions_limits_the_conversion_to_a_list(arrays, cache, tmp_path, capsys):
    listed = tmp_path / "ids.txt"
    listed.write_text("s2\n")
    out = tmp_path / "out"
    assert run("build", [str(out), "--arrays", *map(str, arrays), "--sessions", str(listed)]) == 0
    assert [row["session"] for row in sessions(out)] == ["s2"]
    listed.write_text("s3\n")
    assert run("build", [str(out), "--arrays", *map(str, arrays), "--sessions", str(listed)]) == 2
    assert "ids.txt: session s3 is not in any of the files" in capsys.readouterr().err
    eid = list_sessions(open_local(cache))[1]
    listed.write_text(f"{eid}\n00000000-0000-0000-0000-000000000000\n")
    out = tmp_path / "alf"
    assert run("build", [str(out), "--alf", str(cache), "--sessions", str(listed), "--workers", "1"]) == 0
    assert [row["session"] for row in sessions(out)] == [eid]
    assert list(json.loads((out / "dropped_sessions.json").read_text())) == [
        "00000000-0000-0000-0000-000000000000"
    ]


def test_held_out_sessions_make_two_more_configs(arrays, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("s2\n")
    out = tmp_path / "out"
    options = ["--workers", "1", "--held-out", str(listed)]
    assert run("build", [str(out), "--arrays", *map(str, arrays), *options]) == 0
    files = configs(out)
    assert list(files) == ["trials", "units", "sessions", "pretrain", "held_out"]
    assert files["pretrain"][0] == {"split": "train", "path": ["trials/train/s1.parquet"]}
    assert files["held_out"][2] == {"split": "test", "path": ["trials/test/s2.parquet"]}
    assert run("build", [str(out), "--arrays", *map(str, arrays), "--workers", "1"]) == 0
    assert configs(out) == files


def test_two_workers_write_what_one_writes(arrays, tmp_path):
    for workers in ("1", "2"):
        assert (
            run("build", [str(tmp_path / workers), "--arrays", *map(str, arrays), "--workers", workers]) == 0
        )
    one, two = (sorted((tmp_path / folder).rglob("*.parquet")) for folder in "12")
    assert len(one) == 2 * 5
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_eids_differ_from_a_folder_in_the_one_object_only(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "open_openalyx", open_local)  # the server's part cannot run offline
    eids = tmp_path / "eids.txt"
    eids.write_text("\n".join(list_sessions(open_local(cache))))
    out = tmp_path / "out"
    assert run("build", [str(out), "--eids", str(eids), "--cache-dir", str(cache), "--workers", "1"]) == 0
    assert [row["session"] for row in sessions(out)] == eids.read_text().split()


def test_the_word_repeated_site_means_the_papers_sessions(tmp_path):
    paper = repeated_site_sessions()
    everything = [*paper["pretrain"], *paper["held_out"]]
    assert build.eids_and_held_out("repeated-site", []) == (everything, paper["held_out"])
    assert build.eids_and_held_out("repeated-site", ["x"]) == (everything, ["x"])
    (tmp_path / "ids.txt").write_text("a b\nc")
    assert build.eids_and_held_out(str(tmp_path / "ids.txt"), []) == (["a", "b", "c"], [])
    assert build.parser().parse_args(["out", "--eids"]).eids == "repeated-site"


def test_without_a_network_eids_end_in_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("build", [str(tmp_path / "out"), "--eids", "--cache-dir", str(tmp_path / "cache")]) == 2
    error = capsys.readouterr().err
    assert "openalyx.internationalbrainlab.org: the server cannot be reached" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "source, reading", [(["--alf", "."], "ALF folders"), (["--eids"], "from the public IBL server")]
)
def test_without_one_sessions_end_in_one_line_that_says_what_brings_it(
    tmp_path, monkeypatch, error_of, source, reading
):
    monkeypatch.setitem(sys.modules, "one", None)
    error = error_of("build", tmp_path / "out", *source)
    assert error == f"neds build: reading {reading} needs one: pip install 'neds_hf[ibl]'"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arrays", "s1.npz", "--window", "0", "1"], "do not apply to --arrays"),
        (["--arrays", "s1.npz", "--bin-size", "0.1"], "do not apply to --arrays"),
        (["--arrays", "s1.npz", "--align-event", "go"], "do not apply to --arrays"),
        (["--arrays", "s1.npz", "--whisker-camera", "right"], "do not apply to --arrays"),
        (["--arrays", "s1.npz", "--cache-dir", "x"], "--cache-dir is for --eids"),
        (["--arrays", "none.npz"], "none.npz: no such file"),
        (["--arrays", "s1.npz", "--fold", "5"], "fold must be 0 to 4, not 5"),
        (["--alf", "one", "--behaviors", "pupil"], "--behaviors is for --arrays"),
        (["--alf", "nowhere"], "nowhere: no such folder"),
        (["--alf", "one", "--window", "nan", "1"], "expected finite numbers, found the window (nan, 1.0) s"),
        (["--alf", "one", "--bin-size", "nan"], "bins of nan s"),
        (["--alf", "one", "--min-rate", "inf"], "the rate floor inf Hz"),
        (["--alf", "one", "--reaction-time", "2", "0.08"], "from shortest to longest, not (2.0, 0.08) s"),
        (["--eids", "a.txt", "--sessions", "b.txt"], "b.txt: session b is not among those of --eids a.txt"),
        (["--alf", "one", "--window", "1", "0"], "window (1.0, 0.0) s with bins of 0.02 s is empty"),
        (
            ["--alf", "one", "--sessions", "none.txt"],
            "none.txt: expected a text file with a session id a line",
        ),
        (["--alf", "one", "--held-out", "empty.txt"], "empty.txt: no session id in it"),
    ],
)
def test_flags_that_do_not_fit_end_in_status_2(
    arrays, cache, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert run("build", ["out", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_what_is_no_dataset_is_not_overwritten(arrays, tmp_path, capsys, name):
    """Such as a model and its card."""
    file = tmp_path / "out" / name
    (file.parent / "sessions").mkdir(parents=True)
    file.write_text("mine")
    assert run("build", [str(file.parent), "--arrays", *map(str, arrays)]) == 2
    assert f"{file} is no file of `neds build`" in capsys.readouterr().err.splitlines()[-1]
    assert file.read_text() == "mine"
    assert {path.name for path in file.parent.iterdir()} == {name, ".lock", "sessions"}


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a::b"])
def test_a_folder_that_datasets_takes_for_a_pattern_is_refused(arrays, tmp_path, error_of, name):
    out = tmp_path / name / "out"
    said = "datasets cannot load a folder whose path has *, ?, [ or :: in it; take another"
    assert said in error_of("build", out, "--arrays", *arrays)
    assert not out.parent.exists()


def test_when_no_session_converts_the_status_is_2_and_reasons_are_printed(arrays, tmp_path, capsys):
    assert run("build", [str(tmp_path / "out"), "--arrays", str(arrays[0]), "--min-rate", "1000"]) == 2
    assert "s1: none of 3 units reaches 1000 Hz" in capsys.readouterr().err


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = "alf arrays eids window bin-size align-event min-rate reaction-time split seed behaviors held-out"
    for flag in (*flags.split(), "sessions", "workers", "cache-dir", "whisker-camera", "config"):
        assert f"--{flag} " in text


@needs_recordings
def test_real_arrays_of_dy016_convert_with_their_pupil(tmp_path):
    out = tmp_path / "out"
    file = SHARED / "data/ibl_dy016/dy016.npz"
    assert run("build", [str(out), "--arrays", str(file), "--behaviors", "pupil_diameter"]) == 0
    (row,) = sessions(out)
    assert (row["num_units"], row["train_trials"], row["validation_trials"], row["test_trials"]) == (
        222,
        206,
        29,
        59,
    )
    with np.load(file) as original:
        rows = dict(zip(original["trial_index"], original["pupil_diameter"]))
    for trial in trials(out, "test"):
        np.testing.assert_array_equal(np.float32(trial["pupil_diameter"]), rows[trial["trial_index"]])


@needs_recordings
def test_the_alf_excerpt_gives_the_published_counts_and_wheel_speed(tmp_path):
    cache, out = tmp_path / "one", tmp_path / "out"
    shutil.copytree(SHARED / "data/alf_excerpt", cache, copy_function=shutil.copyfile)
    options = "--reaction-time 0 10 --min-rate 0".split()
    assert run("build", [str(out), "--alf", str(cache), *options]) == 0
    rows = sorted(
        (row for s in ("train", "validation", "test") for row in trials(out, s)),
        key=lambda r: r["trial_index"],
    )
    with np.load(SHARED / "reference/alf_excerpt_binned.npz") as reference:
        kept = np.flatnonzero(reference["trial_ok"])
        assert [row["trial_index"] for row in rows] == kept.tolist()
        counts = np.array([row["spike_counts"] for row in rows]).reshape(len(rows), 100, -1)
        np.testing.assert_array_equal(counts[:, :, reference["cluster_ids"]], reference["spike_counts"][kept])
        ok = reference["wheel_ok"][kept]
        wheel = np.array([row["wheel_speed"] for row, good in zip(rows, ok) if good])
        np.testing.assert_allclose(wheel, reference["wheel_speed"][kept][ok], atol=1e-4)


def test_read_ids_refuses_a_file_that_is_not_text(tmp_path):
    (tmp_path / "ids").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(NEDSError, match="ids: expected a text file"):
        build.read_ids(tmp_path / "ids")


def test_read_ids_takes_what_windows_editors_write(tmp_path):
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfann\r\nbob\r\n")
    assert build.read_ids(tmp_path / "ids") == ["ann", "bob"]
