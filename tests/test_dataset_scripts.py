"""`dataset_scripts/` on a small ONE cache, and what they write read by an old version of `datasets`."""

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hub.processes import python
from hub.server import Hub
from small_dataset import BINS, write_dataset

from neds_hf.cli.main import main
from neds_hf.data.one_cache import list_sessions, open_local, open_openalyx
from neds_hf.data.schema import ConversionOptions

SCRIPTS = Path(__file__).resolve().parents[1] / "dataset_scripts"


def eids(cache: Path) -> list[str]:
    """Of `mouse_a` and `mouse_b`."""
    one = open_local(cache)
    return sorted(list_sessions(one), key=lambda eid: one.eid2path(eid).parts[-3])


def change_wheel(cache: Path, subject: str) -> None:
    (file,) = cache.glob(f"*/Subjects/{subject}/*/*/alf/_ibl_wheel.position.npy")
    np.save(file, 2 * np.load(file))


def run(name: str, *argv, environment=None) -> tuple[int, str, str]:
    """Exit status and what is printed on both streams; with an environment, of a process of its own."""
    command = [SCRIPTS / f"{name}.py", *argv, "--workers", 1]
    if environment:
        done = python(environment, *command)
        return done.returncode, done.stdout, done.stderr
    status, output, errors = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.syspath_prepend(SCRIPTS)
        patch.setattr(sys, "argv", list(map(str, command)))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    return status, output.getvalue(), errors.getvalue()


def script(name: str, *argv, environment=None) -> str:
    status, output, errors = run(name, *argv, environment=environment)
    assert status == 0, errors[-3000:]
    return output


def refused(name: str, *argv, environment=None) -> list[str]:
    status, _, errors = run(name, *argv, environment=environment)
    assert status == 2
    return errors.splitlines()


def modified(out: Path) -> dict[str, int]:
    return {file.stem: file.stat().st_mtime_ns for file in (out / "sessions").iterdir()}


def test_a_dataset_from_its_first_session_to_its_refresh_on_the_hub(cache, tmp_path):
    first, second = eids(cache)
    out, name = tmp_path / "ibl-mice", "lab/ibl-mice"
    with Hub() as hub:
        lab = hub.environment(tmp_path / "home", token="hf_lab")

        output = script("one_session", out, "--alf", cache, "--eid", first)
        assert f"new or changed: {first}\n" in output and "sessions: 1 kept, 0 dropped" in output
        assert hub.repositories == {}

        output = script("all_sessions", out, "--alf", cache, "--push", name, "--private", environment=lab)
        assert f"new or changed: {second}\n" in output
        assert hub.repositories["dataset", name].private
        assert [commit.message for commit in hub.commits("dataset", name)] == ["2 sessions"]
        assert set(modified(out)) == {first, second}
        trials = load_dataset(str(out), "trials")
        assert [len(trials[split]) for split in ("train", "validation", "test")] == [18, 2, 4]

        # Nothing has changed: nothing is converted, nothing published.
        before = modified(out)
        output = script("refresh", out, "--alf", cache, "--push", name, environment=lab)
        assert "new or changed: none\n" in output and "no commit" in output
        assert modified(out) == before and len(hub.commits("dataset", name)) == 1

        # A release changes one session; the folder is gone, and comes back from the Hub.
        shutil.rmtree(out)
        change_wheel(cache, "mouse_b")
        output = script("refresh", out, "--alf", cache, "--push", name, environment=lab)
        assert f"new or changed: {second}\n" in output
        _, refresh = hub.commits("dataset", name)
        assert refresh.message == "Refresh"
        assert {file for file in refresh.written if first in file} == set()
        assert f"trials/train/{second}.parquet" in refresh.written
        assert (out / "README.md").read_bytes() == hub.files("dataset", name)["README.md"]


def test_a_session_that_is_lost_is_not_taken_from_what_is_published(cache, tmp_path):
    first, second = eids(cache)
    out, name = tmp_path / "mice", "lab/mice"
    with Hub() as hub:
        lab = hub.environment(tmp_path / "home", token="hf_lab")
        script("all_sessions", out, "--alf", cache, "--push", name, environment=lab)
        (spikes,) = cache.glob("*/Subjects/mouse_b/*/*/alf/probe00/pykilosort/spikes.times.npy")
        spikes.write_bytes(b"cut off")
        message, reason = refused("refresh", out, "--alf", cache, "--push", name, environment=lab)[-2:]
        assert "nothing was published, as these are missing; --without names what may be:" in message
        assert reason.startswith(f"  {second}: ")
        assert len(hub.commits("dataset", name)) == 1
        script("refresh", out, "--alf", cache, "--push", name, "--without", second, environment=lab)
        assert f"sessions/{second}.parquet" in hub.commits("dataset", name)[-1].deleted
        assert f"sessions/{first}.parquet" in hub.files("dataset", name)


def test_options_and_held_out_sessions_stay_those_of_the_dataset(cache, tmp_path):
    first, second = eids(cache)
    out, held_out = tmp_path / "out", tmp_path / "held_out.txt"
    held_out.write_text(first)
    argv = ["build", out, "--alf", cache, "--bin-size", "0.1", "--held-out", held_out, "--workers", "1"]
    assert main([*map(str, argv)]) == 0
    change_wheel(cache, "mouse_a")
    assert f"new or changed: {first}\n" in script("refresh", out, "--alf", cache)
    assert "new or changed: none\n" in script("one_session", out, "--alf", cache, "--eid", second)
    assert load_dataset(str(out), "held_out", split="test").unique("session") == [first]
    (row,) = pq.read_table(out / "sessions" / f"{first}.parquet").to_pylist()
    assert (row["num_bins"], row["bin_size_s"]) == (20, 0.1)


def test_what_an_interrupted_build_left_is_refreshed_and_added_to(cache, tmp_path):
    first, second = eids(cache)
    out, held_out = tmp_path / "out", tmp_path / "held_out.txt"
    held_out.write_text(first)
    argv = ["build", out, "--alf", cache, "--held-out", held_out, "--workers", "1"]
    assert main([*map(str, argv)]) == 0
    for script_name, argv in (("refresh", ()), ("one_session", ("--eid", first))):
        for name in ("README.md", "dropped_sessions.json", f"sessions/{first}.parquet"):
            (out / name).unlink(missing_ok=True)
        script(script_name, out, "--alf", cache, *argv)
    assert load_dataset(str(out), "held_out", split="test").unique("session") == [first]
    assert load_dataset(str(out), "pretrain", split="test").unique("session") == [second]


def test_what_cannot_be_done_is_said_in_one_line(cache, tmp_path):
    (message,) = refused("refresh", tmp_path, "--alf", cache)
    assert message == (
        f"refresh.py: {tmp_path} is no dataset folder that could be refreshed: there is no session in it"
    )
    *_, reason = refused("one_session", tmp_path / "out", "--alf", cache, "--eid", "no-such-session")
    assert "no-such-session" in reason


def test_a_published_dataset_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    import publishing
    import refresh

    monkeypatch.setattr(sys, "argv", ["refresh.py", str(tmp_path / "out"), "--push", "someone/mice"])
    with pytest.raises(SystemExit, match="2"):
        publishing.run(refresh.main)  # offline, as all tests
    error = capsys.readouterr().err
    assert error.startswith(f"refresh.py: someone/mice cannot be downloaded to {tmp_path / 'out'}: ")
    assert error.count("\n") == 1


def test_without_a_cache_on_disk_the_paper_s_sessions_come_from_the_server(tmp_path, monkeypatch):
    """Up to the first request: what is asked for, of whom."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import all_sessions
    import publishing

    asked = []
    monkeypatch.setattr(all_sessions, "convert_and_publish", lambda *arguments: asked.extend(arguments))
    monkeypatch.setattr(sys, "argv", ["all_sessions.py", str(tmp_path), "--cache-dir", "ONE"])
    all_sessions.main()
    arguments, sessions, options, _, held_out = asked
    assert (len(set(sessions)), len(held_out), set(held_out) - set(sessions)) == (84, 10, set())
    assert options == ConversionOptions()
    opener = publishing.opener(arguments)
    assert (opener.func, opener.args) == (open_openalyx, (Path("ONE"),))


# --- old versions of `datasets` ---


def test_no_column_has_a_type_that_only_new_versions_of_datasets_know(dataset):
    """They find the types in the files' own metadata; `List` came with version 4."""
    for file in dataset.glob("*/**/*.parquet"):
        types = set(re.findall(rb'"_type": "(\w+)"', pq.read_schema(file).metadata[b"huggingface"]))
        assert types <= {b"Value", b"Sequence", b"ClassLabel"}


READ = """
import json, sys, datasets, numpy as np
folder, session = sys.argv[1:]
files = {split: f"{folder}/trials/{split}/*.parquet" for split in ("train", "validation", "test")}
alone = datasets.load_dataset("parquet", data_files=files)
by_card = datasets.load_dataset(folder, "trials")
assert {s: len(alone[s]) for s in files} == {s: len(by_card[s]) for s in files}
trial = alone["test"].filter(lambda row: row["session"] == session)[0]
counts = np.reshape(trial["spike_counts"], (-1, trial["num_units"]))
units = datasets.load_dataset(folder, "units", split="train")
print(json.dumps([datasets.__version__, counts.tolist(), trial["wheel_speed"], trial["choice"],
                  alone["test"].features["choice"].names, len(units)]))
"""


@pytest.mark.skipif(
    not os.environ.get("NEDS_OLD_DATASETS"),
    reason="makes an environment with datasets 2.14 from the package index; NEDS_OLD_DATASETS=1 runs it",
)
@pytest.mark.timeout(1200)
def test_an_old_version_of_datasets_reads_the_parquet_files(tmp_path):
    out = write_dataset(tmp_path / "dataset")
    old = tmp_path / "old"
    pins = (
        "datasets==2.14.7 pyarrow==14.0.2 numpy<2 pandas<2.2 fsspec==2023.10.0 huggingface_hub<0.20".split()
    )
    subprocess.run([sys.executable, "-m", "venv", old], check=True)
    subprocess.run([old / "bin" / "pip", "install", "--quiet", *pins], check=True)
    done = subprocess.run(
        [old / "bin" / "python", "-c", READ, out, "bob"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    version, counts, wheel, choice, names, units = json.loads(done.stdout.splitlines()[-1])
    trial = load_dataset(str(out), "trials", split="test").filter(lambda row: row["session"] == "bob")[0]
    assert version == "2.14.7"
    assert np.shape(counts) == (BINS, 9) and np.ravel(counts).tolist() == trial["spike_counts"]
    assert (wheel, choice, names, units) == (trial["wheel_speed"], trial["choice"], ["right", "left"], 19)
