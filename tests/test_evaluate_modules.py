"""The metrics as modules of `evaluate`: their numbers, their cards, `combine`, and from the Hub."""

import json
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hub.processes import result_of
from hub.server import Hub
from huggingface_hub import SpaceCard
from scipy.stats import poisson
from sklearn.metrics import balanced_accuracy_score, r2_score

from neds_hf.metrics import functional
from neds_hf.metrics.sums import SessionSums

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = REPOSITORY / "neds_hf" / "metrics"
NAMES = ("bits_per_spike", "neural_r2", "balanced_accuracy_by_session")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


@pytest.fixture
def load():
    return lambda name: evaluate.load(str(FOLDERS / name))


@pytest.fixture(scope="module")
def spikes():
    """ln expected counts and counts (trials, bins, units); the last unit is silent."""
    rng = np.random.default_rng(0)
    log_rates = rng.normal(-0.5, 0.5, (7, 10, 4))
    counts = rng.poisson(np.exp(log_rates))
    counts[..., 3] = 0
    return log_rates, counts


@pytest.fixture(scope="module")
def wheel():
    """Predicted and real (trials, bins); the second trial is missing."""
    rng = np.random.default_rng(1)
    real = np.sin(np.arange(10)) + rng.normal(0, 0.5, (7, 10))
    predicted = real + rng.normal(0, 0.4, real.shape)
    real[1] = np.nan
    return predicted, real


def test_bits_per_spike_is_a_difference_of_poisson_likelihoods(load, spikes):
    log_rates, counts = spikes
    expected = [
        (poisson.logpmf(k, np.exp(rate)).sum() - poisson.logpmf(k, k.mean()).sum()) / (np.log(2) * k.sum())
        for rate, k in zip(log_rates[..., :3].transpose(2, 0, 1), counts[..., :3].transpose(2, 0, 1))
    ]
    result = load("bits_per_spike").compute(predictions=log_rates, references=counts)
    assert result == {"bits_per_spike": pytest.approx(np.mean(expected), rel=1e-12), "silent_units": 1}


def test_bits_per_spike_over_a_null_model_from_other_trials(load, spikes):
    log_rates, counts = spikes
    null = np.array([0.5, 0.0, 0.7, 0.2])  # holds the second unit silent
    expected = [
        (poisson.logpmf(k, np.exp(log_rates[..., n])).sum() - poisson.logpmf(k, null[n]).sum())
        / (np.log(2) * k.sum())
        for n in (0, 2)
        for k in [counts[..., n]]
    ]
    result = load("bits_per_spike").compute(predictions=log_rates, references=counts, null_rates=null)
    assert result == {"bits_per_spike": pytest.approx(np.mean(expected), rel=1e-12), "silent_units": 2}


def test_r2_of_a_behavior(load, wheel):
    predicted, real = wheel
    there = ~np.isnan(real[:, 0])
    assert load("neural_r2").compute(predictions=predicted, references=real) == {
        "r2": pytest.approx(r2_score(real[there].ravel(), predicted[there].ravel()), rel=1e-12),
        "r2_beyond_average": pytest.approx(
            r2_score(real[there], predicted[there], multioutput="variance_weighted"), rel=1e-12
        ),
    }


def test_r2_of_psths(load, spikes):
    log_rates, counts = spikes
    psth, predicted = counts.mean(0), np.exp(log_rates).mean(0)
    result = load("neural_r2").compute(predictions=log_rates, references=counts)
    assert result == {"psth_r2": pytest.approx(r2_score(psth[:, :3], predicted[:, :3]), rel=1e-12)}


def test_balanced_accuracy_of_every_session(load):
    rng = np.random.default_rng(2)
    real, predicted = rng.integers(-1, 3, 60), rng.integers(0, 3, 60)
    sessions = np.repeat(["ann", "bob", "none"], [35, 22, 3])
    real[sessions == "none"] = -1
    expected = {
        name: balanced_accuracy_score(real[there], predicted[there])
        for name in ("ann", "bob")
        for there in [(sessions == name) & (real >= 0)]
    }
    result = load("balanced_accuracy_by_session").compute(
        predictions=predicted, references=real, sessions=sessions
    )
    assert np.isnan(result["balanced_accuracy_by_session"].pop("none"))
    assert result == {
        "balanced_accuracy": pytest.approx(np.mean(list(expected.values())), rel=1e-12),
        "balanced_accuracy_by_session": pytest.approx(expected, rel=1e-12),
    }


def test_the_modules_equal_what_training_reports(load, spikes, wheel):
    log_rates, counts = spikes
    choice, block = np.arange(7) % 2, np.arange(7) % 3 - 1
    sums = SessionSums(10, 4, ["wheel_speed"], {"block": 2})
    sums.add_spikes(log_rates, counts)
    sums.add_continuous("wheel_speed", *wheel)
    sums.add_categorical("block", choice, block)
    metrics = sums.metrics()
    found = load("bits_per_spike").compute(predictions=log_rates, references=counts)
    found |= load("neural_r2").compute(predictions=log_rates, references=counts)
    of_wheel = load("neural_r2").compute(predictions=wheel[0], references=wheel[1])
    found |= {f"wheel_speed_{name}": value for name, value in of_wheel.items()}
    of_block = load("balanced_accuracy_by_session").compute(
        predictions=choice, references=block, sessions=["ann"] * 7
    )
    found["block_balanced_accuracy"] = of_block["balanced_accuracy"]
    assert found == pytest.approx({name: metrics[name] for name in found}, rel=1e-9)
    assert len(found) == 6


def test_fractions_of_spikes_are_not_cut_off_in_lists(load, spikes):
    log_rates, counts = spikes[0], spikes[1] + 0.5
    expected = functional.bits_per_spike(log_rates, counts).mean()
    found = load("bits_per_spike").compute(predictions=log_rates.tolist(), references=counts.tolist())
    assert found == {"bits_per_spike": pytest.approx(expected, rel=1e-12), "silent_units": 0}


def test_a_null_model_of_other_units_is_refused(load, spikes):
    with pytest.raises(ValueError, match=r"null_rates is \(2,\), expected the shape of units: \(4,\)"):
        load("bits_per_spike").compute(predictions=spikes[0], references=spikes[1], null_rates=[0.5, 0.5])


@pytest.mark.parametrize("form", [np.asarray, list])
def test_probabilities_are_not_taken_for_classes(load, form):
    with pytest.raises(ValueError, match=r"predictions holds 0\.9, expected class indices"):
        load("balanced_accuracy_by_session").compute(
            predictions=form([0.0, 0.9]), references=[0, 1], sessions=["ann", "ann"]
        )


def test_batches_and_combine_give_the_same(load, spikes):
    log_rates, counts = spikes
    whole = load("bits_per_spike").compute(predictions=log_rates, references=counts)
    whole |= load("neural_r2").compute(predictions=log_rates, references=counts)
    combined = evaluate.combine([load("bits_per_spike"), load("neural_r2")])
    for part in (slice(0, 3), slice(3, 7)):
        combined.add_batch(predictions=log_rates[part], references=counts[part])
    assert combined.compute() == whole


def test_combine_hands_on_the_null_model(load, spikes):
    log_rates, counts = spikes
    null = {"null_rates": np.array([0.5, 0.1, 0.7, 0.2])}
    bits = load("bits_per_spike").compute(predictions=log_rates, references=counts, **null)
    combined = evaluate.combine([load("bits_per_spike"), load("neural_r2")])
    found = combined.compute(predictions=log_rates, references=counts, **null)
    assert found.pop("psth_r2") and found == bits


def test_what_cannot_be_scored_is_nan_and_a_wrong_prediction_is_not_hidden(load, spikes):
    log_rates, counts = spikes
    silent = load("bits_per_spike").compute(predictions=log_rates, references=np.zeros_like(counts))
    assert np.isnan(silent["bits_per_spike"]) and silent["silent_units"] == 4
    flat = load("neural_r2").compute(predictions=log_rates, references=np.ones_like(counts))
    assert np.isnan(flat["psth_r2"])
    impossible = log_rates.copy()
    impossible[..., 0] = -np.inf  # never a spike, where there are some
    assert np.isnan(
        load("bits_per_spike").compute(predictions=impossible, references=counts)["bits_per_spike"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_code_on_a_card_prints_what_it_says(name, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    card = SpaceCard.load(FOLDERS / name / "README.md")
    assert {"evaluate", "metric"} <= set(card.data.tags) and card.data.sdk == "static"
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    (said,) = re.findall(r"^# (\{.*\})$", code, flags=re.MULTILINE)
    exec(code, {})
    found, said = (
        json.loads(text.replace("'", '"'), parse_float=lambda digits: round(float(digits), 9))
        for text in (capsys.readouterr().out, said)
    )
    assert found == said


def test_a_metric_loads_by_its_name_on_the_hub(tmp_path):
    """A Space holds it; the second process has it from the first one's cache."""
    script = f"""
import json, os, evaluate
from huggingface_hub import HfApi
hub = HfApi()
hub.create_repo("lab/balanced_accuracy_by_session", repo_type="space", space_sdk="static")
hub.upload_folder(
    repo_id="lab/balanced_accuracy_by_session", repo_type="space",
    folder_path={str(FOLDERS / "balanced_accuracy_by_session")!r}, allow_patterns=["*.py", "*.md"],
)
metric = evaluate.load("lab/balanced_accuracy_by_session", module_type="metric")
print(json.dumps(metric.compute(predictions=[1, 1], references=[1, 0], sessions=["a", "a"])))
"""
    with Hub() as hub:
        result = result_of(hub.environment(tmp_path, token="hf_lab"), script)
        files = hub.files("space", "lab/balanced_accuracy_by_session")
    assert result == {"balanced_accuracy": 0.5, "balanced_accuracy_by_session": {"a": 0.5}}
    assert {"README.md", "balanced_accuracy_by_session.py"} <= files.keys()
