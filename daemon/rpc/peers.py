"""Whose a request is: who shares slots, prompts' part of a step and memory with others.

- Until somebody says who it is: all that comes over unix sockets is one principal's, all that comes
  from one IP address another's. Ports are nobody: who opens many connections stays one.
- gRPC does not tell a server at which of its listeners a call came in.
"""

from __future__ import annotations

UNKNOWN = "unknown"


def principal_of(peer: str) -> str:
    """`peer` as gRPC writes it: `ipv4:HOST:PORT`, `ipv6:[HOST]:PORT` (escaped), `unix:PATH`."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return kind
    host = rest.rpartition(":")[0]
    return f"{kind}:{host}" if host else UNKNOWN
