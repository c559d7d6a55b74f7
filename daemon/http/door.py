"""How the HTTP endpoint is kept where a network reaches it: TLS, and metrics for operators alone.

- /healthz and /readyz are open: whoever watches a process has no token.
- A token may come as a browser sends it, too: as the password of HTTP's Basic, whoever the user is.
- A refusal says nothing of what was shown.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sapwood.daemon.rpc.principals import Directory
from sapwood.scheduler.reasons import Reason, Refused

CERTIFICATE = "certificate"  # of a connection's client, in what its requests know


@dataclass(frozen=True, slots=True)
class ScrapeDoor:
    """context: what the next connection's TLS is made of."""

    context: Callable[[], ssl.SSLContext]
    directory: Directory

    def refusal(self, request: Request) -> Response | None:
        """What answers a request that may not see metrics; None for who may."""
        shown = [_as_bearer(each) for each in request.headers.getlist("authorization")]
        certificate: Mapping[str, Any] | None = request.scope["state"].get(CERTIFICATE)
        try:
            if (shown and self.directory.uses_tokens) or not certificate:
                who = self.directory.by_token(shown)
            else:
                who = self.directory.by_certificate(*_names(certificate))
        except Refused as refusal:
            return _answer(refusal)
        if not who.principal.is_operator:
            return _answer(Refused(Reason.PERMISSION_DENIED, "this is for operators"))
        return None


def _names(certificate: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """URIs and DNS names, in the form of Python's ssl."""
    names = certificate.get("subjectAltName", ())
    uris = [name for kind, name in names if kind == "URI"]
    return uris, [name for kind, name in names if kind == "DNS"]


def _as_bearer(shown: str) -> str:
    """Basic with a token for its password as a bearer's token; anything else as it is."""
    scheme, _, written = shown.partition(" ")
    if scheme.lower() != "basic":
        return shown
    try:
        _, _, password = base64.b64decode(written, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return shown
    return f"Bearer {password}"


def _answer(refusal: Refused) -> Response:
    if refusal.reason is Reason.PERMISSION_DENIED:
        return PlainTextResponse(f"{refusal.message}\n", HTTPStatus.FORBIDDEN)
    answer = PlainTextResponse(f"{refusal.message}\n", HTTPStatus.UNAUTHORIZED)
    for way in ('Basic realm="the password is an operator\'s token"', "Bearer"):
        answer.headers.append("www-authenticate", way)
    return answer
