"""`transformers.pipeline`: every kind of input, the data's units out, and the same from a folder's own code."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor, pipeline

from neds_hf.data.recordings import open_recordings
from neds_hf.models import NEDSConfig, NEDSModel, NEDSProcessor
from neds_hf.training.inference import predict, split_loader
from neds_hf.training.sessions import load_model

TASKS = ("neural-encoding", "neural-decoding")


@pytest.fixture(scope="module")
def trials(dataset):
    """Test trials of the two sessions that the model knows, of 5 and of 9 units; `bob` has no whiskers."""
    return [row for row in load_dataset(str(dataset), "trials")["test"] if row["session"] in ("ann", "bob")]


@pytest.fixture(scope="module")
def pipelines(model_folder):
    return {task: pipeline(task, model=str(model_folder), device="cpu") for task in TASKS}


def assert_same(results, expected, **tolerance):
    """Within what another order of sums changes, unless a tolerance is given."""
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    assert len(results) == len(expected) > 0
    for one, other in zip(results, expected):
        assert list(one) == list(other) and one["session"] == other["session"]
        for name in set(one) - {"session"}:
            if isinstance(one[name], dict):
                assert list(one[name]) == list(other[name])
                np.testing.assert_allclose(*(list(r[name].values()) for r in (one, other)), **tolerance)
            else:
                assert one[name].shape == other[name].shape
                np.testing.assert_allclose(one[name], other[name], **tolerance)


@pytest.mark.parametrize("session", ["ann", "bob"])
def test_results_are_those_of_neds_predict_trial_by_trial(pipelines, trials, model_folder, dataset, session):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only([session])
    rows = [row for row in trials if row["session"] == session]

    encoded = pipelines["neural-encoding"](rows)
    expected = predict(model, processor, split_loader(processor, recordings, "test"), "encoding")
    rates = np.exp(expected["log_rates"]) / 0.05  # bins of 50 ms
    np.testing.assert_allclose([result["rates_hz"] for result in encoded], rates, rtol=1e-5)
    assert encoded[0]["rates_hz"].shape == (20, {"ann": 5, "bob": 9}[session])

    decoded = pipelines["neural-decoding"](rows)
    expected = predict(model, processor, split_loader(processor, recordings, "test"), "decoding")
    assert set(decoded[0]) == {"session", *expected}
    assert ("whisker_motion_energy" in decoded[0]) == (session == "ann")
    wheel = [result["wheel_speed"] for result in decoded]
    np.testing.assert_allclose(wheel, expected["wheel_speed"], rtol=1e-4, atol=1e-5)
    left = [result["choice"]["left"] for result in decoded]
    np.testing.assert_allclose(left, expected["choice"][:, 1], rtol=1e-5)
    for result in decoded:
        assert list(result["choice"]) == ["right", "left"] and list(result["block"]) == ["0.2", "0.5", "0.8"]
        assert sum(result["block"].values()) == pytest.approx(1)


@pytest.mark.parametrize("task", TASKS)
def test_lists_generators_datasets_and_batches_give_what_single_trials_give(pipelines, trials, dataset, task):
    pipe = pipelines[task]
    alone = [pipe(trial) for trial in trials]
    assert_same(pipe(trials), alone)
    assert_same(list(pipe(trial for trial in trials)), alone)
    for batch_size in (2, 3, 64):  # sessions mixed, the last batch not full
        assert_same(pipe(trials, batch_size=batch_size), alone)
        assert_same(list(pipe((trial for trial in trials), batch_size=batch_size)), alone)
    split = load_dataset(str(dataset), "trials")["test"].filter(lambda row: row["session"] != "cat")
    assert_same(list(pipe(split, batch_size=4)), alone)
    assert_same(list(pipe(split.to_iterable_dataset(), batch_size=4)), alone)


@pytest.mark.parametrize("task", TASKS)
def test_a_dictionary_of_arrays_gives_what_the_row_gives(pipelines, trials, task):
    for row in (trials[0], trials[-1]):
        arrays = {
            "session": row["session"],
            "spike_counts": np.reshape(row["spike_counts"], (20, -1)).astype(np.uint8),
            "wheel_speed": np.array(row["wheel_speed"]),
            "whisker_motion_energy": np.array(row["whisker_motion_energy"] or [np.nan] * 20),
            "choice": np.int64(row["choice"]),
            "block": row["block"],
        }
        assert_same([pipelines[task](arrays)], [pipelines[task](row)], rtol=0, atol=0)


def test_encoding_looks_at_no_spikes_and_decoding_at_no_behaviour(pipelines, trials):
    for row in (trials[0], trials[-1]):
        behavior = {name: value for name, value in row.items() if name != "spike_counts"}
        spikes = {name: row[name] for name in ("session", "spike_counts")}
        assert_same([pipelines["neural-encoding"](behavior)], [pipelines["neural-encoding"](row)])
        assert_same([pipelines["neural-decoding"](spikes)], [pipelines["neural-decoding"](row)])


def test_a_missing_behaviour_is_not_the_same_as_any_value_of_it(pipelines, trials):
    row = trials[0]
    one = pipelines["neural-encoding"](row)["rates_hz"]
    for name, missing in (("wheel_speed", None), ("choice", None), ("choice", -1)):
        other = pipelines["neural-encoding"]({**row, name: missing})["rates_hz"]
        assert not np.allclose(one, other, rtol=1e-3)
    assert_same(
        [pipelines["neural-encoding"]({**row, "choice": -1})],
        [pipelines["neural-encoding"]({**row, "choice": None})],
    )


NOTHING = dict.fromkeys(("choice", "block", "wheel_speed", "whisker_motion_energy"))


@pytest.mark.parametrize(
    "task, change, message",
    [
        (
            "neural-encoding",
            {"session": "eve"},
            "session of a trial is 'eve', expected one of the model's 2: ann, bob",
        ),
        (
            "neural-decoding",
            {"session": None},
            "session of a trial is None, expected one of the model's 2: ann, bob",
        ),
        (
            "neural-encoding",
            NOTHING,
            "session 'ann' has none of the behaviours to encode from: choice, block, ",
        ),
        ("neural-encoding", {**NOTHING, "choice": -1}, "none of the behaviours"),
        (
            "neural-encoding",
            {"wheel_speed": [1.0] * 5},
            r"wheel_speed of a trial is \(5,\), expected \(20,\)",
        ),
        ("neural-encoding", {"choice": [1, 0]}, r"choice of a trial is \(2,\), expected \(\)"),
        ("neural-encoding", {"choice": 2}, r"choice has classes \[.*2\], but only 2 classes"),
        (
            "neural-encoding",
            {"choice": "left"},
            "choice is of type .*, expected class indices, -1 where missing",
        ),
        ("neural-decoding", {"spike_counts": None}, "session 'ann' has no spike_counts to decode from"),
        ("neural-decoding", {"spike_counts": [0] * 99}, r"are \(99,\), expected \(20, 5\), bins by units"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_trial_that_does_not_fit_is_said_so(pipelines, trials, task, change, message, batch_size):
    with pytest.raises(ValueError, match=message):
        pipelines[task]([trials[0], {**trials[0], **change}], batch_size=batch_size)


def test_whiskers_of_a_session_without_them_in_training_are_not_encoded_from(pipelines, trials):
    encode = pipelines["neural-encoding"]
    row = next(row for row in trials if row["session"] == "bob")
    assert_same([encode({**row, "whisker_motion_energy": [1.0] * 20})], [encode(row)])
    with pytest.raises(
        ValueError, match="a trial of session 'bob' has none of the behaviours to encode from"
    ):
        encode({"session": "bob", "whisker_motion_energy": [1.0] * 20})


def test_nan_is_missing_and_a_wheel_of_minus_one_is_not(pipelines, trials):
    encode, row = pipelines["neural-encoding"], trials[0]
    without = {name: value for name, value in row.items() if name not in ("choice", "wheel_speed")}
    assert_same([encode({**row, "choice": np.nan, "wheel_speed": np.nan})], [encode(without)])
    assert encode({"session": "ann", "wheel_speed": -np.ones(20)})["rates_hz"].shape == (20, 5)


def test_a_model_in_training_predicts_without_dropout(pipelines, trials, model_folder):
    model = AutoModel.from_pretrained(model_folder)
    model.config.unit_dropout = 0.5
    pipe = pipeline(
        "neural-decoding", model=model.train(), processor=AutoProcessor.from_pretrained(model_folder)
    )
    assert_same(pipe(trials), pipelines["neural-decoding"](trials))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.sessions.reverse(), r"the sessions \['bob', 'ann'\], the model \['ann', 'bob'\]"),
        (lambda p: p.sessions[0]["units"].pop(), r"the numbers of units \[4, 9\], the model \[5, 9\]"),
        (
            lambda p: p.modalities[1]["classes"].reverse(),
            r"the behaviours .*\['left', 'right'\], .* the model .*",
        ),
        (lambda p: setattr(p, "num_bins", 10), "the number of bins 10, the model 20"),
    ],
)
def test_a_processor_of_another_model_is_refused(model_folder, change, message):
    model, processor = (kind.from_pretrained(model_folder) for kind in (AutoModel, AutoProcessor))
    change(processor)
    with pytest.raises(ValueError, match=f"the processor has {message}: take both from one folder"):
        pipeline("neural-encoding", model=model, processor=processor)


@pytest.mark.parametrize("task", TASKS)
def test_no_trials_give_no_results_and_a_table_is_no_list_of_trials(pipelines, trials, task):
    assert pipelines[task]([]) == []
    with pytest.raises(ValueError, match="a trial is a mapping, as a row of a dataset is, not str"):
        list(pipelines[task](pd.DataFrame(trials)))  # gives the names of its columns


def test_an_option_that_does_not_exist_is_refused(pipelines, trials):
    with pytest.raises(TypeError, match="top_k"):
        pipelines["neural-decoding"](trials[0], top_k=3)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_and_a_processor_in_hand_make_a_pipeline(pipelines, trials, model_folder, task):
    model = AutoModel.from_pretrained(model_folder)
    pipe = pipeline(task, model=model, processor=AutoProcessor.from_pretrained(model_folder), device="cpu")
    assert_same(pipe(trials), pipelines[task](trials))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", TASKS)
def test_the_gpu_gives_the_same(pipelines, trials, model_folder, task):
    pipe = pipeline(task, model=str(model_folder), device="cuda")
    assert pipe.model.device.type == "cuda"
    assert_same(pipe(trials, batch_size=4), pipelines[task](trials), rtol=1e-3, atol=1e-3)


# --- a folder's own code ---

REMOTE = """
import sys
sys.modules["neds_hf"] = None  # importing it raises
import numpy as np
from transformers import pipeline

inputs = dict(np.load("inputs.npz"))
trials = [
    {"session": "monday", "spike_counts": counts, "speed": speed}
    for counts, speed in zip(inputs["spike_counts"], inputs["speed"])
]
for folder in ("saved", "saved_again"):  # what the code of a folder saves, loads too
    for _ in range(2):  # the first leaves nothing behind that breaks a second
        encode = pipeline("neural-encoding", model=f"./{folder}", trust_remote_code=True, device="cpu")
        decode = pipeline("neural-decoding", model=f"./{folder}", trust_remote_code=True, device="cpu")
    for one in (encode, encode.model):
        assert type(one).__module__.startswith(f"transformers_modules.{folder}."), type(one)
    np.savez(
        f"{folder}.npz",
        rates_hz=[result["rates_hz"] for result in encode(trials, batch_size=2)],
        speed=[result["speed"] for result in decode(trials, batch_size=2)],
        engaged=[result["state"]["engaged"] for result in decode(trials)],
    )
    decode.save_pretrained("saved_again")
"""


def test_a_saved_pipeline_loads_where_this_package_is_not_installed(tmp_path):
    rng = np.random.default_rng(0)
    modalities = [
        {"name": "spikes", "kind": "spikes"},
        {"name": "speed", "kind": "continuous"},
        {"name": "state", "kind": "categorical", "classes": ["engaged", "idle"]},
    ]
    counts = rng.poisson(0.5, (3, 10, 6)).astype(np.uint8)
    speed = rng.normal(30, 5, (3, 10))
    sizes = {"num_bins": 10, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = NEDSConfig(session_ids=["monday"], unit_counts=[6], modalities=modalities, **sizes)
    processor = NEDSProcessor(modalities, num_bins=10, bin_size_s=0.1)
    processor.add_session("monday", list("abcdef"), counts, {"speed": speed})
    torch.manual_seed(0)
    here = {
        task: pipeline(task, model=NEDSModel(config).eval(), processor=processor, device="cpu")
        for task in TASKS
    }
    here["neural-encoding"].model = here["neural-decoding"].model
    here["neural-decoding"].save_pretrained(tmp_path / "saved")
    assert {"pipelines_neds.py", "processing_neds.py", "modeling_neds.py"} <= {
        file.name for file in (tmp_path / "saved").iterdir()
    }
    np.savez(tmp_path / "inputs.npz", spike_counts=counts, speed=speed)
    rows = [{"session": "monday", "spike_counts": c, "speed": s} for c, s in zip(counts, speed)]
    encoded, decoded = (here[task](rows) for task in TASKS)
    done = subprocess.run(
        [sys.executable, "-I", "-c", REMOTE],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf_home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for folder in ("saved", "saved_again"):
        with np.load(tmp_path / f"{folder}.npz") as results:
            np.testing.assert_allclose(
                results["rates_hz"], [result["rates_hz"] for result in encoded], rtol=1e-5
            )
            np.testing.assert_allclose(results["speed"], [result["speed"] for result in decoded], rtol=1e-5)
            left = [result["state"]["engaged"] for result in decoded]
            np.testing.assert_allclose(results["engaged"], left, rtol=1e-5)
