"""Mixing of trials: what is mixed with what, and that the model learns from it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_dataset import pretrain_arguments

from neds_hf.cli.main import main
from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.recordings import open_recordings
from neds_hf.models import NEDSConfig
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.mixup import mix_trials
from neds_hf.training.sessions import load_model
from neds_hf.training.trainer import NEDSTrainer

CONFIG = NEDSConfig(num_bins=2, session_ids=["a", "b"], unit_counts=[1, 1])


def batch(there, counts):
    """Trials whose spikes, wheel and choice all say the same number, 0 or 1."""
    counts = torch.tensor(counts)
    return {
        "session_index": torch.zeros(len(counts), dtype=torch.long),
        "spike_counts": counts.to(torch.uint8)[:, None, None].expand(-1, 2, 1),
        "unit_mask": torch.ones(len(counts), 1, dtype=torch.bool),
        "behaviors": {"wheel_speed": counts[:, None].float().expand(-1, 2), "choice": counts},
        "available": {
            "wheel_speed": torch.tensor(there),
            "choice": torch.ones(len(counts), dtype=torch.bool),
        },
    }


def test_spikes_and_behaviours_are_mixed_by_the_same_share():
    original, partners = batch([True] * 3, [0, 1, 1]), batch([True] * 3, [1, 0, 1])
    mixed = mix_trials(CONFIG, original, partners, torch.tensor([0.75, 0.75, 0.75]))
    assert mixed["spike_counts"][:, :, 0].tolist() == [[0.25, 0.25], [0.75, 0.75], [1, 1]]
    assert mixed["behaviors"]["wheel_speed"].tolist() == [[0.25, 0.25], [0.75, 0.75], [1, 1]]
    assert mixed["behaviors"]["choice"].tolist() == [[0.75, 0.25], [0.25, 0.75], [0, 1]]
    for name in ("session_index", "unit_mask", "available"):
        assert mixed[name] is original[name]


def test_trials_with_other_behaviours_are_not_mixed():
    original, partners = batch([True, True, False], [0, 1, 1]), batch([False, True, True], [1, 0, 0])
    mixed = mix_trials(CONFIG, original, partners, torch.full((3,), 0.75))
    assert mixed["spike_counts"][:, 0, 0].tolist() == [0, 0.75, 1]
    assert mixed["behaviors"]["choice"].tolist() == [[1, 0], [0.25, 0.75], [0, 1]]


def test_a_partner_is_any_trial_of_the_same_session_and_has_the_smaller_share(
    dataset, model_folder, tmp_path
):
    model, processor = load_model(str(model_folder))
    args = NEDSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, mixup=1.0)
    trainer = NEDSTrainer(model, args, processor, open_recordings(dataset).only(["ann", "bob"]))
    trials = trainer.train_dataset
    inputs = trainer.data_collator(trials.__getitems__(list(range(len(trials)))))
    places = np.random.default_rng(0).random(len(trials))
    mixed = trainer._mixed(inputs, places, np.full(len(trials), 0.25))
    for session in range(2):
        ours = inputs["session_index"] == session
        counts = inputs["spike_counts"][ours].float()
        theirs = (mixed["spike_counts"][ours] - 0.75 * counts) / 0.25
        partners = [(counts == trial.round()).all(2).all(1).nonzero()[0, 0].item() for trial in theirs]
        assert len(set(partners)) > len(partners) / 2


def test_a_mixed_class_has_the_mixed_loss_of_its_classes(dataset, model_folder):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only(["ann"])
    inputs = NEDSCollator(processor)(ArrowTrials(recordings.split("test"))[0])
    behaviors = inputs["behaviors"]

    def loss(choice) -> float:
        changed = {**inputs, "behaviors": {**behaviors, "choice": torch.tensor(choice)}}
        return float(model(**changed, scheme="decoding").losses["choice"].detach())

    mixture = loss([[0.25, 0.75]])
    assert mixture == pytest.approx(0.25 * loss([0]) + 0.75 * loss([1]), rel=1e-5)
    assert loss([[0.0, 1.0]]) == pytest.approx(loss([1]), rel=1e-6)


def test_what_is_shown_of_a_mixed_class_is_between_its_classes(dataset, model_folder):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only(["ann"])
    inputs = NEDSCollator(processor)(ArrowTrials(recordings.split("test"))[0])
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    for choice in ([0], [1], [[0.25, 0.75]]):
        behaviors = {**inputs["behaviors"], "choice": torch.tensor(choice)}
        model(**{**inputs, "behaviors": behaviors}, scheme="encoding")
    torch.testing.assert_close(seen[2], 0.25 * seen[0] + 0.75 * seen[1], rtol=1e-4, atol=1e-5)


def test_pretraining_mixes_the_same_way_every_time_and_otherwise_than_without(dataset, tmp_path):
    options = ["--num_train_epochs", "1"]
    runs = {"a": ["--mixup", "0.5"], "b": ["--mixup", "0.5"], "without": []}
    for name, mixup in runs.items():
        assert main(["pretrain", *pretrain_arguments(dataset, tmp_path / name), *options, *mixup]) == 0
    a, b, without = (load_file(tmp_path / name / "model.safetensors") for name in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["unit_readout.weight"], without["unit_readout.weight"])
    assert json.loads((tmp_path / "a" / "run.json").read_text())["configuration"]["mixup"] == 0.5


def test_a_tokenizer_that_takes_no_mixed_classes_is_refused_before_anything_is_written(
    dataset, tmp_path, error_of
):
    argv = [*pretrain_arguments(dataset, tmp_path / "run"), "tokenizer=mlp", "bins_per_token=1"]
    argv += ["categorical_tokens=bin", "--mixup", "0.3"]
    assert "--mixup 0.3: tokenizer 'mlp'" in error_of("pretrain", *argv)
    assert not (tmp_path / "run").exists()
