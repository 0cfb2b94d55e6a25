"""IBL sessions in ALF layout, read through ONE: trials, spikes of all probes, units, behaviours.

The ONE object (`one_cache`) is the only difference between a folder and the public server: everything here asks
it for the datasets of a session and for their files. Nothing else of ONE is used, and files are opened
here, so that none is ever unpickled.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xxhash

from neds_hf.data.binning import bin_continuous, bin_spikes, wheel_speed
from neds_hf.data.one_cache import list_sessions, session_fingerprint
from neds_hf.data.schema import CAMERAS, IBL_CLASSES, ConversionOptions, Recording, kept_trials
from neds_hf.data.storage import Source
from neds_hf.errors import NEDSError

if TYPE_CHECKING:
    from one.api import One

# Spike sorters' folders inside a probe's, the preferred one first; "" is the probe's own, in older sessions.
SORTERS = ("iblsorter", "pykilosort", "")
# A trial needs all of these (and the event that it is aligned to).
TRIAL_EVENTS = ("stimOn_times", "firstMovement_times", "feedback_times")
# Camera times are aligned to the last frames, as in ibllib, but only over a difference this small.
MAX_EXTRA_FRAMES = 5

_REVISION = re.compile(r"#([^#/]*)#/")


def read_session(one: "One", session: str, options: ConversionOptions) -> Recording:
    """Read one session: trials that pass the filter, spikes of all probes, behaviours.

    A behaviour without files, or with files that cannot be used, is left out, and so is a probe without
    spikes; `provenance["notes"]` says why. `provenance["files"]` lists what was read: path, revision, size in
    bytes and hash. The hash is `md5` where ONE's tables list one, as a server's do (a note says where it
    differs from theirs), else `xxh3_128`, which takes a tenth of the time.

    Args:
        one: ONE object, of a folder or of a server.
        session: Session id (eid).
        options: Window, bins, event, reaction times and camera.

    Raises:
        NEDSError: Unknown session, no trials, no spikes, no trial left, or a needed file that is damaged.
    """
    with ThreadPoolExecutor(1) as background:
        datasets = _SessionDatasets(one, session, background)
        trials, task = _read_trials(datasets, options.align_event)
        keep, dropped_trials = filter_trials(trials, options)
        keep = np.flatnonzero(keep)
        starts_s = trials[options.align_event].to_numpy(float)[keep] + options.window_s[0]
        probes = _find_probes(datasets)
        recorded = _recorded(probes, starts_s, options)
        if not recorded.all():
            dropped_trials["outside the spike recording"] = int((~recorded).sum())
            keep, starts_s = keep[recorded], starts_s[recorded]
        if not len(keep):
            raise NEDSError(f"{session}: none of its {len(trials)} trials is left: dropped {dropped_trials}")
        spike_counts, units = _read_probes(datasets, probes, starts_s, options)
        continuous, sources = _read_continuous(datasets, task, starts_s, options)
        categorical = _read_categorical(datasets, trials.iloc[keep])
        files = datasets.files_read()
    return Recording(
        session=str(session),
        spike_counts=spike_counts,
        trial_index=keep.astype(np.int32),
        units=units,
        window_s=options.window_s,
        bin_size_s=options.bin_size_s,
        align_event=options.align_event,
        subject=datasets.subject,
        lab=datasets.lab,
        date=datasets.date,
        continuous=continuous,
        categorical=categorical,
        classes={name: IBL_CLASSES[name] for name in categorical},
        dropped_trials=dropped_trials,
        provenance={
            "files": files,
            "probes": {probe: folder for probe, (folder, _) in probes.items()},
            "signals": sources,
            "notes": datasets.notes,
        },
    )


def one_sources(
    open_one: Callable[[], "One"], options: ConversionOptions, sessions: Iterable[str] | None = None
) -> list[Source]:
    """Sessions (default: all) of a ONE cache, for `storage.convert`.

    A session that is asked for but not there fails only when it is read, and so is counted as dropped.

    Args:
        open_one: Opens the cache; must be picklable, as every process opens its own.

    Raises:
        NEDSError: There is no session.
    """
    one = open_one()
    there = list_sessions(one)
    sessions = there if sessions is None else list(sessions)
    if not sessions:
        raise NEDSError(f"{one.cache_dir}: no session in its ONE cache tables")
    return [
        Source(
            session=session,
            fingerprint=session_fingerprint(one, session) if session in there else "not in the cache",
            read=partial(_read, open_one, session, options),
        )
        for session in sessions
    ]


def _read(open_one: Callable[[], "One"], session: str, options: ConversionOptions) -> Recording:
    try:
        return read_session(open_one(), session, options)
    except OSError as error:
        raise NEDSError(f"{session}: cannot be read ({error})") from None


class _SessionDatasets:
    """The datasets of one session, each at its default (else latest) revision, by path without revision.

    Args:
        background: Hashes files while they are used; hashing lets go of Python's lock.

    Attributes:
        subject, lab, date: Of the session.
        notes: What a reader of the recording should know is missing, and why.
    """

    def __init__(self, one: "One", session: str, background: ThreadPoolExecutor) -> None:
        from one.alf.exceptions import ALFError

        self.one, self.session = one, session
        self.notes: list[str] = []
        self._background = background
        self._hashes: dict[str, Future[dict]] = {}
        try:
            listing = one.list_datasets(session, details=True)
            details = one.get_details(session)
        except (ALFError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise NEDSError(f"session {session} is not known to {one!r}: {reason}") from error
        self.subject, self.lab, self.date = (str(details[key] or "") for key in ("subject", "lab", "date"))
        self._folder = one.eid2path(session) if one.offline else None
        if self._folder:
            files = [file for file in self._folder.rglob("*") if file.is_file()]
            on_disk = pd.Series(
                [file.relative_to(self._folder).as_posix() for file in files], name="rel_path"
            )
            self.notes += [
                f"{path} is in the cache tables, not on disk"
                for path in listing["rel_path"][~listing["rel_path"].isin(on_disk)]
            ]
            listing = listing.merge(on_disk, how="right")  # the tables may lack files that were added
            listing["hash"] = listing["hash"].fillna("")
        else:
            listing = listing[listing["exists"]]
        # Sorted so that the last of a dataset's revisions is the one to use.
        revision = listing["rel_path"].str.extract(_REVISION)[0].fillna("")
        listing = listing.assign(
            revision=revision,
            path=listing["rel_path"].str.replace(_REVISION, "", regex=True),
            default_revision=listing.get("default_revision", pd.Series(False, listing.index)).eq(True),
        ).sort_values(["default_revision", "revision"])
        self._rows = {row.path: row for row in listing.itertuples()}

    def __contains__(self, path: str) -> bool:
        return path in self._rows

    def __iter__(self):
        return iter(self._rows)

    def load(self, path: str):
        """Content of a dataset: an array, or a data frame. Raises NEDSError if missing or damaged."""
        from one.alf.exceptions import ALFError

        if path not in self:
            raise NEDSError(f"{self.session}: there is no {path}")
        row = self._rows[path]
        try:
            file = self._folder / row.rel_path if self._folder else self._download(row)
            content = _READERS[Path(path).suffix](file)
        except (ALFError, EOFError, OSError, ValueError) as error:
            raise NEDSError(f"{self.session}: cannot read {row.rel_path}: {error}") from error
        self._hashes[path] = self._background.submit(_hash, file, "md5" if row.hash else "xxh3_128")
        return content

    def _download(self, row) -> Path:
        """File of a dataset, from the server unless it is in the cache already, undamaged."""
        from one.alf.exceptions import ALFWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ALFWarning)  # the revision is chosen here
            # "local": the listing is already in ONE's tables; a missing file is still downloaded.
            return self.one.load_dataset(
                self.session,
                row.rel_path,
                download_only=True,
                query_type="local",
                check_hash=bool(row.hash),
            )

    def files_read(self) -> list[dict]:
        """What was loaded, by path: `path`, `revision`, `md5` or `xxh3_128`, `size_bytes`."""
        files = []
        for path, hashed in sorted(self._hashes.items()):
            row = self._rows[path]
            files.append({"path": row.rel_path, "revision": row.revision, **hashed.result()})
            if row.hash and files[-1]["md5"] != row.hash:
                self.notes.append(f"{row.rel_path} is not the file of ONE's tables, whose md5 is {row.hash}")
        return files


def _hash(file: Path, algorithm: str) -> dict:
    """Hash of a file, by the name of the algorithm (`md5` or `xxh3_128`), and `size_bytes`."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, xxhash.xxh3_128 if algorithm == "xxh3_128" else algorithm)
    return {algorithm: digest.hexdigest(), "size_bytes": file.stat().st_size}


def _read_array(file: Path) -> np.ndarray:
    array = np.load(file, mmap_mode="r")  # most of a recording is between the trials
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


_READERS = {
    ".npy": _read_array,
    ".pqt": pd.read_parquet,
    ".csv": partial(pd.read_csv, dtype=str),
}


# ------------------------------------------------------------------------------------------------- trials


def _read_trials(datasets: _SessionDatasets, align_event: str) -> tuple[pd.DataFrame, str]:
    """Needed columns of the trials, a row a trial, from the table or separate arrays; and their folder."""
    folders = _task_folders(datasets, r"_ibl_trials\.(table\.pqt|choice\.npy)")
    if not folders:
        raise NEDSError(
            f"{datasets.session}: no trials, expected alf/_ibl_trials.table.pqt or alf/_ibl_trials.choice.npy"
        )
    task, *others = folders
    datasets.notes += [f"trials of {folder} are left out: those of {task} are read" for folder in others]
    table_path = f"{task}/_ibl_trials.table.pqt"
    table = datasets.load(table_path) if table_path in datasets else {}
    trials = {}
    for name in (*dict.fromkeys((*TRIAL_EVENTS, align_event)), "choice", "probabilityLeft"):
        if name in table:
            trials[name] = np.asarray(table[name], dtype=float)
        elif (file := f"{task}/_ibl_trials.{name}.npy") in datasets:
            trials[name] = np.asarray(datasets.load(file), dtype=float)
        elif name != "probabilityLeft":
            columns = f", and {table_path} has only {', '.join(table)}" if table_path in datasets else ""
            raise NEDSError(f"{datasets.session}: there is no {file}{columns}")
    lengths = {name: values.shape for name, values in trials.items()}
    if len(set(lengths.values())) > 1:
        raise NEDSError(f"{datasets.session}: columns of the trials differ in length: {lengths}")
    choice = trials["choice"]
    if not np.isin(choice[np.isfinite(choice)], (-1, 0, 1)).all():
        values = np.unique(choice).tolist()
        raise NEDSError(f"{datasets.session}: choices of trials must be -1, 0 or 1, but are {values}")
    event = trials[align_event][np.isfinite(trials[align_event])]
    if not align_event.endswith("_times") and (np.diff(event) <= 0).any():
        raise NEDSError(
            f"{datasets.session}: {align_event} is no event to align to, as its values do not increase from trial "
            "to trial; take a column of times, such as stimOn_times"
        )
    return pd.DataFrame(trials), task


def _task_folders(datasets: _SessionDatasets, file: str) -> list[str]:
    """Folders with a file of this pattern: that of the session, then those of its tasks in their order."""
    paths = (path for path in datasets if re.fullmatch(rf"alf(/task_\d+)?/{file}", path))
    return sorted({Path(path).parent.as_posix() for path in paths})


def filter_trials(trials: pd.DataFrame, options: ConversionOptions) -> tuple[np.ndarray, dict[str, int]]:
    """Which trials to keep, and how many are dropped for which reason (the first that applies).

    Reaction time is first movement minus stimulus onset; both ends of its range are inside.

    Args:
        trials: A row a trial, with the columns `TRIAL_EVENTS`, the event to align to, and `choice`.
        options: Its `align_event` and `reaction_time_s` count.

    Returns:
        (trials,) bool, True to keep; and reason to number of trials.
    """
    reaction_time_s = (trials["firstMovement_times"] - trials["stimOn_times"]).to_numpy(float)
    shortest_s, longest_s = options.reaction_time_s
    reasons = {
        "missing event": trials[[*TRIAL_EVENTS, options.align_event]].isna().any(axis=1).to_numpy(),
        "no choice": ~trials["choice"].isin((-1, 1)).to_numpy(),
        "reaction time": ~((reaction_time_s >= shortest_s) & (reaction_time_s <= longest_s)),
    }
    return kept_trials(reasons, len(trials))


# --------------------------------------------------------------------------------------- spikes and units


def _find_probes(datasets: _SessionDatasets) -> dict[str, tuple[str, np.ndarray]]:
    """Probe to its folder of sorted spikes and their times (spikes,), for every probe that has some."""
    sorters = [sorter for sorter in SORTERS if sorter]
    expected = f"expected alf/probe00/spikes.times.npy, or in a folder {' or '.join(sorters)} there"
    place = rf"alf/probe[^/]*/(({'|'.join(sorters)})/)?spikes\.times\.npy"
    spikes = [path for path in datasets if path.endswith("/spikes.times.npy")]
    elsewhere = [path for path in spikes if not re.fullmatch(place, path)]
    datasets.notes += [f"{path} is not read: {expected}" for path in elsewhere]
    probes = {}
    for probe in sorted({path.split("/")[1] for path in datasets if re.match(r"alf/probe[^/]*/", path)}):
        candidates = [f"alf/{probe}/{sorter}".rstrip("/") for sorter in SORTERS]
        folder = next((c for c in candidates if f"{c}/spikes.times.npy" in datasets), None)
        if folder is None:
            datasets.notes.append(f"alf/{probe} has no spikes")
            continue
        spike_times = datasets.load(f"{folder}/spikes.times.npy")
        if not spike_times.size:
            datasets.notes.append(f"{folder} holds no spike")
            continue
        probes[probe] = folder, spike_times
    if not probes:
        found = f", found {', '.join(elsewhere)}" if elsewhere else ""
        raise NEDSError(f"{datasets.session}: no spikes, {expected}{found}")
    return probes


def _recorded(
    probes: dict[str, tuple[str, np.ndarray]], starts_s: np.ndarray, options: ConversionOptions
) -> np.ndarray:
    """(trials,) bool: every probe was recorded in the window of the trial.

    It overlaps the time from the probe's first to its last spike, and reaches no further beyond than the longest
    pause between two of its spikes.
    """
    ends_s = starts_s + (options.window_s[1] - options.window_s[0])
    outside = np.zeros(len(starts_s), dtype=bool)
    for _, spike_times in probes.values():
        first_s, last_s = spike_times.min(), spike_times.max()  # NaN: refused when counted
        outside |= (starts_s > last_s) | (ends_s < first_s)
        beyond_s = np.maximum(first_s - starts_s, ends_s - last_s)
        if (beyond_s > 0).any():
            outside |= beyond_s > np.diff(np.sort(spike_times)).max(initial=0)
    return ~outside


def _read_probes(
    datasets: _SessionDatasets,
    probes: dict[str, tuple[str, np.ndarray]],
    starts_s: np.ndarray,
    options: ConversionOptions,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Counts (trials, bins, units) and units of all probes."""
    units = [_read_units(datasets, probe, folder) for probe, (folder, _) in probes.items()]
    last = np.cumsum([len(of_probe) for of_probe in units])
    counts = np.empty((len(starts_s), options.num_bins, last[-1]), dtype=np.uint8)
    for (folder, spike_times), of_probe in zip(probes.values(), np.split(counts, last[:-1], axis=2)):
        try:
            bin_spikes(
                spike_times,
                datasets.load(f"{folder}/spikes.clusters.npy"),
                starts_s,
                options.num_bins,
                options.bin_size_s,
                of_probe.shape[2],
                out=of_probe,
            )
        except NEDSError as error:
            raise NEDSError(f"{datasets.session}, {folder}: {error}") from error
    return counts, pd.concat(units, ignore_index=True)


def _read_units(datasets: _SessionDatasets, probe: str, folder: str) -> pd.DataFrame:
    """Units of a probe, a row a cluster (rows of `clusters.*`), with what is known of each."""

    def optional(name: str):
        return datasets.load(f"{folder}/{name}") if f"{folder}/{name}" in datasets else None

    channel = datasets.load(f"{folder}/clusters.channels.npy").astype(int)
    num_units = len(channel)

    def per_unit(name: str, values) -> np.ndarray:
        if len(values) != num_units:
            raise NEDSError(
                f"{datasets.session}: {folder}/{name} has {len(values)} rows, clusters.channels {num_units}"
            )
        return np.asarray(values)

    def per_channel(name: str, values) -> np.ndarray:
        if num_units and not 0 <= channel.min() <= channel.max() < len(values):
            raise NEDSError(
                f"{datasets.session}: {folder}/clusters.channels goes up to {channel.max()}, "
                f"but {name} has {len(values)} rows"
            )
        return np.asarray(values)[channel]

    # A model knows its units by their ids.
    ids = [f"{datasets.session}/{probe}/{cluster}" for cluster in range(num_units)]
    units = pd.DataFrame({"uuid": ids, "probe": probe}, dtype=object)
    if (uuids := optional("clusters.uuids.csv")) is not None:
        uuids = pd.Series(per_unit("clusters.uuids.csv", uuids.iloc[:, 0]), dtype=object)
        units["uuid"] = uuids.fillna(units["uuid"])
    allen_ids = optional("channels.brainLocationIds_ccf_2017.npy")
    if allen_ids is not None:
        allen_ids = per_channel("channels.brainLocationIds_ccf_2017.npy", allen_ids)
    for mapping, acronyms in _regions(allen_ids, num_units).items():
        units[mapping] = acronyms
    depths = optional("clusters.depths.npy")
    units["depth_um"] = np.nan if depths is None else per_unit("clusters.depths.npy", depths)
    mlapdv_um = optional("channels.mlapdv.npy")
    if mlapdv_um is not None and mlapdv_um.shape[1:] != (3,):
        raise NEDSError(
            f"{datasets.session}: {folder}/channels.mlapdv.npy is {mlapdv_um.shape}, expected (channels, 3)"
        )
    units[["x_um", "y_um", "z_um"]] = (
        np.nan if mlapdv_um is None else per_channel("channels.mlapdv.npy", mlapdv_um).astype(float)
    )
    metrics = optional("clusters.metrics.pqt")
    if metrics is None or not {"cluster_id", "label"} <= set(metrics):
        units["label"] = np.nan
    else:  # may lack clusters
        labels = metrics.drop_duplicates("cluster_id").set_index("cluster_id")["label"]
        labels = pd.to_numeric(labels, errors="coerce").reindex(range(num_units))
        units["label"] = labels.to_numpy(float, na_value=np.nan)
    return units


@cache
def brain_regions():
    from iblatlas.regions import BrainRegions

    return BrainRegions()


def _regions(allen_ids: np.ndarray | None, num_units: int) -> dict[str, np.ndarray]:
    """Acronym of each unit's region in three mappings; None where the Allen id is unknown or missing."""
    mappings = ("Allen", "Beryl", "Cosmos")
    if allen_ids is None:
        return {mapping.lower(): np.full(num_units, None, dtype=object) for mapping in mappings}
    brain = brain_regions()
    row = pd.Index(brain.id).get_indexer(allen_ids)
    return {
        mapping.lower(): np.where(row >= 0, brain.acronym[brain.mappings[mapping]][row], None)
        for mapping in mappings
    }


# --------------------------------------------------------------------------------------------- behaviours


def _read_categorical(datasets: _SessionDatasets, trials: pd.DataFrame) -> dict[str, np.ndarray]:
    """Class index of choice and, where probabilityLeft is known, block, each (kept trials,) int64."""
    categorical = {"choice": (trials["choice"].to_numpy() == 1).astype(np.int64)}
    if "probabilityLeft" not in trials:
        datasets.notes.append("block is missing: no probabilityLeft")
        return categorical
    prior = trials["probabilityLeft"].to_numpy(float)
    is_class = np.isclose(prior[:, None], np.array(IBL_CLASSES["block"], dtype=float))
    known = is_class.any(axis=1)
    if (~known & np.isfinite(prior)).any():
        values = np.unique(prior[np.isfinite(prior)]).tolist()
        datasets.notes.append(f"block is missing: probabilityLeft takes the values {values}")
    elif known.any():
        categorical["block"] = np.where(known, is_class.argmax(axis=1), -1).astype(np.int64)
    else:
        datasets.notes.append("block is missing: probabilityLeft is NaN in every trial")
    return categorical


def _read_continuous(
    datasets: _SessionDatasets, task: str, starts_s: np.ndarray, options: ConversionOptions
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Binned (trials, bins) float32 of each signal that is there, and the source that each comes from."""
    sides = sorted(CAMERAS, key=lambda side: side != options.whisker_camera)  # the preferred one first
    candidates = [
        ("wheel_speed", "wheel"),
        *(("whisker_motion_energy", f"{side}Camera") for side in sides),
    ]
    continuous, sources = {}, {}
    for name, source in candidates:
        if name in continuous:
            continue
        try:
            times_s, values = _wheel(datasets, task) if source == "wheel" else _whisker(datasets, source)
            binned = bin_continuous(times_s, values, starts_s, options.num_bins, options.bin_size_s)
            if np.isnan(binned).all():
                raise NEDSError("no kept trial is covered")
        except NEDSError as error:
            datasets.notes.append(f"{name} is missing from {source}: {error}")
            continue
        continuous[name], sources[name] = binned, source
    return continuous, sources


def _wheel(datasets: _SessionDatasets, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds and wheel speed in rad/s; from the folder of the trials, else the first that has them."""
    folders = _task_folders(datasets, r"_ibl_wheel\.position\.npy")
    folder = task if task in folders else (folders or ["alf"])[0]
    return wheel_speed(
        datasets.load(f"{folder}/_ibl_wheel.timestamps.npy"),
        datasets.load(f"{folder}/_ibl_wheel.position.npy"),
    )


def _whisker(datasets: _SessionDatasets, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds and motion energy of the whisker pad, a value a frame.

    Up to `MAX_EXTRA_FRAMES` more times than frames are cut off at the start, as ibllib does. Any other
    difference means that frames cannot be told apart, and raises NEDSError.
    """
    times_s = datasets.load(f"alf/_ibl_{camera}.times.npy")
    energy = datasets.load(f"alf/{camera}.ROIMotionEnergy.npy")
    extra = len(times_s) - len(energy)
    if not 0 <= extra <= MAX_EXTRA_FRAMES:
        raise NEDSError(
            f"{datasets.session}: alf/{camera} has {len(times_s)} times for {len(energy)} frames of motion energy"
        )
    return times_s[extra:], energy
