"""What a run writes beside its result, and how one that was cut off goes on."""

import hashlib
import json
import os
import platform
import re
import reprlib
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from neds_hf.data.files import check_content, read_json, write_json, written_whole
from neds_hf.errors import NEDSError

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("neds_hf", "torch", "transformers", "datasets", "accelerate", "numpy")
RUN_FILE = "run.json"
# Of checkpoints, models and datasets: no run begins where one of another origin lies.
NOT_OVERWRITTEN = ("checkpoint-*", "*.safetensors", "sessions")
TRAININGS = ("pretrain", "finetune")  # commands whose runs hold nothing before their first checkpoint

# What the Trainer silently goes on without, or starts anew, where a checkpoint lacks it.
CHECKPOINT_FILES = (
    "*model.safetensors",  # of an adapter, adapter_model.safetensors
    "optimizer.*",  # pt, or of FSDP bin
    "scheduler.pt",
    "rng_state*.pth",
    "trainer_state.json",
)


def environment() -> dict:
    """Versions and hardware."""
    import torch  # a second that who only reads runs is spared

    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
        },
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists() and (names := re.findall(r"^model name\s*: (.+)", info.read_text(), re.MULTILINE)):
        return names[0]
    return platform.processor()


def read_run(folder: str | Path) -> dict:
    """What the `run.json` of a folder says, its `configuration` empty where there is none, nor perhaps a file.

    Raises:
        NEDSError: It cannot be read, or is another program's.
    """
    path = Path(folder, RUN_FILE)
    run = {"configuration": {}, **(read_json(path) if path.exists() else {})}
    check_content(path, run, {"configuration": dict, "results?": dict})
    return run


def write_arrays(path: Path, /, **arrays: np.ndarray) -> None:
    """Write an `.npz` file that is either there and whole, or not there."""
    with written_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)


def check_output(path: Path) -> None:
    """Make sure, before what takes long, that a file can be written there.

    Raises:
        NEDSError: A folder is there, or what is to be its folder is a file.
    """
    if path.is_dir():
        raise NEDSError(f"--output is to be a file, and {path} is a folder")
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            raise NEDSError(f"--output {path} cannot be written: {folder} is no folder")


def fingerprint_of(model: "nn.Module") -> str:
    """Hash of the weights."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def alone(folder: Path) -> AbstractContextManager:
    """Keep other processes from training or searching in the same folder, which is made.

    Raises:
        NEDSError: One does, or the folder cannot be made.
    """
    check_output(folder / RUN_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / ".lock", blocking=False).acquire()
    except Timeout:
        raise NEDSError(
            f"another process trains in {folder}: wait for it, or choose another folder"
        ) from None


def start_run(folder: Path, configuration: dict) -> bool:
    """Note the configuration of a run; return True where the folder holds the same run already, finished.

    A training that failed before its first checkpoint is forgotten.

    Raises:
        NEDSError: The folder holds a run of another configuration, or checkpoints, a model or a dataset of another
            origin, or cannot be made.
    """
    path = folder / RUN_FILE
    check_output(path)
    configuration = json.loads(json.dumps(configuration, default=str))
    if path.exists():
        previous = read_run(folder)
        before = previous["configuration"]
        if before == configuration:
            return "finished" in previous
        begun = "finished" in previous or any(folder.glob("checkpoint-*"))
        if begun or before.get("command") not in TRAININGS:
            changed = ", ".join(differing_settings(before, configuration))
            raise NEDSError(f"{folder} holds a run with other settings: {changed}; choose another folder")
    elif there := next((path for name in NOT_OVERWRITTEN for path in folder.glob(name)), None):
        raise NEDSError(f"{folder} holds {there.name}, but no {RUN_FILE} says of what; choose another folder")
    write_json(path, {"configuration": configuration, **environment(), "started": time.time()})
    return False


def differing_settings(
    one: dict, other: dict, in_one: str = "there", in_other: str = "asked for", prefix: str = ""
) -> Iterator[str]:
    """What two configurations differ in, each setting in words."""
    short = reprlib.Repr()
    short.maxstring = 200
    for name in sorted({*one, *other}):
        value, others = one.get(name), other.get(name)
        if isinstance(value, dict) and isinstance(others, dict):
            yield from differing_settings(value, others, in_one, in_other, f"{prefix}{name}.")
        elif value != others:
            yield f"{prefix}{name} {short.repr(value)} {in_one}, {short.repr(others)} {in_other}"


def note(folder: Path, **what) -> None:
    """Add to the file of a run."""
    path = folder / RUN_FILE
    write_json(path, {**read_json(path), **what})


def finish_run(folder: Path, results: dict) -> None:
    """Note that nothing is left to be done, and the results."""
    note(folder, finished=time.time(), results=results)


def hub_id(source: str) -> str | None:
    """A model's or dataset's name on the Hub; None where it is a folder."""
    return source if source.count("/") == 1 and not Path(source).exists() else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run. One whose writing or removal was cut off is removed.

    It then names the best one by the path that the folder has now, by which the Trainer keeps and finds it.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if is_whole(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    last = max(whole, key=lambda checkpoint: int(checkpoint.name.split("-")[1]), default=None)
    if last is not None:
        file = last / "trainer_state.json"
        state = read_json(file)
        best = state.get("best_model_checkpoint")
        if best and best != (there := str(folder / Path(best).name)):
            with written_whole(file) as unfinished:
                unfinished.write_text(json.dumps(state | {"best_model_checkpoint": there}, indent=2) + "\n")
    return last


def is_whole(checkpoint: Path) -> bool:
    """Whether it is a checkpoint with all that a run needs to go on."""
    if not all(any(checkpoint.glob(name)) for name in CHECKPOINT_FILES):
        return False
    try:  # the state is written last
        json.loads((checkpoint / "trainer_state.json").read_text())
    except ValueError:  # what the system does not let one read may be whole
        return False
    return True
