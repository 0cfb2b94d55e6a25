"""The card of a model folder, from what the folder's own files say."""

import json
from math import prod
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from neds_hf.cards.rendering import origin_in_words, render
from neds_hf.errors import NEDSError

# How the names of the metrics of spikes begin; the others are of behaviours.
OF_SPIKES = ("bits_per_spike", "psth_r2")
NO_RESULTS = ("mean", "silent_units")  # what the best model was chosen by; a count


def write_model_card(folder: Path) -> None:
    """Write ``README.md`` into a model folder, with metadata for the Hub.

    Read are `config.json`, `processor_config.json` and the shapes of the weights; where they are there, `run.json`
    (what it was trained on), `metrics.json` (of the test trials), files of `neds evaluate`, and `conversion.json`.

    Raises:
        NEDSError: There is no model in the folder, or it has no sessions.
    """
    folder = Path(folder)
    files = {file.name: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    for needed in ("config.json", "processor_config.json"):
        if needed not in files:
            raise NEDSError(f"{folder} is no model folder: it has no {needed}")
    config, conversion = files["config.json"], files.get("conversion.json")
    if not config.get("session_ids"):
        raise NEDSError(f"{folder}: the model has no sessions, and nothing to say of what it predicts")
    run = files.get("run.json", {})
    data = run.get("data", {"origins": {}, "license": "unknown", "hub_id": None})
    base = run.get("base")
    adapter = "adapter_config.json" in files
    scores = files.get("metrics.json", {"mean": {}, "sessions": {}})
    results = {name: value for name, value in scores["mean"].items() if value is not None}
    name = folder.resolve().name
    eval_results = _eval_results(results, data) if "name" in data else None
    card = render(
        "model.md",
        ModelCardData(
            model_name=name if eval_results else None,
            library_name="peft" if adapter else "transformers",
            pipeline_tag="other",
            license=data["license"],
            datasets=[data["hub_id"]] if data["hub_id"] else None,
            base_model=base["hub_id"] if base else None,
            tags=["neuroscience", "electrophysiology", "neds", *sorted({*data["origins"]} - {"unknown"})],
            eval_results=eval_results,
        ),
        name=name,
        origin=origin_in_words(data["origins"]),
        config=config,
        processor=files["processor_config.json"],
        adapter=adapter,
        num_parameters=_num_parameters(folder),
        run=run,
        data=data,
        base=base,
        results=_rows(results, scores["sessions"]),
        num_scored=len(scores["sessions"]),
        evaluations={file: content for file, content in files.items() if _is_evaluation(content)},
        conversion=conversion,
        unscaled=_unscaled(config, conversion) if conversion else [],
    )
    (folder / "README.md").write_text(card)


def _eval_results(results: dict[str, float], data: dict) -> list[EvalResult] | None:
    """For the Hub's `model-index`."""
    return [
        EvalResult(
            task_type="neural-encoding" if metric.startswith(OF_SPIKES) else "neural-decoding",
            dataset_type=data["hub_id"] or data["name"],
            dataset_name=data["name"],
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in results.items()
        if metric not in NO_RESULTS
    ] or None


def _rows(results: dict[str, float], sessions: dict[str, dict]) -> list[tuple[str, float, float, float]]:
    """Metric, mean over sessions, lowest and highest of a session."""
    rows = []
    for metric, mean in results.items():
        values = [scores[metric] for scores in sessions.values() if scores.get(metric) is not None]
        rows.append((metric, mean, min(values), max(values)))
    return rows


def _num_parameters(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as weights:
            for name in weights.keys():
                total += prod(weights.get_slice(name).get_shape())
    return total


def _is_evaluation(content) -> bool:
    configuration = content.get("configuration") if isinstance(content, dict) else None
    return isinstance(configuration, dict) and configuration.get("command") == "evaluate"


def _unscaled(config: dict, conversion: dict) -> list[str]:
    """Continuous behaviours of which a converted model lacks the range in some session."""
    continuous = [modality["name"] for modality in config["modalities"] if modality["kind"] == "continuous"]
    ranges = [conversion["sessions"][session]["ranges"] for session in config["session_ids"]]
    return sorted(name for name in continuous if not all(name in known for known in ranges))
