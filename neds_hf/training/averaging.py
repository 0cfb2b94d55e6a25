"""Fine-tunings that differ in the seed alone, as one model."""

from collections.abc import Sequence
from pathlib import Path

import torch

from neds_hf.data.files import check_content
from neds_hf.errors import NEDSError
from neds_hf.models.modeling_neds import NEDSModel
from neds_hf.training.runs import RUN_FILE, differing_settings, read_run

# The model that they start from goes by its weights, not by its path.
MAY_DIFFER = ("seed", "data_seed", "model")
# What is read of a configuration, for `check_content`.
READ = {"seed": int, "sessions": [str], "train_splits": [str], "data_fingerprint": str, "model": str}


def common_configuration(folders: Sequence[str]) -> dict:
    """The configuration of fine-tunings that are alike, with their `seeds`.

    Args:
        folders: Finished runs of `neds finetune`.

    Raises:
        NEDSError: One is no such run, or they differ in more than the seed, or two do not differ at all.
    """
    configurations = []
    for folder in folders:
        run = read_run(folder)
        configuration = run["configuration"]
        if configuration.get("command") != "finetune" or "finished" not in run:
            raise NEDSError(f"{folder} is no finished run of `neds finetune`, and only those are averaged")
        check_content(Path(folder, RUN_FILE), configuration, READ, "configuration")
        configurations.append(configuration)
    first, *others = ({k: v for k, v in c.items() if k not in MAY_DIFFER} for c in configurations)
    for folder, other in zip(folders[1:], others):
        if changed := ", ".join(differing_settings(other, first, f"in {folder}", f"in {folders[0]}")):
            raise NEDSError(f"only fine-tunings that differ in the seed alone are averaged: {changed}")
    seeds = [configuration["seed"] for configuration in configurations]
    if len(set(seeds)) < len(seeds):
        raise NEDSError(f"two of the fine-tunings are of the same seed: {', '.join(map(str, seeds))}")
    return {**first, "model": configurations[0]["model"], "seeds": seeds}


@torch.no_grad()
def average(models: Sequence[NEDSModel]) -> NEDSModel:
    """The first model, with the mean of all models' weights.

    Fine-tunings from the same weights predict so about as well as when their predictions are averaged (Wortsman et
    al., 2022, arXiv 2203.05482), and take a model's time and space; models with starts of their own predict
    nothing so.
    """
    states = [model.state_dict() for model in models]
    for name, weight in states[0].items():
        weight.copy_(torch.stack([state[name] for state in states]).mean(0))
    return models[0]
