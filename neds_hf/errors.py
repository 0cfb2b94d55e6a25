"""The one error that users see: bad input, said in one line."""


class NEDSError(ValueError):
    """Input that cannot be used. The message names the file or session, what was expected and what was found.

    The commands print it without a traceback and exit with status 2.
    """


def one_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())
