"""Baselines with fewer windows, ranks and penalties to choose from, to be quick."""

import pytest

from neds_hf.analysis import decoding, reduced_rank

GRIDS = {
    decoding: {"NUM_WINDOWS": (1, 5), "INVERSE_PENALTIES": (1.0, 10.0)},
    reduced_rank: {
        "DECODING_RANKS": (2,),
        "DECODING_PENALTIES": (0.003, 0.01),
        "ENCODING_RANKS": (3,),
        "ENCODING_PENALTIES": (0.03, 0.1),
    },
}


def use_small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, grids in GRIDS.items():
        for name, values in grids.items():
            monkeypatch.setattr(module, name, values)
