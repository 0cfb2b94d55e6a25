"""A Hub on this machine: repositories in memory behind the HTTP endpoints that the libraries call.

Models, datasets and Spaces, with branches, private repositories, tokens (`hf_USER` is the token of USER) and large
files. `HF_ENDPOINT` points every client at it; see `Hub.environment`.
"""

import base64
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import yaml

LARGE = (".safetensors", ".parquet", ".bin", ".pt")  # what the Hub stores as large files, whatever their size
TIME = "2026-01-01T00:00:00.000Z"
ID = r"[\w.-]+(?:/[\w.-]+)?"


@dataclass(frozen=True)
class Blob:
    """Content of a file; `large` ones are known by their SHA-256, others by their hash in git."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        return sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return sha256(self.content).hexdigest() if self.large else self.oid


@dataclass
class Commit:
    """Files of the repository after a commit, and the paths that it wrote and deleted."""

    message: str
    files: dict[str, Blob]
    written: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    parent: str = ""

    @property
    def oid(self) -> str:
        files = sorted((path, blob.etag) for path, blob in self.files.items())
        return sha1(repr((self.parent, self.message, files)).encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(
        default_factory=lambda: {"main": [Commit("initial commit", files={})]}
    )

    def at(self, revision: str) -> Commit:
        """Last commit of a branch, or the commit of that hash."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = {commit.oid: commit for branch in self.branches.values() for commit in branch}
        if revision not in commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commits[revision]


class Refusal(Exception):
    """An answer that is an error: HTTP status, the Hub's code and message."""


class Hub:
    """The server, started; a context manager.

    Attributes:
        url: Its address, the `HF_ENDPOINT`.
        repositories: `("model" | "dataset" | "space", "user/name")` to the repository.
        requests: `METHOD path` of every request so far.
        drops: Pattern of `METHOD path` to how many of these requests are cut off in the middle of their body.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drops: dict[str, float] = {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Large files come from another host, as from the Hub's own storage.
        self.storage_url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token: str = "") -> dict[str, str]:
        """Environment of a process that uses this Hub alone, with its caches in the folder `home`."""
        here = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
        return os.environ | here | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def commits(self, kind: str, name: str, branch: str = "main") -> list[Commit]:
        """Commits of a branch, without the empty one that every repository starts with."""
        return self.repositories[kind, name].branches[branch][1:]

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """Path to content, on the main branch."""
        return {path: blob.content for path, blob in self.repositories[kind, name].at("main").files.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_any(self):
        self.path, _, self.query = self.path.partition("?")
        self.path = unquote(self.path)
        request = f"{self.command} {self.path}"
        size = int(self.headers.get("Content-Length", 0))
        with self.hub.lock:
            self.hub.requests.append(request)
            for pattern, times in self.hub.drops.items():
                if times > 0 and re.search(pattern, request):
                    self.hub.drops[pattern] -= 1
                    self.rfile.read(size // 2)
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
        self.body = self.rfile.read(size)
        try:
            with self.hub.lock:
                self.route()
        except Refusal as refusal:
            status, code, message = refusal.args
            self.send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def route(self):
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.command in method:
                return answer(self, **match.groupdict())
        raise Refusal(404, "", f"no {self.command} {self.path}")

    def send(self, status: int, content=None, headers: dict | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass

    # --- who asks ---

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not token.startswith("hf_"):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return token.removeprefix("hf_") or None

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        repository, user = self.hub.repositories.get((kind, name)), self.user()
        owner = name.partition("/")[0]
        if repository is None or (repository.private and user != owner):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise Refusal(403 if user else 401, "", "You don't have the rights to write to this repository")
        return repository

    def whoami(self):
        if not self.user():
            raise Refusal(401, "", "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": "write", "createdAt": TIME}}
        self.send(
            200, {"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"} | token}
        )

    # --- repositories ---

    def create(self):
        if not self.user():
            raise Refusal(401, "", "Invalid username or password.")
        asked = json.loads(self.body)
        kind, name = (
            asked.get("type") or "model",
            f"{asked.get('organization') or self.user()}/{asked['name']}",
        )
        if name.partition("/")[0] != self.user():
            raise Refusal(403, "", f"You don't have the rights to create a {kind} under this namespace")
        found = (kind, name) in self.hub.repositories
        if not found:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[kind, name] = Repository(bool(private))
        prefix = "" if kind == "model" else f"{kind}s/"
        error = {"error": "You already created this repo"} if found else {}
        self.send(
            409 if found else 200, {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": name} | error
        )

    def branch(self, kind: str, name: str, revision: str):
        repository = self.repository(kind, name, write=True)
        if revision in repository.branches:
            raise Refusal(409, "", "Reference already exists")
        start = json.loads(self.body or "{}").get("startingPoint", "main")
        repository.branches[revision] = [repository.at(start)]
        self.send(200, {})

    def refs(self, kind: str, name: str):
        branches = self.repository(kind, name).branches
        refs = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1].oid}
            for branch, commits in branches.items()
        ]
        self.send(200, {"branches": refs, "tags": [], "converts": []})

    def info(self, kind: str, name: str, revision: str | None = None):
        repository = self.repository(kind, name)
        commit = repository.at(revision or "main")
        basic = {
            "_id": name,
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": commit.oid,
        }
        rest = {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        rest |= {"tags": [], "lastModified": TIME, "createdAt": TIME, "cardData": card_data(commit)}
        self.send(200, basic | rest | {"siblings": [{"rfilename": path} for path in sorted(commit.files)]})

    def tree(self, kind: str, name: str, revision: str, path: str | None = None):
        files = self.repository(kind, name).at(revision).files
        start = f"{path}/" if path else ""
        if start and not any(file.startswith(start) for file in files):
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        entries = {}
        for file in sorted(file for file in files if file.startswith(start)):
            folders = file[len(start) :].split("/")[:-1]
            for depth in range(len(folders)):
                folder = start + "/".join(folders[: depth + 1])
                entries[folder] = {
                    "type": "directory",
                    "path": folder,
                    "oid": sha1(folder.encode()).hexdigest(),
                }
            entries[file] = entry(file, files[file])
        if "recursive=true" not in self.query.lower():
            entries = {path: value for path, value in entries.items() if "/" not in path[len(start) :]}
        self.send(200, [{"size": 0} | value for value in entries.values()])

    def paths_info(self, kind: str, name: str, revision: str):
        files = self.repository(kind, name).at(revision).files
        found = []
        for path in parse_qs(self.body.decode())["paths"]:
            if path in files:
                found.append(entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.send(200, found)

    # --- uploads ---

    def validate_yaml(self):
        try:
            data = read_card(json.loads(self.body)["content"])
            errors = [] if isinstance(data, dict) else [{"message": "the metadata is no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, kind: str, name: str, revision: str):
        files = self.repository(kind, name, write=True).at(revision).files
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": files[file["path"]].etag if file["path"] in files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send(200, {"files": modes})

    def lfs_batch(self, name: str, kind: str | None = None):
        self.repository((kind or "models")[:-1], name, write=True)
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | (
                {}
                if item["oid"] in self.hub.large_files
                else {"actions": {"upload": {"href": f"{self.hub.storage_url}/large/{item['oid']}"}}}
            )
            for item in json.loads(self.body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str):
        if sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "content differs from its hash")
        self.hub.large_files[oid] = self.body
        self.send(200, {})

    def commit(self, kind: str, name: str, revision: str):
        repository = self.repository(kind, name, write=True)
        head, *operations = map(json.loads, self.body.splitlines())
        if revision not in repository.branches:
            raise Refusal(404, "RevisionNotFound", f"no branch {revision}")
        last = repository.at(revision)
        if head["value"].get("parentCommit", last.oid) != last.oid:
            raise Refusal(412, "", "the branch has moved on")
        commit = Commit(head["value"]["summary"], dict(last.files), parent=last.oid)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                commit.files[path] = Blob(base64.b64decode(value["content"]), large=False)
                commit.written.add(path)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, "", f"{path} was not uploaded")
                commit.files[path] = Blob(self.hub.large_files[value["oid"]], large=True)
                commit.written.add(path)
            elif operation["key"] == "deletedFile":
                del commit.files[path]
                commit.deleted.add(path)
            else:
                raise Refusal(400, "", f"unknown operation {operation['key']}")
        repository.branches[revision].append(commit)
        self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit.oid}", "commitOid": commit.oid})

    # --- downloads ---

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None):
        commit = self.repository((kind or "models")[:-1], name).at(revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.large:
            return self.send_range(blob.content, headers)
        headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": len(blob.content)}
        self.send(302, b"", headers | {"Location": f"{self.hub.storage_url}/large/{blob.etag}"})

    def large(self, oid: str):
        self.send_range(self.hub.large_files[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_range(self, content: bytes, headers: dict):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.send(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        self.send(
            206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        )


def entry(path: str, blob: Blob) -> dict:
    """A file, as the Hub lists it."""
    size = len(blob.content)
    lfs = {"lfs": {"oid": blob.etag, "size": size, "pointerSize": 130}} if blob.large else {}
    return {"type": "file", "path": path, "size": size, "oid": blob.oid} | lfs


def read_card(text: str) -> dict:
    """Metadata between the two `---` lines that a card starts with."""
    header = re.match(r"---\r?\n(.*?)\r?\n---\s", text, re.DOTALL)
    return yaml.safe_load(header[1]) if header else {}


def card_data(commit: Commit) -> dict:
    card = commit.files.get("README.md")
    return read_card(card.content.decode()) if card else {}


REPOSITORY = rf"/api/(?P<kind>model|dataset|space)s/(?P<name>{ID})"
FILES = rf"/(?:(?P<kind>datasets|spaces)/)?(?P<name>{ID})"
ROUTES = [
    ({"GET"}, "/api/whoami-v2", Handler.whoami),
    ({"POST"}, "/api/validate-yaml", Handler.validate_yaml),
    ({"POST"}, "/api/repos/create", Handler.create),
    ({"GET"}, REPOSITORY, Handler.info),
    ({"GET"}, rf"{REPOSITORY}/revision/(?P<revision>.+)", Handler.info),
    ({"GET"}, rf"{REPOSITORY}/refs", Handler.refs),
    ({"POST"}, rf"{REPOSITORY}/branch/(?P<revision>.+)", Handler.branch),
    ({"GET"}, rf"{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    ({"POST"}, rf"{REPOSITORY}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ({"POST"}, rf"{REPOSITORY}/preupload/(?P<revision>.+)", Handler.preupload),
    ({"POST"}, rf"{REPOSITORY}/commit/(?P<revision>.+)", Handler.commit),
    ({"POST"}, rf"{FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ({"GET", "HEAD"}, rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ({"PUT"}, r"/large/(?P<oid>\w{64})", Handler.store),
    ({"GET", "HEAD"}, r"/large/(?P<oid>\w{64})", Handler.large),
]
