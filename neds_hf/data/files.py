"""Files that are either there and whole, or not there; JSON in them."""

import errno
import json
import math
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neds_hf.errors import NEDSError, one_line

# What `check_content` says that it expected; of other types, a number.
LIST_OR_NULL = (list, type(None))
TEXT_OR_NULL = (str, type(None))
KINDS = {
    dict: "a mapping",
    list: "a list",
    LIST_OR_NULL: "a list or null",
    str: "text",
    TEXT_OR_NULL: "text or null",
    int: "a whole number",
}
# How torch and safetensors say that the system did not let them write; neither raises OSError.
UNWRITTEN = re.compile(r"inline_container\.cc|PytorchStreamWriter|\(os error \d+\)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what the system does not let one write, as on a full disc, be an error that names the file or folder.

    Raises:
        OSError: Also where torch or safetensors raise another error.
    """
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
    except Exception as error:
        if not UNWRITTEN.search(str(error)):
            raise
        raise OSError(errno.EIO, f"Not written, as on a full disc ({one_line(error)})", str(path)) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is then either there and whole, or not there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with writing(path):
        yield unfinished
    unfinished.replace(path)


def write_json(path: Path, content: dict | list) -> None:
    """Write such a file. What is not finite becomes null."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(_finite_or_none(content), indent=2, allow_nan=False) + "\n")


def read_json(file: Path, expected: object = dict):
    """What such a file holds; `expected` is what is read of it, as `check_content` takes it.

    Raises:
        NEDSError: It cannot be read, is damaged, or holds something else.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise NEDSError(f"{file} cannot be read as JSON: {error}") from error
    check_content(file, content, expected)
    return content


def parse_json(where: Path | str, text: object, expected: object, name: str):
    """What a JSON text, called `name`, of a table holds; `expected` as `check_content` takes it.

    Raises:
        NEDSError: It is no JSON, or holds something else.
    """
    try:
        content = json.loads(text)
    except (TypeError, ValueError):
        raise NEDSError(f"{where}: expected JSON {name!r}, found {reprlib.repr(text)}") from None
    check_content(where, content, expected, name)
    return content


def check_content(file: Path | str, content: object, expected: object, name: str = "") -> None:
    """Make sure that a file, which others may have written or changed, holds what is read of it.

    Args:
        expected: Type of the content; `[kind]` for a list; a mapping of names to kinds, where a name that ends in
            `?` may be missing, and the name `*` stands for all.
        name: Of this content in the file.

    Raises:
        NEDSError: It does not.
    """
    kind = expected if isinstance(expected, type | tuple) else type(expected)
    if not isinstance(content, kind):
        what = KINDS.get(kind, "a number")
        where = f" {name!r}" if name else ""
        raise NEDSError(f"{file}: expected {what}{where}, found {reprlib.repr(content)}")
    if isinstance(expected, list):
        for place, entry in enumerate(content):
            check_content(file, entry, expected[0], f"{name}[{place}]")
    if isinstance(expected, dict):
        for key, of_key in expected.items():
            for part in content if key == "*" else [key.removesuffix("?")]:
                if part in content or not key.endswith("?"):
                    check_content(file, content.get(part), of_key, f"{name}.{part}" if name else part)


def _finite_or_none(content):
    if isinstance(content, dict):
        return {name: _finite_or_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
