"""Between the client's values and SessionService: pure functions, shared by both clients."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC

from google.protobuf import duration_pb2

from sapwood.client.fields import seconds, set_fields, text
from sapwood.client.values import Session
from sapwood.v1 import session_pb2


def create_session_request(name: str, ttl: float | None) -> session_pb2.CreateSessionRequest:
    """Raises TypeError or ValueError for what is no name or time."""
    request = session_pb2.CreateSessionRequest(ttl=duration(ttl))
    return set_fields(request, {"name": name})


def fork_session_request(
    name: str | Session, new_name: str, at_token: int | None, ttl: float | None
) -> session_pb2.ForkSessionRequest:
    """As create_session_request."""
    values = {"name": session_name(name), "new_name": new_name}
    request = session_pb2.ForkSessionRequest(ttl=duration(ttl))
    return set_fields(request, values if at_token is None else values | {"at_token": at_token})


def rollback_session_request(
    name: str | Session, to_token: int
) -> session_pb2.RollbackSessionRequest:
    """As create_session_request."""
    values = {"name": session_name(name), "to_token": to_token}
    return set_fields(session_pb2.RollbackSessionRequest(), values)


def session_name(session: str | Session) -> str:
    """Raises TypeError for what is neither."""
    return session.name if isinstance(session, Session) else text(session, "name")


def duration(ttl: float | None) -> duration_pb2.Duration | None:
    """One that is past stays so."""
    if (ttl_s := seconds(ttl, "ttl")) is None:
        return None
    lasts = duration_pb2.Duration()
    lasts.FromNanoseconds(round(max(ttl_s, -1.0) * 1e9))
    return lasts


def get_session_request(name: str | Session, include_tokens: bool) -> session_pb2.GetSessionRequest:
    """As create_session_request."""
    values = {"name": session_name(name), "include_tokens": include_tokens}
    return set_fields(session_pb2.GetSessionRequest(), values)


def session(message: session_pb2.Session, token_ids: Iterable[int] = ()) -> Session:
    """Times are UTC's."""
    ends = message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None
    return Session(
        message.name,
        message.tokens,
        message.busy,
        message.parked,
        message.create_time.ToDatetime(UTC),
        ends,
        message.ttl.ToTimedelta().total_seconds(),
        tuple(token_ids),
    )
