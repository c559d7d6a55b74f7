"""Answers as SMG does to who asks for models, after a line on each stream.

STAND_IN_TOLD is a file for the arguments that it got; with STAND_IN=ends it ends at once.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Models(BaseHTTPRequestHandler):
    """One model, to whoever brings the key."""

    def do_GET(self) -> None:
        key = self.server.key  # type: ignore[attr-defined]
        allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
        body = json.dumps({"data": [{"id": "fake"}]}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Router:
    """What the wrapper makes and starts."""

    def __init__(self, args: list[str]) -> None:
        self._args = args

    @classmethod
    def from_args(cls, args: list[str]) -> Router:
        """Of the list that parse_router_args kept."""
        return cls(args)

    def start(self) -> None:
        """Until it is ended."""
        print("a line on stdout", flush=True)
        print("\x1b[33ma line on stderr\x1b[0m", file=sys.stderr, flush=True)
        if told := os.environ.get("STAND_IN_TOLD"):
            Path(told).write_text(json.dumps(self._args))
        if os.environ.get("STAND_IN") == "ends":
            return
        host, port = (value_of(flag, self._args) for flag in ("--host", "--port"))
        server = ThreadingHTTPServer((host or "", int(port or 0)), Models)
        server.key = value_of("--api-key", self._args)  # type: ignore[attr-defined]
        server.serve_forever()


def value_of(flag: str, args: list[str]) -> str | None:
    """What follows a flag; None without it."""
    return args[args.index(flag) + 1] if flag in args else None
