"""`neds finetune`: every flag of its own, its errors and its exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_dataset import BEHAVIORS, OPTIONS, pretrain_arguments, simulate, write_dataset

from neds_hf.cli.finetune import SETTABLE, FinetuneArguments, prepare
from neds_hf.cli.main import main
from neds_hf.cli.search import parser_of
from neds_hf.data.recordings import open_recordings
from neds_hf.data.storage import Source, convert
from neds_hf.models import NEDSConfig
from neds_hf.training.arguments import NEDSTrainingArguments
from neds_hf.training.sessions import load_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("strategy", ["session", "full"])
def test_a_new_animal_is_added_and_scored(model_folder, tmp_path, capsys, finetune_arguments, strategy):
    assert main(["finetune", *finetune_arguments(model_folder, tmp_path), "--strategy", strategy]) == 0
    assert "cat" in capsys.readouterr().out
    model, processor = load_model(str(tmp_path))
    assert processor.session_ids == model.config.session_ids == ["ann", "bob", "cat"]
    configuration = json.loads((tmp_path / "run.json").read_text())["configuration"]
    assert configuration["strategy"] == strategy and configuration["model"] == str(model_folder)
    assert configuration["sessions"] == ["cat"]
    assert set(json.loads((tmp_path / "metrics.json").read_text())["sessions"]) == {"cat"}
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path))
    encoder_is_as_before = torch.equal(
        before["encoder.blocks.0.up_proj.weight"], after["encoder.blocks.0.up_proj.weight"]
    )
    assert encoder_is_as_before == (strategy == "session")
    assert torch.equal(before["unit_embedding.weight"], after["unit_embedding.weight"][:14])


def test_a_model_saved_in_half_precision_learns_as_others_do(model_folder, tmp_path, finetune_arguments):
    model, processor = load_model(str(model_folder))
    for part in (model.bfloat16(), processor):
        part.save_pretrained(tmp_path / "half")
    arguments = [*finetune_arguments(tmp_path / "half", tmp_path / "cat"), "--learning_rate", "1e-4"]
    assert main(["finetune", *arguments]) == 0
    before, after = (load_model(str(tmp_path / name))[0].encoder.state_dict() for name in ("half", "cat"))
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        assert (weight != before[name]).float().mean() > 0.9, name


def test_the_defaults_are_what_the_page_of_results_found_best(dataset, model_folder, tmp_path):
    where = ("--model", model_folder, "--dataset", dataset, "--session", "cat", "--output", tmp_path)
    assert main(["finetune", *map(str, where), *"--max_steps 1 --use_cpu --disable_tqdm true".split()]) == 0
    configuration = json.loads((tmp_path / "run.json").read_text())["configuration"]
    best = {"strategy": "full", "learning_rate": 1e-3, "num_train_epochs": 60, "unit_weight_decay": 3}
    assert {name: configuration[name] for name in best} == best
    _, search = parser_of(["--model", "any"])
    assert {name: search.get_default(name) for name in best} == best


def test_a_behaviour_that_the_model_does_not_know_is_said_to_be_left_out(
    model_folder, tmp_path, capsys, error_of, finetune_arguments
):
    def read(only_pupil: bool):
        recording = simulate("cat")
        pupil = {"pupil": recording.continuous["wheel_speed"]}
        if only_pupil:
            return replace(recording, continuous=pupil, categorical={}, classes={})
        return replace(recording, continuous=recording.continuous | pupil)

    for name, behaviors in (("both", {**BEHAVIORS, "pupil": None}), ("pupil", {"pupil": None})):
        source = Source("cat", name, lambda name=name: read(name == "pupil"))
        convert(tmp_path / name, [source], OPTIONS, behaviors)
    arguments = finetune_arguments(model_folder, tmp_path / "out")
    arguments[arguments.index("--dataset") + 1] = str(tmp_path / "both")
    assert main(["finetune", *arguments]) == 0
    assert f"{model_folder} does not know pupil of {tmp_path / 'both'}" in capsys.readouterr().err
    arguments = finetune_arguments(model_folder, tmp_path / "none")
    arguments[arguments.index("--dataset") + 1] = str(tmp_path / "pupil")
    assert f"none of the behaviours of {model_folder}" in (error := error_of("finetune", *arguments))
    assert error.endswith("choice, block, wheel_speed, whisker_motion_energy, found pupil")


def test_an_animal_whose_dataset_orders_classes_otherwise_gives_the_same(
    model_folder, dataset, tmp_path, finetune_arguments
):
    """In a dataset of its own an animal has the classes that it was seen to have, sorted."""

    def read():
        recording = simulate("cat")
        recording.classes = {**recording.classes, "choice": ("left", "right")}
        recording.categorical["choice"] = 1 - recording.categorical["choice"]
        return recording

    alone = tmp_path / "alone"
    convert(alone, [Source("cat", "", read)], OPTIONS, {**BEHAVIORS, "choice": ("left", "right")})
    scores = {}
    for name, data in (("known", dataset), ("alone", alone)):
        argv = ["--dataset", str(data), "--session", "cat"]
        out, report = tmp_path / name / "model", tmp_path / name / "report.json"
        assert main(["finetune", *finetune_arguments(model_folder, out), *argv]) == 0
        assert main(["evaluate", "--model", str(out), *argv, "--output", str(report)]) == 0
        scores[name] = [json.loads(file.read_text())["sessions"] for file in (out / "metrics.json", report)]
    assert scores["known"] == scores["alone"]


@pytest.mark.parametrize("fold", [None, 1])
def test_several_sessions_new_and_known(model_folder, tmp_path, capsys, finetune_arguments, fold):
    """Of a known one, trials that the model may have learned from must not be called test trials in silence."""
    argv = [*finetune_arguments(model_folder, tmp_path), "--session", "cat", "ann"]
    if fold:
        other = write_dataset(tmp_path / "other", options=replace(OPTIONS, fold=fold))
        argv += ["--dataset", str(other)]
    assert main(["finetune", *argv]) == 0
    warning = "for session ann (another --fold?): it may have learned from test trials"
    assert (warning in capsys.readouterr().err) == bool(fold)
    assert set(json.loads((tmp_path / "metrics.json").read_text())["sessions"]) == {"ann", "cat"}
    assert load_model(str(tmp_path))[0].config.session_ids == ["ann", "bob", "cat"]


def test_the_model_it_starts_from_belongs_to_the_run(model_folder, tmp_path, error_of, finetune_arguments):
    """A folder whose model was trained anew is another start, and not the same run, finished."""
    assert main(["finetune", *finetune_arguments(model_folder, tmp_path)]) == 0
    assert "finished" in error_of("finetune", *finetune_arguments(model_folder, tmp_path))
    run = json.loads((tmp_path / "run.json").read_text())
    run["configuration"]["model_fingerprint"] = "of other weights"
    (tmp_path / "run.json").write_text(json.dumps(run))
    error = error_of("finetune", *finetune_arguments(model_folder, tmp_path))
    assert "model_fingerprint 'of other weights' there" in error


def test_settings_of_the_training_reach_the_model_and_its_folder(
    model_folder, tmp_path, error_of, finetune_arguments
):
    given = {
        "mask_ratio": 0.4,
        "scheme_weights": {"encoding": 1, "decoding": 2},
        "single_behavior_probability": 0.25,
        "within_modality_context": True,
        "masks_per": "batch",
        "loss": "published",
        "loss_weights": {"spikes": 2.5},
        "label_smoothing": 0.1,
        "hidden_dropout": 0.15,
        "attention_dropout": 0.25,
        "unit_dropout": 0.35,
    }
    assert set(given) == set(SETTABLE)
    before = NEDSConfig.from_pretrained(model_folder)
    assert not [name for name, value in given.items() if getattr(before, name) == value]
    pairs = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()
    ]
    argv = [*finetune_arguments(model_folder, tmp_path), "--set", *pairs[:4], "--set", *pairs[4:]]
    assert main(["finetune", *argv]) == 0
    model, _ = load_model(str(tmp_path))
    assert {name: getattr(model.config, name) for name in given} == given
    assert json.loads((tmp_path / "run.json").read_text())["configuration"]["set"] == given
    # What is not set is the model's own, and another value is another run.
    assert model.config.hidden_size == 16 and model.config.session_ids == ["ann", "bob", "cat"]
    assert "set.mask_ratio 0.4 there, 0.5 asked for" in error_of("finetune", *argv, "--set", "mask_ratio=0.5")


def test_a_dropout_that_is_set_is_there_in_training(model_folder, dataset, tmp_path):
    recordings = open_recordings(dataset).only(["cat"])
    args = NEDSTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    settings = {"hidden_dropout": 0.15, "attention_dropout": 0.25}
    model, _, _ = prepare(recordings, args, str(model_folder), "full", settings)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.15}
    assert {block.attention.config.attention_dropout for block in model.encoder.blocks} == {0.25}
    trained = load_file(model_folder / "model.safetensors")["encoder.blocks.0.up_proj.weight"]
    assert torch.equal(model.encoder.blocks[0].up_proj.weight, trained)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("hidden_size=8", "--set takes NAME=VALUE, not 'hidden_size=8'; the names are mask_ratio, "),
        ("mask_ratio", "--set takes NAME=VALUE, not 'mask_ratio'"),
        ("mask_ratio=1.5", "cannot be configured so: mask_ratio must be at least 0 and below 1, not 1.5"),
        ("hidden_dropout=much", "hidden_dropout"),
        ('loss_weights={"pupil": 1}', "names a modality that is not in"),
        ("masks_per=epoch", "masks_per is 'trial' or 'batch', not 'epoch'"),
    ],
)
def test_what_cannot_be_set_is_refused(model_folder, tmp_path, error_of, finetune_arguments, pair, message):
    argv = [*finetune_arguments(model_folder, tmp_path / "out"), "--set", pair]
    assert message in error_of("finetune", *argv)
    assert not (tmp_path / "out").exists()


def test_a_new_animal_is_scaled_as_those_of_pretraining(dataset, tmp_path, finetune_arguments):
    where = [*pretrain_arguments(dataset, tmp_path / "model"), "--sessions", "ann", "--scaling", "zero_one"]
    assert main(["pretrain", *where, "--max_steps", "1"]) == 0
    assert main(["finetune", *finetune_arguments(tmp_path / "model", tmp_path / "out")]) == 0
    _, processor = load_model(str(tmp_path / "out"))
    train = open_recordings(dataset).trials("cat", "train").continuous["wheel_speed"]
    scaled = processor.scale("cat", "wheel_speed", train)
    assert (scaled.min(), scaled.max()) == pytest.approx((0, 1), abs=1e-6)


def test_an_unknown_session_is_named(model_folder, tmp_path, error_of, finetune_arguments):
    argv = [*finetune_arguments(model_folder, tmp_path / "out"), "--session", "eve"]
    assert "does not have session eve" in error_of("finetune", *argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model", "nowhere"], "no model folder nowhere"),
        (["--dataset", "nowhere"], "no dataset folder nowhere"),
        (["--dataset", str(EXAMPLES)], "is no dataset folder: it has no README.md"),
        (["--metric_for_best_model", "cat/speed_r2"], "there is no 'cat/speed_r2'"),
        (["--model", str(EXAMPLES)], f"{EXAMPLES} is no model folder"),
    ],
)
def test_what_is_not_there_is_named(model_folder, tmp_path, error_of, finetune_arguments, change, message):
    assert message in error_of("finetune", *finetune_arguments(model_folder, tmp_path / "out"), *change)


def test_a_known_session_with_other_units_is_refused(model_folder, tmp_path, error_of, finetune_arguments):
    other = write_dataset(tmp_path / "other", ["ann"], replace(OPTIONS, min_rate_hz=9.0))
    argv = [*finetune_arguments(model_folder, tmp_path / "out"), "--dataset", str(other), "--session", "ann"]
    assert f"session ann has other units in {other} than in the model" in error_of("finetune", *argv)


def test_the_help_lists_every_flag_with_its_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["finetune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in FinetuneArguments.__dataclass_fields__.items():
        assert f"--{name}" in text and field.metadata["help"] in text
    assert "--output" in text and "--seed" in text and "--push_to_hub" in text
