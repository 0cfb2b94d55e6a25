"""Many sessions in a batch, against as many trials of one session; and what their units add to a checkpoint.

python benchmarks/sessions.py
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import HERE
from machine import best_seconds
from page import publish, row
from steps import SIZES, make_config, make_step

from neds_hf.models import NEDSConfig, NEDSModel


def checkpoint_beyond_encoder(config: NEDSConfig) -> int:
    """Bytes of the weights' file that are not the encoder's."""
    model = NEDSModel(config)
    encoder = sum(weight.nbytes for weight in model.encoder.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) - encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[10, 74])
    parser.add_argument("--trials", type=int, default=74, help="trials of a step, whatever the sessions")
    parser.add_argument("--units", type=int, default=370, help="units of each session")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count")
    parser.add_argument("--output", type=Path, default=HERE / "sessions.json")
    options = parser.parse_args()

    sizes = SIZES["of `small`"] | {"num_hidden_layers": options.layers}
    configs = {
        number: make_config("compact", [options.units] * number, **sizes) for number in (1, *options.sessions)
    }
    steps = {number: make_step(config, options.trials, torch.float32) for number, config in configs.items()}
    times = best_seconds(steps, options.rounds)

    results, rows = [], []
    for number in options.sessions:
        beyond = checkpoint_beyond_encoder(configs[number])
        embeddings = number * options.units * sizes["hidden_size"] * 4
        results.append(
            {
                "sessions": number,
                "seconds": times[number],
                "ratio": times[number] / times[1],
                "checkpoint_beyond_encoder_bytes": beyond,
            }
        )
        rows.append(
            row(
                f"training step of {options.trials} trials of {number} sessions, fp32",
                f"{times[1]:.3g} s (1 session)",
                f"{times[number]:.3g} s",
                times[number] / times[1],
                "ratio ≤ 1.15",
            )
        )
        rows.append(
            row(
                f"checkpoint of {number} sessions × {options.units} units, over its encoder",
                f"{embeddings / 1e6:.1f} MB (a row a unit)",
                f"{beyond / 1e6:.1f} MB",
                beyond / embeddings,
                "≤ 40 MB",
            )
        )
    summary = {"trials": options.trials, "units": options.units, "one_session_seconds": times[1]}
    publish(options.output, {**summary, "steps": results}, rows)


if __name__ == "__main__":
    main()
