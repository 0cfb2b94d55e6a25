"""One epoch of 74 sessions through the collator, memory-mapped and streamed, and the memory that it takes.

python benchmarks/streaming.py
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
from common import HERE
from machine import memory_bandwidth, peak_bytes
from page import publish, row
from synthetic import write_dataset
from torch.utils.data import DataLoader

from neds_hf.data.collator import ArrowTrials, NEDSCollator
from neds_hf.data.recordings import open_recordings
from neds_hf.training.sessions import new_processor

BATCH = 64


def epoch(folder: Path, way: str) -> dict[str, float]:
    """Go through the training trials, with everything that training needs but the model.

    Args:
        folder: Holds the dataset in `data`.
        way: `mapped`, in random order from the Arrow files that `load_dataset` makes, as `neds pretrain` does; or
            `streamed`, from Parquet in the order of the files.

    Returns:
        Seconds until the first batch (opening, statistics of all sessions), seconds of the epoch, its trials and
        bytes of spike counts, and the peak of this process in bytes.
    """
    start = time.perf_counter()
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    recordings = open_recordings(folder / "data")
    collate = NEDSCollator(new_processor(recordings))
    if way == "mapped":
        trials = ArrowTrials(recordings.split("train"))
        batches = DataLoader(trials, BATCH, shuffle=True, collate_fn=collate)
    else:
        stream = datasets.load_dataset(str(folder / "data"), "trials", split="train", streaming=True)
        batches = map(collate, stream.with_format("arrow").iter(BATCH))
    opened = time.perf_counter()
    trials = counts = 0
    for batch in batches:
        trials += len(batch["session_index"])
        counts += int(batch["unit_mask"].sum()) * batch["spike_counts"].shape[1]
    return {
        "opening_seconds": opened - start,
        "epoch_seconds": time.perf_counter() - opened,
        "trials": trials,
        "bytes": counts,
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=74)
    parser.add_argument("--units", type=int, default=370)
    parser.add_argument("--trials", type=int, default=486, help="a session, of which 70 %% are for training")
    parser.add_argument("--output", type=Path, default=HERE / "streaming.json")
    options = parser.parse_args()
    results, rows = {}, []
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["neds_hf.models"])
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "data"), options.sessions, options.units, options.trials)
        bandwidth = memory_bandwidth()
        for way, text in (("mapped", "memory-mapped"), ("streamed", "streamed from Parquet")):
            with ProcessPoolExecutor(1, mp_context=server) as pool:
                results[way] = result = pool.submit(epoch, Path(folder), way).result()
            floor = 2 * result["bytes"] / bandwidth
            rows.append(
                row(
                    f"epoch of {options.sessions} sessions × {options.units} units, {text}",
                    f"{floor:.3g} s, a copy of {result['bytes'] / 1e9:.2f} GB",
                    f"{result['epoch_seconds']:.3g} s, {result['trials'] / result['epoch_seconds']:,.0f} "
                    f"trials/s, {result['peak_bytes'] / 1e9:.2f} GB",
                    result["epoch_seconds"] / floor,
                    "≤ 3 GB",
                )
            )
    publish(options.output, {"memory_bandwidth": bandwidth, **results}, rows)


if __name__ == "__main__":
    main()
