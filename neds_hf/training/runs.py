"""What a run writes beside its result, and how one that was cut off goes on."""

import json
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch

from neds_hf.errors import NEDSError

LIBRARIES = ("neds_hf", "torch", "transformers", "datasets", "accelerate", "numpy")
RUN_FILE = "run.json"


def environment() -> dict:
    """Versions and hardware."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
        },
    }


def write_json(path: Path, content: dict) -> None:
    """Write a file that is either there and whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)


def start_run(folder: Path, configuration: dict) -> bool:
    """Note the configuration of a run; return True where the folder holds the same run already, finished.

    Raises:
        NEDSError: The folder holds a run of another configuration.
    """
    path = folder / RUN_FILE
    configuration = json.loads(json.dumps(configuration, default=str))
    if path.exists():
        previous = json.loads(path.read_text())
        before = previous["configuration"]
        if before != configuration:
            changed = sorted(
                name for name in {*before, *configuration} if before.get(name) != configuration.get(name)
            )
            raise NEDSError(
                f"{folder} holds a run with other settings: "
                + ", ".join(
                    f"{n} {before.get(n)!r} there, {configuration.get(n)!r} asked for" for n in changed
                )
                + "; choose another --output"
            )
        return "finished" in previous
    write_json(path, {"configuration": configuration, **environment(), "started": time.time()})
    return False


def finish_run(folder: Path, results: dict) -> None:
    """Add the results to the run's file."""
    path = folder / RUN_FILE
    write_json(path, {**json.loads(path.read_text()), "finished": time.time(), "results": results})


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run. One whose writing was cut off has no state, and is removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / "trainer_state.json").exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda checkpoint: int(checkpoint.name.split("-")[1]), default=None)
