"""Who calls: principals, and how a call proves whose it is.

- A name is one principal, however it comes: by a token, a certificate or a socket. A token brings
  its role along; of who comes otherwise the configuration says it, and without a word a user is.
- A call that shows a token is the token's, or nobody's. Without one it is the certificate's, whose
  name is its first URI, else its first DNS name; without either whoever the address stands for.
- What the prefix tree holds of a principal nobody else finds: its salt is part of the root key.
  A pool, which the configuration names, is one salt for all who are in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sapwood.cache.prefix.blocks import TENANT_BYTES
from sapwood.daemon.settings.followed import Followed
from sapwood.daemon.settings.principals import (
    LOCAL,
    REST,
    PrincipalSettings,
    Quotas,
    Role,
    is_name,
)
from sapwood.daemon.settings.tokens import Grant, TokenTable
from sapwood.scheduler.reasons import Reason, Refused

_NEEDS_TOKEN = "a token is needed: authorization: Bearer TOKEN"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with rights, quotas and a cache. weight: of the device's time, beside others."""

    name: str
    role: Role
    weight: int
    quotas: Quotas
    salt: bytes
    pooled: bool = False  # others have its salt too

    @property
    def is_operator(self) -> bool:
        """Whether it may look at and change what all share."""
        return self.role is Role.OPERATOR


@dataclass(frozen=True, slots=True)
class Identified:
    """Whose a call is. grant: the token's, where it came with one."""

    principal: Principal
    grant: Grant | None = None


def root_key(fingerprint: bytes, salt: bytes) -> bytes:
    """Where a principal's prefixes lie: of another model, or another's, nothing is found.

    It begins with TENANT_BYTES that are the same under every model.
    """
    head = len(fingerprint).to_bytes(4, "big")
    tenant = hashlib.sha256(b"tenant" + salt).digest()[:TENANT_BYTES]
    return tenant + hashlib.sha256(head + fingerprint + salt).digest()


class Directory:
    """All whom a daemon knows. Touched on the event loop only."""

    def __init__(
        self,
        settings: Mapping[str, PrincipalSettings],
        tokens: Followed[TokenTable] | None = None,
    ) -> None:
        """tokens: None where none are in use."""
        self._settings = settings
        self._tokens = tokens

    @property
    def uses_tokens(self) -> bool:
        """Whether a call can prove itself by a token."""
        return self._tokens is not None

    @property
    def token_names(self) -> frozenset[str]:
        """Of all who have a token now."""
        return frozenset() if self._tokens is None else self._tokens.value.names

    def named(self, name: str) -> Principal:
        """Who comes by a certificate, by a socket, or is `local`."""
        settings = self._settings_of(name)
        role = settings.role or (Role.OPERATOR if name == LOCAL else Role.USER)
        return _principal(name, role, settings)

    def by_token(self, authorization: Sequence[str]) -> Identified:
        """Whose call it is that came with these values of `authorization`. Raises Refused."""
        if self._tokens is None:
            raise Refused(Reason.UNAUTHENTICATED, "a client certificate is needed")
        if not authorization:
            raise Refused(Reason.UNAUTHENTICATED, _NEEDS_TOKEN)
        scheme, _, token = authorization[0].partition(" ")
        grant = None
        if len(authorization) == 1 and scheme.lower() == "bearer":
            grant = self._tokens.value.find(token.strip(" "))
        if grant is None:
            raise Refused(Reason.UNAUTHENTICATED, "the token is not known here")
        settings = self._settings_of(grant.name)
        return Identified(_principal(grant.name, grant.role, settings, grant.weight), grant)

    def by_certificate(self, uris: Iterable[str], dns_names: Iterable[str]) -> Identified:
        """Whose call it is that came with a certificate of these names. Raises Refused."""
        name = next(iter(uris), None) or next(iter(dns_names), None)
        if name is None:
            raise Refused(Reason.UNAUTHENTICATED, "the certificate names neither URI nor DNS name")
        if not is_name(name) or name in (LOCAL, REST):
            raise Refused(Reason.UNAUTHENTICATED, "nobody can have the name of the certificate")
        return Identified(self.named(name))

    def stands(self, grant: Grant) -> bool:
        """Whether the file still has the token."""
        return self._tokens is not None and self._tokens.value.stands(grant)

    def _settings_of(self, name: str) -> PrincipalSettings:
        if name in self._settings:
            return self._settings[name]
        return self._settings.get(REST, PrincipalSettings())


def _principal(
    name: str, role: Role, settings: PrincipalSettings, weight: int | None = None
) -> Principal:
    """weight: what a token says, before what its name's table says."""
    kind, shared = ("principal", name) if settings.pool is None else ("pool", settings.pool)
    salt = hashlib.sha256(f"sapwood {kind} {shared}".encode()).digest()
    pooled = settings.pool is not None
    return Principal(name, role, weight or settings.weight, settings.quotas, salt, pooled)
