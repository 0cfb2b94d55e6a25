"""A run: what it leaves behind, how it goes on after a kill, what its evaluation and its batches are."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import killed_on_writing
from safetensors.torch import load_file
from small_dataset import OF_MODEL, SIZES, pretrain_arguments
from torch.utils.data import DataLoader

from neds_hf.analysis.runs import read_runs
from neds_hf.cli.main import main
from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.files import write_json
from neds_hf.data.recordings import open_recordings
from neds_hf.errors import NEDSError
from neds_hf.metrics import functional
from neds_hf.models import NEDSModel
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.averaging import common_configuration
from neds_hf.training.inference import score_split
from neds_hf.training.runs import alone, last_checkpoint, note, start_run
from neds_hf.training.search import forget_untrained, results_of
from neds_hf.training.sessions import load_model
from neds_hf.training.trainer import NEDSTrainer


def state_of(run: Path) -> dict:
    return json.loads((run / "trainer_state.json").read_text())


def curves(run: Path) -> list[dict]:
    """The log of a run less what is measured with a clock, and less the last summary."""
    return [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in state_of(run)["log_history"][:-1]
    ]


def make_trainer(dataset, model_folder, out, sessions=("ann", "bob"), **arguments):
    model, processor = load_model(str(model_folder))
    recordings = open_recordings(dataset).only(list(sessions))
    args = NEDSTrainingArguments(output_dir=str(out), use_cpu=True, disable_tqdm=True, **arguments)
    return NEDSTrainer(model, args, processor, recordings)


# --- what a run leaves behind ---


def test_a_finished_run_holds_model_processor_code_and_metrics_and_no_pickle(model_folder):
    names = {path.name for path in model_folder.iterdir()}
    code = {f"{part}_neds.py" for part in ("configuration", "masking", "modeling", "pipelines", "processing")}
    records = {"run.json", "metrics.json", "trainer_state.json", "README.md"}
    assert names - {".lock"} == {"config.json", "model.safetensors", "processor_config.json"} | code | records


def test_a_run_says_what_it_was_made_with(model_folder, dataset):
    run = json.loads((model_folder / "run.json").read_text())
    configuration = run["configuration"]
    assert configuration["command"] == "pretrain" and configuration["seed"] == 3
    assert configuration["learning_rate"] == 0.01 and configuration["train_batch_size"] == 8
    assert configuration["model"]["hidden_size"] == 16 and configuration["sessions"] == ["ann", "bob"]
    assert configuration["data_fingerprint"] == open_recordings(dataset).only(["ann", "bob"]).fingerprint
    assert run["versions"]["torch"] == torch.__version__ and run["hardware"]["cpus"] == os.cpu_count()
    assert isinstance(run["hardware"]["cpu"], str) and run["hardware"]["cpu_capability"]
    assert run["started"] < run["finished"] and run["results"]["test"]["choice_accuracy"] >= 0


def test_the_curves_are_of_means_as_those_of_every_session_would_outgrow_the_checkpoint(model_folder):
    names = {name for entry in state_of(model_folder)["log_history"] for name in entry}
    assert {"loss", "eval_loss", "eval_mean", "eval_choice_accuracy"} <= names
    assert not [name for name in names if "/" in name]


def test_what_is_not_defined_is_null_in_the_files(model_folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    metrics = json.loads((model_folder / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["sessions"]["bob"]["whisker_motion_energy_r2"] is None  # bob has no whisker video
    assert metrics["mean"]["whisker_motion_energy_r2"] == pytest.approx(
        metrics["sessions"]["ann"]["whisker_motion_energy_r2"]
    )
    assert metrics["mean"]["choice_accuracy"] == pytest.approx(
        np.mean([metrics["sessions"][session]["choice_accuracy"] for session in ("ann", "bob")])
    )


def test_the_checkpoint_with_the_best_mean_of_recent_evaluations_is_what_is_saved(dataset, tmp_path):
    argv = [*pretrain_arguments(dataset, tmp_path), *OF_MODEL]
    assert main(["pretrain", *argv, "--metric_for_best_model", "bits_per_spike"]) == 0
    state = state_of(tmp_path)
    values = [entry[name] for entry in state["log_history"] if (name := "eval_bits_per_spike") in entry]
    recent = [np.mean(values[max(0, end - 5) : end]) for end in range(1, 16)]
    best = np.argmax(recent)
    # Here neither the last nor the best single one.
    assert len(values) == 15 and best not in (14, np.argmax(values))
    assert state["best_metric"] == pytest.approx(recent[best])
    model, processor = load_model(str(tmp_path))
    scores = score_split(model, processor, open_recordings(dataset).only(["ann", "bob"]), "validation")
    found = np.mean([scores[session]["bits_per_spike"] for session in scores])
    assert found == pytest.approx(values[best], abs=1e-6)


def test_one_lucky_evaluation_makes_no_best_checkpoint(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path)
    best = []
    for value in (0.1, 0.8, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        trainer.state.global_step += 1
        trainer.log({"loss": 1.0})
        trainer.log({"eval_mean": value})
        best.append(trainer._determine_best_metric({"eval_mean": value}, None))
    # Means of the last five: 0.1, 0.45, 0.37, 0.35, 0.36, 0.44, 0.4, 0.5
    assert best == [True, True, False, False, False, False, False, True]
    assert trainer.state.best_metric == pytest.approx(0.5)


def test_an_evaluation_that_is_no_number_or_of_no_new_checkpoint_is_in_no_mean(
    model_folder, dataset, tmp_path
):
    trainer = make_trainer(dataset, model_folder, tmp_path)
    trainer.log({"eval_mean": -9.0})  # by --eval_on_start
    best = []
    for value in (0.1, np.nan, 0.3, 0.8):
        trainer.state.global_step += 1
        trainer.log({"eval_mean": value})
        best.append((trainer._determine_best_metric({"eval_mean": value}, None), trainer.state.best_metric))
        trainer.log({"eval_mean": value})  # by --eval_on_start, after a restart from this step
    means = [(True, 0.1), (False, 0.1), (True, 0.2), (True, 0.4)]
    assert best == [(new, pytest.approx(mean)) for new, mean in means]


@pytest.mark.parametrize(
    "metric, higher", [("eval_mean", True), ("eval_loss", False), ("loss_spikes", False)]
)
def test_the_best_loss_is_the_lowest_and_of_anything_else_the_highest(metric, higher, tmp_path):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "metric_for_best_model": metric}
    assert NEDSTrainingArguments(**arguments).greater_is_better is higher
    assert NEDSTrainingArguments(**arguments, greater_is_better=not higher).greater_is_better is not higher


@pytest.mark.parametrize("metric, mode", [("eval_mean", "max"), ("eval_loss", "min")])
@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_learning_rate_that_follows_the_metric_falls_where_that_gets_worse(
    model_folder, dataset, tmp_path, metric, mode, schedule
):
    options = {"metric_for_best_model": metric, "lr_scheduler_kwargs": '{"patience": 3}'}
    trainer = make_trainer(dataset, model_folder, tmp_path, lr_scheduler_type=schedule, **options)
    trainer.create_optimizer_and_scheduler(10)
    assert (trainer.lr_scheduler.mode, trainer.lr_scheduler.patience) == (mode, 3)


def test_training_learns_what_the_trials_say(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path)
    trained = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.model = NEDSModel(trainer.model.config)
    for session in trainer.processor.session_ids:
        trainer.model.set_mean_counts(session, trainer.processor.mean_counts(session))
    assert trained < 0.9 * trainer.evaluate(trainer.train_dataset)["eval_loss"]


# --- running again ---


def test_a_finished_run_says_so_and_is_not_repeated(model_folder, dataset, error_of):
    before = (model_folder / "run.json").read_text()
    argv = [*pretrain_arguments(dataset, model_folder), *OF_MODEL]
    assert "holds this very run, finished" in error_of("pretrain", *argv)
    assert (model_folder / "run.json").read_text() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (["--learning_rate", "0.02"], "learning_rate 0.01 there, 0.02 asked for; choose"),
        (["--num_train_epochs", "3"], "num_train_epochs 15.0 there, 3.0 asked for; choose"),
        (["--set", *SIZES, "mask_ratio=0.2"], "model.mask_ratio 0.3 there, 0.2 asked for; choose"),
        (["--per_device_train_batch_size", "4"], "train_batch_size 8 there, 4 asked for; choose"),
        (["--sessions", "ann"], "sessions ['ann', 'bob'] there, ['ann'] asked for; choose"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(
    model_folder, dataset, error_of, change, message
):
    argv = [*pretrain_arguments(dataset, model_folder), *OF_MODEL]
    error = error_of("pretrain", *argv, *change)
    assert f"{model_folder} holds a run with other settings" in error and message in error


def test_a_run_killed_between_checkpoints_ends_as_an_uninterrupted_one(dataset, tmp_path):
    options = [
        *"--num_train_epochs 4 --logging_strategy steps --logging_steps 1 --eval_strategy steps".split(),
        *"--eval_steps 4 --save_strategy steps --save_steps 4 --sessions ann bob".split(),
        *("--set", *SIZES, "hidden_dropout=0.1", "unit_dropout=0.2"),  # random numbers must go on too
    ]
    killed = [*pretrain_arguments(dataset, tmp_path / "killed"), *options]
    # 61 training trials: 7 steps an epoch, so that a checkpoint every 4 steps falls within an epoch.
    killed_on_writing("checkpoint-16/trainer_state.json", "pretrain", killed)
    assert "finished" not in json.loads((tmp_path / "killed" / "run.json").read_text())
    assert (tmp_path / "killed" / "checkpoint-16" / "model.safetensors").exists()  # half a checkpoint

    assert main(["pretrain", *killed]) == 0
    assert main(["pretrain", *pretrain_arguments(dataset, tmp_path / "whole"), *options]) == 0
    summary = state_of(tmp_path / "killed")["log_history"][-1]
    steps = summary["train_steps_per_second"] * summary["train_runtime"]
    assert steps == pytest.approx(28 - 12, abs=0.3)  # it went on, and did not start anew
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    assert state_of(tmp_path / "killed")["best_metric"] == state_of(tmp_path / "whole")["best_metric"]
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    metrics, other = ((tmp_path / name / "metrics.json").read_text() for name in ("killed", "whole"))
    assert metrics == other
    assert not list((tmp_path / "killed").glob("checkpoint-*"))


def test_two_trainings_of_one_folder_exclude_each_other(dataset, tmp_path, capsys):
    argv = ["pretrain", *pretrain_arguments(dataset, tmp_path), "--max_steps", "2"]
    with alone(tmp_path):
        assert main(argv) == 2
        said = f"neds pretrain: another process trains in {tmp_path}: wait for it, or choose another folder\n"
        assert capsys.readouterr().err == said
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert main(argv) == 0


@pytest.mark.parametrize("file, bytes_that_fit", [("model.safetensors", 60_000), ("optimizer.pt", 100_000)])
def test_a_checkpoint_that_finds_no_room_is_one_line_and_the_run_goes_on_with_more(
    dataset, tmp_path, capsys, file, bytes_that_fit
):
    """The system lets no file become larger, which torch and safetensors say as they do of a full disc."""
    argv = ["pretrain", *pretrain_arguments(dataset, tmp_path), "hidden_size=32", "--max_steps", "2"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_that_fit, limits[1]))
    try:
        assert main(argv) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("neds pretrain: [Errno 5] Not written, as on a full disc (")
    assert error.endswith(f": '{tmp_path}'")
    (half,) = tmp_path.glob("checkpoint-*")
    left = [path.name for path in half.iterdir()]
    assert (file in left) == (file == "optimizer.pt") and "trainer_state.json" not in left
    assert main(argv) == 0
    assert not half.exists()


def test_a_run_that_goes_on_by_another_path_keeps_its_best_checkpoint(dataset, tmp_path):
    options = [
        *"--max_steps 8 --eval_strategy steps --eval_steps 4 --save_strategy steps --save_steps 4".split(),
        *"--metric_for_best_model loss --greater_is_better true".split(),  # the first is best
        *"--save_total_limit 2 --sessions ann bob".split(),
    ]
    argv = [*pretrain_arguments(dataset, "run"), *options]
    killed_on_writing("run/config.json", "pretrain", argv, tmp_path)  # after the last checkpoint
    assert main(["pretrain", *pretrain_arguments(dataset, tmp_path / "run"), *options]) == 0
    assert main(["pretrain", *pretrain_arguments(dataset, tmp_path / "whole"), *options]) == 0
    assert state_of(tmp_path / "run")["best_global_step"] == 4
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_a_run_killed_before_its_card_is_not_finished(dataset, tmp_path):
    argv = [*pretrain_arguments(dataset, tmp_path), "--max_steps", "2"]
    killed_on_writing("README.md", "pretrain", argv)
    assert main(["pretrain", *argv]) == 0
    assert (tmp_path / "README.md").exists() and not list(tmp_path.glob("checkpoint-*"))


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_its_folder(dataset, tmp_path, capsys):
    argv = [*pretrain_arguments(dataset, tmp_path), "--max_steps", "2"]
    split = ["--gradient_accumulation_steps", "20"]
    assert main(["pretrain", *argv, *split]) == 2
    assert "lower --per_device_train_batch_size" in capsys.readouterr().err
    assert main(["pretrain", *argv, *split, "--per_device_train_batch_size", "4"]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["configuration"]["train_batch_size"] == 80 and "finished" in run


def test_what_a_run_of_another_command_has_done_is_never_forgotten(tmp_path):
    start_run(tmp_path, {"command": "baselines", "seed": 1})
    with pytest.raises(NEDSError, match="seed 1 there, 2 asked for"):
        start_run(tmp_path, {"command": "pretrain", "seed": 2})


CHECKPOINT = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("lacking", CHECKPOINT)
def test_a_checkpoint_that_lacks_a_file_is_removed_and_the_one_before_is_used(tmp_path, lacking):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in CHECKPOINT:
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / lacking).unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_a_checkpoint_whose_state_is_cut_off_is_removed(tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    for name in CHECKPOINT:
        (tmp_path / "checkpoint-9" / name).write_text('{"global_step": 9, "log_his')
    assert last_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_checkpoint_whose_state_the_system_cannot_read_is_not_removed(tmp_path):
    for name in CHECKPOINT:
        (tmp_path / "checkpoint-9" / name).mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"trainer_state\.json"):
        last_checkpoint(tmp_path)
    assert (tmp_path / "checkpoint-9").exists()


@pytest.mark.parametrize(
    "there", ["checkpoint-3/model.safetensors", "model.safetensors", "sessions/train.parquet"]
)
def test_a_model_or_dataset_of_another_origin_is_not_written_over(tmp_path, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with pytest.raises(NEDSError, match=rf"holds {there.split('/')[0]}, but no run\.json says of what"):
        start_run(tmp_path, {"seed": 0})
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("content", [b'{"configuration": {"se', b"", b"\0\0\xff", b"[]"])
def test_a_damaged_run_file_is_named(tmp_path, content):
    file = tmp_path / "run.json"
    file.write_bytes(content)
    for read in (lambda: start_run(tmp_path, {"seed": 0}), lambda: note(tmp_path, a=1)):
        with pytest.raises(
            NEDSError, match=rf"^{file} cannot be read as JSON|^{file}: expected a mapping, found"
        ):
            read()
    assert file.read_bytes() == content


def test_a_run_file_of_another_program_is_not_overwritten(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"id": 7}')
    forget_untrained(tmp_path)
    with pytest.raises(
        NEDSError, match="other settings: seed None there, 0 asked for; choose another folder"
    ):
        start_run(tmp_path, {"seed": 0})
    assert file.read_text() == '{"id": 7}'


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: start_run(folder, {"seed": 0}),
        forget_untrained,
        results_of,
        lambda folder: common_configuration([str(folder)]),
        read_runs,
    ],
)
def test_a_run_file_whose_configuration_is_none_is_named(tmp_path, read):
    write_json(tmp_path / "metrics.json", {"sessions": {"ann": {"psth_r2": 0.5}}})
    (tmp_path / "run.json").write_text('{"configuration": [7]}')
    message = f"^{tmp_path}/run.json: expected a mapping 'configuration', found \\[7\\]$"
    with pytest.raises(NEDSError, match=message):
        read(tmp_path)


def fine_tuning(folder, finished=1.0, **change):
    """What is read of a run of `neds finetune`."""
    configuration = {
        "command": "finetune",
        "seed": 0,
        "data_seed": None,
        "model": "/mine/neds-ibl",
        "model_fingerprint": "aa",
        "sessions": ["ann"],
        "train_splits": ["train"],
        "data_fingerprint": "x",
    }
    write_json(
        folder / "run.json",
        {"configuration": configuration | change} | ({"finished": finished} if finished else {}),
    )
    return str(folder)


def test_fine_tunings_of_other_seeds_and_from_a_copy_of_the_same_weights_are_alike(tmp_path):
    one = fine_tuning(tmp_path / "one")
    other = fine_tuning(tmp_path / "other", seed=1, data_seed=7, model="/theirs/neds-ibl")
    assert common_configuration([one, other]) == {
        "command": "finetune",
        "model": "/mine/neds-ibl",
        "model_fingerprint": "aa",
        "sessions": ["ann"],
        "train_splits": ["train"],
        "data_fingerprint": "x",
        "seeds": [0, 1],
    }
    with pytest.raises(
        NEDSError, match=f"alone are averaged: model_fingerprint 'bb' in .*other, 'aa' in {one}$"
    ):
        common_configuration([one, fine_tuning(tmp_path / "other", seed=1, model_fingerprint="bb")])
    with pytest.raises(NEDSError, match="other is no finished run of `neds finetune`"):
        common_configuration([one, fine_tuning(tmp_path / "other", seed=1, finished=None)])


def test_a_fine_tuning_with_another_kind_of_setting_is_not_averaged(tmp_path):
    message = f"^{tmp_path}/run.json: expected a whole number 'configuration.seed', found \\[0\\]$"
    with pytest.raises(NEDSError, match=message):
        common_configuration([fine_tuning(tmp_path, seed=[0])])


def test_a_file_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "new" / "file.json", {"a": [1.5, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"a": [1.5, None], "b": {"c": None}}
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "file.json", {"a": object()})
    assert json.loads((tmp_path / "new" / "file.json").read_text())["b"] == {"c": None}


# --- evaluation ---


def test_evaluation_equals_the_metrics_of_the_collected_predictions(model_folder, dataset, tmp_path):
    """Batches that mix sessions of 5 and 9 units against one trial at a time and the plain functions."""
    trainer = make_trainer(dataset, model_folder, tmp_path, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()

    processor, model, validation = trainer.processor, trainer.model.eval(), trainer.eval_dataset
    found = {"ann": [], "bob": []}
    losses = []
    for batch in DataLoader(validation, batch_size=1, collate_fn=NEDSCollator(processor)):
        with torch.no_grad():
            encoded, decoded = (model(**batch, scheme=scheme) for scheme in ("encoding", "decoding"))
        losses.append(float(encoded.loss + decoded.loss))
        found[processor.session_ids[batch["session_index"]]].append((batch, encoded, decoded))

    means = []
    for session, trials in found.items():
        stacked = {
            "log_rates": torch.cat([encoded.log_rates for _, encoded, _ in trials]).numpy(),
            "counts": torch.cat([batch["spike_counts"] for batch, _, _ in trials]).numpy(),
        }
        expected = {
            "bits_per_spike": np.nanmean(functional.bits_per_spike(stacked["log_rates"], stacked["counts"])),
            "bits_per_spike_train_null": np.nanmean(
                functional.bits_per_spike(*stacked.values(), processor.mean_counts(session))
            ),
            "psth_r2": np.nanmean(functional.psth_r2(*stacked.values())),
        }
        selection = [expected["bits_per_spike"]]
        for name, classes in processor.behaviors.items():
            real = torch.cat([batch["behaviors"][name] for batch, _, _ in trials]).numpy()
            there = torch.cat([batch["available"][name] for batch, _, _ in trials]).numpy()
            predicted = torch.cat([decoded.predictions[name] for _, _, decoded in trials]).numpy()
            if classes is None:
                expected[f"{name}_r2"] = functional.r2(predicted[there], real[there])
                beyond = functional.r2_beyond_average(predicted[there], real[there])
                expected[f"{name}_r2_beyond_average"] = beyond
                selection.append(expected[f"{name}_r2"])
            else:
                expected[f"{name}_accuracy"] = functional.accuracy(predicted.argmax(1)[there], real[there])
                balanced = functional.balanced_accuracy(predicted.argmax(1)[there], real[there])
                expected[f"{name}_balanced_accuracy"] = balanced
                selection.append(expected[f"{name}_accuracy"])
        expected["mean"] = np.nanmean(selection)
        means.append(expected["mean"])
        for name, value in expected.items():
            assert metrics[f"eval_{session}/{name}"] == pytest.approx(value, abs=1e-5, nan_ok=True), name
    assert np.isnan(metrics["eval_bob/whisker_motion_energy_r2"])
    assert metrics["eval_mean"] == pytest.approx(np.mean(means), abs=1e-5)
    assert metrics["eval_choice_accuracy"] == pytest.approx(
        (metrics["eval_ann/choice_accuracy"] + metrics["eval_bob/choice_accuracy"]) / 2
    )
    whisker = metrics["eval_ann/whisker_motion_energy_r2"]
    assert metrics["eval_whisker_motion_energy_r2"] == pytest.approx(whisker)
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_another_split_can_be_evaluated(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path)
    test = ArrowTrials(open_recordings(dataset).only(["bob"]).split("test"))
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    reported = json.loads((model_folder / "metrics.json").read_text())["sessions"]["bob"]
    assert metrics["test_bob/choice_accuracy"] == pytest.approx(reported["choice_accuracy"])
    assert metrics["test_bob/bits_per_spike"] == pytest.approx(reported["bits_per_spike"], abs=1e-6)
    assert not any("ann/" in name for name in metrics)


# --- batches ---


def test_an_epoch_is_whole_batches_and_leaves_out_other_trials_every_time(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path, per_device_train_batch_size=8)
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([len(batch["session_index"]) for batch in loader])
    assert len(trainer.train_dataset) == 61 and epochs == [[8] * 7, [8] * 7]
    orders = [list(trainer._get_train_sampler()) for _ in range(2)]
    assert all(len(set(order)) == 56 for order in orders) and set(orders[0]) != set(orders[1])


def test_fewer_trials_than_one_batch_make_one_batch(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path, per_device_train_batch_size=100)
    assert [len(batch["session_index"]) for batch in trainer.get_train_dataloader()] == [61]
    split = {"per_device_train_batch_size": 50, "gradient_accumulation_steps": 2}
    trainer = make_trainer(dataset, model_folder, tmp_path, **split)
    with pytest.raises(NEDSError, match="61 training trials do not fill one batch of 100"):
        trainer.get_train_dataloader()


def test_weight_decay_leaves_rows_of_units_and_sessions_alone(model_folder, dataset, tmp_path):
    trainer = make_trainer(dataset, model_folder, tmp_path)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "encoder.blocks.0.up_proj.weight" in decayed and "spike_patch.weight" in decayed
    for name in ("unit_embedding", "unit_readout", "unit_bias", "session_embedding"):
        assert f"{name}.weight" not in decayed


def test_unit_weight_decay_shrinks_the_rows_of_the_sessions_of_a_step_and_no_others(
    model_folder, dataset, tmp_path
):
    """By learning rate times decay, beside a step of plain gradient descent that is known."""
    options = {"optim": "sgd", "learning_rate": 0.1, "unit_weight_decay": 0.5}
    trainer = make_trainer(dataset, model_folder, tmp_path, **options)
    rows = {
        name: getattr(trainer.model, name).weight for name in ("unit_embedding", "unit_readout", "unit_bias")
    }
    before = {name: weight.detach().clone() for name, weight in rows.items()}
    optimizer = trainer.create_optimizer()
    seen = trainer.model.unit_rows(trainer.processor.session_ids[0])
    for weight in rows.values():
        weight.grad = torch.zeros_like(weight)
        weight.grad[seen] = 2.0
    optimizer.step()
    for name, weight in rows.items():
        expected = before[name].clone()
        expected[seen] = (expected[seen] - 0.1 * 2.0) * (1.0 if name == "unit_bias" else 0.95)
        torch.testing.assert_close(weight.detach(), expected)


def test_a_trainer_that_trains_again_does_what_a_new_one_does(model_folder, dataset, tmp_path):
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1, "eval_strategy": "no"}
    options |= {"save_strategy": "no", "load_best_model_at_end": False}
    again, anew = (make_trainer(dataset, model_folder, tmp_path, **options) for _ in range(2))
    start = again.model.unit_readout.weight.detach().clone()
    again.train()
    again.train()
    anew.train()
    other = make_trainer(dataset, model_folder, tmp_path, **options)
    other.model.load_state_dict(anew.model.state_dict())
    other.train()
    assert not torch.equal(again.model.unit_readout.weight, start)
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, other.model.state_dict()[name], rtol=0, atol=0)
