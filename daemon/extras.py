"""What only the daemon's commands need: `pip install sapwood` alone is the client."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec

from sapwood.daemon.errors import StartError

# What the extra `serve` installs, by the names that are imported.
SERVE_PACKAGES = (
    "anyio",
    "grpc_reflection",
    "huggingface_hub",
    "jinja2",
    "llguidance",
    "mlx",
    "mlx_lm",
    "numpy",
    "prometheus_client",
    "prompt_toolkit",
    "starlette",
    "tokenizers",
    "uvicorn",
)
# Where the package index has SMG for.
SMG_PLATFORMS = (("linux", "x86_64"), ("darwin", "arm64"))


def require_serve(command: str) -> None:
    """Raises StartError, which says what to install, where the extra `serve` is not whole."""
    if any(find_spec(package) is None for package in SERVE_PACKAGES):
        raise StartError(f'{command} needs the daemon: pip install "sapwood[serve]"')


def require_gateway(http: bool) -> None:
    """Raises StartError where the extra `gateway` is not whole. http: whether SMG is wanted."""
    if find_spec("smg_grpc_proto") is None:
        raise StartError('a gateway needs more: pip install "sapwood[serve,gateway]"')
    if http and find_spec("smg") is None:
        here = f"{sys.platform}, {platform.machine()}"
        if (sys.platform, platform.machine()) not in SMG_PLATFORMS:
            raise StartError(
                f"--http: SMG is made for Linux on x86-64 and macOS on arm64, and this is {here}; "
                "run it on another machine and serve it with --gateway"
            )
        raise StartError('--http needs SMG: pip install "sapwood[serve,gateway]"')
