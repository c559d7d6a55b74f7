"""Sessions, for both clients: conversations that the daemon keeps by name.

- A turn of one is `generate(prompt, session=...)`; its stream is resumed where a connection breaks.
- Names are the caller's own. A session may stand wherever its name does.
"""

from __future__ import annotations

from sapwood.client import session_wire as wire
from sapwood.client.channel import CALL_TIMEOUT_S
from sapwood.client.unary import AsyncUnary, Unary
from sapwood.client.values import Session
from sapwood.v1 import session_pb2


class SessionCalls:
    """Of the synchronous client."""

    def create_session(
        self: Unary,
        name: str = "",
        *,
        ttl: float | None = None,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """An empty one; without a name the daemon chooses. Forgotten when unused for `ttl` s."""
        request = wire.create_session_request(name, ttl)
        response = self._unary(lambda lane: lane.sessions.CreateSession, request, timeout)
        return wire.session(response.session)

    def get_session(
        self: Unary,
        name: str | Session,
        *,
        include_tokens: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """As it is now. Raises NotFound where there is none, or its time is over."""
        request = wire.get_session_request(name, include_tokens)
        response = self._unary(lambda lane: lane.sessions.GetSession, request, timeout)
        return wire.session(response.session, response.token_ids)

    def list_sessions(self: Unary, *, timeout: float | None = CALL_TIMEOUT_S) -> list[Session]:
        """The caller's, by name."""
        found: list[Session] = []
        request = session_pb2.ListSessionsRequest()
        while True:
            response = self._unary(lambda lane: lane.sessions.ListSessions, request, timeout)
            found += map(wire.session, response.sessions)
            if not response.next_page_token:
                return found
            request = session_pb2.ListSessionsRequest(page_token=response.next_page_token)

    def delete_session(
        self: Unary, name: str | Session, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> None:
        """Forgets it; its stream, if one is open, ends with Cancelled."""
        request = session_pb2.DeleteSessionRequest(name=wire.session_name(name))
        self._unary(lambda lane: lane.sessions.DeleteSession, request, timeout)

    def fork_session(
        self: Unary,
        name: str | Session,
        new_name: str = "",
        *,
        at_token: int | None = None,
        ttl: float | None = None,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """Another one of its first `at_token` tokens, or of all. Costs neither memory nor time."""
        request = wire.fork_session_request(name, new_name, at_token, ttl)
        response = self._unary(lambda lane: lane.sessions.ForkSession, request, timeout)
        return wire.session(response.session)

    def rollback_session(
        self: Unary,
        name: str | Session,
        to_token: int,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """Forgets what comes behind its first `to_token` tokens."""
        request = wire.rollback_session_request(name, to_token)
        response = self._unary(lambda lane: lane.sessions.RollbackSession, request, timeout)
        return wire.session(response.session)


class AsyncSessionCalls:
    """The same of the asynchronous client."""

    async def create_session(
        self: AsyncUnary,
        name: str = "",
        *,
        ttl: float | None = None,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """An empty one; without a name the daemon chooses. Forgotten when unused for `ttl` s."""
        request = wire.create_session_request(name, ttl)
        response = await self._unary(lambda lane: lane.sessions.CreateSession, request, timeout)
        return wire.session(response.session)

    async def get_session(
        self: AsyncUnary,
        name: str | Session,
        *,
        include_tokens: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """As it is now. Raises NotFound where there is none, or its time is over."""
        request = wire.get_session_request(name, include_tokens)
        response = await self._unary(lambda lane: lane.sessions.GetSession, request, timeout)
        return wire.session(response.session, response.token_ids)

    async def list_sessions(
        self: AsyncUnary, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> list[Session]:
        """The caller's, by name."""
        found: list[Session] = []
        request = session_pb2.ListSessionsRequest()
        while True:
            response = await self._unary(lambda lane: lane.sessions.ListSessions, request, timeout)
            found += map(wire.session, response.sessions)
            if not response.next_page_token:
                return found
            request = session_pb2.ListSessionsRequest(page_token=response.next_page_token)

    async def delete_session(
        self: AsyncUnary, name: str | Session, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> None:
        """Forgets it; its stream, if one is open, ends with Cancelled."""
        request = session_pb2.DeleteSessionRequest(name=wire.session_name(name))
        await self._unary(lambda lane: lane.sessions.DeleteSession, request, timeout)

    async def fork_session(
        self: AsyncUnary,
        name: str | Session,
        new_name: str = "",
        *,
        at_token: int | None = None,
        ttl: float | None = None,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """Another one of its first `at_token` tokens, or of all. Costs neither memory nor time."""
        request = wire.fork_session_request(name, new_name, at_token, ttl)
        response = await self._unary(lambda lane: lane.sessions.ForkSession, request, timeout)
        return wire.session(response.session)

    async def rollback_session(
        self: AsyncUnary,
        name: str | Session,
        to_token: int,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> Session:
        """Forgets what comes behind its first `to_token` tokens."""
        request = wire.rollback_session_request(name, to_token)
        response = await self._unary(lambda lane: lane.sessions.RollbackSession, request, timeout)
        return wire.session(response.session)
