"""Trial arrays of any rig (one ``.npz`` a session) as recordings.

A file holds `meta`, a JSON string with `session`, `bin_size_s`, `align_event`, `window_s` and, where known,
`subject`, `lab`, `date`, `source`; `spike_counts` (trials, bins, units); and any of `unit_uuid`, `unit_region`
(units,), `trial_index` (trials,), `reaction_time_s` (trials,) and behaviours, (trials, bins) or (trials,).
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from neds_hf.data.alf import brain_regions
from neds_hf.data.schema import (
    IBL_BEHAVIORS,
    IBL_CLASSES,
    TRIAL_COLUMNS,
    Behaviors,
    ConversionOptions,
    Recording,
    kept_trials,
)
from neds_hf.data.storage import Source
from neds_hf.errors import NEDSError, require

META_KEYS = ("session", "bin_size_s", "align_event", "window_s")
NO_BEHAVIORS = (*TRIAL_COLUMNS, "meta", "unit_uuid", "unit_region")
# What stands beside behaviours: in a model, and in the files of `neds predict`.
TAKEN_NAMES = ("spikes", "times_s", "unit_index", "log_rates")

# More values than these, and than half as many as there are trials, are no classes but a continuous variable.
MAX_CLASSES = 20


def read_arrays(
    path: str | Path,
    options: ConversionOptions | None,
    behaviors: Iterable[str] | None = None,
    classes: dict[str, tuple[str, ...]] | None = None,
) -> Recording:
    """Read one file of trial arrays.

    Args:
        options: Only the reaction-time limits apply, where the file has `reaction_time_s`: window, bin size
            and event are those of the file's `meta`. None drops no trial.
        behaviors: Variables besides the IBL ones that the file must hold: (trials, bins) is continuous,
            (trials,) categorical. `choice` (-1 right, +1 left, 0 no-go: missing, and with `options` the trial
            is dropped), `block` or `probability_left` (0.2, 0.5, 0.8), `wheel_speed` and
            `whisker_motion_energy` are read where present.
        classes: Class names of the named categorical behaviours, where other files have other values too
            (`classes_of`).

    Raises:
        NEDSError: The file is no such file, or an array is missing, of a wrong shape or holds impossible
            values.
    """
    path = Path(path)
    arrays = _open(path)
    meta = _meta(path, arrays)
    counts = _spike_counts(path, arrays, meta)
    shape = counts.shape
    kinds = _behavior_kinds(path, arrays, behaviors or ())
    names = [name for name, kind in kinds.items() if kind == "categorical" and name not in IBL_CLASSES]
    classes = {**classes_of([path], names), **(classes or {}), **IBL_CLASSES}

    continuous, categorical = {}, {}
    for name, kind in kinds.items():
        values = _array(path, arrays, _array_name(arrays, name), shape[: 2 if kind == "continuous" else 1])
        if kind == "continuous":
            continuous[name] = _continuous(path, name, values)
        elif name == "choice":
            categorical[name] = _numbered_classes(path, name, values, {-1: 0, 1: 1, 0: -1})
        elif name == "block":
            categorical[name] = _numbered_classes(path, name, values, {0.2: 0, 0.5: 1, 0.8: 2})
        else:
            categorical[name] = _class_indices(path, name, values, classes[name])

    drops = {}
    if options and "choice" in kinds:
        choice = _array(path, arrays, "choice", shape[:1])
        if set(np.unique(choice[~np.isnan(choice)])) == {0, 1}:
            raise NEDSError(
                f"{path}: choice holds 0 and 1 only, expected -1 right and +1 left; 0, no choice, drops the trial"
            )
        drops["no choice"] = choice == 0
    if options and "reaction_time_s" in arrays:
        low, high = options.reaction_time_s
        reaction_time = _array(path, arrays, "reaction_time_s", shape[:1])
        drops["reaction time"] = ~((reaction_time >= low) & (reaction_time <= high))
    kept, dropped_trials = kept_trials(drops, shape[0])

    return Recording(
        session=meta["session"],
        subject=meta.get("subject", ""),
        lab=meta.get("lab", ""),
        date=meta.get("date", ""),
        spike_counts=counts[kept],
        trial_index=_trial_index(path, arrays, shape[0])[kept],
        continuous={name: values[kept] for name, values in continuous.items()},
        categorical={name: values[kept] for name, values in categorical.items()},
        classes={name: classes[name] for name in categorical},
        units=_units(path, arrays, meta["session"], shape[2]),
        window_s=tuple(meta["window_s"]),
        bin_size_s=meta["bin_size_s"],
        align_event=meta["align_event"],
        dropped_trials=dropped_trials,
        provenance={
            "files": [{"name": path.name, "sha256": _sha256(path)}],
            "source": meta.get("source", ""),
        },
    )


def classes_of(paths: Iterable[str | Path], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Class names of categorical arrays: all values that occur in any of the files, sorted.

    Raises:
        NEDSError: An array is numbers in one file and text in another, or hardly has a value twice.
    """
    values, trials = {name: {} for name in names}, Counter()
    for path in map(Path, paths):
        arrays = _open(path)
        for name, found in values.items():
            if name in arrays:
                unique, numbers = np.unique(_load(path, arrays, name), return_counts=True)
                there = ~_is_missing(unique)
                found.update((_class_name(value), value) for value in unique[there])
                trials[name] += numbers[there].sum()
    classes = {}
    for name, found in values.items():
        try:
            classes[name] = tuple(sorted(found, key=found.get))
        except TypeError:
            raise NEDSError(f"{name} is text in one file and numbers in another") from None
        if len(found) > max(MAX_CLASSES, trials[name] / 2):
            raise NEDSError(
                f"{name} holds {len(found)} different values in {trials[name]} trials: an array (trials,) is a "
                "categorical behaviour, whose classes recur; a continuous one is (trials, bins)"
            )
    return classes


def array_sources(
    paths: Iterable[str | Path],
    options: ConversionOptions,
    behaviors: Iterable[str] | None = None,
    there: Behaviors | None = None,
) -> tuple[list[Source], ConversionOptions, Behaviors]:
    """What `storage.convert` needs to convert these files into one dataset.

    Args:
        there: Behaviours that the dataset has already. Files may lack some of them, or some of their classes.

    Returns:
        The sources; the options with the window, bin size and event of the files; the behaviours of the dataset
        and those that occur in any file.

    Raises:
        NEDSError: The files differ in window, bin size, event or in the kind of a behaviour, no file holds a named
            behaviour, a behaviour cannot have that name, or a categorical one hardly has a value twice or has one
            only.
    """
    paths, there = [Path(path) for path in paths], there or {}
    _check_names(list(behaviors or ()))
    named = list(dict.fromkeys([*there, *(behaviors or ())]))
    metas, names = {}, {}
    kinds = {name: "categorical" if known else "continuous" for name, known in there.items()}
    for path in paths:
        arrays = _open(path)
        metas[path] = _meta(path, arrays)
        names[path] = [name for name in named if name in arrays]
        for name, kind in _behavior_kinds(path, arrays, names[path]).items():
            if kinds.setdefault(name, kind) != kind:
                where = "the dataset: convert into another folder" if name in there else "another file"
                raise NEDSError(f"{path}: {name} is {kind}, but {kinds[name]} in {where}")
    first = metas[paths[0]]
    for path, meta in metas.items():
        for key in ("window_s", "bin_size_s", "align_event"):
            if meta[key] != first[key]:
                raise NEDSError(
                    f"all sessions of a dataset share their bins, but {key} is {first[key]} in {paths[0]} and "
                    f"{meta[key]} in {path}"
                )
    for name in named:
        if name not in kinds:
            raise NEDSError(f"no array {name!r} in {', '.join(map(str, paths))}")
    classes = classes_of(
        paths, [n for n, kind in kinds.items() if kind == "categorical" and n not in IBL_CLASSES]
    )
    classes |= {
        name: known for name, known in there.items() if known and {*classes.get(name, ())} <= {*known}
    }
    for name, found in classes.items():
        if len(found) == 1 and name not in there:
            raise NEDSError(
                f"{name} is {found[0]} in all trials that have it: leave it out, no model learns one class alone"
            )
    sources = [
        Source(meta["session"], _sha256(path), partial(read_arrays, path, options, names[path], classes))
        for path, meta in metas.items()
    ]
    options = replace(
        options,
        window_s=tuple(first["window_s"]),
        bin_size_s=first["bin_size_s"],
        align_event=first["align_event"],
    )
    classes |= IBL_CLASSES
    return sources, options, {name: classes.get(name) for name in kinds}


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays that a file holds."""
    return list(_open(Path(path)))


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise NEDSError(f"{path}: no such file") from None
    except ValueError:  # neither zip nor npy; numpy's own message proposes to unpickle it
        raise NEDSError(f"{path}: expected an .npz of trial arrays, found another kind of file") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise NEDSError(
            f"{path}: expected an .npz of trial arrays, but it cannot be read as one ({error})"
        ) from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise NEDSError(f"{path}: expected an .npz of trial arrays, found a single array")
    return arrays


def _load(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    if name not in arrays:
        raise NEDSError(f"{path}: array {name!r} is missing; the file has {', '.join(arrays)}")
    try:
        values = arrays[name]
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise NEDSError(f"{path}: array {name!r} cannot be read ({error})") from None


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _load(path, arrays, name)
    if values.shape != shape:
        raise NEDSError(f"{path}: {name} is {values.shape}, expected {shape}")
    return values


def _meta(path: Path, arrays: np.lib.npyio.NpzFile) -> dict:
    text = _load(path, arrays, "meta")
    try:
        meta = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise NEDSError(f"{path}: meta is not JSON ({error})") from None
    if isinstance(meta, dict):
        meta = {key: value for key, value in meta.items() if value is not None}
    found = list(meta) if isinstance(meta, dict) else [type(meta).__name__]
    if missing := [key for key in META_KEYS if key not in found]:
        raise NEDSError(f"{path}: meta lacks {', '.join(missing)}; it holds {', '.join(found)}")
    for key in ("session", "align_event", "subject", "lab", "date", "source"):
        if not isinstance(meta.get(key, ""), str):
            raise NEDSError(f"{path}: {key} of meta must be text, found {meta[key]!r}")
    if not isinstance(meta["bin_size_s"], int | float):
        raise NEDSError(f"{path}: bin_size_s of meta must be a number, found {meta['bin_size_s']!r}")
    window = meta["window_s"]
    if not (
        isinstance(window, list) and len(window) == 2 and all(isinstance(s, int | float) for s in window)
    ):
        raise NEDSError(f"{path}: window_s of meta must be two numbers, found {window!r}")
    return meta


def _spike_counts(path: Path, arrays: np.lib.npyio.NpzFile, meta: dict) -> np.ndarray:
    counts = _load(path, arrays, "spike_counts")
    if counts.ndim != 3:
        raise NEDSError(f"{path}: spike_counts is {counts.shape}, expected (trials, bins, units)")
    start, end = meta["window_s"]
    if not np.isclose(counts.shape[1] * meta["bin_size_s"], end - start):
        raise NEDSError(
            f"{path}: spike_counts has {counts.shape[1]} bins, expected {meta['window_s']} s in bins of "
            f"{meta['bin_size_s']} s"
        )
    if counts.dtype == np.uint8:
        return counts
    if counts.dtype.kind not in "biuf":
        raise NEDSError(f"{path}: spike_counts is {counts.dtype}, expected whole numbers")
    if not np.isfinite(counts).all() or (counts != np.round(counts)).any():
        raise NEDSError(f"{path}: spike_counts holds values that are not whole numbers")
    if counts.size and (counts.min() < 0 or counts.max() > 255):
        raise NEDSError(f"{path}: spike_counts runs from {counts.min()} to {counts.max()}, expected 0 to 255")
    return counts.astype(np.uint8)


def _trial_index(path: Path, arrays: np.lib.npyio.NpzFile, trials: int) -> np.ndarray:
    if "trial_index" not in arrays:
        return np.arange(trials, dtype=np.int32)
    index = _array(path, arrays, "trial_index", (trials,))
    if (
        index.dtype.kind not in "iu"
        or (index.astype(np.int32) != index).any()
        or (np.diff(index.astype(np.int64)) <= 0).any()
    ):
        raise NEDSError(
            f"{path}: trial_index must be whole numbers below 2**31 that increase, as trials are in time order"
        )
    return index.astype(np.int32)


def _units(path: Path, arrays: np.lib.npyio.NpzFile, session: str, num_units: int) -> pd.DataFrame:
    """Units with their region in the three mappings; an acronym that is not Allen's is kept in all three."""
    units = pd.DataFrame({"uuid": [f"{session}/{index}" for index in range(num_units)]})
    if "unit_uuid" in arrays:
        uuids = _array(path, arrays, "unit_uuid", (num_units,))
        if (missing := _is_missing(uuids)).any():
            raise NEDSError(f"{path}: unit_uuid is missing for {missing.sum()} of {num_units} units")
        units["uuid"] = uuids.astype(str)
        if (twice := units["uuid"].duplicated()).any():
            raise NEDSError(f"{path}: unit_uuid holds {units['uuid'][twice].iloc[0]!r} more than once")
    if "unit_region" not in arrays:
        return units
    units["allen"] = _array(path, arrays, "unit_region", (num_units,)).astype(str)
    require(f"{path}: unit_region", "ibl", "iblatlas")
    regions = brain_regions()
    known = np.intersect1d(units["allen"], regions.acronym)
    for mapping in ("Beryl", "Cosmos"):
        mapped = dict(zip(known, regions.acronym2acronym(known, mapping)))
        units[mapping.lower()] = [mapped.get(acronym, acronym) for acronym in units["allen"]]
    return units


def _behavior_kinds(path: Path, arrays: np.lib.npyio.NpzFile, named: Iterable[str]) -> dict[str, str]:
    """Behaviours to read from a file, IBL's first: name to "continuous" or "categorical"."""
    kinds = {
        name: "categorical" if name in IBL_CLASSES else "continuous"
        for name in IBL_BEHAVIORS
        if _array_name(arrays, name) in arrays
    }
    for name in named:
        if name in kinds:
            continue
        values = _load(path, arrays, name)
        if values.ndim not in (1, 2):
            raise NEDSError(f"{path}: {name} is {values.shape}, expected (trials, bins) or (trials,)")
        kinds[name] = "continuous" if values.ndim == 2 else "categorical"
    return kinds


def _check_names(behaviors: list[str]) -> None:
    for name in behaviors:
        if name in NO_BEHAVIORS:
            raise NEDSError(
                f"{name} is not a behaviour but one of the arrays that every file may have: rename it, or "
                "leave it out of the behaviours"
            )
        from neds_hf.models.configuration_neds import UNUSABLE_NAME, usable_name  # seconds: torch

        if not usable_name(name):
            raise NEDSError(f"a behaviour cannot be named {name!r}: {UNUSABLE_NAME}")
        if "/" in name or name in TAKEN_NAMES or name.endswith("_classes"):
            raise NEDSError(
                f"a behaviour cannot be named {name!r}: with a slash, with _classes at its end, or as "
                f"{', '.join(TAKEN_NAMES)} it would be taken for something else; rename it"
            )


def _array_name(arrays: np.lib.npyio.NpzFile, name: str) -> str:
    return "probability_left" if name == "block" and "block" not in arrays else name


def _continuous(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise NEDSError(f"{path}: {name} is {values.dtype}, expected numbers")
    missing = np.isnan(values).all(axis=1)
    if not np.isfinite(values[~missing]).all():
        raise NEDSError(f"{path}: {name} holds values that are not finite (a missing trial is all NaN)")
    return values.astype(np.float32)


def _numbered_classes(path: Path, name: str, values: np.ndarray, classes: dict[float, int]) -> np.ndarray:
    """Class index of each number, -1 where it is NaN."""
    expected = ", ".join(f"{value:g}" for value in classes)
    if values.dtype.kind not in "iuf":
        raise NEDSError(f"{path}: {name} is {values.dtype}, expected numbers, one of {expected}")
    indices = np.full(len(values), -1, np.int64)
    known = np.isnan(values)
    for value, index in classes.items():
        matches = np.isclose(values, value)
        indices[matches] = index
        known |= matches
    if not known.all():
        raise NEDSError(f"{path}: {name} holds {values[~known][0]:g}, expected one of {expected}")
    return indices


def _class_indices(path: Path, name: str, values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Class index of each value, -1 where it is missing."""
    unique, inverse = np.unique(values, return_inverse=True)
    indices = np.full(len(unique), -1, np.int64)
    for i in np.flatnonzero(~_is_missing(unique)):
        if _class_name(unique[i]) not in names:
            raise NEDSError(
                f"{path}: {name} holds {_class_name(unique[i])}, expected one of {', '.join(names)}"
            )
        indices[i] = names.index(_class_name(unique[i]))
    return indices[inverse]


def _is_missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else np.isin(values.astype(str), ("", "nan"))


def _class_name(value: np.generic) -> str:
    """A class as text: 1 and 1.0 are one class, and float32 0.2 is "0.2"."""
    return np.format_float_positional(value, trim="-") if isinstance(value, np.floating) else str(value)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
