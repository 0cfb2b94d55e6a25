"""Benchmarks of loading, conversion and streaming run at small sizes, and compare like with like."""

import pytest
from benchmark_runs import results_of


def test_loading(tmp_path):
    results = results_of("loading", tmp_path, "--units", 20, "--trials", 100, "--rounds", 1, "--steps", 1)
    assert results["trials_per_second"].keys() == {"copy", "batches"}
    assert min(results["trials_per_second"].values()) > 0
    assert [(wait["sizes"], wait["workers"]) for wait in results["waits"]] == [
        ("of its own", 0),
        ("of its own", 2),
        ("of `small`", 0),
        ("of `small`", 2),
    ]
    for wait in results["waits"]:
        assert 0 < wait["wait"] < wait["step"]
    assert [line["target"] for line in results["table"]] == ["≥ 10,000 trials/s", *4 * ["< 2 %"]]


def test_conversion(tmp_path):
    sizes = ("--spikes", 40_000, "--clusters", 20, "--trials", 40, "--rounds", 1, "--sessions", 2)
    results = results_of("conversion", tmp_path, *sizes)
    seconds = results["seconds"]
    assert seconds["files read"] > 0 and seconds["conversion"] > 0
    assert seconds["needed"] == pytest.approx(seconds["files read"] + seconds["hash"] + seconds["write"])
    assert seconds["processors"] > 0
    assert 1e8 < results["alone"]["peak_bytes"] < 3e9  # bytes, not kilobytes
    for place, suffix in ((0, ""), (3, ", from disc")):
        ratio = seconds[f"conversion{suffix}"] / seconds[f"files read{suffix}"]
        assert results["table"][place]["ratio"] == f"{ratio:.2f}"


def test_streaming(tmp_path):
    results = results_of("streaming", tmp_path, "--sessions", 3, "--units", 10, "--trials", 20)
    for way in ("mapped", "streamed"):
        assert results[way]["trials"] == 3 * 14  # 70 % of 20
        assert results[way]["bytes"] == 3 * 14 * 100 * 10
        assert 1e8 < results[way]["peak_bytes"] < 3e9
