import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from alf_folder import trials_table, write_session, write_spikes, write_trials

from neds_hf.data import alf, one_cache
from neds_hf.data.origin import repeated_site_sessions
from neds_hf.data.schema import ConversionOptions
from neds_hf.errors import NEDSError

SHARED = Path(__file__).resolve().parents[2] / "shared"
OPTIONS = ConversionOptions(min_rate_hz=0)
LEFT_CAMERA = ("_ibl_leftCamera.times", "leftCamera.ROIMotionEnergy")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real recordings is not here")


# Each cluster k fires once a trial, 0.5 + 0.1 * (k + 1) + 0.005 s into it.
COUNTS_OF_A_TRIAL = np.zeros((100, 3), dtype=np.uint8)
COUNTS_OF_A_TRIAL[[30, 35, 40], [0, 1, 2]] = 1
COUNTS = np.broadcast_to(COUNTS_OF_A_TRIAL, (12, 100, 3))


def read_only_session(root: Path, options: ConversionOptions = OPTIONS):
    one = one_cache.open_local(root)
    (session,) = one_cache.list_sessions(one)
    return alf.read_session(one, session, options)


def test_a_complete_session_is_read_with_everything_in_it(tmp_path):
    write_session(tmp_path)
    recording = read_only_session(tmp_path)
    np.testing.assert_array_equal(recording.spike_counts, COUNTS)
    assert recording.trial_index.tolist() == list(range(12))
    assert (recording.subject, recording.lab, recording.date) == ("mouse", "somelab", "2024-01-31")
    assert recording.categorical["choice"].tolist() == [1, 0] * 6  # +1 is "left", class 1
    assert recording.categorical["block"].tolist() == [1, 0, 2] * 4
    assert recording.classes == {"choice": ("right", "left"), "block": ("0.2", "0.5", "0.8")}
    right_edges = 10 + 3.0 * np.arange(12)[:, None] - 0.5 + 0.02 * np.arange(1, 101)
    np.testing.assert_allclose(recording.continuous["whisker_motion_energy"], right_edges, rtol=1e-6)
    np.testing.assert_allclose(recording.continuous["wheel_speed"], np.abs(np.cos(right_edges)), atol=0.05)
    assert recording.dropped_trials == {}
    assert recording.provenance["notes"] == []
    assert recording.provenance["signals"] == {
        "wheel_speed": "wheel",
        "whisker_motion_energy": "leftCamera",
    }
    json.dumps(recording.provenance)


def test_units_carry_region_position_and_quality(tmp_path):
    write_session(tmp_path)
    units = read_only_session(tmp_path).units
    assert units["uuid"].tolist() == [f"probe00-pykilosort-{k}" for k in range(3)]
    # Clusters 0, 1, 2 sit on channels 2, 1, 0.
    assert units["allen"].tolist() == ["LP", "PO", "CA1"]
    assert units["beryl"].tolist() == ["LP", "PO", "CA1"]
    assert units["cosmos"].tolist() == ["TH", "TH", "HPF"]
    assert units["depth_um"].tolist() == [0, 20, 40]
    assert units[["x_um", "y_um", "z_um"]].to_numpy().tolist() == [[1, 2, 3], [-2, -1, 0], [-5, -4, -3]]
    np.testing.assert_allclose(units["label"], [np.nan, 1 / 3, 2 / 3])  # cluster 0 has no row of metrics


def test_regions_are_mapped_as_iblatlas_maps_them_in_both_hemispheres():
    from iblatlas.regions import BrainRegions

    brain = BrainRegions()
    ids = np.array([382, -382, 997, 0, 593])
    regions = alf._regions(np.r_[ids, 123456789], 6)
    for mapping in ("Allen", "Beryl", "Cosmos"):
        assert regions[mapping.lower()][:5].tolist() == brain.id2acronym(ids, mapping=mapping).tolist()
        assert regions[mapping.lower()][5] is None


def test_two_probes_stand_side_by_side(tmp_path):
    write_session(tmp_path, probes=("probe01/pykilosort", "probe00"))
    recording = read_only_session(tmp_path)
    np.testing.assert_array_equal(recording.spike_counts, np.tile(COUNTS, 2))
    assert recording.units["probe"].tolist() == ["probe00"] * 3 + ["probe01"] * 3
    assert recording.provenance["probes"] == {"probe00": "alf/probe00", "probe01": "alf/probe01/pykilosort"}


def test_iblsorter_comes_before_pykilosort_and_the_probes_own_folder(tmp_path):
    write_session(
        tmp_path,
        probes=(
            *("probe00", "probe00/pykilosort", "probe00/iblsorter"),
            *("probe01", "probe01/pykilosort"),
            "probe02",
        ),
    )
    assert read_only_session(tmp_path).provenance["probes"] == {
        "probe00": "alf/probe00/iblsorter",
        "probe01": "alf/probe01/pykilosort",
        "probe02": "alf/probe02",
    }


def test_a_probe_without_spikes_is_left_out_with_a_note(tmp_path):
    probes = ("probe00/pykilosort", "probe01/pykilosort", "probe02/pykilosort")
    folder = write_session(tmp_path, probes=probes)
    (folder / "probe01" / "pykilosort" / "spikes.times.npy").unlink()
    np.save(folder / "probe02" / "pykilosort" / "spikes.times.npy", np.array([]))
    recording = read_only_session(tmp_path)
    assert recording.provenance["probes"] == {"probe00": "alf/probe00/pykilosort"}
    assert recording.provenance["notes"] == [
        "alf/probe01 has no spikes",
        "alf/probe02/pykilosort holds no spike",
    ]


def test_spikes_out_of_order_give_the_same_counts(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    shuffled = np.random.default_rng(0).permutation(len(np.load(folder / "spikes.times.npy")))
    for name in ("spikes.times.npy", "spikes.clusters.npy"):
        np.save(folder / name, np.load(folder / name)[shuffled])
    np.testing.assert_array_equal(read_only_session(tmp_path).spike_counts, COUNTS)


def test_spikes_in_a_folder_of_another_name_are_said_not_to_be_read(tmp_path):
    probes = ("probe00/pykilosort", "probe01/kilosort4", "imec0/pykilosort")
    write_session(tmp_path, probes=probes)
    recording = read_only_session(tmp_path)
    assert recording.provenance["probes"] == {"probe00": "alf/probe00/pykilosort"}
    where = "expected alf/probe00/spikes.times.npy, or in a folder iblsorter or pykilosort there"
    assert recording.provenance["notes"] == [
        f"alf/imec0/pykilosort/spikes.times.npy is not read: {where}",
        f"alf/probe01/kilosort4/spikes.times.npy is not read: {where}",
        "alf/probe01 has no spikes",
    ]


def test_separate_trial_arrays_are_read_like_the_table(tmp_path):
    folder = write_session(tmp_path)
    (folder / "_ibl_trials.table.pqt").unlink()
    write_trials(folder, trials_table(), separate=True)
    recording = read_only_session(tmp_path)
    np.testing.assert_array_equal(recording.spike_counts, COUNTS)
    assert recording.categorical["choice"].tolist() == [1, 0] * 6
    assert recording.categorical["block"].tolist() == [1, 0, 2] * 4


@pytest.mark.parametrize("moved", [["trials", "wheel"], ["trials"], ["wheel"]])
def test_trials_and_wheel_of_newer_sessions_are_in_a_task_folder_both_or_one(tmp_path, moved):
    folder = write_session(tmp_path)
    (folder / "task_00").mkdir()
    for name in moved:
        for file in folder.glob(f"_ibl_{name}*"):
            file.rename(folder / "task_00" / file.name)
    recording = read_only_session(tmp_path)
    assert recording.spike_counts.shape == (12, 100, 3)
    assert "wheel_speed" in recording.continuous


def test_of_several_tasks_the_first_is_read_and_a_note_names_the_others(tmp_path):
    folder = write_session(tmp_path)
    for task, num_trials in (("task_00", 12), ("task_01", 5)):
        write_trials(folder / task, trials_table(num_trials))
    (folder / "_ibl_trials.table.pqt").unlink()
    for file in folder.glob("_ibl_wheel*"):
        file.rename(folder / "task_01" / file.name)
    recording = read_only_session(tmp_path)
    assert recording.spike_counts.shape == (12, 100, 3)
    assert "wheel_speed" in recording.continuous  # of the other task, by the same clock
    assert recording.provenance["notes"] == [
        "trials of alf/task_01 are left out: those of alf/task_00 are read"
    ]


def test_trials_are_dropped_for_the_first_reason_that_applies(tmp_path):
    folder = write_session(tmp_path)
    trials = trials_table()
    trials.loc[0, "stimOn_times"] = np.nan
    trials.loc[1, "firstMovement_times"] = np.nan
    trials.loc[2, "feedback_times"] = np.nan
    trials.loc[2, "choice"] = 0  # counted once, as a missing event
    trials.loc[3, "choice"] = 0
    trials.loc[4, "choice"] = np.nan
    trials.loc[5, "firstMovement_times"] = trials.loc[5, "stimOn_times"] + 0.05
    trials.loc[6, "firstMovement_times"] = trials.loc[6, "stimOn_times"] + 2.05
    trials.loc[7, "firstMovement_times"] = trials.loc[7, "stimOn_times"] - 0.2
    write_trials(folder, trials)
    recording = read_only_session(tmp_path)
    assert recording.dropped_trials == {"missing event": 3, "no choice": 2, "reaction time": 3}
    assert recording.trial_index.tolist() == [8, 9, 10, 11]
    keep, _ = alf.filter_trials(trials, ConversionOptions(reaction_time_s=(-1, 10)))
    assert np.flatnonzero(keep).tolist() == [5, 6, 7, 8, 9, 10, 11]


def test_both_ends_of_the_reaction_times_are_inside():
    trials = pd.DataFrame(
        {"stimOn_times": 0.0, "firstMovement_times": [0.08, 2.0, 0.0799, 2.0001], "feedback_times": 3.0}
    ).assign(choice=1)
    assert alf.filter_trials(trials, OPTIONS)[0].tolist() == [True, True, False, False]


def test_trials_align_to_another_event_and_window(tmp_path):
    write_session(tmp_path)
    options = ConversionOptions(align_event="firstMovement_times", window_s=(-0.2, 0.2), bin_size_s=0.1)
    counts = read_only_session(tmp_path, options).spike_counts
    # Movement is 0.3 s after the stimulus: the clusters fire at -0.195, -0.095 and 0.005 s.
    assert counts[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_what_is_no_time_is_no_event_to_align_to(tmp_path):
    write_session(tmp_path)
    with pytest.raises(NEDSError, match="choice is no event to align to"):
        read_only_session(tmp_path, ConversionOptions(align_event="choice"))


def test_trials_outside_the_spike_recording_are_dropped(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    times, clusters = np.load(folder / "spikes.times.npy"), np.load(folder / "spikes.clusters.npy")
    early = times < 30
    np.save(folder / "spikes.times.npy", times[early])
    np.save(folder / "spikes.clusters.npy", clusters[early])
    recording = read_only_session(tmp_path)
    assert recording.dropped_trials == {"outside the spike recording": 5}
    assert recording.trial_index.tolist() == list(range(7))
    assert len(recording.continuous["wheel_speed"]) == len(recording.categorical["choice"]) == 7


def test_trials_that_the_spike_recording_covers_in_part_are_dropped(tmp_path):
    """Their counts would end, or begin, with zeros."""
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    times = np.arange(9.6, 40.45, 0.05)  # the trials go from 9.5 to 11.5, ..., 39.5 to 41.5, ... s
    np.save(folder / "spikes.times.npy", np.random.default_rng(0).permutation(times))
    np.save(folder / "spikes.clusters.npy", np.zeros(len(times), int))
    recording = read_only_session(tmp_path)
    assert recording.trial_index.tolist() == list(range(1, 10))
    assert recording.dropped_trials == {"outside the spike recording": 3}


def test_a_missing_wheel_or_camera_leaves_only_that_variable_out(tmp_path):
    folder = write_session(tmp_path)
    (folder / "_ibl_wheel.position.npy").unlink()
    (folder / "leftCamera.ROIMotionEnergy.npy").unlink()
    recording = read_only_session(tmp_path)
    assert set(recording.continuous) == {"whisker_motion_energy"}
    assert recording.provenance["signals"] == {"whisker_motion_energy": "rightCamera"}
    assert len(recording.provenance["notes"]) == 2
    (folder / "rightCamera.ROIMotionEnergy.npy").unlink()
    recording = read_only_session(tmp_path)
    assert recording.continuous == {}
    # The cache tables still list the files.
    assert "alf/rightCamera.ROIMotionEnergy.npy is in the cache tables, not on disk" in " ".join(
        recording.provenance["notes"]
    )


@pytest.mark.parametrize("camera, other", [("left", "right"), ("right", "left")])
def test_the_preferred_camera_is_read_and_the_other_one_where_it_is_missing(tmp_path, camera, other):
    folder = write_session(tmp_path)
    right = folder / "rightCamera.ROIMotionEnergy.npy"
    np.save(right, 1000 + np.load(right))  # the left one's energy is the time, below 100 s
    options = ConversionOptions(min_rate_hz=0, whisker_camera=camera)

    def read() -> tuple[str, str]:
        recording = read_only_session(tmp_path, options)
        energy = recording.continuous["whisker_motion_energy"]
        side = "right" if energy.min() > 1000 else "left"
        return recording.provenance["signals"]["whisker_motion_energy"], side

    assert read() == (f"{camera}Camera", camera)
    (folder / f"{camera}Camera.ROIMotionEnergy.npy").unlink()
    assert read() == (f"{other}Camera", other)


def test_a_camera_that_does_not_exist_is_refused():
    with pytest.raises(NEDSError, match="the whisker camera must be 'left' or 'right', not 'body'"):
        ConversionOptions(whisker_camera="body")


def test_a_few_camera_times_too_many_are_cut_off_at_the_start(tmp_path):
    folder = write_session(tmp_path)
    times = np.load(folder / "_ibl_leftCamera.times.npy")
    np.save(folder / "_ibl_leftCamera.times.npy", np.r_[times[:5] - 1, times])
    recording = read_only_session(tmp_path)
    assert recording.provenance["signals"]["whisker_motion_energy"] == "leftCamera"
    np.testing.assert_allclose(recording.continuous["whisker_motion_energy"][0, 0], 9.52, rtol=1e-6)


@pytest.mark.parametrize("extra_times", [6, -1])
def test_camera_times_that_cannot_be_matched_to_frames_are_not_used(tmp_path, extra_times):
    folder = write_session(tmp_path)
    frames = np.load(folder / "leftCamera.ROIMotionEnergy.npy").size
    np.save(folder / "_ibl_leftCamera.times.npy", np.linspace(0, 100, frames + extra_times))
    recording = read_only_session(tmp_path)
    assert recording.provenance["signals"]["whisker_motion_energy"] == "rightCamera"
    assert f"{frames + extra_times} times for {frames} frames" in recording.provenance["notes"][0]


def test_a_video_that_starts_late_leaves_the_first_trials_missing(tmp_path):
    folder = write_session(tmp_path)
    for name in ("_ibl_leftCamera.times.npy", "leftCamera.ROIMotionEnergy.npy"):
        np.save(folder / name, np.load(folder / name)[60 * 12 :])  # starts at 12 s
    energy = read_only_session(tmp_path).continuous["whisker_motion_energy"]
    assert np.isnan(energy).all(axis=1).tolist() == [True] + [False] * 11
    assert not np.isnan(energy[1:]).any()


def test_a_block_that_is_unknown_stays_missing(tmp_path):
    folder = write_session(tmp_path)
    trials = trials_table()
    trials.loc[0, "probabilityLeft"] = np.nan
    write_trials(folder, trials)
    assert read_only_session(tmp_path).categorical["block"][:3].tolist() == [-1, 0, 2]


@pytest.mark.parametrize(
    ("trials", "note"),
    [
        (trials_table().assign(probabilityLeft=0.9), "probabilityLeft takes the values [0.9]"),
        (trials_table().assign(probabilityLeft=np.nan), "probabilityLeft is NaN in every trial"),
        (trials_table().drop(columns="probabilityLeft"), "no probabilityLeft"),
    ],
)
def test_a_session_without_the_tasks_blocks_has_no_block(tmp_path, trials, note):
    write_trials(write_session(tmp_path), trials)
    recording = read_only_session(tmp_path)
    assert set(recording.categorical) == set(recording.classes) == {"choice"}
    assert recording.provenance["notes"] == [f"block is missing: {note}"]


def test_units_without_histology_or_quality_have_none(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    for name in (
        "channels.brainLocationIds_ccf_2017.npy",
        "channels.mlapdv.npy",
        "clusters.metrics.pqt",
        "clusters.uuids.csv",
        "clusters.depths.npy",
    ):
        (folder / name).unlink()
    recording = read_only_session(tmp_path)
    assert recording.units["uuid"].tolist() == [f"{recording.session}/probe00/{k}" for k in range(3)]
    assert recording.units.drop(columns=["uuid", "probe"]).isna().to_numpy().all()


def test_the_latest_revision_is_read_and_recorded_with_its_hash(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    first = np.load(folder / "spikes.times.npy")
    for revision, shift in (("2024-05-06", 0.1), ("2023-01-01", 0.3)):
        (folder / f"#{revision}#").mkdir()
        np.save(folder / f"#{revision}#" / "spikes.times.npy", first + shift)
    recording = read_only_session(tmp_path)
    assert np.flatnonzero(recording.spike_counts[0].any(axis=1)).tolist() == [35, 40, 45]  # 0.1 s later
    file = next(f for f in recording.provenance["files"] if "spikes.times" in f["path"])
    path = folder / "#2024-05-06#" / "spikes.times.npy"
    assert file == {
        "path": "alf/probe00/pykilosort/#2024-05-06#/spikes.times.npy",
        "revision": "2024-05-06",
        "xxh3_128": xxhash.xxh3_128(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
    }


def test_a_file_whose_md5_is_listed_is_recorded_with_it_and_a_note_where_it_differs(tmp_path):
    folder = write_session(tmp_path)
    one = one_cache.open_local(tmp_path)
    (session,) = one_cache.list_sessions(one)
    # As the tables of a server have it.
    listed = hashlib.md5((folder / "_ibl_wheel.position.npy").read_bytes()).hexdigest()
    wheel = one._cache["datasets"]["rel_path"].str.contains("_ibl_wheel")
    one._cache["datasets"].loc[wheel, "hash"] = listed
    provenance = alf.read_session(one, session, OPTIONS).provenance
    files = {file["path"]: file for file in provenance["files"]}
    assert files["alf/_ibl_wheel.position.npy"]["md5"] == listed
    assert "xxh3_128" not in files["alf/_ibl_wheel.position.npy"]
    assert files["alf/_ibl_wheel.timestamps.npy"]["md5"] != listed
    assert provenance["notes"] == [
        f"alf/_ibl_wheel.timestamps.npy is not the file of ONE's tables, whose md5 is {listed}"
    ]


def test_files_of_a_server_are_asked_of_one(tmp_path):
    write_session(tmp_path)
    offline, server = one_cache.open_local(tmp_path), one_cache.open_local(tmp_path)
    (session,) = one_cache.list_sessions(offline)
    asked = []

    class Server(type(server)):
        offline = False

        def load_dataset(self, eid, dataset, **options):
            asked.append(dataset)
            return super().load_dataset(eid, dataset, **options)

    server.__class__ = Server
    recordings = [alf.read_session(one, session, OPTIONS) for one in (offline, server)]
    assert recordings[0].provenance == recordings[1].provenance
    np.testing.assert_array_equal(recordings[0].spike_counts, recordings[1].spike_counts)
    assert sorted(asked) == sorted(file["path"] for file in recordings[0].provenance["files"])


def test_the_default_revision_comes_before_a_later_one(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    (folder / "#2024-05-06#").mkdir()
    shutil.copy(folder / "spikes.times.npy", folder / "#2024-05-06#" / "spikes.times.npy")
    one = one_cache.open_local(tmp_path)
    # As the tables of a server have it.
    one._cache["datasets"]["default_revision"] = ~one._cache["datasets"]["rel_path"].str.contains("#")
    (session,) = one_cache.list_sessions(one)
    files = alf.read_session(one, session, OPTIONS).provenance["files"]
    assert {file["revision"] for file in files} == {""}


def test_ids_do_not_depend_on_where_and_when_the_tables_are_made(tmp_path):
    for root in ("one", "two"):
        write_session(tmp_path / root, subject="a")
        write_session(tmp_path / root, subject="b")
    first, second = (
        one_cache.list_sessions(one_cache.open_local(tmp_path / root)) for root in ("one", "two")
    )
    assert first == second and len(set(first)) == 2
    remake_tables(tmp_path / "one")
    assert one_cache.list_sessions(one_cache.open_local(tmp_path / "one")) == first


def test_ids_that_are_numbers_and_odd_quality_labels_are_taken_as_far_as_they_go(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    pd.DataFrame({"uuids": ["7", None, "9"]}).to_csv(folder / "clusters.uuids.csv", index=False)
    recording = read_only_session(tmp_path)
    assert recording.units["uuid"].tolist() == ["7", f"{recording.session}/probe00/1", "9"]
    pd.DataFrame({"uuids": [7, 8, 9]}).to_csv(folder / "clusters.uuids.csv", index=False)
    metrics = pd.DataFrame({"cluster_id": [0, 0, 1, 2], "label": ["1", "0.5", "good", None]})
    metrics.to_parquet(folder / "clusters.metrics.pqt")
    units = read_only_session(tmp_path).units
    assert units["uuid"].tolist() == ["7", "8", "9"]
    np.testing.assert_array_equal(units["label"], [1.0, np.nan, np.nan])


def test_sessions_and_files_that_are_added_later_are_read(tmp_path):
    left_camera = [write_session(tmp_path, "a") / f"{name}.npy" for name in LEFT_CAMERA]
    energy = [file.read_bytes() for file in left_camera]
    for file in left_camera:
        file.unlink()
    first = read_only_session(tmp_path)
    assert first.provenance["signals"]["whisker_motion_energy"] == "rightCamera"
    write_session(tmp_path, "b")
    for file, content in zip(left_camera, energy):
        file.write_bytes(content)
    one = one_cache.open_local(tmp_path)
    assert len(one_cache.list_sessions(one)) == 2
    recording = alf.read_session(one, first.session, OPTIONS)
    assert recording.provenance["signals"]["whisker_motion_energy"] == "leftCamera"
    (left_camera[0].parent / "probe01").mkdir()
    write_spikes(left_camera[0].parent / "probe01", trials_table())
    recording = alf.read_session(one, first.session, OPTIONS)
    assert list(recording.provenance["probes"]) == ["probe00", "probe01"]


def test_tables_made_elsewhere_stay_and_warn_of_a_session_that_they_lack(tmp_path):
    from one.alf.cache import make_parquet_db

    write_session(tmp_path, "a")
    make_parquet_db(tmp_path)
    tables = (tmp_path / "sessions.pqt").read_bytes()
    write_session(tmp_path, "b")
    with pytest.warns(
        UserWarning, match="Subjects/b/2024-01-31/001 is not in .*sessions.pqt and is left out"
    ):
        assert read_only_session(tmp_path).subject == "a"
    assert (tmp_path / "sessions.pqt").read_bytes() == tables


def test_tables_that_are_there_are_used_as_they_are(tmp_path):
    from one.alf.cache import make_parquet_db

    write_session(tmp_path)
    make_parquet_db(tmp_path)
    tables = (tmp_path / "sessions.pqt").read_bytes()
    recording = read_only_session(tmp_path)
    assert recording.spike_counts.shape == (12, 100, 3)
    assert recording.session == str(pd.read_parquet(tmp_path / "sessions.pqt").index[0])
    assert (tmp_path / "sessions.pqt").read_bytes() == tables


def test_a_session_without_trials_or_spikes_is_read_with_the_reason_and_of_a_server_not_listed(tmp_path):
    write_session(tmp_path, subject="complete")
    (write_session(tmp_path, subject="untrained") / "_ibl_trials.table.pqt").unlink()
    write_session(tmp_path, subject="behaviour", probes=())
    one = one_cache.open_local(tmp_path)
    found = {}
    for session in one_cache.list_sessions(one):
        try:
            found[one.eid2path(session).parts[-3]] = alf.read_session(one, session, OPTIONS).subject
        except NEDSError as error:
            found[one.eid2path(session).parts[-3]] = str(error).removeprefix(f"{session}: ").split(",")[0]
    assert found == {"complete": "complete", "untrained": "no trials", "behaviour": "no spikes"}

    class Server(type(one)):
        offline = False

    one.__class__ = Server  # of whose thousands of sessions only those are listed that can be read
    assert [one.eid2path(session).parts[-3] for session in one_cache.list_sessions(one)] == ["complete"]


def test_a_session_of_the_tables_that_is_not_here_is_not_listed(tmp_path):
    """As in the tables of a server, of which only some sessions were downloaded."""
    write_session(tmp_path, subject="here")
    away = [write_session(tmp_path, name, probes) for name, probes in (("a", ()), ("b", ("probe00",)))]
    one_cache.open_local(tmp_path)
    for folder in away:
        shutil.rmtree(folder.parents[2])
    assert read_only_session(tmp_path).subject == "here"


@pytest.mark.parametrize("level", ["", "Subjects", "Subjects/mouse", "Subjects/mouse/2024-01-31"])
def test_a_folder_that_is_a_link_is_named(tmp_path, level):
    write_session(tmp_path / "far")
    link = tmp_path / "one" / "somelab" / level
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "far" / "somelab" / level)
    with pytest.raises(NEDSError, match=f"^{link} is a link, which ONE's tables do not follow"):
        one_cache.open_local(tmp_path / "one")


@pytest.mark.parametrize("folder", ["one/somelab", "one/somelab/Subjects", "."])
def test_a_folder_too_deep_or_too_high_is_said_to_be_and_stays_as_it_is(tmp_path, folder):
    write_session(tmp_path / "one")
    with pytest.raises(
        NEDSError, match="expected the folder above LAB/Subjects, found a session that is not at"
    ):
        one_cache.open_local(tmp_path / folder)
    assert not list(tmp_path.rglob("*sessions.pqt*"))


def test_tables_whose_making_is_killed_are_whole_or_not_there_and_nothing_stays_of_it(tmp_path):
    write_session(tmp_path)
    killed = """
import os, signal, sys
from neds_hf.data.one_cache import make_cache_tables

def replace(file, table, replace=os.replace):
    if table.name == "sessions.pqt":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(file, table)

os.replace = replace
make_cache_tables(sys.argv[1])
"""
    assert subprocess.run([sys.executable, "-c", killed, tmp_path]).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.glob("*.pqt")] == ["datasets.pqt"]
    assert pd.read_parquet(tmp_path / "datasets.pqt").index.names == ["eid", "id"]
    assert list(tmp_path.glob(".sessions.pqt.*"))
    assert read_only_session(tmp_path).subject == "mouse"
    assert not list(tmp_path.glob(".*.pqt.*"))


@pytest.mark.parametrize("table", ["sessions.pqt", "datasets.pqt"])
def test_a_table_that_is_cut_off_is_one_error_that_says_what_to_delete(tmp_path, table):
    write_session(tmp_path)
    one_cache.make_cache_tables(tmp_path)
    (tmp_path / table).write_bytes((tmp_path / table).read_bytes()[:100])
    with pytest.raises(NEDSError, match=r"tables are damaged .*: delete both, sessions.pqt and datasets.pqt"):
        one_cache.open_local(tmp_path)


def test_tables_without_uuids_are_damaged(tmp_path):
    from one.alf.cache import make_parquet_db

    write_session(tmp_path)
    make_parquet_db(tmp_path, hash_ids=False)  # what a killed process of before left
    with pytest.raises(NEDSError, match="tables are damaged"):
        one_cache.list_sessions(one_cache.open_local(tmp_path))


def test_two_sessions_keep_to_their_own_files(tmp_path):
    write_session(tmp_path, subject="a")
    late = write_session(tmp_path, subject="b", num_trials=20)
    np.save(late / "_ibl_wheel.position.npy", np.zeros(5000))
    one = one_cache.open_local(tmp_path)
    recordings = {
        r.subject: r for r in (alf.read_session(one, s, OPTIONS) for s in one_cache.list_sessions(one))
    }
    assert len(recordings["a"].trial_index) == 12 and len(recordings["b"].trial_index) == 20
    assert recordings["a"].continuous["wheel_speed"].max() > 0.9
    assert not recordings["b"].continuous["wheel_speed"].any()


def remove(pattern):
    def spoil(folder: Path):
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def replace(path, change):
    def spoil(folder: Path):
        np.save(folder / path, change(np.load(folder / path)))

    return spoil


def change_trials(**columns):
    return lambda folder: write_trials(folder, trials_table().assign(**columns))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("_ibl_trials*"), r"no trials, expected alf/_ibl_trials.table.pqt"),
        (remove("probe00/pykilosort/spikes.times.npy"), "no spikes, expected alf/probe00"),
        (remove("probe00/pykilosort/spikes.clusters.npy"), "there is no alf/.*/spikes.clusters.npy"),
        (remove("probe00/pykilosort/clusters.channels.npy"), "there is no alf/.*/clusters.channels.npy"),
        (replace("probe00/pykilosort/spikes.times.npy", lambda x: x[:0]), "no spikes"),
        (replace("probe00/pykilosort/spikes.times.npy", lambda x: x[:-1]), r"pykilosort: spike times are"),
        (replace("probe00/pykilosort/spikes.clusters.npy", lambda x: x + 1), "1 to 3, expected 0 to 2"),
        (replace("probe00/pykilosort/clusters.channels.npy", lambda x: x + 2), "goes up to 4, but"),
        (replace("probe00/pykilosort/clusters.depths.npy", lambda x: x[:2]), "depths.npy has 2 rows"),
        (
            lambda folder: (folder / "probe00/pykilosort/spikes.times.npy").write_bytes(b"nothing"),
            "cannot read alf/probe00/pykilosort/spikes.times.npy",
        ),
        (
            replace("probe00/pykilosort/channels.mlapdv.npy", lambda x: x[:, :2]),
            r"\(4, 2\), expected .*, 3\)",
        ),
        (change_trials(choice=7), "choices of trials must be -1, 0 or 1, but are .7"),
        (change_trials(choice=0), "none of its 12 trials is left.*'no choice': 12"),
        (
            lambda folder: write_trials(folder, trials_table().drop(columns="feedback_times")),
            "there is no alf/_ibl_trials.feedback_times.npy, and alf/_ibl_trials.table.pqt has only intervals_0, ",
        ),
        (
            lambda folder: (folder / "probe00").rename(folder / "imec0"),
            "expected alf/probe00/spikes.times.npy, .*, found alf/imec0/pykilosort/spikes.times.npy",
        ),
    ],
)
def test_a_session_that_cannot_be_used_is_named_with_the_reason(tmp_path, spoil, message):
    spoil(write_session(tmp_path))
    one = one_cache.open_local(tmp_path)
    session = str(one.search()[0])
    with pytest.raises(NEDSError, match=message) as error:
        alf.read_session(one, session, OPTIONS)
    assert session in str(error.value)


def test_an_unknown_session_is_refused(tmp_path):
    write_session(tmp_path)
    one = one_cache.open_local(tmp_path)
    for session in ("d23a44ef-1402-4ed7-97f5-47e9a7a504d9", "mouse"):
        with pytest.raises(NEDSError, match=f"session {session} is not known"):
            alf.read_session(one, session, OPTIONS)


def test_pickled_arrays_are_refused(tmp_path):
    folder = write_session(tmp_path) / "probe00" / "pykilosort"
    np.save(folder / "spikes.times.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(NEDSError, match="cannot read"):
        read_only_session(tmp_path)


def test_a_folder_without_sessions_is_refused(tmp_path):
    with pytest.raises(NEDSError, match="no such folder"):
        one_cache.open_local(tmp_path / "nowhere")
    with pytest.raises(NEDSError, match="no ALF session found, expected LAB/Subjects"):
        one_cache.open_local(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said_to_need_tables(tmp_path):
    write_session(tmp_path)
    (tmp_path / "sessions.pqt").mkdir()  # stands in the way, also for a superuser
    with pytest.raises(NEDSError, match=r"no ONE cache tables .* cannot be written"):
        one_cache.open_local(tmp_path)


def test_the_paper_has_74_sessions_to_pretrain_on_and_10_held_out():
    sessions = repeated_site_sessions()
    assert {name: len(eids) for name, eids in sessions.items()} == {"pretrain": 74, "held_out": 10}
    assert len({*sessions["pretrain"], *sessions["held_out"]}) == 84


@needs_shared
def test_a_real_recording_equals_the_published_preprocessing(tmp_path):
    shutil.copytree(SHARED / "data" / "alf_excerpt", tmp_path, dirs_exist_ok=True)
    recording = read_only_session(tmp_path, ConversionOptions(reaction_time_s=(0, 10), min_rate_hz=0))
    reference = np.load(SHARED / "reference" / "alf_excerpt_binned.npz")
    kept = reference["trial_ok"]
    assert recording.trial_index.tolist() == np.flatnonzero(kept).tolist()
    counts = recording.spike_counts
    np.testing.assert_array_equal(counts[..., reference["cluster_ids"]], reference["spike_counts"][kept])
    assert counts.sum() == reference["spike_counts"][kept].sum()
    has_wheel = reference["wheel_ok"][kept]
    speed = recording.continuous["wheel_speed"]
    np.testing.assert_allclose(speed[has_wheel], reference["wheel_speed"][kept][has_wheel], atol=1e-6)
    assert np.isnan(speed[~has_wheel]).all()
    assert set(recording.continuous) == {"wheel_speed"}  # it has no video
    assert recording.units["allen"].nunique() == 21 and (recording.units["label"] == 1).sum() == 46


@needs_shared
def test_real_trials_are_filtered_as_a_query_does():
    (file,) = (SHARED / "data" / "alf_trials").rglob("_ibl_trials.table.pqt")
    trials = pd.read_parquet(file)
    for low, high in ((0.08, 2.0), (0.0, 10.0)):
        keep, dropped = alf.filter_trials(trials, ConversionOptions(reaction_time_s=(low, high)))
        query = trials.assign(rt=trials.firstMovement_times - trials.stimOn_times).query(
            "stimOn_times.notna() and feedback_times.notna() and choice != 0 and @low <= rt <= @high"
        )
        assert np.flatnonzero(keep).tolist() == query.index.tolist()
        assert dropped["missing event"] == 20
        assert sum(dropped.values()) + keep.sum() == 568


def remake_tables(root: Path) -> None:
    for name in ("sessions.pqt", "datasets.pqt"):
        (root / name).unlink()
    one_cache.make_cache_tables(root)
