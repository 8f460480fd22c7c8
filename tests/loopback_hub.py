"""A hub on this machine: what `huggingface_hub` and `datasets` ask of the real one, answered from memory.

It keeps repositories with branches and commits, lets tokens read and write, takes large files by LFS (it has no Xet),
answers range requests, and breaks on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository; `readers` and `writers` are tokens, `gated` asks readers of a public one to be among them."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str = "main", message: str = "") -> str:
        number = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[number], self.branches[branch] = files, number
        self.messages.append(message)
        return number

    def find(self, revision: str) -> str:
        found = self.branches.get(revision, revision)
        if found not in self.commits:
            raise RefusalError(404, "RevisionNotFound")
        return found


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class LoopbackHub(ThreadingHTTPServer):
    """The server; `with LoopbackHub() as hub` runs it.

    Attributes:
        repos: by kind and id, such as `("models", "user/name")`.
        users: whose tokens may create and write: token to user.
        log: method and path of every request.
        drops: how many more downloads of files break off in the middle.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.users = {"hf_alice": "alice"}
        self.log: list[str] = []
        self.ranges: list[str] = []
        self.large: Files = {}
        self.drops = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def add(self, kind: str, name: str, files: Files | Path, **options: Any) -> Repo:
        """Put a repository there, of some files or of what a folder holds."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repo = self.repos[kind, name] = Repo(**options)
        repo.commit(files)
        return repo

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    # ------------------------------------------------------------------------------------------------ HTTP

    def _serve(self) -> None:
        self.body = self._read()
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.log.append(f"{self.command} {parts.path}")
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, name in _ROUTES:
                if verb == method and (found := re.fullmatch(pattern, parts.path)):
                    getattr(self, name)(*(unquote(group or "") for group in found.groups()))
                    return
            raise RefusalError(404, message=f"no such route: {parts.path}")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send({"error": refusal.message or refusal.code}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------------------------------------------ who may what

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = set(self.server.users).union(*(repo.readers for repo in self.server.repos.values()))
        if token and token not in known:
            raise RefusalError(401, message="Invalid credentials in Authorization header")
        return token

    def _user(self) -> str:
        if self._token() not in self.server.users:
            raise RefusalError(403 if self._token() else 401, message="you need a token that may write")
        return self.server.users[self._token()]

    def _repo(self, kind: str, name: str) -> Repo:
        token, repo = self._token(), self.server.repos.get((kind or "models", name))
        owner = self.server.users.get(token) == name.split("/")[0]
        if repo is None or (repo.private and not owner and token not in repo.readers):
            raise RefusalError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _check_gate(self, repo: Repo) -> None:
        if repo.gated and (token := self._token()) not in repo.readers:
            raise RefusalError(403 if token else 401, "GatedRepo", "Access to this repository is restricted")

    # ------------------------------------------------------------------------------------------------ reading

    def info(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        number = repo.find(revision or "main")
        files = [{"rfilename": path} for path in repo.commits[number]]
        self._send({"id": name, "sha": number, "private": repo.private, "tags": [], "siblings": files})

    def tree(self, kind: str, name: str, revision: str, folder: str) -> None:
        repo = self._repo(kind, name)
        self._check_gate(repo)
        prefix = f"{folder}/" if folder else ""
        below = {p: c for p, c in repo.commits[repo.find(revision)].items() if p.startswith(prefix)}
        if folder and not below:
            raise RefusalError(404, "EntryNotFound")
        flat = self.query.get("recursive", "false").lower() != "true"
        entries: dict[str, dict[str, Any]] = {}
        for path, content in below.items():
            *parents, _ = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parents) + 1):
                parent = prefix + "/".join(parents[:depth])
                entries.setdefault(parent, {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0})
            entries[path] = _entry(path, content)
        self._send([e for path, e in entries.items() if not flat or "/" not in path.removeprefix(prefix)])

    def paths(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        self._check_gate(repo)
        wanted = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        files = repo.commits[repo.find(revision)]
        found = [_entry(path, files[path]) for path in wanted if path in files]
        folders = [path for path in wanted if any(other.startswith(f"{path}/") for other in files)]
        self._send(found + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        number = repo.find(revision)
        if path not in repo.commits[number]:
            raise RefusalError(404, "EntryNotFound")
        self._check_gate(repo)
        content = repo.commits[number][path]
        headers = {"X-Repo-Commit": number, "ETag": f'"{_entry(path, content)["oid"]}"', "Accept-Ranges": "bytes"}
        first, status = 0, 200
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self.server.ranges.append(span[0])
            first, last, size = int(span[1]), int(span[2] or len(content) - 1), len(content)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        if self.command == "GET" and self.server.drops > 0 and path.endswith((".safetensors", ".parquet")):
            self.server.drops -= 1
            return self._break_off(content, status, headers)
        return self._send(content, status, headers)

    def _break_off(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True

    def whoami(self) -> None:
        self._send({"type": "user", "name": self._user(), "orgs": [], "auth": {"type": "access_token"}})

    # ------------------------------------------------------------------------------------------------ writing

    def create(self) -> None:
        user, wanted = self._user(), json.loads(self.body)
        owner, kind = wanted.get("organization") or user, f"{wanted.get('type') or 'model'}s"
        if owner != user:
            raise RefusalError(403, message=f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{wanted['name']}"
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        if (kind, name) in self.server.repos:
            return self._send(answer, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.repos[kind, name] = repo = Repo(private=private)
        repo.commit({})
        return self._send(answer)

    def _writable(self, kind: str, name: str) -> Repo:
        repo = self._repo(kind, name)
        if self._user() != name.split("/")[0]:
            raise RefusalError(403, message="you may not write here")
        return repo

    def branch(self, kind: str, name: str, branch: str) -> None:
        repo = self._writable(kind, name)
        if branch in repo.branches:
            return self._send({"error": "Reference already exists"}, 409)
        repo.branches[branch] = repo.branches["main"]
        return self._send({})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self._writable(kind, name).find(revision)
        files = json.loads(self.body)["files"]
        modes = [(file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular") for file in files]
        self._send({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def batch(self, name: str) -> None:
        self._writable("models", name)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.large:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, number: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != number:
            raise RefusalError(400, message="not what was announced")
        self.server.large[number] = self.body
        self._send({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        repo = self._writable(kind, name)
        files, message = dict(repo.commits[repo.find(revision)]), ""
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        number = repo.commit(files, revision, message)
        self._send({"commitUrl": f"{self.server.url}/{name}/commit/{number}", "commitOid": number})

    def check_card(self) -> None:
        self._send({"errors": [], "warnings": []})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith((".safetensors", ".parquet")):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


_API, _ID = r"/api/(models|datasets)/", r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", rf"{_API}{_ID}(?:/revision/([^/]+))?", "info"),
    ("GET", rf"{_API}{_ID}/tree/([^/]+)(?:/(.+))?", "tree"),
    ("POST", rf"{_API}{_ID}/paths-info/([^/]+)", "paths"),
    ("GET", rf"/(?:(datasets)/)?{_ID}/resolve/([^/]+)/(.+)", "resolve"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", rf"{_API}{_ID}/branch/([^/]+)", "branch"),
    ("POST", rf"{_API}{_ID}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(\w+)", "upload"),
    ("POST", rf"{_API}{_ID}/commit/([^/]+)", "commit"),
    ("POST", r"/api/validate-yaml", "check_card"),
]
