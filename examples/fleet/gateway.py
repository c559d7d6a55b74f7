"""SMG before several daemons, with its keys out of files: a command line is everybody's to read.

    pip install "sapwood[gateway]"
    python examples/fleet/gateway.py --port 8080 \
        --worker-urls grpc://127.0.0.1:50561 grpc://127.0.0.1:50562

Beyond loopback it wants --key-file and TLS. Without --admin-key-file the control plane, which adds
workers and takes them out, is closed to everybody. All other flags are SMG's own, and win over
FLAGS, which are what a fleet of daemons wants.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from smg.launch_router import parse_router_args
from smg.router import Router

FLAGS = (
    *("--backend", "vllm", "--policy", "cache_aware"),
    *("--reasoning-parser", "gemma4", "--tool-call-parser", "gemma4"),
    *("--history-backend", "none", "--max-payload-size", str(8 << 20)),
    *("--worker-startup-check-interval", "1", "--health-check-interval-secs", "5"),
    *("--shutdown-grace-period-secs", "20"),
    *("--prometheus-host", "127.0.0.1", "--log-level", "warn"),
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def router_arguments(given: Sequence[str]) -> list[str]:
    """What SMG is started with. SystemExit where that would be open to everybody."""
    parser = argparse.ArgumentParser(description="SMG, with keys out of files.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="where it serves HTTP")
    parser.add_argument("--key-file", type=Path, help="the key that HTTP clients have to give")
    parser.add_argument("--admin-key-file", type=Path, help="the key of the control plane")
    arguments, rest = parser.parse_known_args(given)
    secured = arguments.key_file and "--tls-cert-path" in rest and "--tls-key-path" in rest
    if arguments.host not in LOOPBACK and not secured:
        parser.error("beyond loopback: --key-file, --tls-cert-path and --tls-key-path")
    admin = _line(arguments.admin_key_file) or secrets.token_urlsafe(32)
    keys = ["--control-plane-api-keys", f"fleet:fleet:admin:{admin}"]
    if key := _line(arguments.key_file):
        keys += ["--api-key", key]
    return ["--host", arguments.host, *FLAGS, *rest, *keys]


def _line(path: Path | None) -> str | None:
    text = None if path is None else path.read_text().strip()
    if text is not None and len(text) < 16:
        raise SystemExit(f"{path}: a key has 16 characters or more")
    return text


if __name__ == "__main__":
    Router.from_args(parse_router_args(router_arguments(sys.argv[1:]))).start()
