"""A Hugging Face Hub on loopback: the endpoints that `huggingface_hub`, `datasets` and `transformers` ask."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
USER = "someone"
DATA = (".parquet", ".safetensors", ".bin", ".jpg", ".png", ".arrow", ".jsonl", ".csv", ".tsv")


@dataclass
class Repository:
    """Commits (hash -> path -> bytes) in order; the last one is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        """Keep a tree of files and return its hash."""
        content = json.dumps([len(self.commits), sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        """The hash that a revision names; None for an unknown one."""
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None


class Hub:
    """Repositories by (kind, id), where kind is `models` or `datasets`."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.fetched: list[str] = []  # `id/path` of each file whose content was sent
        self.uploads: dict[str, bytes] = {}  # by SHA-256
        self.unknown: list[str] = []  # requests that no endpoint takes, answered with 404
        self.url = ""

    def add_folder(self, kind: str, repo: str, folder: Path) -> None:
        """Publish the files of a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.repositories[kind, repo] = Repository()
        self.repositories[kind, repo].commit(files)

    def files(self, kind: str, repo: str) -> dict[str, bytes]:
        """The files on `main`."""
        repository = self.repositories[kind, repo]
        return repository.commits[repository.resolve("main")]

    def fetched_data(self) -> list[str]:
        """The data and weight files in the order in which they were first fetched."""
        return list(dict.fromkeys(path for path in self.fetched if path.endswith(DATA)))


@contextlib.contextmanager
def started() -> Iterator[Hub]:
    """A Hub that listens until the end of the context."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Environment of a Hub client with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    addresses = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    threads = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_TOKEN": "hf_test"}
    return kept | addresses | quiet | threads | more


def oid(content: bytes) -> str:
    """The hash under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict:
    """A file as `tree` lists it."""
    return {"type": "file", "oid": oid(content), "size": len(content), "path": path}


class Handler(BaseHTTPRequestHandler):
    """One request. `hub` is set in a subclass."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "tree"),
        ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/[^/]+", "preupload"),
        ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/commit/[^/]+", "commit"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
        ("HEAD|GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "file"),
    )

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for methods, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in methods.split("|"):
                getattr(self, name)(*(unquote(group) if group else group for group in match.groups()))
                return
        self.hub.unknown.append(f"{self.command} {url.path}")
        self.send(404, {"error": "no such endpoint"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *_) -> None:
        """Say nothing."""

    def send(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.send(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def find(self, kind: str, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        """The hash and the files of a revision; None, after the answer, for an unknown repository or revision."""
        repository = self.hub.repositories.get((kind, repo))
        sha = repository and repository.resolve(revision)
        if sha is None:
            self.missing("RevisionNotFound" if repository else "RepoNotFound")
            return None
        return sha, repository.commits[sha]

    def info(self, kind: str, repo: str, revision: str | None) -> None:
        if found := self.find(kind, repo, revision or "main"):
            sha, files = found
            repository = self.hub.repositories[kind, repo]
            names = [{"rfilename": path} for path in sorted(files)]
            content = {"_id": "1", "id": repo, "sha": sha, "private": repository.private, "siblings": names}
            self.send(200, content | {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        found = self.find(kind, repo, revision)
        if not found:
            return
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in found[1].items() if path.startswith(prefix)}
        if folder and not inside:
            self.missing("EntryNotFound")
            return
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        folders = {f"{prefix}{parent}" for path in inside for parent in PurePosixPath(path[len(prefix) :]).parents[:-1]}
        if not recursive:
            inside = {path: content for path, content in inside.items() if "/" not in path[len(prefix) :]}
            folders = {path for path in folders if "/" not in path[len(prefix) :]}
        listed = [{"type": "directory", "oid": oid(path.encode()), "size": 0, "path": path} for path in sorted(folders)]
        self.send(200, listed + [entry(path, content) for path, content in sorted(inside.items())])

    def file(self, dataset: str | None, repo: str, revision: str, path: str) -> None:
        found = self.find("datasets" if dataset else "models", repo, revision)
        if not found:
            return
        sha, files = found
        if path not in files:
            self.send(404, {"error": path}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        if self.command == "GET":
            self.hub.fetched.append(f"{repo}/{path}")
        self.send(200, files[path], ETag=f'"{oid(files[path])}"', X_Repo_Commit=sha)

    def create(self) -> None:
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}"
        if (kind, repo) in self.hub.repositories:
            self.send(409, {"error": "You already created this repo", "url": url})
            return
        repository = self.hub.repositories[kind, repo] = Repository(private=asked.get("visibility") == "private")
        repository.commit({".gitattributes": b""})
        self.send(200, {"url": url, "name": repo, "id": "1"})

    def validate(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str) -> None:
        """Let data and weights be sent by Git LFS, as `datasets` expects."""
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(DATA) else "regular" for path in paths}
        self.send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, dataset: str | None, repo: str) -> None:
        objects = json.loads(self.body)["objects"]  # each with its oid and size
        for file in objects:
            file["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{file['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> None:
        self.hub.uploads[sha256] = self.body
        self.send(200, {})

    def commit(self, kind: str, repo: str) -> None:
        found = self.find(kind, repo)
        if not found:
            return
        files = dict(found[1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        sha = self.hub.repositories[kind, repo].commit(files)
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        self.send(200, {"commitUrl": url, "commitOid": sha, "hookOutput": "", "pullRequestUrl": None})
