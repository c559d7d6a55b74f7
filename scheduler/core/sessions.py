"""Named conversations: whose they are, what they hold, and how a last reply is gone on with.

- A session's tokens are what was sent and emitted. They lie on the host, packed: a session outlives
  its K/V, which is the tree's, goes by its worth as all there does, and is computed again.
- One request at a time. It changes its session when it ends, and not where it drew nothing.
- A revision is one state of one session. A prompt that was made from another one comes too late.
- The last reply can be gone on with until the session changes otherwise. What was drawn is never
  drawn again, and what was not is drawn as it would have been: a sequence that ended begins anew
  where it was, as one that was parked does. One that runs is only told of under another id.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count

from sapwood.cache.prefix.radix import common, pack
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.kept_session import KeptSession
from sapwood.scheduler.core.last_reply import LastReply, bad, check_length, resumed
from sapwood.scheduler.core.meters import Meters
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Effect, Failed, Finished, Progress, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.reply.reply import GeneratedReply
from sapwood.scheduler.session_events import (
    CreateSession,
    DeleteSession,
    ForkSession,
    HeldSession,
    ResumeReply,
    RollbackSession,
    SessionCommand,
    SessionKey,
    SessionTold,
    SessionTurn,
    SessionView,
)

_TAKEN_OVER = "another stream goes on with the reply"


class Sessions:
    """The sessions of one core. Single-threaded, like all of it."""

    def __init__(
        self,
        limits: Limits,
        tree: Tree,
        meters: Meters,
        new_sequence: Callable[[Request, float], Sequence],
        new_reply: Callable[[Request], GeneratedReply],
        give_up: Callable[[Sequence, CancelReason, float], None],
    ) -> None:
        """give_up: ends a sequence, and settles it."""
        self._limits, self._tree, self._meters = limits, tree, meters
        self._new_sequence, self._new_reply = new_sequence, new_reply
        self._give_up = give_up
        self._sessions: dict[SessionKey, KeptSession] = {}
        self._taken_over: dict[int, Sequence] = {}  # by the id that it is told of under
        self._expires_at = math.inf  # none does before
        self._revisions = count(1)

    # What may be asked between two steps. Changes nothing.

    def views(self, owner: str, now: float) -> tuple[SessionView, ...]:
        """Its owner's, by name."""
        own = {
            key.name: session
            for key, session in self._sessions.items()
            if key.owner == owner and not session.over(now)
        }
        return tuple(self._view(name, own[name]) for name in sorted(own))

    def held(self, key: SessionKey, now: float) -> HeldSession | None:
        """None where there is no such session."""
        session = self._sessions.get(key)
        if session is None or session.over(now):
            return None
        if session.running is not None:
            left = session.running.reply.remaining
        else:
            left = 0 if session.last is None else session.last.tokens_left
        return HeldSession(
            self._view(key.name, session),
            session.path,
            session.revision,
            session.style,
            session.calls,
            left,
        )

    def taken_over(self, id: int) -> Sequence | None:
        """Whose stream has this id, where another one began it."""
        return self._taken_over.get(id)

    # Commands.

    def expire(self, now: float) -> None:
        """Forget all whose time is over."""
        if now < self._expires_at:
            return
        for key in [key for key, session in self._sessions.items() if session.over(now)]:
            del self._sessions[key]
        idle = (each.expires_at for each in self._sessions.values() if each.running is None)
        self._expires_at = min(idle, default=math.inf)

    def obey(self, command: SessionCommand, now: float) -> SessionTold | Failed:
        """Its answer."""
        try:
            return SessionTold(command.id, self._obeyed(command, now))
        except Refused as why:
            return Failed(command.id, why.reason, why.message, field=why.field)

    def _obeyed(self, command: SessionCommand, now: float) -> SessionView:
        name = command.key.name
        match command:
            case CreateSession(_, key, ttl_s, most):
                return self._view(name, self._add(key, pack(()), ttl_s, most, now))
            case ForkSession():
                return self._fork(command, now)
            case RollbackSession(_, key, to):
                session = self._idle(key)
                check_length(to, len(session.tokens), "to_token")
                self._cut(session, to)
                self._touch(session, now)
                return self._view(name, session)
            case DeleteSession(_, key):  # pragma: no branch (there is no fifth)
                session = self._found(key)
                if session.running is not None:
                    self._give_up(session.running, CancelReason.CANCELLED, now)
                del self._sessions[key]
                return self._view(name, session)

    def held_path(self, key: SessionKey) -> tuple[bytes, array[int]] | None:
        """The root and the tokens of all that it holds."""
        session = self._sessions.get(key)
        if session is None:
            return None
        running = session.running
        return session.root if running is None else running.request.root, session.path

    def shared(self, key: SessionKey, tokens: array[int]) -> int:
        """How much of a path other sessions of the same owner hold."""
        others = (s.path for k, s in self._sessions.items() if k.owner == key.owner and k != key)
        return max((common(other, 0, tokens, 0, len(tokens)) for other in others), default=0)

    def owned(self, owner: str) -> list[SessionKey]:
        """All of an owner's."""
        return [key for key in self._sessions if key.owner == owner]

    def _fork(self, command: ForkSession, now: float) -> SessionView:
        source = self._found(command.key)
        path = source.path
        at = len(path) if command.at is None else command.at
        check_length(at, len(path), "at_token")
        self._check_room(at)
        ttl_s = source.ttl_s if command.ttl_s is None else command.ttl_s
        key = SessionKey(command.key.owner, command.new_name)
        made = self._add(key, path, ttl_s, command.sessions_max, now)
        made.root, made.style, made.calls = source.root, source.style, source.calls
        if source.running is not None:
            made.root, made.style, made.calls = _traits(source.running)
        self._cut(made, at)
        self._touch(source, now)
        return self._view(key.name, made)

    # Requests.

    def refusal(self, request: Request) -> Refused | None:
        """Why it cannot run in its session now; None also where it is in none."""
        turn = request.session
        if turn is None:
            return None
        try:
            session = self._idle(turn.key)
            if session.revision != turn.revision:
                raise _busy()
            self._check_room(request.tokens_max - session.room_tokens)
        except Refused as why:
            return why
        return None

    def begin(self, sequence: Sequence) -> None:
        """It is let in: its session is busy until it ends."""
        if sequence.request.session is not None:
            session = self._sessions[sequence.request.session.key]
            session.running, session.last = sequence, None

    def settle(self, sequence: Sequence, now: float, finished: Finished | None = None) -> None:
        """It has ended. finished: what was told, where its reply is complete."""
        turn = sequence.request.session
        session = None if turn is None else self._sessions.get(turn.key)
        if turn is None or session is None or session.running is not sequence:
            return
        self._taken_over.pop(sequence.stream, None)
        session.last = last = LastReply.of(sequence, now, finished)
        session.running = None
        if sequence.emitted:
            session.tokens, session.revision = last.tokens, next(self._revisions)
            session.root, session.style, session.calls = _traits(sequence)
        self._touch(session, now)

    def resume(
        self, order: ResumeReply, expires_at: float, now: float
    ) -> tuple[list[Effect], Sequence | None]:
        """What is told, and who goes on with the reply where nobody does yet.

        The sequence is not let in; what is told is true once it is.
        """
        try:
            return self._resume(order, expires_at, now)
        except Refused as why:
            self._meters.count_end(Outcome.REJECTED, why.reason)
            return [Failed(order.id, why.reason, why.message, field=why.field)], None

    def _resume(
        self, order: ResumeReply, expires_at: float, now: float
    ) -> tuple[list[Effect], Sequence | None]:
        session = self._found(order.key)
        if (sequence := session.running) is not None:
            return self._take_over(sequence, order, expires_at), None
        last = session.last
        if last is None:
            raise bad("the session has no reply to go on with", "resume.session")
        request = replace(last.whole_request(), id=order.id, deadline=order.deadline)
        told = resumed(order, request, last.reply_tokens, last.read(order.id), self._new_reply)
        if last.finished is not None:
            self._touch(session, now)
            return [told, replace(last.finished, id=order.id)], None
        assert request.session is not None, f"request {request.id} is in no session"
        turn = SessionTurn(order.key, session.revision, request.session.style)
        sequence = self._new_sequence(replace(request, session=turn), now)
        if last.reply is not None:
            sequence.go_on(last.reply, last.usage, session.calls, now)
        return [told], sequence

    def check(self, live: Iterable[Sequence]) -> None:
        """N1: whoever runs in a session lives, and nobody else is said to."""
        running = {s.running.id for s in self._sessions.values() if s.running is not None}
        alive = {
            each.id
            for each in live
            if each.request.session is not None and each.request.session.key in self._sessions
        }
        assert running == alive, f"N1: {running} run in sessions, {alive} live"
        told = {sequence.id for sequence in self._taken_over.values()}
        assert told <= running, f"N1: {told - running} are told of and do not run"

    # Inside.

    def _take_over(self, sequence: Sequence, order: ResumeReply, expires_at: float) -> list[Effect]:
        read = Progress(order.id, sequence.cached, sequence.processed, sequence.prompt_tokens)
        emitted = sequence.reply.tokens
        told = resumed(order, sequence.request, emitted, read, self._new_reply)
        left = Failed(sequence.stream, Reason.CANCELLED, _TAKEN_OVER)
        self._taken_over.pop(sequence.stream, None)
        self._taken_over[order.id] = sequence
        sequence.stream, sequence.expires_at = order.id, expires_at
        return [left, told]

    def _view(self, name: str, session: KeptSession) -> SessionView:
        busy, path = session.running is not None, session.path
        kept = busy or self._tree.match(session.root, path).tokens >= len(path) - 1
        return SessionView(
            name,
            len(path),
            busy,
            not kept,
            session.created_at,
            None if busy else session.expires_at,
            session.ttl_s,
        )

    def _found(self, key: SessionKey) -> KeptSession:
        session = self._sessions.get(key)
        if session is None:
            raise Refused(Reason.SESSION_NOT_FOUND, "there is no such session", field="name")
        return session

    def _idle(self, key: SessionKey) -> KeptSession:
        session = self._found(key)
        if session.running is not None:
            raise _busy()
        return session

    def _add(
        self, key: SessionKey, tokens: array[int], ttl_s: float, most: int | None, now: float
    ) -> KeptSession:
        if key in self._sessions:
            raise Refused(Reason.SESSION_EXISTS, "there is a session of this name", field="name")
        own = sum(other.owner == key.owner for other in self._sessions)
        if most is not None and own >= most:
            raise Refused(Reason.CLIENT_QUOTA, f"this client has {own} sessions, all that it may")
        if len(self._sessions) >= self._limits.sessions_max:
            problem = f"there are {len(self._sessions)} sessions, as many as there may be"
            raise Refused(Reason.CLIENT_QUOTA, problem)
        session = KeptSession(now, ttl_s, next(self._revisions), tokens)
        self._sessions[key] = session
        self._touch(session, now)
        return session

    def _cut(self, session: KeptSession, to: int) -> None:
        if to < len(session.tokens):
            session.tokens, session.revision = session.tokens[:to], next(self._revisions)
            session.last, session.calls = None, ()
            session.style = session.style if to else None

    def _touch(self, session: KeptSession, now: float) -> None:
        """It was used."""
        session.expires_at = now + session.ttl_s
        self._expires_at = min(self._expires_at, session.expires_at)

    def _check_room(self, more: int) -> None:
        held = sum(session.room_tokens for session in self._sessions.values())
        if held + more > self._limits.session_tokens_max:
            problem = f"sessions hold at most {self._limits.session_tokens_max} tokens together"
            raise Refused(Reason.CLIENT_QUOTA, problem)


def _traits(sequence: Sequence) -> tuple[bytes, object, tuple[tuple[str, str], ...]]:
    """Root, style and calls of a session in which it has drawn."""
    turn = sequence.request.session
    return sequence.request.root, None if turn is None else turn.style, tuple(sequence.calls)


def _busy() -> Refused:
    return Refused(Reason.SESSION_BUSY, "another request runs in the session", field="session")
