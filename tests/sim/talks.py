"""What clients know of their sessions, by books of their own (N1 to N4).

- A session holds what its turns were, cut and forked as they were told, and nothing else.
- Whoever asks while another one runs is refused; so is what there is no session, or no token, for.
- A session is there until its time is over, and not longer.
- What a resumed stream gets with what the client had is one reply: house.Stream holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sapwood.scheduler.events import Failed
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.session_events import SessionTold
from tests.scheduler.house import Stream
from tests.scheduler.session_house import SessionHouse, key
from tests.sim.story import Back, Forget, Fork, Open

Tokens = tuple[int, ...]


@dataclass
class Talk:
    """last: the newest stream, as long as nothing else has changed the session since."""

    tokens: Tokens
    ttl_s: float
    used_at: float
    last: Stream | None = None
    busy: bool = False

    @property
    def path(self) -> Tokens:
        """With what has come of a reply under way."""
        if self.busy and self.last is not None and self.last.tokens:
            return (*self.last.request.prompt, *self.last.tokens)
        return self.tokens


class Talks:
    """The sessions of one life, by their names."""

    def __init__(self, house: SessionHouse, files_left: Callable[[], bool]) -> None:
        """files_left: whether a disk said so to somebody."""
        self._house, self._files_left = house, files_left
        self._talks: dict[str, Talk] = {}

    def find(self, name: str) -> Talk | None:
        """One whose time is not over, as everybody knows by now."""
        self._house.deliver()
        self._let_go()
        return self._talks.get(name)

    def open(self, action: Open) -> None:
        name = label(action.session)
        expected = self._why_not(name)
        self._expect(self._house.create(name, action.ttl_s), expected)
        if expected is None:
            self._talks[name] = Talk((), action.ttl_s, self._house.now)

    def fork(self, action: Fork) -> None:
        name, source = label(action.into), self.find(label(action.session))
        at = None if action.to < 0 else action.to
        if source is None:
            expected: Reason | None = Reason.SESSION_NOT_FOUND
        elif action.to > len(source.path):
            expected = Reason.BAD_REQUEST
        else:
            expected = self._why_not(name)
        self._expect(self._house.fork(label(action.session), name, at), expected)
        if source is not None and expected is None:
            path = source.path if at is None else source.path[:at]
            source.used_at = self._house.now
            self._talks[name] = Talk(path, source.ttl_s, self._house.now)

    def back(self, action: Back) -> None:
        talk = self.find(label(action.session))
        if talk is None:
            expected: Reason | None = Reason.SESSION_NOT_FOUND
        elif talk.busy:
            expected = Reason.SESSION_BUSY
        else:
            expected = Reason.BAD_REQUEST if action.to > len(talk.tokens) else None
        self._expect(self._house.rollback(label(action.session), action.to), expected)
        if talk is not None and expected is None:
            talk.used_at = self._house.now
            talk.last = talk.last if action.to == len(talk.tokens) else None
            talk.tokens = talk.tokens[: action.to]

    def forget(self, action: Forget) -> None:
        talk = self.find(label(action.session))
        expected = Reason.SESSION_NOT_FOUND if talk is None else None
        self._expect(self._house.delete(label(action.session)), expected)
        if talk is not None:
            assert talk.last is None or talk.last.end is not None, "R1: it was told of its end"
            del self._talks[label(action.session)]

    def asked(self, name: str, stream: Stream, came_in: bool) -> None:
        """A turn was sent. came_in: nothing at the door was against it."""
        talk = self._talks[name]
        if talk.busy:
            assert not came_in, "N1: two requests in one session"
        elif came_in:
            talk.last, talk.busy = stream, True

    def take_up(self, name: str, old: Stream) -> Stream | None:
        """Its client goes on with the stream; None where something else came since."""
        talk = self.find(name)
        if talk is None or talk.last is not old:
            return None
        was_busy, used_at, tokens = talk.busy, talk.used_at, talk.tokens
        stream = self._house.resume(old)
        talk.last, talk.busy = stream, True
        self._house.deliver()
        if isinstance(stream.end, Failed) and not was_busy:
            talk.last, talk.busy, talk.used_at, talk.tokens = old, False, used_at, tokens
        elif was_busy:
            assert isinstance(old.end, Failed) and old.end.reason is Reason.CANCELLED, f"{old.end}"
        return stream

    def settle(self) -> None:
        """After whatever was told."""
        for talk in self._talks.values():
            if talk.busy and talk.last is not None and talk.last.end is not None:
                if talk.last.tokens:
                    talk.tokens = (*talk.last.request.prompt, *talk.last.tokens)
                talk.busy, talk.used_at = False, self._house.now

    def look(self) -> None:
        """After each step."""
        self._let_go()
        now = self._house.now
        for name, talk in self._talks.items():
            held = self._house.held(name)
            assert held is not None, f"N4: {name} is gone"
            assert held.view.busy == talk.busy, f"N1: {held.view}, {talk.last}"
            assert held.view.tokens == len(talk.path), f"N2: {held.view}, not {len(talk.path)}"
            assert tuple(held.tokens) == talk.path, f"N2: {name} holds something else"
        views = self._house.core.sessions(key("").owner, now)
        assert [view.name for view in views] == sorted(self._talks), f"N4: {views}"

    def _why_not(self, name: str) -> Reason | None:
        if self.find(name) is not None:
            return Reason.SESSION_EXISTS
        full = len(self._talks) >= self._house.limits.sessions_max
        return Reason.CLIENT_QUOTA if full else None

    def _expect(self, answer: SessionTold | Failed, reason: Reason | None) -> None:
        told = answer.reason if isinstance(answer, Failed) else None
        if told is Reason.UNSUPPORTED and self._files_left():
            told = None  # it is done, but for what the disk has of it
        assert told is reason, f"N1, N2, N4: {answer}, expected {reason}"

    def _let_go(self) -> None:
        for name, talk in list(self._talks.items()):
            if not talk.busy and talk.used_at + talk.ttl_s <= self._house.now:
                del self._talks[name]


def label(session: int) -> str:
    return f"s{session}"
