"""SessionService: named conversations of whoever calls.

- The core owns them. What changes one is a command (`Gate.ordered`); what is read is asked of the
  engine thread between two steps.
- A name belongs to its principal: nobody sees, uses or is told of another's.
- A session that is made for a caller who leaves before hearing of it stays until its time is over.
"""

from __future__ import annotations

import re
import secrets
import time
from functools import partial

from google.protobuf import duration_pb2

from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.rules import SESSION_RULES, Bounds, check
from sapwood.daemon.rpc.times import seconds_of, timestamp_of
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.session_events import (
    CreateSession,
    DeleteSession,
    ForkSession,
    RollbackSession,
    SessionCommand,
    SessionKey,
    SessionTold,
    SessionView,
)
from sapwood.v1 import session_pb2 as pb

_NAME = re.compile(r"[a-z0-9._-]+")
_NAME_BYTES = 8


class SessionService:
    """Makes, tells of, cuts and forgets sessions."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def behaviours(self) -> dict[str, Behaviour]:
        """By method: all of the contract."""
        return {
            "CreateSession": self._create_session,
            "GetSession": self._get_session,
            "ListSessions": self._list_sessions,
            "DeleteSession": self._delete_session,
            "ForkSession": self._fork_session,
            "RollbackSession": self._rollback_session,
        }

    async def _create_session(
        self, request: pb.CreateSessionRequest, call: Call
    ) -> pb.CreateSessionResponse:
        self._gate.enter()
        ttl_s = self._ttl_s(request)
        command = CreateSession(
            self._gate.admission.draw_id(),
            _key(call, self._chosen(request.name, "name")),
            self._gate.limits.session_s_default if ttl_s is None else ttl_s,
            call.principal.quotas.sessions_max,
        )
        return pb.CreateSessionResponse(session=await self._ordered(command))

    async def _get_session(
        self, request: pb.GetSessionRequest, call: Call
    ) -> pb.GetSessionResponse:
        self._gate.enter()
        held = await self._gate.held(_key(call, request.name), "name")
        ids = held.tokens if request.include_tokens else ()
        return pb.GetSessionResponse(session=_session(held.view), token_ids=ids)

    async def _list_sessions(
        self, request: pb.ListSessionsRequest, call: Call
    ) -> pb.ListSessionsResponse:
        self._gate.enter()
        limits, after = self._gate.limits, request.page_token
        if after and not self._is_name(after):
            problem = "page_token is not one of a page before"
            raise Refused(Reason.BAD_REQUEST, problem, field="page_token")
        size = min(request.page_size or limits.sessions_page_default, limits.sessions_page_max)
        ask = partial(Loaded.view_sessions, owner=call.principal.name, now=time.monotonic())
        rest = [view for view in await self._gate.ask(ask) if view.name > after]
        page = rest[:size]
        token = page[-1].name if len(rest) > len(page) else ""
        return pb.ListSessionsResponse(sessions=map(_session, page), next_page_token=token)

    async def _delete_session(
        self, request: pb.DeleteSessionRequest, call: Call
    ) -> pb.DeleteSessionResponse:
        self._gate.enter()
        id = self._gate.admission.draw_id()
        await self._ordered(DeleteSession(id, _key(call, request.name)))
        return pb.DeleteSessionResponse()

    async def _fork_session(
        self, request: pb.ForkSessionRequest, call: Call
    ) -> pb.ForkSessionResponse:
        self._gate.enter()
        command = ForkSession(
            self._gate.admission.draw_id(),
            _key(call, request.name),
            self._chosen(request.new_name, "new_name"),
            request.at_token if request.HasField("at_token") else None,
            self._ttl_s(request),
            call.principal.quotas.sessions_max,
        )
        return pb.ForkSessionResponse(session=await self._ordered(command))

    async def _rollback_session(
        self, request: pb.RollbackSessionRequest, call: Call
    ) -> pb.RollbackSessionResponse:
        self._gate.enter()
        id, key = self._gate.admission.draw_id(), _key(call, request.name)
        told = await self._ordered(RollbackSession(id, key, request.to_token))
        return pb.RollbackSessionResponse(session=told)

    def _ttl_s(self, request: pb.CreateSessionRequest | pb.ForkSessionRequest) -> float | None:
        """Raises Refused."""
        check(request, SESSION_RULES, Bounds(self._gate.limits, self._gate.card.facts))
        return seconds_of(request.ttl) if request.HasField("ttl") else None

    def _chosen(self, name: str, field: str) -> str:
        """Of a new session; one that is drawn where none is given. Raises Refused."""
        if not name:
            return secrets.token_hex(_NAME_BYTES)
        if not self._is_name(name):
            most = self._gate.limits.session_name_chars_max
            problem = f"a session's name has 1 to {most} characters of [a-z0-9._-]"
            raise Refused(Reason.BAD_REQUEST, problem, field=field)
        return name

    def _is_name(self, text: str) -> bool:
        short = len(text) <= self._gate.limits.session_name_chars_max
        return short and _NAME.fullmatch(text) is not None

    async def _ordered(self, command: SessionCommand) -> pb.Session:
        told = await self._gate.ordered(command, command.id, SessionTold)
        return _session(told.view)


def _key(call: Call, name: str) -> SessionKey:
    return SessionKey(call.principal.name, name)


def _session(view: SessionView) -> pb.Session:
    ttl = duration_pb2.Duration()
    ttl.FromMilliseconds(round(1000 * view.ttl_s))
    return pb.Session(
        name=view.name,
        tokens=view.tokens,
        busy=view.busy,
        parked=view.parked,
        create_time=timestamp_of(view.created_at),
        expire_time=None if view.expires_at is None else timestamp_of(view.expires_at),
        ttl=ttl,
    )
