"""Three simulated sessions, small enough to train on in seconds, whose spikes follow wheel and choice.

`ann` has a silent unit, which conversion drops, and one trial without wheel; `bob` no whisker video; `cat` has
everything and is the new animal. With 89 training and 13 validation trials, neither number divides by 2.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from neds_hf.data.schema import IBL_CLASSES, ConversionOptions, Recording
from neds_hf.data.storage import Source, convert

OPTIONS = ConversionOptions(align_event="go", window_s=(-0.2, 0.8), bin_size_s=0.05, min_rate_hz=0.5)
BINS = OPTIONS.num_bins  # 20
TRIALS = {"ann": 41, "bob": 46, "cat": 40}
UNITS = {"ann": 6, "bob": 9, "cat": 5}
SILENT = {"ann": 2}  # unit of the recording that the rate floor drops
BEHAVIORS = {**IBL_CLASSES, "wheel_speed": None, "whisker_motion_energy": None}

SIZES = (
    "hidden_size=16 intermediate_size=32 num_hidden_layers=1 num_attention_heads=2 bins_per_token=5 "
    "hidden_dropout=0 attention_dropout=0 unit_dropout=0 mask_ratio=0.3 tied_units=false spike_smoothing=0 "
    'loss_weights={"spikes":1.0} single_behavior_probability=0.5 '
    'scheme_weights={"encoding":1,"decoding":1,"within_modality":1,"cross_modal":1}'
).split()
TRAINING = (
    "--per_device_train_batch_size 8 --learning_rate 0.01 --weight_decay 0.01 --warmup_steps 0.1 "
    "--lr_scheduler_type cosine --seed 3 --use_cpu --disable_tqdm true"
).split()


# Of the model that many tests share.
OF_MODEL = "--num_train_epochs 15 --sessions ann bob".split()


def pretrain_arguments(dataset: Path, output: Path) -> list[str]:
    """Arguments of `neds pretrain` that do not depend on any default size; the epochs are to be added."""
    return ["--dataset", str(dataset), "--output", str(output), *TRAINING, "--set", *SIZES]


def simulate(session: str) -> Recording:
    rng = np.random.default_rng(len(session) + ord(session[0]))
    trials, units = TRIALS[session], UNITS[session]
    choice, block = rng.integers(0, 2, trials), rng.integers(0, 3, trials)
    times = np.arange(BINS) / BINS
    peaks = rng.uniform(0.2, 0.8, (trials, 1)) + 0.2 * (choice[:, None] - 0.5)
    wheel = rng.uniform(1, 4, (trials, 1)) * np.exp(-(((times - peaks) / 0.15) ** 2))
    whisker = 5 + 2 * wheel + 0.3 * rng.normal(size=wheel.shape)
    gains = np.linspace(-0.6, 0.8, units)
    log_rates = (
        -1 + gains * (wheel[..., None] - 1) + np.linspace(1, -1, units) * (choice[:, None, None] - 0.5)
    )
    counts = rng.poisson(np.exp(log_rates)).astype(np.uint8)
    if session in SILENT:
        counts[:, :, SILENT[session]] = 0
    continuous = {"wheel_speed": wheel, "whisker_motion_energy": whisker}
    if session == "ann":
        wheel[5] = np.nan
    if session == "bob":
        del continuous["whisker_motion_energy"]
    return Recording(
        session=session,
        spike_counts=counts,
        trial_index=np.arange(trials, dtype=np.int32),
        units=pd.DataFrame({"uuid": [f"{session}/{unit}" for unit in range(units)]}),
        window_s=OPTIONS.window_s,
        bin_size_s=OPTIONS.bin_size_s,
        align_event=OPTIONS.align_event,
        continuous={name: values.astype(np.float32) for name, values in continuous.items()},
        categorical={"choice": choice, "block": block},
        classes=IBL_CLASSES,
    )


def write_dataset(out: Path, sessions=tuple(TRIALS), options=OPTIONS, held_out=("cat",), change=None) -> Path:
    """Dataset folder; `change` edits a recording before it is converted."""

    def source(session: str) -> Source:
        def read() -> Recording:
            recording = simulate(session)
            return change(recording) if change else recording

        return Source(session, _fingerprint(read()), read)

    convert(out, list(map(source, sessions)), options, BEHAVIORS, set(held_out) & set(sessions))
    return out


def without_validation(dataset: Path) -> Path:
    """The same folder, of the session ann alone, whose card no longer names that split."""
    card = dataset / "README.md"
    entry = "  - split: validation\n    path:\n    - trials/validation/ann.parquet\n"
    assert entry in card.read_text()
    card.write_text(card.read_text().replace(entry, ""))
    return dataset


def _fingerprint(recording: Recording) -> str:
    parts = [recording.spike_counts, *recording.continuous.values(), *recording.categorical.values()]
    content = b"".join(values.tobytes() for values in parts) + recording.units.to_json().encode()
    return hashlib.sha256(content).hexdigest()


def write_arrays(path: Path, recording: Recording, trials: np.ndarray, behaviors: bool = True) -> Path:
    """Trial arrays (.npz) of some trials of a recording, with all its units."""
    meta = {
        "session": recording.session,
        "bin_size_s": recording.bin_size_s,
        "align_event": recording.align_event,
        "window_s": list(recording.window_s),
    }
    arrays = {}
    if behaviors:
        arrays = {name: values[trials] for name, values in recording.continuous.items()}
        arrays["choice"] = np.array([-1, 1])[recording.categorical["choice"][trials]]
        arrays["block"] = np.array([0.2, 0.5, 0.8])[recording.categorical["block"][trials]]
    np.savez(
        path,
        meta=json.dumps(meta),
        spike_counts=recording.spike_counts[trials],
        trial_index=recording.trial_index[trials],
        **arrays,
    )
    return path
