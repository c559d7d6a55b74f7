"""Answers as SMG does to who asks whether it is ready, after a line on each stream.

STAND_IN_TOLD is a file for the arguments that it got; with STAND_IN=ends it ends at once, with
STAND_IN=slow it lists its model at once and is ready when it was asked a second time.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Asked(BaseHTTPRequestHandler):
    """To everybody: no key is asked for."""

    before_ready = 0

    def do_GET(self) -> None:
        ready = self.path == "/v1/models"
        if self.path == "/readiness":
            ready = not Asked.before_ready
            Asked.before_ready = max(0, Asked.before_ready - 1)
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

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
        Asked.before_ready = int(os.environ.get("STAND_IN") == "slow")
        server = ThreadingHTTPServer((host or "", int(port or 0)), Asked)
        server.serve_forever()


def value_of(flag: str, args: list[str]) -> str | None:
    """What follows a flag; None without it."""
    return args[args.index(flag) + 1] if flag in args else None
