"""What only the daemon's commands need: `pip install sapwood` alone is the client."""

from __future__ import annotations

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
    "starlette",
    "tokenizers",
    "uvicorn",
)


def require_serve(command: str) -> None:
    """Raises StartError, which says what to install, where the extra `serve` is not whole."""
    if any(find_spec(package) is None for package in SERVE_PACKAGES):
        raise StartError(f'{command} needs the daemon: pip install "sapwood[serve]"')
