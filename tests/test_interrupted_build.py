"""`neds build` in several processes, killed in the middle, goes on where it was."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from tiny_alf import write_session

BUILD = Path(__file__).resolve().parents[1] / "examples" / "build.py"
SESSIONS = 20


def build(cache: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, BUILD, out, "--alf", cache, "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), **pipes)


def test_a_killed_build_leaves_no_process_and_goes_on_where_it_was(tmp_path):
    for number in range(SESSIONS):
        write_session(tmp_path / "one", f"mouse_{number:02d}")
    killed = build(tmp_path / "one", tmp_path / "out")
    while not (done := list((tmp_path / "out" / "sessions").glob("[!.]*.parquet"))):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)  # until its processes, which have the same pipes, have ended
    assert len(done) < SESSIONS
    before = {file: file.stat().st_mtime_ns for file in done}

    output, progress = build(tmp_path / "one", tmp_path / "out").communicate(timeout=600)
    unchanged, converted = map(int, re.match(r"(\d+) unchanged, (\d+) converted", output).groups())
    assert unchanged >= len(done) and unchanged + converted == SESSIONS and converted > 0
    assert {file: file.stat().st_mtime_ns for file in done} == before
    assert f"{SESSIONS}/{SESSIONS}" in progress and f"converted={converted}, dropped=0" in progress
    for file in (tmp_path / "out").glob("*/*.parquet"):
        assert pq.read_table(file).num_rows
