"""A model and its processor by a bare name."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError

from neds_hf.errors import NEDSError
from neds_hf.models.configuration_neds import CHECKPOINTS
from neds_hf.models.modeling_neds import NEDSModel
from neds_hf.models.processing_neds import NEDSProcessor
from neds_hf.training.sessions import load_model


def load(name: str | Path, revision: str | None = None) -> tuple[NEDSModel, NEDSProcessor]:
    """A model, on the GPU where there is one, and its processor.

    A bare name is looked for, in this order, as a folder; as a folder in the user's cache, `$NEDS_HF_HOME` or
    `~/.cache/neds_hf`; on the Hub, in the organisation `$NEDS_HF_ORGANISATION` where that is set. What was
    downloaded once also loads offline.

    Args:
        name: Name, model folder, or `USER/NAME` on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        NEDSError: There is no such model, or it is no NEDS model.
    """
    cache = Path(os.environ.get("NEDS_HF_HOME", "~/.cache/neds_hf")).expanduser()
    for folder in (Path(name), cache / name):
        if folder.is_dir():
            return load_model(str(folder))
    organisation = os.environ.get("NEDS_HF_ORGANISATION")
    repository = f"{organisation}/{name}" if organisation and "/" not in str(name) else str(name)
    where = f"there is no model folder {name} here or in {cache}"
    if repository.count("/") != 1:
        raise NEDSError(f"{where}, and NEDS_HF_ORGANISATION names no organisation on the Hub; {CHECKPOINTS}")
    try:  # asks the Hub once, where from_pretrained would ask for up to a minute
        return load_model(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["*config.json", "*.safetensors", "*.index.json"],
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        if isinstance(error, NEDSError):
            raise
        raise NEDSError(
            f"{where}, and {repository} on the Hub cannot be had ({' '.join(str(error).split())}); {CHECKPOINTS}"
        ) from error
