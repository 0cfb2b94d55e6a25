"""Brain regions of units, predicted linearly from their embeddings or from plain statistics.

Features are tables with a row a unit. A unit's embedding is its row of the model, which no region was shown to.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    StratifiedGroupKFold,
    StratifiedKFold,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tqdm.auto import tqdm

from neds_hf.analysis.summary import Estimate
from neds_hf.data.recordings import Recordings
from neds_hf.errors import NEDSError
from neds_hf.metrics.functional import accuracy, balanced_accuracy
from neds_hf.models.modeling_neds import NEDSModel

FOLDS, INNER_FOLDS = 5, 3
INVERSE_PENALTIES = np.logspace(-4, 0, 5)
NOWHERE = ("", "root", "void")  # what atlases call places of no region
AVERAGE_TRIAL = "average_trial_"  # columns of which the classifier takes a few principal components
NUM_COMPONENTS = 5
FEWEST = 1e-3  # spikes, so that a silent unit has a logarithm


def unit_regions(
    units: pd.DataFrame,
    mapping: str = "allen",
    groups: Mapping[str, str] | None = None,
    regions: Collection[str] | None = None,
    min_units: int = FOLDS,
) -> tuple[pd.Series, dict[str, int]]:
    """The region of every unit that has one to be predicted.

    Args:
        units: Rows of a dataset's `units` table.
        mapping: Its column of acronyms: `"allen"`, `"beryl"` or `"cosmos"`.
        groups: Acronym to the class that it counts as; units of other acronyms are left out.
        regions: Only these acronyms, or classes of `groups`.
        min_units: Rarer ones are left out.

    Returns:
        Regions, with the index of their rows in `units`; reason to number of units that are left out.

    Raises:
        NEDSError: There are no regions, an asked one has no unit, or fewer than two are left.
    """
    acronyms = units[mapping]
    found = acronyms.where(~acronyms.isin(NOWHERE)).dropna()
    if found.empty:
        raise NEDSError(f"none of the {len(units)} units has a region in the mapping {mapping!r}")
    left_out = {"no region": len(units) - len(found)}
    if groups is not None:
        grouped = found.map(groups).dropna()
        left_out["not in a group"] = len(found) - len(grouped)
        found = grouped
    if regions is not None:
        if missing := sorted(set(regions) - set(found)):
            there = ", ".join(sorted(set(found))) or "none"
            raise NEDSError(f"no unit is in {', '.join(missing)}; regions of the units: {there}")
        chosen = found[found.isin(regions)]
        left_out["not among the chosen regions"] = len(found) - len(chosen)
        found = chosen
    common = found[found.map(found.value_counts()) >= min_units]
    left_out[f"in a region of fewer than {min_units} units"] = len(found) - len(common)
    if common.nunique() < 2:
        counts = ", ".join(f"{region} {count}" for region, count in found.value_counts().items()) or "none"
        raise NEDSError(f"two regions of {min_units} units or more are needed; units of each: {counts}")
    return common, {reason: number for reason, number in left_out.items() if number}


def unit_features(model: NEDSModel, recordings: Recordings) -> dict[str, pd.DataFrame]:
    """Features to predict regions from, with a row a unit, as in the recordings' `units`.

    Returns:
        Name to features:

        - `"chance"`: none;
        - `"rate"`: logarithm of the mean count alone;
        - `"statistics"`: `unit_statistics` of the training trials;
        - `"tokenizer"` (not with `tied_units`) and `"readout"`: rows of the model. Sessions share their space, as
          they share the encoder; but with the tokenizer `"mlp"` the former are the first of two layers, of which
          every session has a second of its own;
        - `"tokenizer + readout"`: side by side;
        - `"readout + statistics"` or `"tokenizer + readout + statistics"`: all that there is.
    """
    tables = {"tokenizer": getattr(model, "unit_embedding", None), "readout": model.unit_readout}
    tables = {name: table for name, table in tables.items() if table is not None}
    parts = {name: [] for name in ("statistics", *tables)}
    for session, units in recordings.units.sort_values("unit_index").groupby("session"):
        statistics = unit_statistics(recordings.trials(session, "train").spike_counts)
        parts["statistics"].append(statistics.set_index(units.index))
        for name, table in tables.items():
            rows = table.weight[model.unit_rows(session)].detach().float().cpu().numpy()
            parts[name].append(pd.DataFrame(rows, units.index).add_prefix(f"{name}_"))
    found = {name: pd.concat(of_sessions).loc[recordings.units.index] for name, of_sessions in parts.items()}
    features = {
        "chance": pd.DataFrame(index=recordings.units.index),
        "rate": found["statistics"][["rate"]],
        **found,
    }
    for names in (list(tables), [*tables, "statistics"]):
        features[" + ".join(names)] = pd.concat([found[name] for name in names], axis="columns")
    return features


def unit_statistics(spike_counts: np.ndarray) -> pd.DataFrame:
    """What plain statistics say of units: a row a unit.

    Args:
        spike_counts: (B, T, N) spikes per bin of training trials of one session.

    Returns:
        Natural logarithms of `rate` (mean count), `fano_bins` and `fano_trials` (variance / mean of the counts of
        bins and of trials) and `modulation` (range of the smoothed average trial / mean); `peak_bin` of the
        average trial; and its T bins, less their mean, over the root of the mean (`average_trial_…`).
    """
    counts = np.asarray(spike_counts, np.float64)
    mean = counts.mean((0, 1))
    average = gaussian_filter1d(counts.mean(0), 1, axis=0, mode="nearest")
    trials = counts.sum(1)
    table = {
        "rate": np.log(mean + FEWEST),
        "fano_bins": np.log((counts.var((0, 1)) + FEWEST) / (mean + FEWEST)),
        "fano_trials": np.log((trials.var(0) + FEWEST) / (trials.mean(0) + FEWEST)),
        "modulation": np.log((np.ptp(average, axis=0) + FEWEST) / (mean + FEWEST)),
        "peak_bin": average.argmax(0).astype(float),
    }
    shapes = (average - average.mean(0)) / np.sqrt(mean + FEWEST)
    return pd.DataFrame({**table, **{f"{AVERAGE_TRIAL}{bin}": shape for bin, shape in enumerate(shapes)}})


@dataclass
class Predictions:
    """Regions of units, each predicted by a classifier that had not seen the unit.

    Attributes:
        regions, predicted: (units,) the real ones and the predicted ones.
        folds: (units,) the fold of which each was a test unit.
    """

    regions: np.ndarray
    predicted: np.ndarray
    folds: np.ndarray

    @property
    def scores(self) -> dict[str, Estimate]:
        """`accuracy` and `balanced_accuracy`: mean and standard error over the folds."""
        scores = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}
        names, real = np.unique(self.regions, return_inverse=True)
        predicted = np.searchsorted(names, self.predicted)
        return {
            name: Estimate(
                [score(predicted[self.folds == f], real[self.folds == f]) for f in np.unique(self.folds)]
            )
            for name, score in scores.items()
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The scores, each with its `…_standard_error`, and the number of folds, for a file."""
        metrics = {"num_folds": len(np.unique(self.folds))}
        for name, score in self.scores.items():
            metrics |= {name: float(score), f"{name}_standard_error": float(score.standard_error)}
        return metrics

    @property
    def confusion(self) -> pd.DataFrame:
        """Number of units: a row a real region, a column a predicted one."""
        names = np.unique(self.regions)
        table = pd.crosstab(
            pd.Series(self.regions, name="region"), pd.Series(self.predicted, name="predicted")
        )
        return table.reindex(index=names, columns=names, fill_value=0)


def predict_regions(
    features: Mapping[str, pd.DataFrame], regions: np.ndarray, sessions: np.ndarray, by: str, seed: int = 0
) -> dict[str, Predictions]:
    """Predict the region of every unit by a linear support vector machine that was trained on other units.

    Features are standardised, classes weigh the same, and the penalty is chosen by cross-validation of the
    balanced accuracy within the training units, split as the outer folds are. Means, principal components and
    penalties know nothing of test units.

    Args:
        features: Name to (units, features). A table without columns has the commonest region of the training units
            predicted for every unit: what chance gives.
        regions, sessions: (units,) region and session of each unit.
        by: `"unit"`: five folds stratified over all units (as in the paper), so that units of a test unit's own
            session are in training, and what makes a session recognisable helps. `"session"`: no unit of a test
            session is in training; five folds of sessions, or one a session where there are fewer.
        seed: Shuffles units or sessions into folds.

    Returns:
        Name to its predictions.

    Raises:
        NEDSError: Too few sessions, or too few units of their regions, to train on.
    """
    regions, sessions = np.asarray(regions, str), np.asarray(sessions, str)
    if by == "session" and len(np.unique(sessions)) < 2:
        raise NEDSError("a split by session needs two sessions at least")
    split = _folds(regions, sessions, by, FOLDS, seed)
    predictions = {
        name: Predictions(regions, regions.copy(), np.empty(len(regions), int)) for name in features
    }
    for fold, (train, test) in enumerate(tqdm(split, desc=f"folds by {by}")):
        names, counts = np.unique(regions[train], return_counts=True)
        if len(names) < 2 or counts.max() < INNER_FOLDS:
            raise NEDSError(
                f"too few units to learn from in the sessions {', '.join(np.unique(sessions[train]))}: "
                + ", ".join(f"{name} {count}" for name, count in zip(names, counts))
            )
        inner = _inner_folds(regions[train], sessions[train], by, seed)
        for name, table in features.items():
            predictions[name].folds[test] = fold
            with warnings.catch_warnings():  # of regions that an inner fold has no unit of
                warnings.filterwarnings("ignore", "y_pred contains classes|A single label")
                classifier = _classifier(table, inner).fit(table.iloc[train], regions[train])
            predictions[name].predicted[test] = classifier.predict(table.iloc[test])
    return predictions


def _folds(regions, sessions, by, number, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test units of every fold."""
    num_sessions = len(np.unique(sessions))
    if by == "unit" or num_sessions < 2:
        sessions, folds = None, StratifiedKFold(number, shuffle=True, random_state=seed)
    elif num_sessions < number:
        folds = LeaveOneGroupOut()
    else:
        folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return list(folds.split(regions, regions, sessions))


def _inner_folds(regions, sessions, by, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of training units to choose a penalty on: by session only where there are sessions enough for it."""
    for how in (by, "unit"):
        folds = _folds(regions, sessions, how, INNER_FOLDS, seed)
        if folds := [(train, test) for train, test in folds if len(np.unique(regions[train])) > 1]:
            break
    return folds


def _classifier(features: pd.DataFrame, inner) -> DummyClassifier | GridSearchCV:
    if features.shape[1] == 0:
        return DummyClassifier()
    num_bins = features.columns.str.startswith(AVERAGE_TRIAL).sum()
    num_components = min(NUM_COMPONENTS, num_bins, *(len(train) for train, _ in inner))
    pipeline = make_pipeline(
        make_column_transformer(
            (PCA(num_components), make_column_selector(f"^{AVERAGE_TRIAL}")), remainder="passthrough"
        ),
        StandardScaler(),
        LinearSVC(class_weight="balanced", dual=False),
    )
    return GridSearchCV(pipeline, {"linearsvc__C": INVERSE_PENALTIES}, scoring="balanced_accuracy", cv=inner)
