"""The file of bearer tokens: one line for each, with a salted hash and never the token.

- A line is NAME ROLE WEIGHT ID SALT HASH; empty lines and those that begin with # are skipped.
  Who deletes a line takes the token back. A name may have several tokens.
- A token is `sapwood_ID_SECRET`. The id finds its line and is no secret; the secret has 256 bits
  that are drawn here, so that one SHA-256 over salt and secret is enough.
- Secrets are compared in a time that says nothing, also where there is no such id.
- Neither a token nor a line's content is in any message: they name the file and the line's number.
- Nobody but the file's owner may be able to write it.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.settings.principals import (
    LOCAL,
    REST,
    Role,
    is_name,
    parse_role,
    parse_weight,
)

TOKENS_BYTES_MAX = 4 << 20
_SECRET_BYTES = 32
_ID_BYTES = _SALT_BYTES = 8
_TOKEN = re.compile(r"sapwood_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NO_WEIGHT = "-"  # the configuration says it
_HEADER = "# NAME ROLE WEIGHT ID SALT SHA256: one token a line; delete a line to take it back.\n"


@dataclass(frozen=True, slots=True)
class Grant:
    """One line: who has the token, and what proves it."""

    id: str
    name: str
    role: Role
    weight: int | None
    salt: bytes
    digest: bytes


class TokenTable:
    """The tokens of one reading of the file."""

    def __init__(self, grants: dict[str, Grant]) -> None:
        self._grants = grants

    @property
    def names(self) -> frozenset[str]:
        """Of all who have one."""
        return frozenset(grant.name for grant in self._grants.values())

    def find(self, token: str) -> Grant | None:
        """Whose token it is; None for what is none of these."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        grant = self._grants.get(match[1], _NOBODY)
        same = hmac.compare_digest(_digest(grant.salt, match[2]), grant.digest)
        return grant if same and grant is not _NOBODY else None

    def stands(self, grant: Grant) -> bool:
        """Whether what an earlier reading granted is granted still."""
        now = self._grants.get(grant.id)
        if now is None:
            return False
        return (now.name, now.role, now.digest) == (grant.name, grant.role, grant.digest)


def _digest(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode()).digest()


_NOBODY = Grant("", "", Role.USER, None, secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(32))


def read_tokens(path: Path) -> TokenTable:
    """Raises StartError, which names the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(TOKENS_BYTES_MAX + 1)
    except OSError as error:
        raise StartError(f"tokens: {path}: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"tokens: {path} can be written by others than its owner")
    if len(data) > TOKENS_BYTES_MAX:
        raise StartError(f"tokens: {path} is longer than {TOKENS_BYTES_MAX} bytes")
    grants: dict[str, Grant] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            grant = _grant(line, f"tokens: {path}: line {number}")
            if grants.setdefault(grant.id, grant) is not grant:
                raise StartError(f"tokens: {path}: line {number} has the id of another line")
    return TokenTable(grants)


def _grant(line: str, where: str) -> Grant:
    try:
        name, role, weight, id, salt, digest = line.split()
        grant = Grant(
            id,
            name,
            parse_role(role),
            None if weight == _NO_WEIGHT else parse_weight(int(weight)),
            bytes.fromhex(salt),
            bytes.fromhex(digest),
        )
    except (ValueError, UsageError):
        raise StartError(f"{where} is not NAME ROLE WEIGHT ID SALT HASH") from None
    whole = _can_have_token(name) and len(grant.digest) == 32 and len(grant.salt) >= _SALT_BYTES
    if not whole:
        raise StartError(f"{where} is not NAME ROLE WEIGHT ID SALT HASH")
    return grant


def _can_have_token(name: str) -> bool:
    return is_name(name) and not name.startswith("#") and name not in (LOCAL, REST)


def new_token(path: Path, name: str, role: Role, weight: int | None) -> str:
    """Put a new token's line into the file, which is made where it is missing; the token.

    Raises UsageError for a name that nobody can have, and StartError for the file.
    """
    if not _can_have_token(name):
        raise UsageError(f"{name!r} cannot have a token: expected another name, without spaces")
    if path.exists():
        read_tokens(path)  # before anything is written into a file that is none of tokens
    id, salt = secrets.token_hex(_ID_BYTES), secrets.token_bytes(_SALT_BYTES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    line = f"{name} {role} {weight or _NO_WEIGHT} {id} {salt.hex()} {_digest(salt, secret).hex()}\n"
    try:
        _append(path, line)
    except OSError as error:
        raise StartError(f"tokens: {path}: {error.strerror}") from None
    return f"sapwood_{id}_{secret}"


def _append(path: Path, line: str) -> None:
    """In one write, under a lock that others who append take too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            line = _HEADER + line
        else:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode())
        os.fsync(file.fileno())
