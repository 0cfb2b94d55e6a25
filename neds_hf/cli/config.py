"""Options of a command from a YAML file (`--config`), and values of NEDSConfig (`--set`)."""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import yaml

from neds_hf.errors import NEDSError, one_line


def use_config(
    parser: argparse.ArgumentParser, command: str, argv: list[str], settable: Collection[str] = ()
) -> None:
    """Give `parser` the option `--config FILE`; a file that `argv` names sets the defaults of the others.

    The file holds a mapping a command. Its keys are the options of the command, with underscores or hyphens, its
    values what would follow them on the command line: a scalar, a list or a boolean; that of `set` is a mapping
    of names of NEDSConfig to their values. Sections of other commands are left alone.

    Args:
        parser: Takes no abbreviated options, as what it would make of `argv` must be plain to see.
        command: Name of the section.
        settable: Names that `set` takes.

    Raises:
        NEDSError: The file cannot be read or is no YAML, lacks the section, or names an option or a value that
            the command does not take.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file with options in a section `{command}:`; the command line wins over it",
    )
    file = value_in(argv, "--config")
    if file is None:
        return
    given = {}
    for name, value in _section(file, command).items():
        action = _action(parser, name)
        if action is None:
            raise NEDSError(f"{file}: `neds {command}` has no option {name!r}")
        try:
            given[action.dest] = (
                _pairs(value, settable) if action.dest == "set" else _converted(action, value)
            )
        except (ValueError, argparse.ArgumentTypeError, NEDSError) as error:
            raise NEDSError(f"{file}: {name} of section {command!r}: {error}") from None
    # Of options that exclude each other, one on the command line takes the place of one in the file.
    words = {word.partition("=")[0] for word in argv}
    for group in parser._mutually_exclusive_groups:
        named = [action.dest for action in group._group_actions if action.dest in given]
        if len(named) > 1:
            raise NEDSError(f"{file}: {' and '.join(named)} of section {command!r} exclude each other")
        if any(words.intersection(action.option_strings) for action in group._group_actions):
            given = {name: value for name, value in given.items() if name not in named}
        elif named:
            group.required = False
    for action in parser._actions:
        action.required = action.required and action.dest not in given
    parser.set_defaults(**given)


def value_in(argv: list[str], option: str) -> str | None:
    """What follows an option on the command line, the last time; None where it is not there."""
    value = None
    for word, following in zip(argv, [*argv[1:], None]):
        if word == option or word.startswith(f"{option}="):
            value = following if word == option else word.partition("=")[2]
    return value


def parse_settings(pairs: Collection[str], settable: Collection[str]) -> dict:
    """`NAME=VALUE` pairs of `--set`, the last of a name; values are JSON, else YAML.

    Raises:
        NEDSError: Not such a pair, or a name that is not in `settable`.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in settable:
            raise NEDSError(f"--set takes NAME=VALUE, not {pair!r}; the names are {', '.join(settable)}")
        values[name] = _value(value)
    return values


def read_as_text(file: str | Path):
    """Content of a YAML file whose scalars are all text.

    YAML 1.1 would make `no` false, `2e-4` text and some session ids numbers.

    Raises:
        NEDSError: There is no such file, or it is no YAML.
    """
    try:
        return yaml.load(Path(file).read_text(), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NEDSError(f"{file}: expected a YAML file ({one_line(error)})") from None


def _section(file: str, command: str) -> dict:
    """A command's section; all its scalars are text, as they would be on the command line."""
    content = read_as_text(file)
    section = content.get(command) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise NEDSError(f"{file}: expected a section {command!r}, a mapping of options to their values")
    return section


def _action(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    """The option of that name; not those without a value, which the boolean of the other name says."""
    for action in parser._actions:
        names = [option.removeprefix("--").replace("-", "_") for option in action.option_strings]
        if name.replace("-", "_") in names and action.nargs != 0 and action.dest != "config":
            return action
    return None


def _converted(action: argparse.Action, value: str | list | dict):
    """The value that the command line would have given. Raises ValueError or ArgumentTypeError."""
    several = action.nargs not in (None, "?")
    number = action.nargs if several else 1
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in texts) or (
        len(texts) != number and (number != "+" or not texts)
    ):
        expected = {1: "one value", "+": "values"}.get(number, f"{number} values")
        raise ValueError(f"expected {expected}, not {value!r}")
    values = [action.type(text) if action.type else text for text in texts]
    if action.choices and (wrong := [value for value in values if value not in action.choices]):
        raise ValueError(f"{wrong[0]!r} is none of {', '.join(map(str, action.choices))}")
    return values if several else values[0]


def _pairs(value: str | list | dict, settable: Collection[str]) -> list[str]:
    """The mapping under `set` as the command line would have it. Raises ValueError or NEDSError."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping of names to values, not {value!r}")
    pairs = [
        f"{name}={entry if isinstance(entry, str) else json.dumps(_value(entry))}"
        for name, entry in value.items()
    ]
    parse_settings(pairs, settable)
    return pairs


def _value(content: str | list | dict):
    """Text as the value that it stands for, also within lists and mappings."""
    if isinstance(content, dict):
        return {name: _value(entry) for name, entry in content.items()}
    if isinstance(content, list):
        return [_value(entry) for entry in content]
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        try:
            return yaml.safe_load(content)
        except (yaml.YAMLError, ValueError):  # the latter: an impossible date
            return content
