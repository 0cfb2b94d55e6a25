"""The measured table of PARITY.md comes from a committed file, and the script that makes both runs."""

import json
import sys
from pathlib import Path

import numpy as np
import parity

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_page_holds_the_table_of_the_committed_runs():
    results = json.loads(parity.RESULTS.read_text())
    assert list(results["runs"]) == list(parity.CHANGES)
    assert len(results["seeds"]) >= 3
    assert all(len(seeds) == len(results["seeds"]) for seeds in results["runs"].values())
    assert parity.table(results) in parity.PAGE.read_text()


def test_table_has_spread_over_seeds_and_change_against_the_first_row():
    def seed(value: float) -> dict:
        return dict.fromkeys(parity.METRICS, value)

    runs = {"default": [seed(0.1), seed(0.2), seed(0.3)], "other": [seed(0.2), seed(0.2), seed(0.2)]}
    rows = parity.table({"runs": runs}).splitlines()
    assert rows[0].startswith("| | bits/spike | wheel R² |")
    assert rows[2].startswith("| default | 0.200 ± 0.100 | 0.200 ± 0.100 |")
    # seed by seed +0.1, 0, -0.1
    assert rows[3].startswith("| other | 0.200 ± 0.000 (+0.000 ± 0.100) |")


def test_script_trains_what_is_asked_for_and_no_run_twice(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    meta = {"session": "s", "bin_size_s": 0.02, "align_event": "stimOn_times", "window_s": [-0.1, 0.1]}
    np.savez(
        tmp_path / "s.npz",
        meta=json.dumps(meta),
        spike_counts=rng.poisson(0.3, (40, 10, 4)),
        choice=rng.choice([-1, 1], 40),
        probability_left=rng.choice([0.2, 0.8], 40),
        wheel_speed=rng.normal(size=(40, 10)),
        whisker_motion_energy=rng.normal(size=(40, 10)),
    )
    where = ["--recording", str(tmp_path / "s.npz"), "--output", str(tmp_path / "runs")]
    what = ["--seeds", "3", "--epochs", "1", "--only", "mlp tokenizer"]
    monkeypatch.setattr(sys, "argv", ["parity.py", *where, *what])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that it starts
    for _ in range(2):  # `neds pretrain` would refuse a second training
        parity.main()
    run = json.loads((tmp_path / "runs" / "mlp-tokenizer-3" / "run.json").read_text())["configuration"]
    assert (run["seed"], run["num_train_epochs"], run["model"]["tokenizer"]) == (3, 1.0, "mlp")
    assert run["model"]["mask_ratio"] == parity.BASE["mask_ratio"] == 0.1
