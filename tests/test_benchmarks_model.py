"""The benchmarks of the model run from the command line, and write floor and measured time of one run.

No time is asserted, and nothing of the package's folder is written to.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace

import machine
import page
import pytest
import scale_out
import steps
import torch
from benchmark_runs import BENCHMARKS, PAGE, results_of
from torch.multiprocessing import ProcessRaisedException

from neds_hf.models import NEDSConfig, NEDSModel

SMALL = "--units 8 --layers 1 --bins 10 --trials 3".split()


def test_training_step(tmp_path):
    results = results_of("training_step", tmp_path, *SMALL, "--rounds", 1)
    assert (results["trials"], results["units"]) == (3, 8)
    # A layer: 2 x (4 x 256 x 256 + 2 x 256 x 512) a token, 4 x 50 x 256 for its attention to 50; three times.
    assert results["operations"] == 3 * 3 * 50 * (1_048_576 + 51_200)
    assert results["floor_seconds"] == results["operations"] / results["matmul_rates"]["fp32"]
    assert [step["dtype"] for step in results["steps"]] == ["fp32", "bf16"] * 3
    compact, *_, small = results["steps"]
    assert compact["ratio"] == compact["seconds"] / results["floor_seconds"] > 0
    # The paper's layout: the tokens that the floor counts, and beside the encoder little else.
    assert 1 < small["own_operations"] / results["operations"] < 1.1
    assert compact["own_operations"] < small["own_operations"] / 2
    assert 1e8 < compact["peak_bytes"] < 4e9


def test_sessions(tmp_path):
    sizes = "--units 8 --layers 1 --trials 3 --rounds 1 --sessions 2 3".split()
    results = results_of("sessions", tmp_path, *sizes)
    assert results["trials"] == 3 and results["one_session_seconds"] > 0
    two, three = results["steps"]
    assert (two["sessions"], three["sessions"]) == (2, 3)
    assert three["ratio"] == three["seconds"] / results["one_session_seconds"] > 0
    # Another session: 8 rows of 256 and their biases, and an embedding of 256 of each of 5 modalities, in fp32.
    more = three["checkpoint_beyond_encoder_bytes"] - two["checkpoint_beyond_encoder_bytes"]
    assert more == pytest.approx(4 * (8 * 257 + 5 * 256), abs=64)


def test_prediction(tmp_path):
    results = results_of("prediction", tmp_path, *SMALL, "--batch", 2, "--single", 2, "--rounds", 1)
    assert [(one["preset"], one["dtype"]) for one in results["predictions"]] == [
        ("small", "fp32"),
        ("small", "bf16"),
        ("compact", "fp32"),
        ("compact", "bf16"),
    ]
    for one in results["predictions"]:
        assert one["floor_seconds"] == one["operations"] / one["matmul_rate"]
        for numbers in (one["median_seconds"], one["trials_per_second"]):
            assert set(numbers) == {"sdpa", "eager"} and min(numbers.values()) > 0
    # One layer of a trial of 50 tokens, forward only; tokenizer and readout are the rest.
    assert 1 < results["predictions"][0]["operations"] / (50 * (1_048_576 + 51_200)) < 1.1


def test_scale_out(tmp_path):
    sizes = ("--preset", "tiny", "--batch", 4, "--steps", 2, "--units", 5, "--trials", 40, "--rounds", 1)
    results = results_of("scale_out", tmp_path, *sizes, "--sizes", "of `small`")
    assert set(results["steps"]) == {"of `small`"}
    ways = results["steps"]["of `small`"]
    assert set(ways) == {"alone", "apart", "together"}
    for (measured,) in ways.values():
        assert measured["seconds"] > 0 and measured["processor_seconds"] > 0
        assert measured["parameters"] > 5 * 4 * 256**2  # of five layers, 256 wide: not those of `tiny`


def second_fails(rank: int, *_) -> None:
    if rank == 1:
        raise OSError("no room")
    time.sleep(600)


def test_a_process_that_fails_leaves_no_other_waiting_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_out, "train", second_fails)
    start = time.monotonic()
    with pytest.raises(ProcessRaisedException, match="no room"):
        scale_out.step_times(tmp_path, "together", "of `small`", Namespace(preset="tiny", batch=4, steps=2))
    assert time.monotonic() - start < 500


def test_gpu_on_the_cpu(tmp_path):
    """Compiled as far as needs no C++ compiler."""
    sizes = "--device cpu --presets small --seconds 0.1 --rounds 1 --workers 1 --backend aot_eager".split()
    results = results_of("gpu", tmp_path, *SMALL, *sizes)
    assert [one["compiled"] for one in results["trainings"]] == [False, True]
    for one in results["trainings"]:
        assert one["preset"] == "small" and one["steps"] >= 1
        assert one["share_of_matmul_rate"] == one["floor_seconds"] / one["step_seconds"]
        assert one["tokens_per_second"] == pytest.approx(3 * 50 / one["step_seconds"])
        assert one["attention_seconds"] > 0 and one["step_seconds"] > 0
        assert 0 <= one["data_wait"] < 1 and one["peak_bytes"] > 1e8
        days = one["step_seconds"] / 3 * 2000 * 25_200 / 86_400
        assert one["paper_training_days"] == pytest.approx(days)


def test_operations_are_those_of_the_published_layout():
    """187 GFLOP for 16 trials of 500 tokens; 300 units and the readouts add less than 2 %."""
    config = steps.make_config("small", [300])
    encoder = steps.encoder_operations(config, 16, 500)
    assert encoder == pytest.approx(187.3e9, rel=1e-3)
    assert 1 < 16 * steps.operations(config) / encoder < 1.02


def test_the_weights_of_the_published_layout_that_the_page_names():
    sessions = [str(place) for place in range(74)]
    with torch.device("meta"):
        model = NEDSModel(NEDSConfig(session_ids=sessions, unit_counts=[370] * 74, tokenizer="mlp"))
    own = ("unit_", "session_")  # a tokenizer and a readout of every session's own
    weights = sum(p.numel() for name, p in model.named_parameters() if name.startswith(own))
    assert round(weights / 1e6) == 42
    assert "27,380 units are 28 MB" in PAGE.read_text() and "42 million weights" in PAGE.read_text()


def test_turns_are_taken_and_the_first_does_not_count():
    calls = []
    best = machine.best_seconds(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=2,
        before=lambda: calls.append("before"),
    )
    assert calls == ["before", "a", "before", "b"] * 3
    assert set(best) == {"a", "b"} and min(best.values()) > 0


def test_rates_of_the_machine():
    assert machine.matmul_rate(torch.float32, rounds=1) > 1e8
    assert machine.memory_bandwidth(megabytes=8, rounds=1) > 1e7


def test_peak_is_the_process_own():
    code = (
        "import machine, torch; print(machine.peak_bytes()); x = torch.ones(250_000_000, dtype=torch.uint8); "
        "del x; print(machine.peak_bytes())"
    )
    held = torch.ones(2_000_000_000, dtype=torch.uint8)  # by the parent
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 240e6 < after - before < 260e6 and after < held.nbytes


@pytest.mark.parametrize(
    "file", sorted(path.stem for path in BENCHMARKS.glob("*.json") if '"table"' in path.read_text())
)
def test_the_page_holds_the_table_of_the_committed_run(file):
    assert page.table(json.loads((BENCHMARKS / f"{file}.json").read_text())["table"]) in PAGE.read_text()
