"""NEDS for Hugging Face. Importing it registers ``load_dataset("ibl_repeated_site", data_dir=ONE_CACHE)``."""

import hashlib
from pathlib import Path

from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

# The code that converts is part of the name of what it prepared: other code, another cache entry.
_code = b"".join(file.read_bytes() for file in sorted((Path(__file__).parent / "data").glob("*.py")))
_PACKAGED_DATASETS_MODULES["ibl_repeated_site"] = ("neds_hf.data.builder", hashlib.sha256(_code).hexdigest())
