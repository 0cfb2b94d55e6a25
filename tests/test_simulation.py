"""Simulated mice: the task, the wheel, the neurons and their true rates, the folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neds_hf.cli.simulate import main
from neds_hf.data import simulated_neurons, simulation
from neds_hf.data.simulated_mouse import behave, block_priors, p_state_given_behavior, states
from neds_hf.data.simulated_neurons import NUM_BINS, REGIONS, fire
from neds_hf.data.simulation import read_true_rates, session_id, session_path, simulate
from neds_hf.errors import NEDSError

SMALL = {"trials": 100, "units": 12, "probes": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two mice with two probes each; the second lacks its left camera and second probe."""
    out = tmp_path_factory.mktemp("mice") / "sim"
    simulate(out, sessions=2, seed=3, without={1: ("leftCamera", "probe01")}, **SMALL)
    return out


@pytest.fixture(scope="module")
def one(folder):
    from one.api import One

    return One(cache_dir=folder, mode="local")


@pytest.fixture(scope="module")
def long_session():
    behavior = behave(np.random.default_rng(1), 600)
    neurons = fire(np.random.default_rng(2), behavior, np.tile(REGIONS, 5))
    return behavior, neurons, binned(behavior.trials, neurons.spike_times)


def binned(trials: pd.DataFrame, spike_times: list[np.ndarray]) -> np.ndarray:
    """(trials, bins, units) counts by the definition of a histogram."""
    edges = trials["stimOn_times"].to_numpy()[:, None] - 0.5 + 0.02 * np.arange(NUM_BINS + 1)
    return np.stack([np.diff(np.searchsorted(times, edges), axis=1) for times in spike_times], -1)


def arrays_of(out: Path, number: int, seed: int) -> dict[str, bytes]:
    session = out / session_path(seed, number)
    files = [*sorted(session.rglob("*.*")), out / "ground_truth" / f"{session_id(seed, number)}.npz"]
    return {file.name: file.read_bytes() for file in files}


# --- the folder


def test_one_lists_the_sessions_under_their_ids_and_nothing_of_the_true_rates(folder, one):
    assert sorted(map(str, one.search())) == sorted(session_id(3, number) for number in (0, 1))
    assert one.eid2path(session_id(3, 0)) == folder / session_path(3, 0)
    assert one.search(lab="simlab", subject="sim3_001") == [one.to_eid(session_id(3, 1))]
    assert not [name for name in one.list_datasets() if "ground_truth" in name or name.endswith("npz")]


@pytest.mark.filterwarnings("ignore")  # no dataset has a revision
def test_one_loads_every_object(one):
    eid = session_id(3, 0)
    trials = one.load_object(eid, "trials", collection="alf")
    assert trials["intervals"].shape == (100, 2) and len(trials) == 12
    wheel = one.load_object(eid, "wheel", collection="alf")
    assert len(wheel["position"]) == len(wheel["timestamps"])
    assert (np.diff(wheel["timestamps"]) > 0).all()
    for camera, rate_hz in (("leftCamera", 60), ("rightCamera", 150)):
        video = one.load_object(eid, camera, collection="alf")
        assert video["ROIMotionEnergy"].shape == video["times"].shape
        assert np.diff(video["times"]).mean() == pytest.approx(1 / rate_hz, rel=1e-3)
        assert video["times"][0] < trials["intervals"][0, 0]
        assert video["times"][-1] > trials["intervals"][-1, 1]
    collection = "alf/probe01/pykilosort"
    spikes = one.load_object(eid, "spikes", collection=collection)
    clusters = one.load_object(eid, "clusters", collection=collection)
    channels = one.load_object(eid, "channels", collection=collection)
    assert (np.diff(spikes["times"]) >= 0).all()
    assert len(clusters["uuids"]) == len(clusters["metrics"]) == 6
    counts = np.bincount(spikes["clusters"], minlength=6)
    np.testing.assert_array_equal(counts, clusters["metrics"]["spike_count"])
    assert set(np.round(clusters["metrics"]["label"] * 3, 6)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(clusters["depths"], channels["localCoordinates"][clusters["channels"], 1])
    assert channels["mlapdv"].shape == (384, 3)
    assert channels["mlapdv"][0, 2] < channels["mlapdv"][-1, 2]  # channel 0 is at the tip


def test_files_are_those_of_a_real_session(folder):
    repository = Path(__file__).parents[1]
    real = repository.parent / "shared/data/alf_excerpt/excerptlab/Subjects/pid_ef3d059a/2020-01-01/001"
    if not real.is_dir():
        pytest.skip("the real ALF excerpt is not here")
    ours = folder / session_path(3, 0)
    for file in real.rglob("*.*"):
        if file.is_dir():
            continue
        twin = ours / file.relative_to(real)
        assert twin.is_file(), twin
        if file.suffix == ".npy":
            assert np.load(twin).dtype == np.load(file).dtype, file.name
        elif file.suffix == ".pqt":
            pd.testing.assert_series_equal(pd.read_parquet(twin).dtypes, pd.read_parquet(file).dtypes)


def test_channels_lie_in_the_regions_of_the_repeated_site(one, folder):
    from iblatlas.regions import BrainRegions

    probe = folder / session_path(3, 0) / "alf/probe00/pykilosort"
    allen = np.load(probe / "channels.brainLocationIds_ccf_2017.npy")
    beryl = BrainRegions().id2acronym(allen, mapping="Beryl")
    assert list(dict.fromkeys(beryl)) == list(REGIONS)  # from the tip upwards


def test_what_a_session_is_without_is_missing_from_its_folder_only(folder, one):
    names = one.list_datasets(session_id(3, 1))
    assert not [name for name in names if "leftCamera" in name or "probe01" in name]
    assert [name for name in names if "rightCamera" in name] and [name for name in names if "probe00" in name]
    description = json.loads((folder / session_path(3, 1) / "alf/probes.description.json").read_text())
    assert [probe["label"] for probe in description] == ["probe00"]
    assert len(one.list_datasets(session_id(3, 0))) > len(names)


def test_same_seed_gives_same_bytes_whatever_else_is_simulated(folder, tmp_path):
    simulate(tmp_path / "again", sessions=1, seed=3, without={1: ("leftCamera", "probe01")}, **SMALL)
    assert arrays_of(tmp_path / "again", 0, seed=3) == arrays_of(folder, 0, seed=3)
    simulate(tmp_path / "other", sessions=1, seed=4, **SMALL)
    other, ours = arrays_of(tmp_path / "other", 0, seed=4), arrays_of(folder, 0, seed=3)
    assert other["spikes.times.npy"] != ours["spikes.times.npy"]
    assert ours["spikes.times.npy"] != arrays_of(folder, 1, seed=3)["spikes.times.npy"]


def test_an_interrupted_simulation_is_resumed(folder, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    shutil.rmtree(out / session_path(3, 1))
    (out / ".partial/1/alf").mkdir(parents=True)  # what an interruption leaves
    kept = (out / session_path(3, 0) / "alf/_ibl_trials.table.pqt").stat().st_mtime_ns
    eids = simulate(out, sessions=2, seed=3, without={1: ("leftCamera", "probe01")}, **SMALL)
    assert eids == [session_id(3, 0), session_id(3, 1)]
    assert arrays_of(out, 1, seed=3) == arrays_of(folder, 1, seed=3)
    assert (out / session_path(3, 0) / "alf/_ibl_trials.table.pqt").stat().st_mtime_ns == kept
    assert not list((out / ".partial").iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NEDSError, match="file/mice: expected a folder that can be written to"):
        simulate(tmp_path / "file" / "mice", sessions=1, trials=10, units=2)


def without_room(out, options, number):
    (out / ".partial" / str(number)).mkdir()
    raise OSError(28, "No space left on device")


def be_killed(out, options, number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "write, workers, message",
    [
        (without_room, 1, "mice: cannot be written to .*No space left"),
        (be_killed, 2, "a worker process was ended, probably for want of memory: --workers 1"),
    ],
)
def test_a_full_disc_or_a_killed_worker_is_one_error_and_the_next_run_goes_on(
    tmp_path, monkeypatch, write, workers, message
):
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "_write_session", write)
        with pytest.raises(NEDSError, match=f"{message}.*; run again to go on"):
            simulate(tmp_path / "mice", sessions=2, workers=workers, trials=10, units=2)
    assert len(simulate(tmp_path / "mice", sessions=2, trials=10, units=2)) == 2


def test_a_disc_that_is_full_from_the_start_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch):
    def write_nothing(file, text):
        file.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_nothing)
        with pytest.raises(NEDSError, match="mice: expected a folder that can be written to"):
            simulate(tmp_path / "mice", sessions=1, trials=10, units=2)
    assert len(simulate(tmp_path / "mice", sessions=1, trials=10, units=2)) == 1


def test_a_simulation_whose_options_were_cut_off_is_named(tmp_path):
    (tmp_path / "simulation.json").write_text('{"trials": 300,')
    with pytest.raises(NEDSError, match=f"^{tmp_path}/simulation.json cannot be read as JSON"):
        simulate(tmp_path)


def test_a_folder_with_something_else_is_refused(folder, tmp_path):
    with pytest.raises(NEDSError, match="other options"):
        simulate(folder, sessions=2, seed=3, trials=99, units=12, probes=2)
    with pytest.raises(NEDSError, match="already holds 2 sessions"):
        simulate(folder, sessions=1, seed=3, without={1: ("leftCamera", "probe01")}, **SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NEDSError, match="neither empty nor a simulation"):
        simulate(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "options",
    [
        {"sessions": 0},
        {"workers": 0},
        {"trials": 9},
        {"units": 1, "probes": 2},
        {"probes": 3},
        {"seed": -1},
        {"without": {0: ("probe01",)}},
    ],
)
def test_unusable_options_are_refused_before_anything_is_written(options, tmp_path):
    with pytest.raises(NEDSError):
        simulate(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- the command


def test_the_example_runs_with_every_flag_and_workers_change_nothing(tmp_path, capsys):
    flags = ["--sessions", "2", "--trials", "10", "--units", "4", "--probes", "2", "--seed", "7"]
    example = Path(__file__).parents[1] / "examples" / "simulate.py"
    command = [sys.executable, str(example), str(tmp_path / "two"), *flags, "--workers", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"2 sessions of 10 trials and 4 units in {tmp_path / 'two'}\n"
    main([str(tmp_path / "one"), *flags, "--workers", "1"])
    assert capsys.readouterr().out == f"2 sessions of 10 trials and 4 units in {tmp_path / 'one'}\n"
    for number in (0, 1):
        ours = arrays_of(tmp_path / "one", number, seed=7)
        assert ours == arrays_of(tmp_path / "two", number, seed=7)
        session = tmp_path / "one" / session_path(7, number) / "alf"
        assert len(pd.read_parquet(session / "_ibl_trials.table.pqt")) == 10
        units = [len(np.load(file)) for file in sorted(session.glob("probe*/pykilosort/clusters.depths.npy"))]
        assert units == [2, 2]


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(
        flag in text for flag in ("--sessions", "--trials", "--units", "--probes", "--seed", "--workers")
    )


# --- the task


def test_blocks_are_90_unbiased_trials_then_alternate_every_20_to_100():
    for seed in range(5):
        prior = block_priors(np.random.default_rng(seed), 900)
        starts = np.flatnonzero(np.diff(prior)) + 1
        assert (prior[:90] == 0.5).all() and starts[0] == 90
        assert set(prior[90:]) == {0.2, 0.8}
        lengths = np.diff(starts)  # the last block ends with the session
        assert lengths.min() >= 20 and lengths.max() <= 100


def test_choices_improve_with_contrast_and_follow_the_block(long_session):
    trials = long_session[0].trials.query("choice != 0")
    correct = (trials["choice"] == trials["side"]).groupby(trials["contrast"]).mean()
    assert correct.is_monotonic_increasing and correct[1.0] > 0.9
    guesses = trials.query("contrast <= 0.0625")
    left = (guesses["choice"] == 1).groupby([guesses["probabilityLeft"], guesses["side"]]).mean()
    assert (left[0.8] > left[0.5]).all() and (left[0.5] > left[0.2]).all()
    sides = trials.groupby("probabilityLeft")["side"].apply(lambda side: (side == 1).mean())
    assert sides.to_numpy() == pytest.approx([0.2, 0.5, 0.8], abs=0.08)


def test_trials_table_holds_together(long_session):
    trials = long_session[0].trials
    go = trials.query("choice != 0")
    assert 0 < len(trials) - len(go) < 15
    reaction_s = go["firstMovement_times"] - go["stimOn_times"]
    assert 0 < reaction_s.isna().mean() < 0.05
    assert 0.01 < (reaction_s < 0.08).mean() < 0.06 and 0.002 < (reaction_s > 2).mean() < 0.05
    assert reaction_s.between(0.1, 0.8).mean() > 0.85
    assert (trials["intervals_0"].to_numpy()[1:] > trials["intervals_1"].to_numpy()[:-1]).all()
    assert (go["feedback_times"] > go["stimOn_times"] + reaction_s.fillna(0)).all()
    assert trials.query("choice == 0")["firstMovement_times"].isna().all()
    assert ((trials["feedbackType"] == 1) == (trials["choice"] == trials["side"])).all()
    assert (trials["contrastLeft"].notna() == (trials["side"] == 1)).all()
    assert 3 < (trials["intervals_1"] - trials["intervals_0"])[go.index].mean() < 6


def test_wheel_rests_before_the_stimulus_and_turns_to_the_response(folder):
    alf = folder / session_path(3, 0) / "alf"
    trials = pd.read_parquet(alf / "_ibl_trials.table.pqt").query("choice != 0")
    time, position = (np.load(alf / f"_ibl_wheel.{name}.npy") for name in ("timestamps", "position"))

    def at(event):
        return np.interp(event, time, position)

    stimulus = trials["stimOn_times"].to_numpy()
    assert np.abs(at(stimulus) - at(stimulus - 0.4)).max() < np.deg2rad(2)
    turned = at(trials["response_times"].to_numpy()) - at(stimulus)
    np.testing.assert_allclose(turned * trials["choice"], 0.28, atol=0.03)
    assert len(np.unique(np.round(np.diff(time), 4))) > 50  # uneven


# --- the neurons


def test_spikes_are_poisson_with_the_true_rates(long_session):
    _, neurons, counts = long_session
    expected = np.exp(neurons.log_rates_full)
    per_unit = (counts.sum((0, 1)) - expected.sum((0, 1))) / np.sqrt(expected.sum((0, 1)))
    assert stats.kstest(per_unit, "norm").pvalue > 1e-3
    # Over trials, every bin of every unit: a misplaced or misordered bin would show.
    total, mean = counts.sum(0), expected.sum(0)
    chi2 = ((total - mean) ** 2 / mean)[mean > 10]
    assert stats.chi2(len(chi2)).cdf(chi2.sum()) == pytest.approx(0.5, abs=0.499)
    # Within trials: the variance around the true rate is the rate.
    assert ((counts - expected) ** 2).sum() / expected.sum() == pytest.approx(1, abs=0.02)


def test_rates_given_behavior_are_the_mean_over_what_is_not_observed(monkeypatch):
    # Strong, and fast enough that a session averages over them.
    monkeypatch.setattr(simulated_neurons, "SHARED_FLUCTUATIONS", ((0.25, 0.2, 0.4), (0.25, 0.2, 0.4)))
    behavior = behave(np.random.default_rng(1), 600)
    neurons = fire(np.random.default_rng(2), behavior, np.tile(REGIONS, 5))
    rates, given_all = np.exp(neurons.log_rates_behavior), np.exp(neurons.log_rates_full)
    trials = behavior.trials
    for choice in (-1, 1):
        for prior in (0.2, 0.5, 0.8):
            group = ((trials["choice"] == choice) & (trials["probabilityLeft"] == prior)).to_numpy()
            for bins in (slice(0, 25), slice(25, 40), slice(40, 60), slice(60, 100)):
                per_trial = (given_all - rates)[group, bins].sum((1, 2))
                assert abs(stats.ttest_1samp(per_trial, 0).statistic) < 4, (choice, prior, bins)
    per_unit = given_all.sum((0, 1)) / rates.sum((0, 1))
    assert per_unit == pytest.approx(np.ones(25), abs=0.05)


def test_probability_of_the_stimulus_given_behavior_is_calibrated():
    side, contrast = states()
    left, weak, p_left, p_weak = [], [], [], []
    for seed in range(6):
        behavior = behave(np.random.default_rng(seed), 600)
        left.append(behavior.trials["side"] == 1)
        weak.append(behavior.trials["contrast"] < 0.1)
        p_left.append(behavior.p_state[:, side == 1].sum(1))
        p_weak.append(behavior.p_state[:, contrast < 0.1].sum(1))
    for happened, probability in ((left, p_left), (weak, p_weak)):
        happened, probability = np.concatenate(happened), np.concatenate(probability)
        for part in np.array_split(np.argsort(probability), 6):
            error = happened[part].mean() - probability[part].mean()
            deviation = np.sqrt((probability[part] * (1 - probability[part])).sum()) / len(part)
            assert abs(error) < 4 * deviation


def test_probability_of_the_stimulus_of_a_lapse_free_mouse_is_known_by_hand():
    mouse = {"slope": 1000.0, "bias": 0.0, "lapse": 0.0}
    p = p_state_given_behavior(mouse, np.array([0.8, 0.8]), np.array([1, 0]), np.array([0.3, 0.3]))
    side, contrast = states()
    # It never errs with contrast, and at 0 % a left choice leaves the prior of the side.
    assert p[0][(side == -1) & (contrast > 0)] == pytest.approx(0)
    zero = p[0][contrast == 0]
    assert zero[0] / zero.sum() == pytest.approx(0.8)
    # Without a choice there is only the prior.
    assert p[1][side == 1].sum() == pytest.approx(0.8)


def test_rates_are_those_of_real_recordings(long_session):
    _, neurons, counts = long_session
    rate_hz = counts.mean((0, 1)) / 0.02
    assert 3 < np.median(rate_hz) < 8 and 0 < (rate_hz < 2).mean() < 0.3
    assert (rate_hz * 0.02 < 0.3).mean() > 0.8
    kept = rate_hz > 2

    def bits_per_spike(log_rates):
        mean = counts.mean((0, 1))
        gain = (counts * (log_rates - np.log(mean)) - np.exp(log_rates) + mean).sum((0, 1))
        return (gain / counts.sum((0, 1)) / np.log(2))[kept].mean()

    given_behavior, given_all = map(bits_per_spike, (neurons.log_rates_behavior, neurons.log_rates_full))
    assert 0.1 < given_behavior < given_all < 0.5


def test_true_rates_of_the_folder_belong_to_the_units_and_trials_asked_for(folder):
    session = folder / session_path(3, 0) / "alf"
    trials = pd.read_parquet(session / "_ibl_trials.table.pqt")
    spike_times, uuids = [], []
    for probe in sorted(session.glob("probe0?")):
        times, clusters = (np.load(probe / f"pykilosort/spikes.{name}.npy") for name in ("times", "clusters"))
        uuids += pd.read_csv(probe / "pykilosort/clusters.uuids.csv")["uuids"].tolist()
        spike_times += [times[clusters == cluster] for cluster in range(6)]
    order = np.random.default_rng(0).permutation(len(uuids))
    index = np.arange(len(trials))[::-1]
    path = folder / "ground_truth" / f"{session_id(3, 0)}.npz"
    rates = read_true_rates(path, index, [uuids[k] for k in order])
    counts = binned(trials, spike_times)[index][:, :, order]
    for log_rates in rates.values():
        assert log_rates.shape == counts.shape and log_rates.dtype == np.float32
    expected = np.exp(rates["log_rates_full"].astype(float))
    score = (counts.sum(1) - expected.sum(1)) / np.sqrt(expected.sum(1))  # per trial and unit
    assert np.sqrt((score[expected.sum(1) > 5] ** 2).mean()) == pytest.approx(1, abs=0.15)
    some = read_true_rates(path, np.array([5, 2]), [uuids[7]])["log_rates_behavior"]
    whole = read_true_rates(path, np.arange(len(trials)), uuids)["log_rates_behavior"]
    np.testing.assert_array_equal(some, whole[[5, 2], :, 7:8])


def test_true_rates_that_do_not_exist_are_refused(folder):
    path = folder / "ground_truth" / f"{session_id(3, 0)}.npz"
    with pytest.raises(NEDSError, match="no file of true rates"):
        read_true_rates(folder / "ground_truth" / "none.npz", np.arange(3), [])
    with pytest.raises(NEDSError, match="no unit nobody among its 12"):
        read_true_rates(path, np.arange(3), ["nobody"])
    with pytest.raises(NEDSError, match="trials 0 to 99, not 0 to 100"):
        read_true_rates(path, np.array([0, 100]), [])
