"""A model and its processor by a bare name."""

import os
from pathlib import Path

from neds_hf.errors import NEDSError
from neds_hf.models.configuration_neds import CHECKPOINTS
from neds_hf.models.modeling_neds import NEDSModel
from neds_hf.models.processing_neds import NEDSProcessor
from neds_hf.training.sessions import load_model, model_folder


def load(name: str | Path, revision: str | None = None) -> tuple[NEDSModel, NEDSProcessor]:
    """A model, on the GPU where there is one, and its processor.

    A bare name is looked for, in this order, as a folder; as a folder in the user's cache, `$NEDS_HF_HOME` or
    `~/.cache/neds_hf`; on the Hub, in the organisation `$NEDS_HF_ORGANISATION` where that is set. What was
    downloaded once also loads offline.

    Args:
        name: Name, model folder, or `USER/NAME` on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        NEDSError: There is no such model, it is no NEDS model, or a folder comes before the Hub's revision.
    """
    cache = Path(os.environ.get("NEDS_HF_HOME", "~/.cache/neds_hf")).expanduser()
    for folder in (Path(name), cache / name):
        if folder.is_dir():
            if revision is not None:
                raise NEDSError(f"revision {revision} is of the Hub, but {name} is the folder {folder}")
            return load_model(str(folder))
    organisation = os.environ.get("NEDS_HF_ORGANISATION")
    repository = f"{organisation}/{name}" if organisation and "/" not in str(name) else str(name)
    if repository.count("/") != 1:
        raise NEDSError(
            f"there is no model folder {name} here or in {cache}, and NEDS_HF_ORGANISATION names no organisation "
            f"on the Hub; {CHECKPOINTS}"
        )
    return load_model(model_folder(repository, revision))
