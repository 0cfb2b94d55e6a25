"""The Hub of the tests answers the Hub's own client as the real one does."""

import pytest
from hub.processes import result_of
from hub.server import Hub

LARGE = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `huggingface_hub` gets in one process, as the user `lab`."""
    script = f"""
import json
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

def refusal(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        return [type(error).__name__, status]

hub, stranger = HfApi(), HfApi(token="hf_eve")
answers = {{"whoami": hub.whoami()["name"]}}
hub.create_repo("lab/app", repo_type="space", space_sdk="gradio", private=True)
where = {{"repo_id": "lab/app", "repo_type": "space"}}
hub.upload_file(path_or_fileobj=b"one", path_in_repo="src/app.py", **where)
hub.upload_file(path_or_fileobj={LARGE!r}, path_in_repo="src/weights.safetensors", **where)
before = hub.repo_info(**where).sha
hub.create_branch(branch="v2", **where)
hub.delete_file("src/app.py", **where)
paths = ["src", "src/weights.safetensors", "nothing"]
found = hub.get_paths_info(paths=paths, **where)
answers |= {{
    "refs": sorted(ref.name for ref in hub.list_repo_refs(**where).branches),
    "paths": [type(entry).__name__ + " " + entry.path for entry in found],
    "size": found[1].size,
    "main": sorted(hub.list_repo_files(**where)),
    "v2": sorted(hub.list_repo_files(revision="v2", **where)),
    "by commit": open(hub.hf_hub_download(filename="src/app.py", revision=before, **where)).read(),
    "tail": list(HfFileSystem().read_block("spaces/lab/app/src/weights.safetensors", 10000, 999)),
    "refused": [
        refusal(stranger.repo_info, **where),
        refusal(HfApi(token=False).repo_info, **where),
        refusal(HfApi(token="nonsense").whoami),
        refusal(stranger.create_repo, "lab/other"),
        refusal(hub.create_repo, **where, space_sdk="gradio"),
        refusal(hub.repo_info, revision="v3", **where),
        refusal(hub.hf_hub_download, filename="src/none.py", **where),
        refusal(hub.create_branch, branch="v2", **where),
        refusal(hub.delete_file, "src/weights.safetensors", parent_commit=before, **where),
    ],
}}
print(json.dumps(answers))
"""
    with Hub() as hub:
        return result_of(hub.environment(tmp_path_factory.mktemp("home"), token="hf_lab"), script)


def test_files_branches_and_commits(answers):
    assert answers["whoami"] == "lab" and answers["refs"] == ["main", "v2"]
    assert answers["main"] == ["src/weights.safetensors"]
    assert answers["v2"] == ["src/app.py", "src/weights.safetensors"] and answers["by commit"] == "one"
    assert answers["paths"] == ["RepoFolder src", "RepoFile src/weights.safetensors"]


def test_a_large_file_in_part(answers):
    assert answers["size"] == len(LARGE) == 10240
    assert answers["tail"] == list(LARGE[10000:])


def test_what_it_refuses(answers):
    assert answers["refused"] == [
        ["RepositoryNotFoundError", 404],
        ["RepositoryNotFoundError", 401],
        ["HfHubHTTPError", 401],
        ["HfHubHTTPError", 403],
        ["HfHubHTTPError", 409],
        ["RevisionNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 412],
    ]
