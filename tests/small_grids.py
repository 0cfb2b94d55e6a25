"""Reduced-rank regression with fewer ranks and penalties to choose from, to be quick."""

import pytest

from neds_hf.analysis import reduced_rank

GRIDS = {
    "DECODING_RANKS": (2,),
    "DECODING_PENALTIES": (0.003, 0.01),
    "ENCODING_RANKS": (3,),
    "ENCODING_PENALTIES": (0.03, 0.1),
}


def use_small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in GRIDS.items():
        monkeypatch.setattr(reduced_rank, name, values)
