"""Encoding from one behaviour alone is what the model says where the others were never recorded."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from neds_hf.data.recordings import open_recordings
from neds_hf.metrics.functional import bits_per_spike
from neds_hf.training.inference import Ensemble, score_single_behaviors, split_loader, translate
from neds_hf.training.sessions import load_model

BEHAVIORS = ("choice", "block", "wheel_speed", "whisker_motion_energy")


@pytest.fixture(scope="module")
def trained(dataset, model_folder):
    return *load_model(str(model_folder)), open_recordings(dataset).only(["ann", "bob"])


def alone(model, processor, trials, name):
    """Bits per spike of arrays with one behaviour only, over the trials that have it."""
    values = {**trials.continuous, **trials.categorical}[name]
    has_it = np.isfinite(values).all(1) if name in trials.continuous else values >= 0
    inputs = processor(trials.session, trials.spike_counts[has_it], {name: values[has_it]})
    with torch.no_grad():
        log_rates = model(**inputs.to(model.device), scheme="encoding").log_rates.cpu().numpy()
    return float(np.nanmean(bits_per_spike(log_rates, trials.spike_counts[has_it])))


@pytest.mark.parametrize("split, batch_size", [("test", 64), ("train", 7)])
def test_a_behaviour_alone_predicts_as_if_the_others_were_not_recorded(trained, split, batch_size):
    model, processor, recordings = trained
    scores = score_single_behaviors(model, processor, split_loader(processor, recordings, split, batch_size))
    assert set(scores) == {"ann", "bob"}
    for session, metrics in scores.items():
        trials = recordings.trials(session, split)
        assert list(metrics) == [f"bits_per_spike_from_{name}" for name in BEHAVIORS]
        recorded = [name for name in BEHAVIORS if (session, name) != ("bob", "whisker_motion_energy")]
        expected = [alone(model, processor, trials, name) for name in recorded]
        assert len(set(np.round(expected, 6))) == len(expected)  # no two behaviours say the same
        found = [metrics[f"bits_per_spike_from_{name}"] for name in recorded]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isnan(scores["bob"]["bits_per_spike_from_whisker_motion_energy"])


def test_a_trial_without_the_behaviour_has_no_part_in_it(trained):
    """`ann` has one trial without wheel."""
    model, processor, recordings = trained
    with_gap = [
        split
        for split in ("train", "validation", "test")
        if np.isnan(recordings.trials("ann", split).continuous["wheel_speed"]).any()
    ]
    assert len(with_gap) == 1
    (split,) = with_gap
    trials = recordings.trials("ann", split)
    scores = score_single_behaviors(model, processor, split_loader(processor, recordings, split))
    expected = alone(model, processor, trials, "wheel_speed")
    assert scores["ann"]["bits_per_spike_from_wheel_speed"] == pytest.approx(expected, abs=1e-5)
    inputs = processor("ann", trials.spike_counts, {"wheel_speed": trials.continuous["wheel_speed"]})
    with torch.no_grad():
        log_rates = model(**inputs.to(model.device), scheme="encoding").log_rates.cpu().numpy()
    of_all = np.nanmean(bits_per_spike(log_rates, trials.spike_counts))
    assert abs(of_all - expected) > 1e-4  # it would have shown


def test_a_model_in_training_is_scored_without_dropout_and_then_trains_on(trained, model_folder):
    _, processor, recordings = trained
    model, _ = load_model(str(model_folder), {"unit_dropout": 0.5})
    batch = next(iter(split_loader(processor, recordings, "test")))
    expected = translate(model.eval(), batch, "decoding").predictions["wheel_speed"]
    assert not model.training
    found = translate(model.train(), batch, "decoding").predictions["wheel_speed"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.training
    torch.manual_seed(0)
    dropped = model(**batch, scheme="decoding").predictions["wheel_speed"]
    assert not torch.allclose(dropped, expected, rtol=0.01)  # it would have shown


@pytest.mark.parametrize("task", ["encoding", "decoding"])
def test_the_loss_of_several_models_is_the_mean_of_theirs(trained, task):
    one, processor, recordings = trained
    other = deepcopy(one)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    batch = next(iter(split_loader(processor, recordings, "test")))
    losses, others, both = (translate(model, batch, task) for model in (one, other, Ensemble([one, other])))
    assert abs(losses.loss - others.loss) > 1e-3
    torch.testing.assert_close(both.loss, (losses.loss + others.loss) / 2)
    assert both.losses.keys() == losses.losses.keys()
    for name, loss in both.losses.items():
        torch.testing.assert_close(loss, (losses.losses[name] + others.losses[name]) / 2)
