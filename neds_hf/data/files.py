"""Files that are either there and whole, or not there; JSON in them."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neds_hf.errors import NEDSError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is then either there and whole, or not there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    unfinished.replace(path)


def write_json(path: Path, content: dict | list) -> None:
    """Write such a file. What is not finite becomes null."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(_finite_or_none(content), indent=2, allow_nan=False) + "\n")


def read_json(file: Path, kind: type = dict):
    """What such a file holds, a `dict` or a `list`.

    Raises:
        NEDSError: It cannot be read, is damaged, or holds another kind of JSON.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise NEDSError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise NEDSError(f"{file} holds no JSON {'object' if kind is dict else 'list'}")
    return content


def _finite_or_none(content):
    if isinstance(content, dict):
        return {name: _finite_or_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
