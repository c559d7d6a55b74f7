"""`python -m sapwood.daemon.gateway.leash [--key-file FILE] ARGS…`: SMG, for as long as we live.

- Standard input is a pipe whose other end the daemon holds. It closes when the daemon ends, however
  that comes about, and this process ends then: no system tells a child of its parent's death on all
  platforms that SMG has.
- Secrets are in no command line, which everybody on the machine can read: HTTP clients' key comes
  from its file, and the control plane gets one that nobody else ever knows, so it is closed.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sapwood.daemon.gateway.http_key import read_key


def main(given: Sequence[str]) -> None:
    """Runs SMG in this process; returns when it ends."""
    threading.Thread(target=_end_with_the_daemon, name="leash", daemon=True).start()
    arguments = list(given)
    if arguments[:1] == ["--key-file"]:
        arguments[:2] = ["--api-key", read_key(Path(arguments[1]))]
    admin = f"sapwood:sapwood:admin:{secrets.token_urlsafe(32)}"
    from smg.launch_router import parse_router_args
    from smg.router import Router

    # Past its own launcher, which draws a picture first.
    parsed = parse_router_args([*arguments, "--control-plane-api-keys", admin])
    Router.from_args(parsed).start()


def _end_with_the_daemon() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
