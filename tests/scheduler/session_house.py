"""A house whose clients have sessions, as the door and SessionService make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sapwood.scheduler.events import Failed, Finished
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
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
from tests.scheduler.house import House, Stream

LIMITS = Limits(slots_max=2, prefill_tokens_max=16, share_tokens_min=8)
LONG: dict[str, Any] = {"ignore_eos": True}


class SessionHouse(House):
    """Somebody's sessions, by name."""

    def create(
        self, name: str, ttl_s: float = 1e6, most: int | None = None
    ) -> SessionTold | Failed:
        return self._ordered(CreateSession(next(self.ids), key(name), ttl_s, most))

    def fork(self, name: str, new_name: str, at: int | None = None) -> SessionTold | Failed:
        return self._ordered(ForkSession(next(self.ids), key(name), new_name, at))

    def rollback(self, name: str, to: int) -> SessionTold | Failed:
        return self._ordered(RollbackSession(next(self.ids), key(name), to))

    def delete(self, name: str) -> SessionTold | Failed:
        return self._ordered(DeleteSession(next(self.ids), key(name)))

    def held(self, name: str) -> HeldSession | None:
        return self.core.session(key(name), self.now)

    def speak(
        self, name: str, tokens: tuple[int, ...], max_tokens: int = 8, **options: object
    ) -> Stream:
        """What the door makes of tokens for a session that is there."""
        held = self.held(name)
        assert held is not None
        options["session"] = SessionTurn(key(name), held.revision)
        return self.submit((*held.tokens, *tokens), max_tokens, **options)

    def resume(self, stream: Stream, deadline: float | None = None) -> Stream:
        """The same client, which has what it has, by another stream. Of a session's."""
        turn, request = stream.request.session, replace(stream.request, id=next(self.ids))
        assert turn is not None
        taken = Stream(request, list(stream.tokens), stream.text)
        self.streams[request.id] = taken
        from_token = len(request.prompt) + len(stream.tokens)
        self.handle(ResumeReply(request.id, turn.key, from_token, deadline))
        return taken

    def _ordered(self, command: SessionCommand) -> SessionTold | Failed:
        answer = self.order(command)
        assert isinstance(answer, SessionTold | Failed)
        return answer


def key(name: str) -> SessionKey:
    return SessionKey("somebody", name)


def told(answer: SessionTold | Failed) -> SessionView:
    assert isinstance(answer, SessionTold), answer
    return answer.view


def reason(answer: SessionTold | Failed) -> Reason:
    assert isinstance(answer, Failed), answer
    return answer.reason


def house(**limits: Any) -> SessionHouse:
    made = SessionHouse(limits=replace(LIMITS, **limits))
    assert told(made.create("a")).tokens == 0
    return made


def tokens(made: SessionHouse, name: str) -> tuple[int, ...]:
    held = made.held(name)
    assert held is not None
    return tuple(held.tokens)


def whole(made: SessionHouse, stream: Stream) -> Stream:
    made.run()
    assert isinstance(stream.end, Finished), stream.end
    return stream


def begun(made: SessionHouse, stream: Stream, emitted: int = 1) -> Stream:
    while len(stream.tokens) < emitted:
        made.step()
    return stream
