"""NEDS for Hugging Face. Importing it registers ``load_dataset("ibl_repeated_site", data_dir=ONE_CACHE)``.

``neds_hf.load("neds-ibl")`` gives a model and its processor.
"""

import hashlib
from pathlib import Path

from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

# The code that converts is part of the name of what it prepared: other code, another cache entry.
_code = b"".join(file.read_bytes() for file in sorted((Path(__file__).parent / "data").glob("*.py")))
_PACKAGED_DATASETS_MODULES["ibl_repeated_site"] = ("neds_hf.data.builder", hashlib.sha256(_code).hexdigest())


def __getattr__(name: str):
    if name == "load":  # imports torch, which is not for everyone
        from neds_hf.hub.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
