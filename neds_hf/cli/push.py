"""Send a model folder or a dataset folder to the Hub, in one commit."""

import argparse
from pathlib import Path

from neds_hf.hub.push import push


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="neds push",
        description=__doc__,
        epilog="Uses HF_TOKEN, or the login of `hf`. Files that the folder no longer has are deleted.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="model folder, or dataset of `neds build`"
    )
    parser.add_argument("name", metavar="USER/NAME", help="repository; created where it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch; one that is missing is created")
    parser.add_argument("--message", help="of the commit (default: Upload FOLDER)")
    arguments = parser.parse_args(argv)
    url = push(
        arguments.folder,
        arguments.name,
        private=arguments.private or None,
        revision=arguments.revision,
        message=arguments.message,
    )
    print(url or f"{arguments.name} holds all of {arguments.folder} already; no commit")
