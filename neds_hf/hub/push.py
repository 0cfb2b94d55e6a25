"""A model folder or a dataset folder to the Hub, in one commit."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import logging
from safetensors import SafetensorError, safe_open

from neds_hf.cards.model import write_model_card
from neds_hf.data.files import read_json
from neds_hf.data.recordings import check_files
from neds_hf.errors import NEDSError, one_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What belongs into a repository; neither checkpoints nor pickles nor anything else that lies in a folder.
FILES = {
    "model": ("README.md", "*.json", "*.py", "*.safetensors", "runs/*/*"),
    "dataset": (
        "README.md",
        "dropped_sessions.json",
        "held_out.json",
        "trials/*/*.parquet",
        "units/*.parquet",
        "sessions/*.parquet",
    ),
}


def push(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str | None:
    """Make a repository hold what a folder holds, by a single commit or not at all.

    The files of `FILES` are added, and those that the folder no longer has are deleted; what else the repository
    has stays. A model folder without a card gets one. An interrupted push leaves the repository as it was (empty,
    if it is new), and the next one sends only what is missing.

    Args:
        folder: Model folder, or dataset folder of `neds build`.
        name: `USER/NAME`, or `NAME` among one's own; created where it is missing.
        private: Whether a new repository is private. None leaves that to the account's settings.
        revision: Branch; one that is missing starts from the main one.
        message: Of the commit.
        token: Instead of the one that the user is logged in with.

    Returns:
        Address of the commit; None where nothing had changed.

    Raises:
        NEDSError: The folder is neither, or not whole, or the Hub refused or could not be reached.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    files = {
        file.relative_to(folder).as_posix(): file
        for pattern in FILES[kind]
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }
    logging.get_logger("huggingface_hub.hf_api").setLevel(logging.ERROR)  # it warns where nothing has changed
    hub = HfApi(token=token)
    try:
        name = hub.create_repo(name, repo_type=kind, private=private, exist_ok=True).repo_id
        if revision:
            hub.create_branch(name, branch=revision, repo_type=kind, exist_ok=True)
        before = hub.repo_info(name, repo_type=kind, revision=revision)
        if private and not before.private:
            raise NEDSError(f"{name} is there already, and public: nothing was pushed")
        there = [sibling.rfilename for sibling in before.siblings]
        # Not upload_folder, which makes several commits of a large folder.
        commit = hub.create_commit(
            name,
            [
                *(CommitOperationAdd(path, file) for path, file in files.items()),
                *(CommitOperationDelete(path) for path in stale(there, files, kind)),
            ],
            commit_message=message or f"Upload {folder.resolve().name}",
            repo_type=kind,
            revision=revision,
            parent_commit=before.sha,
        )
    except NEDSError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise NEDSError(
            f"{folder} is not pushed to {name}, where nothing is half published; push again: {reason(error)}"
        ) from error
    return None if commit.oid == before.sha else commit.commit_url


def push_run(args: "TrainingArguments") -> None:
    """What `--push_to_hub` asks for, once a run is finished: its folder, by one process of all."""
    if not args.push_to_hub or args.process_index != 0:
        return
    folder = Path(args.output_dir)
    name = args.hub_model_id or folder.resolve().name
    url = push(folder, name, private=args.hub_private_repo, revision=args.hub_revision, token=args.hub_token)
    print(url or f"{name} holds all of {folder} already; no commit")


def is_only_here(model: str) -> bool:
    """Whether a model is named as no repository of the Hub is, by `USER/NAME`."""
    return Path(model).is_absolute() or model.count("/") != 1


def kind_of(folder: Path) -> str:
    """Of `FILES`, told by what the folder holds; a model's card is written where it is missing.

    Raises:
        NEDSError: The folder is neither, or not whole, or an adapter of a model that is not on the Hub.
    """
    if (folder / "trials").is_dir() and (folder / "sessions").is_dir():
        if not (folder / "README.md").exists():
            raise NEDSError(f"{folder} is no whole dataset: it has no README.md; `neds build` writes it last")
        check_files(folder)
        return "dataset"
    configs = (folder / "config.json", folder / "adapter_config.json")
    if not any(config.exists() for config in configs) or not any(folder.glob("*.safetensors")):
        raise NEDSError(
            f"{folder} is neither a model folder (config.json and *.safetensors) nor a dataset folder "
            "(README.md, trials/ and sessions/)"
        )
    try:
        for file in folder.glob("*.safetensors"):
            safe_open(file, "np")  # reads what is in it
    except SafetensorError as error:
        raise NEDSError(f"{folder} is no whole model folder: {error}") from error
    from jinja2 import TemplateError  # only a push needs it

    try:
        if not (folder / "README.md").exists():
            write_model_card(folder)
    except NEDSError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise NEDSError(
            f"{folder} is no whole model folder: no card can be made of its JSON files ({reason(error)})"
        ) from error
    if configs[1].exists():
        base = read_json(configs[1]).get("base_model_name_or_path")
        if is_only_here(str(base)):
            raise NEDSError(
                f"{folder} is an adapter of {base}, which only this machine has: push that first, and write its "
                f"USER/NAME as base_model_name_or_path into {configs[1]}"
            )
    return "model"


def stale(there: Iterable[str], files: Iterable[str], kind: str) -> list[str]:
    """Of the files of a repository, those that a push would have brought, if the folder had them."""
    patterns = [f"/{pattern}" for pattern in FILES[kind]]
    return [
        path
        for path in there
        if path not in files and any(PurePosixPath(f"/{path}").match(pattern) for pattern in patterns)
    ]


def reason(error: BaseException) -> str:
    """What lies behind an error of the Hub's client, in one line."""
    root = error.__cause__ or error.__context__ if type(error) is RuntimeError else error
    return f"{type(root).__name__}: {one_line(root)}"
