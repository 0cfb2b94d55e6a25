"""The one error that users see: bad input, said in one line."""

import importlib.util


class NEDSError(ValueError):
    """Input that cannot be used. The message names the file or session, what was expected and what was found.

    The commands print it without a traceback and exit with status 2.
    """


def require(what: str, extra: str, *packages: str) -> None:
    """Make sure that these packages, which only an extra of this one brings, are installed.

    Raises:
        NEDSError: One is not, so that `what` cannot be done.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise NEDSError(f"{what} needs {', '.join(missing)}: pip install 'neds_hf[{extra}]'")


def one_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())
