"""Bring a dataset up to date with a new data release: only sessions whose files changed are converted again.

Options and held-out sessions stay those of the dataset. Sessions that were dropped are tried again.
"""

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from publishing import convert_and_publish, options_of, parser, run

from neds_hf.data.folder import dropped_sessions, provenances
from neds_hf.errors import NEDSError
from neds_hf.hub.push import reason


def main() -> None:
    description = f"{__doc__} With --push and no folder OUT, what is published is downloaded into it."
    arguments = parser(description).parse_args()
    out = arguments.out
    if arguments.push and not out.exists():
        try:
            snapshot_download(arguments.push, repo_type="dataset", local_dir=out)
        except (HTTPError, OSError, ValueError) as error:
            raise NEDSError(f"{arguments.push} cannot be downloaded to {out}: {reason(error)}") from error
    if not (sessions := list(provenances(out))):
        raise NEDSError(f"{out} is no dataset folder that could be refreshed: there is no session in it")
    convert_and_publish(arguments, [*sessions, *dropped_sessions(out)], options_of(out), "Refresh")


if __name__ == "__main__":  # worker processes import this file
    run(main)
