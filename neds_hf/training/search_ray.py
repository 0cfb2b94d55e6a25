"""The same search spread over a cluster by Ray Tune, which trains models side by side and stops bad ones early."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import ray
import torch
from optuna.trial import Trial
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

from neds_hf.errors import NEDSError, one_line
from neds_hf.training.search import PRUNE_FROM, Reports, Train, place_of, results_of, settings_of, tell

SCHEDULERS = {
    # It would also pause models for others to catch up, and each goes on in a new process.
    "median": lambda: MedianStoppingRule(
        "percent", grace_period=PRUNE_FROM, min_samples_required=5, min_time_slice=100
    ),
    "halving": lambda: ASHAScheduler("percent", grace_period=PRUNE_FROM, max_t=100, reduction_factor=2),
    "none": FIFOScheduler,
}


def search_on_ray(
    study: optuna.Study, models: Iterator[Trial], folder: Path, num_models: int, train: Train, pruner: str
) -> None:
    """Train these models, as many at a time as the cluster has GPUs, or else CPUs.

    The cluster is that of `RAY_ADDRESS`, or this machine; the folder and the data are on a disk that all its
    machines share.

    Raises:
        KeyboardInterrupt: Ray was stopped.
    """
    left = {}
    for model in models:
        if results_of(place_of(folder, model.number)) is None:
            left[model.number] = model
        else:
            tell(study, model, folder, num_models)
    if not left:
        return
    here = Path.cwd()

    def train_one(config: dict) -> None:
        os.chdir(here)  # Ray's workers start elsewhere

        def report(value: float, percent: int) -> None:
            tune.report({"value": value, "percent": percent})

        reason = None
        try:
            train(config["model"]["settings"], place_of(folder, config["model"]["number"]), [Reports(report)])
        except (NEDSError, torch.OutOfMemoryError) as error:
            reason = one_line(error)
        if reason:
            raise NEDSError(reason)  # without its cause, which may not be picklable

    class Tell(tune.Callback):
        def on_trial_complete(self, iteration, trials, trial, **info):
            model = left.pop(trial.config["model"]["number"])
            stopped = results_of(place_of(folder, model.number)) is None
            if stopped:
                model.report(trial.last_result["value"], trial.last_result["percent"])
            tell(study, model, folder, num_models, stopped)

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    shutil.rmtree(folder / "ray", ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(train_one, {"cpu": 1, "gpu": gpus}),
        param_space={
            "model": tune.grid_search(
                [{"number": number, "settings": settings_of(model)} for number, model in left.items()]
            )
        },
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max" if study.direction.name == "MAXIMIZE" else "min",
            scheduler=SCHEDULERS[pruner](),
        ),
        run_config=tune.RunConfig(
            storage_path=str((folder / "ray").resolve()), name="search", callbacks=[Tell()], verbose=0
        ),
    )
    for result in tuner.fit():
        if result.error is not None:
            *_, reason = str(result.error).strip().splitlines()  # the last line of a traceback
            tell(study, left.pop(result.config["model"]["number"]), folder, num_models, reason=reason)
    if left:
        raise KeyboardInterrupt
