"""Certificates from files, read again where they change.

- All files are PEM. What is handed on was read as a whole and fits together: the key is the
  certificate's, the client CA has at least one certificate. A key with a password is not taken.
- Messages name a file and what is wrong with it, nothing of what it holds.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.followed import signature_of

PEM_BYTES_MAX = 1 << 20
_TRIES = 3  # of a reading during which a file changed


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where they are. client_ca: None asks nobody for a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that there are."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True, slots=True)
class TlsKeys:
    """What the files held: as gRPC takes it, and as Python's ssl does."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


def read_tls(files: TlsFiles) -> TlsKeys:
    """Raises StartError, which names the file and what is wrong with it."""
    for _ in range(_TRIES):
        try:
            before = signature_of(files.paths)
            keys = _read(files)
            if before == signature_of(files.paths):
                return keys
        except OSError as error:  # of a file that is not there; ssl's errors are caught below
            raise StartError(f"tls: {error.filename}: {error.strerror}") from None
    raise StartError(f"tls: {files.cert} and {files.key} change while they are read")


def _read(files: TlsFiles) -> TlsKeys:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    chain, key = _pem(files.cert), _pem(files.key)
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
    except (ssl.SSLError, ValueError):
        told = f"{files.key} is not the key of the certificate {files.cert}"
        raise StartError(f"tls: {told}, or one of them is no PEM or has a password") from None
    client_ca = None
    if files.client_ca is not None:
        client_ca = _pem(files.client_ca)
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", errors="replace"))
        except (ssl.SSLError, ValueError):
            raise StartError(f"tls: {files.client_ca} has no certificate in PEM") from None
        context.verify_mode = ssl.CERT_OPTIONAL  # whoever needs one is told so by name
    return TlsKeys(chain, key, client_ca, context)


def _pem(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(PEM_BYTES_MAX + 1)
    if len(data) > PEM_BYTES_MAX:
        raise StartError(f"tls: {os.fspath(path)} is longer than {PEM_BYTES_MAX} bytes")
    return data
