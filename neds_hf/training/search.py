"""A search for settings, on Optuna: models with drawn settings are trained one by one, bad ones stopped early.

The folder of a search holds its database (`search.db`), a table (`trials.csv`) and a folder for every model, of
which only the records are kept. What was cut off goes on: the n-th model has the same settings whenever it is
drawn, and one that was half trained goes on from its checkpoint.

A model is here what Optuna calls a trial; trials are else those of the animals.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError
from transformers import TrainerCallback

from neds_hf.data.files import written_whole
from neds_hf.errors import NEDSError, one_line
from neds_hf.training.runs import RUN_FILE, read_run
from neds_hf.training.trainer import Diverged

# Trains a model with these settings in this folder (`fit`), or goes on with it.
Train = Callable[[dict[str, str], Path, list[TrainerCallback]], object]

SAMPLERS = {"random": RandomSampler, "tpe": TPESampler}
PRUNE_FROM = 25  # percent of a training: before, the learning rate warms up
PRUNERS = {
    "median": MedianPruner(n_startup_trials=5, n_warmup_steps=PRUNE_FROM),
    "halving": SuccessiveHalvingPruner(min_resource=PRUNE_FROM, reduction_factor=2),
    "none": NopPruner(),
}
RECORDS = {RUN_FILE, "metrics.json", "trainer_state.json"}  # what is kept of a model


class Reports(TrainerCallback):
    """Hands on the metric that models are chosen by, once a percent of the training, but for its end.

    Args:
        report: Called with the metric and the percent.
        after: The last percent that was reported before.
    """

    def __init__(self, report: Callable[[float, int], None], after: int = 0):
        self.report, self.last = report, after

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        percent = 100 * state.global_step // state.max_steps
        if self.last < percent < 100:
            self.last = percent
            self.report(metrics[f"eval_{args.metric_for_best_model.removeprefix('eval_')}"], percent)


def distribution_of(values: dict, number: type | None) -> BaseDistribution:
    """What a setting is drawn from.

    Args:
        values: `{"choices": [...]}`, or `{"low": ..., "high": ...}` with both ends included and, to draw evenly on
            a logarithmic scale, `"log": True`.
        number: `int` or `float` for a setting that is one.

    Returns:
        The distribution; choices are text, as on the command line.

    Raises:
        ValueError: It is neither of the two, or a range is empty, of no number, or logarithmic from zero.
    """
    keys = set(values) if isinstance(values, dict) else set()
    if keys == {"choices"} and isinstance(values["choices"], list) and values["choices"]:
        return CategoricalDistribution(
            [choice if isinstance(choice, str) else json.dumps(choice) for choice in values["choices"]]
        )
    if number and {"low", "high"} <= keys <= {"low", "high", "log"}:
        low, high, log = number(str(values["low"])), number(str(values["high"])), values.get("log", False)
        if -math.inf < low < high < math.inf and (log is False or (log is True and low > 0)):
            return (IntDistribution if number is int else FloatDistribution)(low, high, log=log)
    expected = "{choices: [...]}" + (
        " or {low: ..., high: ..., log: ...} with low below high, and above 0 where log is true"
        * bool(number)
    )
    raise ValueError(f"expected {expected}, not {values!r}")


def forget_untrained(folder: Path) -> None:
    """Let a search begin anew where it has not trained any model, not even to a first checkpoint."""
    database = folder / "search.db"
    if read_run(folder)["configuration"].get("command") != "search":
        return
    begun = [*folder.glob("trials/*/checkpoint-*"), *folder.glob("trials/*/metrics.json")]
    if begun or (database.exists() and trained(open_study(folder))):
        return
    database.unlink(missing_ok=True)
    shutil.rmtree(folder / "trials", ignore_errors=True)
    (folder / RUN_FILE).unlink()


@contextmanager
def usable_database(folder: Path) -> Iterator[None]:
    """While the database of a folder is read and written.

    Raises:
        NEDSError: It cannot be, as on a full disc.
    """
    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        # Optuna wraps what SQLAlchemy, which wraps what SQLite raises on a commit.
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = getattr(cause, "orig", cause)
        raise NEDSError(
            f"{folder / 'search.db'} cannot be used as a database ({reason}); run again to go on; where it is "
            "damaged, a search without it goes on from what its models wrote"
        ) from error


def open_study(folder: Path, pruner: str = "none", maximize: bool = True) -> optuna.Study:
    """The study of a folder; begun where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=URL.create("sqlite", database=str(folder / "search.db")).render_as_string(),
        study_name="search",
        direction="maximize" if maximize else "minimize",
        pruner=PRUNERS[pruner],
        load_if_exists=True,
    )
    study.get_trials(deepcopy=False)  # reads them all
    return study


def unfinished(
    study: optuna.Study, space: dict[str, BaseDistribution], num_models: int, sampler: str, seed: int
) -> Iterator[Trial]:
    """What was begun and not finished, then new draws, until there are `num_models`."""
    known = study.get_trials(deepcopy=False)
    begun = {trial.number: trial._trial_id for trial in known if not trial.state.is_finished()}
    for number in [*begun, *range(len(known), num_models)]:
        draws = np.random.SeedSequence([seed, number]).generate_state(1)
        study.sampler = SAMPLERS[sampler](seed=int(draws[0]))
        trial = Trial(study, begun[number]) if number in begun else study.ask()
        for name, distribution in space.items():
            trial._suggest(name, distribution)  # as it was drawn, or else draws it
        yield trial


def search(study: optuna.Study, models: Iterator[Trial], folder: Path, num_models: int, train: Train) -> None:
    """Train these models, one after the other.

    Raises:
        NEDSError: The first model cannot be trained: what all have in common is then wrong. Later ones fail alone.
    """
    for trial in models:
        place = place_of(folder, trial.number)

        def report(value: float, percent: int, trial: Trial = trial) -> None:
            trial.report(value, percent)
            if trial.should_prune():
                raise optuna.TrialPruned

        stopped, reason = False, None
        if results_of(place) is None:
            last = study.trials[trial.number].last_step
            try:
                train(settings_of(trial), place, [Reports(report, last or 0)])
            except optuna.TrialPruned:
                stopped = True
            except (NEDSError, torch.OutOfMemoryError) as error:
                if not isinstance(error, Diverged) and not trained(study):
                    raise NEDSError(f"{in_words(trial.params)}: {error}") from error
                reason = one_line(error)
        tell(study, trial, folder, num_models, stopped, reason)


def trained(study: optuna.Study) -> bool:
    """Whether one of its models was trained, at least until it was stopped early."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def tell(
    study: optuna.Study,
    trial: Trial,
    folder: Path,
    num_models: int,
    stopped: bool = False,
    reason: str | None = None,
) -> None:
    """Note how a model came out, keep its records, and say it.

    Args:
        stopped: Whether it was stopped early; its value is then the last one reported.
        reason: Why it failed.
    """
    place = place_of(folder, trial.number)
    value = (results_of(place) or {}).get("best_validation")
    if stopped:
        study.tell(trial, state=TrialState.PRUNED)
        last = study.trials[trial.number].last_step
        outcome = f"{study.trials[trial.number].intermediate_values[last]:.4f}, stopped at {last} %"
    elif value is None:
        reason = reason or "its metric on validation is not a number"
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        outcome = f"failed: {reason}"
    else:
        study.tell(trial, value)
        outcome = f"{value:.4f}"
    for path in place.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in RECORDS:
            path.unlink()
    with written_whole(folder / "trials.csv") as unfinished:
        table_of(study).to_csv(unfinished, index=False)
    print(f"{trial.number + 1}/{num_models}  {in_words(trial.params)}: {outcome}", flush=True)


def place_of(folder: Path, number: int) -> Path:
    """Folder of a model."""
    return folder / "trials" / f"{number:03d}"


def settings_of(trial: Trial | FrozenTrial) -> dict[str, str]:
    """Its settings as on the command line."""
    return {name: str(value) for name, value in trial.params.items()}


def in_words(params: dict) -> str:
    """Settings in a line, numbers with three digits."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
    )


def results_of(folder: Path) -> dict | None:
    """What a finished run wrote down; None of one that is not finished."""
    return read_run(folder).get("results")


def best_of(study: optuna.Study) -> FrozenTrial:
    """The best of the whole trainings.

    Raises:
        NEDSError: There is none.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        reasons = [trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs]
        raise NEDSError(f"none of {len(study.trials)} models could be trained: {reasons[0]}")
    return study.best_trial


def table_of(study: optuna.Study) -> pd.DataFrame:
    """A row a model: its state, its best validation metric (of a stopped one the last), its settings."""
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            **trial.params,
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in study.trials
    )
