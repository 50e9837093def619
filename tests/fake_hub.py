"""A Hub on this machine: repositories in memory, with gates, cuts in the middle of a file, and resuming.

It answers what `huggingface_hub` asks: info of models and data sets, their trees, HEAD and GET of files. Data sets are
kept under "datasets/owner/name".
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Repository:
    """Files by name; large ones (*.safetensors) are served as the Hub serves LFS files."""

    files: dict[str, bytes]
    is_gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # what the Hub claims, where it differs

    def entry(self, name: str) -> dict[str, object]:
        """The file as model info lists it."""
        content = self.files[name]
        size = self.sizes.get(name, len(content))
        entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git_key(content)}
        if is_large(name):
            entry["lfs"] = {"size": size, "sha256": _sha(content), "pointerSize": 134}
        return entry

    def leaf(self, name: str) -> dict[str, object]:
        """The file as a tree lists it."""
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": _git_key(self.files[name])}


@dataclass
class FakeHub:
    """Holds the repositories and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range header
    tokens: list[str] = field(default_factory=list)
    accepted_token: str = "good-token"
    cut_after: list[int] = field(default_factory=list)  # each next large file is cut after so many bytes
    url: str = ""

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    owner: FakeHub

    def do_GET(self) -> None:
        self._serve(has_body=True)

    def do_HEAD(self) -> None:
        self._serve(has_body=False)

    def do_POST(self) -> None:
        """Information about some of the files."""
        path = unquote(urlsplit(self.path).path)
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.owner.requests.append((self.command, path, asked))
        repo_id, _, rest = path.removeprefix("/api/").partition("/paths-info/")
        repository = self.owner.repositories.get(repo_id)
        if repository is None or not rest:
            return self._error(404, "RepoNotFound")
        names = [unquote(part.partition("=")[2]) for part in asked.split("&")] if "paths=" in asked else []
        names = names or list(json.loads(asked)["paths"])
        self._json([repository.leaf(name) for name in names if name in repository.files])

    def log_message(self, *_args: object) -> None:
        """Silent."""

    def _serve(self, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append((self.command, path, self.headers.get("Range", "")))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.owner.tokens.append(token)
        if path.startswith("/api/"):
            return self._api(path.removeprefix("/api/").removeprefix("models/"))
        repo_id, _, rest = path[1:].partition("/resolve/")
        repository = self.owner.repositories.get(repo_id)
        name = rest.partition("/")[2]
        if repository is None:
            return self._error(404, "RepoNotFound")
        if repository.is_gated and token != self.owner.accepted_token:
            return self._error(403 if token else 401, "GatedRepo")
        if name not in repository.files:
            return self._error(404, "EntryNotFound")
        return self._file(repository.files[name], name, has_body)

    def _api(self, path: str) -> None:
        repo_id, _, folder = path.partition("/tree/")
        repo_id = repo_id.split("/revision/")[0]
        repository = self.owner.repositories.get(repo_id)
        if repository is None:
            return self._error(404, "RepoNotFound")
        if "/tree/" in path:
            return self._json([repository.leaf(name) for name in repository.files] if "/" not in folder else [])
        siblings = [repository.entry(name) for name in repository.files]
        name = repo_id.removeprefix("datasets/")
        self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def _json(self, found: object) -> None:
        body = json.dumps(found).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, content: bytes, name: str, has_body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{_sha(content) if is_large(name) else _git_key(content)}"', "X-Repo-Commit": COMMIT}
        body = content[start:]
        self._head(206 if start else 200, headers | {"Content-Length": str(len(body))})
        if has_body:
            cut = self.owner.cut_after.pop(0) if is_large(name) and self.owner.cut_after else len(body)
            self.wfile.write(body[:cut])
            if cut < len(body):
                self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def is_large(name: str) -> bool:
    """Whether the Hub keeps such a file in its large-file store."""
    return name.endswith((".safetensors", ".bin"))


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_key(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
