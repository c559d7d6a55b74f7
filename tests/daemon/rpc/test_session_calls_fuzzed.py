"""Any sequence of session calls, over real sockets, against a plain model of what must hold.

- A session holds what was sent and emitted, cut and forked as asked for, and nothing else.
- Each call answers what the model says, or its reason; a refused one changes nothing.
- A reply is the same whole, cut and resumed, and resumed again: each token once.
- What a cancel leaves is decided by the daemon alone, within bounds: the model looks, and goes on
  from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import session_pb2 as sessions
from tests.daemon.conftest import (
    Running,
    collect,
    on_own_loop,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import BOS, CONTEXT, FIRST_BYTE, reply_to
from tests.daemon.rpc.turns import ids_of, resume

SESSIONS_MAX = 3
NAMES = ("a", "b", "c", "d")
BAD_NAMES = ("A", "a b", "x" * 65)
NOT_FOUND, BAD_REQUEST = "SESSION_NOT_FOUND", "BAD_REQUEST"
EXISTS, QUOTA = "SESSION_EXISTS", "CLIENT_QUOTA"

Call = tuple[Any, ...]  # a name of Play's methods, and its arguments


@dataclass
class Reply:
    """A session's last: behind which path, whole, and how much of it has come."""

    path: list[int]
    whole: list[int]
    emitted: int

    @property
    def held(self) -> list[int]:
        """What the session holds by it, once any of it has come."""
        return [*self.path, *self.whole[: self.emitted]]


@dataclass
class Held:
    tokens: list[int] = field(default_factory=list)
    last: Reply | None = None


class Play:
    """One sequence of calls, and what is known by them."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self._held: dict[str, Held] = {}

    async def begin(self) -> None:
        """Nothing is left of others."""
        left = await self._run.sessions.ListSessions(sessions.ListSessionsRequest())
        for session in left.sessions:
            await self._run.sessions.DeleteSession(sessions.DeleteSessionRequest(name=session.name))

    async def check(self) -> None:
        """All of them, in pages, and what each holds."""
        found, token, first = [], "", True
        while token or first:
            request = sessions.ListSessionsRequest(page_size=2, page_token=token)
            page = await self._run.sessions.ListSessions(request)
            found += [session.name for session in page.sessions]
            token, first = page.next_page_token, False
        assert found == sorted(self._held)
        for name, held in self._held.items():
            assert await ids_of(self._run, name) == held.tokens

    async def create(self, name: str) -> None:
        refused = BAD_REQUEST if name in BAD_NAMES else self._why_not(name)
        await self._expect(refused, self._run.sessions.CreateSession, name=name)
        if not refused:
            self._held[name] = Held()

    async def delete(self, name: str) -> None:
        refused = None if name in self._held else NOT_FOUND
        await self._expect(refused, self._run.sessions.DeleteSession, name=name)
        self._held.pop(name, None)

    async def fork(self, name: str, new_name: str, at: int | None) -> None:
        source = self._held.get(name)
        if source is None:
            refused: str | None = NOT_FOUND
        elif at is not None and at > len(source.tokens):
            refused = BAD_REQUEST
        else:
            refused = self._why_not(new_name)
        fork = {"name": name, "new_name": new_name, "at_token": at}
        await self._expect(refused, self._run.sessions.ForkSession, **fork)
        if source is not None and not refused:
            self._held[new_name] = Held(source.tokens[:at])

    async def rollback(self, name: str, to: int) -> None:
        held = self._held.get(name)
        refused = NOT_FOUND if held is None else None
        if held is not None and to > len(held.tokens):
            refused = BAD_REQUEST
        await self._expect(refused, self._run.sessions.RollbackSession, name=name, to_token=to)
        if held is not None and to < len(held.tokens):
            held.tokens, held.last = held.tokens[:to], None

    async def say(self, name: str, said: list[int], most: int, as_text: bool) -> None:
        """A turn, to its end."""
        request = self._turn(name, said, most, as_text)
        held = self._held.get(name)
        if held is None:
            await self._refused(NOT_FOUND, request)
            return
        path = self._path(held, said, as_text)
        ids, _, events = await collect(self._run.generation.Generate(request))
        assert ids == reply_to(path, most)
        assert events[-1].finish.usage.prompt_tokens == len(path)
        held.tokens, held.last = [*path, *ids], Reply(path, ids, len(ids))

    async def cut(self, name: str, said: list[int], most: int, after: int) -> None:
        """A turn whose client goes after so many tokens."""
        held = self._held.get(name)
        if held is None:
            return
        path = self._path(held, said, as_text=False)
        got = await self._left(self._turn(name, said, most, as_text=False), after)
        whole = reply_to(path, most)
        assert got == whole[: len(got)]
        held.last = Reply(path, whole, 0)
        await self._look(name, held, len(got))

    async def again(self, name: str, back: int, after: int | None) -> None:
        """Resume, from so many tokens before what has come; to the end, or to be cut once more."""
        held = self._held.get(name)
        if held is None:
            await self._refused(NOT_FOUND, resume(0, name))
            return
        last = held.last
        if last is None:
            await self._refused(BAD_REQUEST, resume(0, name))
            return
        come = len(last.path) + last.emitted
        if back < 0:
            await self._refused(BAD_REQUEST, resume(come - back, name))
            return
        start = max(0, last.emitted - back)
        request = resume(max(0, come - back), name)
        if after is None:
            ids, _, events = await collect(self._run.generation.Generate(request))
            assert ids == last.whole[start:]
            assert events[-1].finish.usage.completion_tokens == len(last.whole)
            await self._look(name, held, len(last.whole))
        else:
            ids = await self._left(request, after)
            assert ids == last.whole[start : start + len(ids)]
            await self._look(name, held, start + len(ids))

    async def mistake(self, name: str, which: int) -> None:
        """What no session takes: refused, and nothing is changed."""
        wrong = (
            prompt_of(5, session=name, candidates=2),
            prompt_of(5, session=name, cache={"bypass": True}),
            prompt_of(session=name),
            prompt_of(299_999, session=name),
            prompt_of(5, session=name, max_tokens=0),
            prompt_of(*[5] * CONTEXT, session=name),
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(self._run.generation.Generate(wrong[which % len(wrong)]))
        status, reason = reason_of(caught.value)
        assert status in ("INVALID_ARGUMENT", "NOT_FOUND"), (status, reason)
        assert reason == NOT_FOUND or name in self._held or status == "INVALID_ARGUMENT"

    async def _look(self, name: str, held: Held, least: int) -> None:
        """How much of the last reply has come: what was, what its client has seen, or more."""
        assert held.last is not None
        now, last = await ids_of(self._run, name), held.last
        emitted = max(0, len(now) - len(last.path))
        assert max(last.emitted, least) <= emitted <= len(last.whole)
        last.emitted = emitted
        held.tokens = last.held if emitted else held.tokens
        assert now == held.tokens

    def _why_not(self, name: str) -> str | None:
        if name in self._held:
            return EXISTS
        return QUOTA if len(self._held) >= SESSIONS_MAX else None

    def _turn(self, name: str, said: list[int], most: int, as_text: bool) -> pb.GenerateRequest:
        if as_text:
            text = "".join(chr(ord("a") + id % 26) for id in said)
            return pb.GenerateRequest(text=text, session=name, max_tokens=most)
        return prompt_of(*said, session=name, max_tokens=most)

    def _path(self, held: Held, said: list[int], as_text: bool) -> list[int]:
        if not as_text:
            return [*held.tokens, *said]
        bos = [] if held.tokens else [BOS]
        return [*held.tokens, *bos, *(FIRST_BYTE + ord("a") + id % 26 for id in said)]

    async def _expect(self, refused: str | None, method: Callable[..., Any], **fields: Any) -> None:
        kind = {
            self._run.sessions.CreateSession: sessions.CreateSessionRequest,
            self._run.sessions.DeleteSession: sessions.DeleteSessionRequest,
            self._run.sessions.ForkSession: sessions.ForkSessionRequest,
            self._run.sessions.RollbackSession: sessions.RollbackSessionRequest,
        }[method]
        try:
            await method(kind(**fields))
            told = None
        except grpc.aio.AioRpcError as error:
            told = reason_of(error)[1]
        assert told == refused, f"{kind.__name__} {fields}"

    async def _refused(self, reason: str, request: pb.GenerateRequest) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(self._run.generation.Generate(request))
        assert reason_of(caught.value)[1] == reason

    async def _left(self, request: pb.GenerateRequest, after: int) -> list[int]:
        """What has come when the client goes; back once the daemon knows that it has gone."""
        call, ids = self._run.generation.Generate(request), list[int]()
        async for event in call:
            ids += event.delta.token_ids
            if len(ids) >= after:
                break
        call.cancel()
        await until(lambda: not open_rpcs(self._run))
        name = request.session or request.resume.session
        get = sessions.GetSessionRequest(name=name)
        while (await self._run.sessions.GetSession(get)).session.busy:
            pass  # between two steps each: the cancel is behind a few of them
        return ids


# Most of what is worth seeing takes several calls of one session.
name = st.sampled_from(("a", "a", "a", *NAMES))
said = st.lists(st.integers(3, 250), min_size=1, max_size=12)
most = st.integers(1, 30)
CALLS: st.SearchStrategy[Call] = st.one_of(
    st.tuples(st.just("create"), name | st.sampled_from(BAD_NAMES)),
    st.tuples(st.just("delete"), name),
    st.tuples(st.just("fork"), name, name, st.none() | st.integers(0, 60)),
    st.tuples(st.just("rollback"), name, st.integers(0, 60)),
    st.tuples(st.just("say"), name, said, most, st.booleans()),
    st.tuples(st.just("cut"), name, said, most, st.integers(0, 8)),
    st.tuples(st.just("again"), name, st.integers(-1, 40), st.none() | st.integers(0, 8)),
    st.tuples(st.just("mistake"), name, st.integers(0, 5)),
)


def sequences(longest: int) -> st.SearchStrategy[list[Call]]:
    return st.lists(CALLS, min_size=longest // 3, max_size=longest).map(
        lambda calls: [("create", "a"), *calls]
    )


@pytest.fixture(scope="module")
def played() -> Iterator[Callable[[list[Call]], None]]:
    """Plays a sequence on one daemon of the module."""
    with on_own_loop(running(limits=Limits(sessions_max=SESSIONS_MAX))) as (loop, run):

        async def play(calls: list[Call]) -> None:
            made = Play(run)
            await made.begin()
            for method, *arguments in calls:
                await getattr(made, method)(*arguments)
            await made.check()

        yield lambda calls: loop.run_until_complete(play(calls))


# What a few draws seldom come to.
SAID: Call = ("say", "a", [9, 8, 7], 12, False)
CUT_AND_TAKEN_UP = [
    *(("create", "a"), SAID, ("cut", "a", [40], 30, 3), ("again", "a", 2, 1)),
    *(("again", "a", 9, None), ("again", "a", 0, None), ("again", "a", -1, None)),
]
CUT_BACK = [
    *(("create", "a"), SAID, ("rollback", "a", 15), ("again", "a", 1, None)),
    *(("rollback", "a", 14), ("again", "a", 0, None), SAID, ("rollback", "a", 99)),
]
FORKED = [
    *(("create", "a"), SAID, ("fork", "a", "b", None), ("fork", "a", "c", 0)),
    *(("fork", "a", "d", 1), ("say", "c", [1, 2], 4, True), ("say", "b", [1, 2], 4, True)),
    *(("again", "c", 3, None), ("delete", "b"), ("fork", "b", "d", None), ("create", "b")),
]


@example(CUT_AND_TAKEN_UP)
@example(CUT_BACK)
@example(FORKED)
@settings(max_examples=12)
@given(sequences(24))
def test_a_session_holds_what_was_sent_and_emitted(
    played: Callable[[list[Call]], None], calls: list[Call]
) -> None:
    played(calls)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=600)
@given(sequences(60))
def test_however_long_the_sequence_is(
    played: Callable[[list[Call]], None], calls: list[Call]
) -> None:
    played(calls)
