"""What fine-tuning trains, when, and that a run that was cut off ends as one that was not."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from neds_hf.cli.main import main
from neds_hf.data.recordings import open_recordings
from neds_hf.models import NEDSConfig, NEDSModel
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.sessions import add_sessions, load_model
from neds_hf.training.strategies import STRATEGIES, GradualUnfreezing, freeze
from neds_hf.training.trainer import NEDSTrainer

ROWS = {"unit_embedding", "unit_readout", "unit_bias", "session_embedding"}
READOUT = {"encoder.norm", "spike_unpatch", "behavior_readout"}
TOKENIZER = {
    "spike_patch",
    "behavior_embedding",
    "mask_embedding",
    "modality_embedding",
    "temporal_embedding",
}


def group(name: str) -> str:
    """`encoder.blocks.0`, `encoder.norm`, or the first part of a parameter's name."""
    parts = name.split(".")
    return ".".join(parts[: {"blocks": 3, "norm": 2}.get(parts[1], 1)])


def blocks(*layers: int) -> set[str]:
    return {f"encoder.blocks.{layer}" for layer in layers}


@pytest.mark.parametrize(
    "epochs, expected",
    [
        # Three layers: four steps, of two epochs each in the first half of 16.
        (16, [0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4]),
        (8, [0, 1, 2, 3, 4, 4, 4, 4]),
        (3, [0, 3, 4]),
        (2, [0, 4]),
    ],
)
def test_rows_then_layers_from_the_top_down_then_everything(epochs, expected):
    sizes = {"num_bins": 10, "bins_per_token": 2, "hidden_size": 8, "num_attention_heads": 2}
    model = NEDSModel(NEDSConfig(session_ids=["a"], unit_counts=[3], num_hidden_layers=3, **sizes))
    stages = [
        ROWS,
        ROWS | READOUT | blocks(2),
        ROWS | READOUT | blocks(2, 1),
        ROWS | READOUT | blocks(2, 1, 0),
        ROWS | READOUT | blocks(2, 1, 0) | TOKENIZER,
    ]
    assert stages[-1] == {group(name) for name, _ in model.named_parameters()}
    for epoch, stage in enumerate(expected):
        for within in (0, 0.9):  # where a run that was cut off goes on
            state = TrainerState(epoch=epoch + within, num_train_epochs=epochs)
            GradualUnfreezing().on_train_begin(None, state, None)
            GradualUnfreezing().on_epoch_begin(None, state, None, model=model)
            trained = {group(name) for name, weight in model.named_parameters() if weight.requires_grad}
            frozen = {group(name) for name, weight in model.named_parameters() if not weight.requires_grad}
            assert trained == stages[stage] and not trained & frozen


def test_gradual_fine_tuning_changes_in_each_epoch_what_is_trained_in_it(dataset, model_folder, tmp_path):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only(["cat"])
    add_sessions(model, processor, recordings)
    freeze(model, "gradual")
    changes = []

    class Changes(TrainerCallback):
        def on_epoch_begin(self, *args, model, **kwargs):
            self.before = {name: weight.clone() for name, weight in model.state_dict().items()}

        def on_epoch_end(self, *args, model, **kwargs):
            after = model.state_dict()
            changes.append({group(name) for name in after if not torch.equal(after[name], self.before[name])})

    args = NEDSTrainingArguments(
        str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=8,
        weight_decay=0.5,
        warmup_steps=0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    NEDSTrainer(model, args, processor, recordings, callbacks=[GradualUnfreezing(), Changes()]).train()
    assert changes == [
        ROWS,
        ROWS | READOUT | blocks(0),
        ROWS | READOUT | blocks(0) | TOKENIZER,
        ROWS | READOUT | blocks(0) | TOKENIZER,
    ]


def test_one_epoch_is_too_few_for_gradual_fine_tuning(model_folder, tmp_path, capsys, finetune_arguments):
    argv = finetune_arguments(model_folder, tmp_path)  # --num_train_epochs 1
    assert main(["finetune", *argv, "--strategy", "gradual"]) == 2
    assert "--strategy gradual needs at least 2 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    model_folder, tmp_path, monkeypatch, finetune_arguments, strategy
):
    if strategy == "lora" and find_spec("peft") is None:
        pytest.skip("peft is not installed")

    def argv(out):
        epochs = (
            "--num_train_epochs 4 --save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 2"
        )
        argv = [*finetune_arguments(model_folder, out), "--strategy", strategy, *epochs.split()]
        return ["finetune", *argv, "--set", "hidden_dropout=0.1", "unit_dropout=0.2"]

    evaluate = NEDSTrainer.evaluate

    def stop_at_step_8(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(NEDSTrainer, "evaluate", stop_at_step_8)
        assert main(argv(tmp_path / "out")) == 130
    # Of three steps an epoch: the newest checkpoint is between two epochs' ends, or at one.
    assert (tmp_path / "out/checkpoint-6").exists()
    assert main(argv(tmp_path / "out")) == 0
    assert main(argv(tmp_path / "whole")) == 0
    name = "adapter_model.safetensors" if strategy == "lora" else "model.safetensors"
    weights, whole = (load_file(tmp_path / run / name) for run in ("out", "whole"))
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert (tmp_path / "out/metrics.json").read_text() == (tmp_path / "whole/metrics.json").read_text()
