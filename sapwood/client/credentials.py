"""How a client proves who it is, and knows whom it talks to.

- A token goes along with every call, as `authorization: Bearer TOKEN`. It does not leave the
  machine in the clear: without TLS it is refused for an address that is not of this machine.
- With tls_ca the connection is TLS, to a daemon whose certificate that CA signed, or it is none.
- No message of ours, and none of gRPC's that can come of it, holds a token or a key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import grpc

from sapwood.client.address import Address, TcpAddress

FilePath = str | os.PathLike[str]
Metadata = tuple[tuple[str, str], ...]

_ENVIRONMENT_KEY = "SAPWOOD_TOKEN"
_FILE_BYTES_MAX = 1 << 20
_TOKEN = re.compile(r"[!-~]+")
_KEY = re.compile(r"[a-z0-9_.-]+")
_VALUE = re.compile(r"[ -~]*")
_OURS = ("authorization", "grpc-")  # how keys begin that are not a caller's to set


class ConnectOptions(TypedDict, total=False):
    """Keywords of a client. What is absent or None is not used, but for the token."""

    token: str | None  # who asks; None: what SAPWOOD_TOKEN has
    tls_ca: FilePath | None  # PEM: the connection is TLS, and the daemon proves itself by it
    tls_client_cert: FilePath | None  # PEM, where the daemon asks for a certificate
    tls_client_key: FilePath | None
    metadata: Mapping[str, str] | None  # goes along with every call


class CallCredentials:
    """What calls and connections of one client carry. Its files are read here, once."""

    def __init__(
        self,
        found: Address,
        environ: Mapping[str, str],
        *,
        token: str | None = None,
        tls_ca: FilePath | None = None,
        tls_client_cert: FilePath | None = None,
        tls_client_key: FilePath | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """token: None takes SAPWOOD_TOKEN. Raises ValueError, TypeError, and OSError for files."""
        self.channel = _channel_credentials(found, tls_ca, tls_client_cert, tls_client_key)
        shown = environ.get(_ENVIRONMENT_KEY) or None if token is None else token
        pairs = () if shown is None else (("authorization", f"Bearer {_checked(shown)}"),)
        if pairs and self.channel is None and not _stays_here(found):
            raise ValueError(f"a token for {found} would travel in the clear: TLS needs tls_ca")
        self.metadata: Metadata = (*_pairs(metadata or {}), *pairs)


def read_token(path: FilePath) -> str:
    """The token that a file holds, alone. Raises ValueError and OSError."""
    return _checked(_read(path).decode("ascii", errors="replace").strip())


def _checked(token: str) -> str:
    if not isinstance(token, str):
        raise TypeError(f"token must be a string, not {type(token).__name__}")
    if not _TOKEN.fullmatch(token):
        raise ValueError("what is given as a token is none: printable ASCII without spaces")
    return token


def _pairs(metadata: Mapping[str, str]) -> Metadata:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError("metadata must be strings by strings")
        if not _KEY.fullmatch(key) or key.startswith(_OURS) or key.endswith("-bin"):
            raise ValueError(f"metadata cannot have the key {key!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the metadata of {key!r} is not printable ASCII")
    return tuple(metadata.items())


def _channel_credentials(
    found: Address,
    ca: FilePath | None,
    cert: FilePath | None,
    key: FilePath | None,
) -> grpc.ChannelCredentials | None:
    """None for a connection in the clear."""
    if ca is None:
        if cert is not None or key is not None:
            raise ValueError("a client certificate needs TLS: tls_ca is missing")
        return None
    if not isinstance(found, TcpAddress):
        raise ValueError(f"TLS is for HOST:PORT, not for {found}")
    if (cert is None) != (key is None):
        raise ValueError("tls_client_cert and tls_client_key go together")
    return grpc.ssl_channel_credentials(
        _read(ca),
        private_key=None if key is None else _read(key),
        certificate_chain=None if cert is None else _read(cert),
    )


def _stays_here(found: Address) -> bool:
    if not isinstance(found, TcpAddress) or found.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(found.host).is_loopback
    except ValueError:
        return False


def _read(path: FilePath) -> bytes:
    with Path(path).expanduser().open("rb") as file:
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise ValueError(f"{os.fspath(path)} is longer than {_FILE_BYTES_MAX} bytes")
    return data
