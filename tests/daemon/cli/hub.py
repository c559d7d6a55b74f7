"""A hub of our own, which HF_ENDPOINT leads to: what huggingface_hub asks of one, and no more.

- A repository is a folder; its one commit is named after its id.
- `cut` lets the next downloads of files of more than CUT_BYTES break off there, as a network does;
  while `flowing` is not set they stand still there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CUT_BYTES = 100_000


@dataclass
class Hub:
    """asked: path and Range header of every download, in order. gated: ids that need a login."""

    repositories: Mapping[str, Path]
    gated: frozenset[str] = frozenset()
    cut: bool = False
    flowing: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.flowing.set()

    def commit(self, hub_id: str) -> str:
        return hashlib.sha1(hub_id.encode()).hexdigest()

    def files(self, hub_id: str) -> dict[str, Path]:
        root = self.repositories[hub_id]
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path for path in found}


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        served = hub

    server = _Server(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.flowing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a client that leaves nothing is said."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        words = url.path.strip("/").split("/")
        if words == ["api", "models"]:
            self._list(parse_qs(url.query))
            return
        api = words[:2] == ["api", "models"]
        owner_name = words[2:4] if api else words[:2]
        hub_id, rest = "/".join(owner_name), words[4:] if api else words[2:]
        if hub_id not in self.served.repositories:
            self._refuse(404, "RepoNotFound")
        elif hub_id in self.served.gated:
            self._refuse(403, "GatedRepo")
        elif api:
            self._tell(hub_id, rest)
        else:
            self._file(hub_id, rest)

    def _list(self, query: dict[str, list[str]]) -> None:
        (author,), (search,) = query["author"], query["search"]
        found = [
            {"id": hub_id, "modelId": hub_id}
            for hub_id in self.served.repositories
            if hub_id.startswith(f"{author}/") and search in hub_id.lower()
        ]
        self._json(found)

    def _tell(self, hub_id: str, rest: list[str]) -> None:
        commit = self.served.commit(hub_id)
        if rest[:1] == ["revision"] and rest[1] not in ("main", commit):
            self._refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            files = self.served.files(hub_id).items()
            self._json(
                [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path)}
                    for name, path in files
                ]
            )
        else:
            names = [{"rfilename": name} for name in self.served.files(hub_id)]
            self._json({"id": hub_id, "modelId": hub_id, "sha": commit, "siblings": names})

    def _file(self, hub_id: str, rest: list[str]) -> None:
        """resolve/REVISION/PATH."""
        name = "/".join(rest[2:])
        path = self.served.files(hub_id).get(name)
        if path is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": self.served.commit(hub_id)})
            return
        data, begun = path.read_bytes(), self.headers.get("Range", "")
        start = int(begun.removeprefix("bytes=").partition("-")[0] or 0)
        if self.command == "GET":
            self.served.asked.append((f"{hub_id}/{name}", begun))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_oid(path)}"')
        self.send_header("X-Repo-Commit", self.served.commit(hub_id))
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(data[start:])

    def _send(self, data: bytes) -> None:
        self.wfile.write(data[:CUT_BYTES])
        self.wfile.flush()
        if len(data) > CUT_BYTES and self.served.cut:
            self.close_connection = True
            self.connection.shutdown(2)
        elif len(data) > CUT_BYTES:
            self.served.flowing.wait()
            self.wfile.write(data[CUT_BYTES:])

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._json({"error": code}, status, {"X-Error-Code": code, **(headers or {})})

    def _json(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
