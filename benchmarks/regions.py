"""Brain regions from unit embeddings of recorded sessions, against plain statistics of the same units.

    python benchmarks/regions.py --recordings steinmetz2019/*.npz --output region_runs

Pretrains on all sessions and predicts groups of areas (`examples/configs/steinmetz_regions.yaml`). Writes
`regions.csv` beside this file and its table into RESULTS.md. What is finished is not repeated.

The public copies of these sessions list regions one unit late: unit i has the spikes of the unit that region i + 1
is of, and the last unit none. Units that vary together tell so, whatever their regions are (`cohesion`), and
`realigned` moves the regions of such a file back.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from common import HERE, TRAINED_ON, built, markdown, neds, publish_table, scores_of_run
from transfer import PRETRAINING

CSV = HERE / "regions.csv"
GROUPS = HERE.parent / "examples" / "configs" / "steinmetz_regions.yaml"
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
SPLITS = {"unit": "over units", "session": "by session"}
FEWEST = 0.01  # spikes a bin of units whose correlations count


def cohesion(spike_counts: np.ndarray, regions: np.ndarray) -> float:
    """How much more alike units of one region vary than units of two.

    Args:
        spike_counts: (B, T, N) spikes per bin of one session.
        regions: (N,) region of each unit.

    Returns:
        Mean correlation of the counts about their average trial, less their first principal component (what all
        units share), over pairs of units of one region, less that over the other pairs.
    """
    counts = spike_counts.astype(float)
    fires = counts.mean((0, 1)) > FEWEST
    correlations = np.corrcoef((counts - counts.mean(0))[..., fires].reshape(-1, fires.sum()).T)
    values, vectors = np.linalg.eigh(correlations)
    correlations -= values[-1] * np.outer(vectors[:, -1], vectors[:, -1])
    spread = np.sqrt(np.diag(correlations))
    correlations /= np.outer(spread, spread)
    same = regions[fires][:, None] == regions[fires]
    pairs = ~np.eye(len(same), dtype=bool)
    return correlations[same & pairs].mean() - correlations[~same].mean()


def realigned(recording: Path, folder: Path) -> Path:
    """The recording with its regions moved back by one unit, where its units vary together more so."""
    arrays = dict(np.load(recording))
    regions = arrays["unit_region"]
    moved = np.append(regions[1:], "").astype(regions.dtype)
    as_is, back = (cohesion(arrays["spike_counts"], r) for r in (regions, moved))
    print(f"{recording.stem}: cohesion {as_is:.4f} as it is, {back:.4f} with regions moved back by one unit")
    if back <= as_is:
        return recording
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / recording.name, **arrays | {"unit_region": moved})
    return folder / recording.name


def measure(recordings: list[Path], output: Path, seed: int) -> pd.DataFrame:
    """A row a split of the units and kind of features."""
    model, regions = output / "model", output / "regions"
    files = [realigned(recording, output / "realigned") for recording in recordings]
    dataset = built(output / "dataset", "--arrays", *files)
    scores_of_run(model, "pretrain", "--dataset", dataset, "--seed", seed, *TRAINED_ON, *PRETRAINING)
    if not (regions / "metrics.json").exists():
        neds("regions", "--model", model, "--dataset", dataset, "--output", regions, "--group", GROUPS)
    scores = json.loads((regions / "metrics.json").read_text())
    return pd.DataFrame(
        {"split": split, "features": features, **values}
        for split in SPLITS
        for features, values in scores[f"by_{split}"].items()
    )


def table(results: pd.DataFrame) -> str:
    """Mean ± standard error over the folds, a row a kind of features."""
    texts = {
        features: [
            f"{row[metric].item():.3f} ± {row[f'{metric}_standard_error'].item():.3f}"
            for split in SPLITS
            for row in [rows[rows["split"] == split]]
            for metric in METRICS
        ]
        for features, rows in results.groupby("features", sort=False)
    }
    columns = [f"{label}, {metric}" for label in SPLITS.values() for metric in METRICS.values()]
    return markdown(pd.DataFrame.from_dict(texts, orient="index", columns=columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recordings", type=Path, nargs="+", required=True, help="trial arrays (.npz), a session each"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset and the runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    publish_table(CSV, measure(options.recordings, options.output, options.seed), table)


if __name__ == "__main__":
    main()
