"""SessionService and Generate.session over a socket, on a device that answers by the whole path."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from sapwood.v1 import session_pb2 as sessions
from tests.daemon.conftest import (
    Running,
    collect,
    details_of,
    error_of,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import BOS, CONTEXT, EOS, FIRST_BYTE, FakeDevice, reply_to
from tests.daemon.rpc.turns import PROMPT, began, create, ended, ids_of, resume, say, stepped, turn
from tests.daemon.tenants import Tokens, shown

pytestmark = pytest.mark.anyio


async def test_a_session_is_made_described_and_forgotten(run: Running) -> None:
    made = await create(run, ttl=duration_pb2.Duration(seconds=9, nanos=500_000_000))
    assert (made.name, made.tokens, made.busy, made.parked) == ("a", 0, False, False)
    assert made.ttl.ToMilliseconds() == 9500
    lasts = made.expire_time.ToMilliseconds() - made.create_time.ToMilliseconds()
    assert abs(lasts - 9500) <= 2
    chosen = await create(run, "")
    assert len(chosen.name) == 16 and chosen.ttl.seconds == 86400
    found = await run.sessions.GetSession(sessions.GetSessionRequest(name="a"))
    assert found.session.name == "a" and not found.token_ids
    await run.sessions.DeleteSession(sessions.DeleteSessionRequest(name="a"))
    error = await error_of(run.sessions.GetSession(sessions.GetSessionRequest(name="a")))
    assert reason_of(error) == ("NOT_FOUND", "SESSION_NOT_FOUND")


async def test_n2_turns_go_on_and_say_only_what_is_new(run: Running) -> None:
    await create(run)
    first = await turn(run, prompt_of(*PROMPT, session="a", max_tokens=5))
    assert first == reply_to(PROMPT, 5)
    path = [*PROMPT, *first]
    ids, _, events = await collect(
        run.generation.Generate(pb.GenerateRequest(text="hey", session="a", max_tokens=5))
    )
    path += [FIRST_BYTE + b for b in b"hey"]
    assert ids == reply_to(path, 5), "no BOS before it"
    usage = events[-1].finish.usage
    assert usage.prompt_tokens == len(path) == events[0].prefill.prompt_tokens
    assert usage.cached_tokens == len(PROMPT) + 4, "all but the token that nobody evaluated"
    assert await ids_of(run) == path + ids


async def test_messages_are_rendered_alone_with_the_end_that_is_missing(run: Running) -> None:
    await create(run)
    tool = prompt_pb2.Tool(name="look")
    first = await turn(run, say("hi", tools=[tool], thinking=True))
    held = await ids_of(run)
    assert held[0] == BOS and held[-4:] == first
    await turn(run, say("more", thinking=True))
    cut = await ids_of(run)
    assert cut[len(held)] == EOS, "max_tokens cut the reply"
    assert bytes(i - FIRST_BYTE for i in cut[len(held) + 1 : -4]) == b"user:more\n"
    run.device.next_token = lambda tokens: EOS
    await turn(run, say("end"))
    held = await ids_of(run)
    await turn(run, say("again"))
    after = await ids_of(run)
    assert after[len(held) :] == [*(FIRST_BYTE + b for b in b"user:again\n"), EOS]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (say("x", tools=[prompt_pb2.Tool(name="look")]), "messages.tools"),
        (say("x", thinking=True), "messages.thinking"),
        (say("x", role="system"), "messages.messages[0].role"),
        (say("x", role="developer"), "messages.messages[0].role"),
        (say("x", role="tool", tool_name="look"), "messages.messages[0].tool_name"),
        (prompt_of(5, session="a", candidates=2), "candidates"),
        (prompt_of(5, session="a", cache={"bypass": True}), "cache.bypass"),
        (prompt_of(5, session="a", cache={"store_reply": False}), "cache.store_reply"),
        (resume(0, max_tokens=4), "resume"),
        (resume(0, sampling={}), "resume"),
        (pb.GenerateRequest(text="x", resume=sessions.Resume(session="a")), "resume"),
        (resume(10_000), "resume.from_token"),
        (resume(1 << 31), "resume.from_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_only_the_first_turn_may_say(
    run: Running, request_: pb.GenerateRequest, field: str
) -> None:
    await create(run)
    await turn(run, say("hi"))
    before = await ids_of(run)
    error = await error_of(run.generation.Generate(request_))
    assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST"), error.details()
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == [field]
    assert await ids_of(run) == before


async def test_tools_of_a_session_are_bounded(run: Running) -> None:
    await create(run)
    tools = [prompt_pb2.Tool(name="look", description="x" * 65_536)]
    error = await error_of(run.generation.Generate(say("hi", tools=tools)))
    assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST")


@pytest.mark.parametrize("name", ["A", "a b", "a" * 65, "ä", "a/b", "x" * 100_000])
async def test_names_are_short_and_plain(run: Running, name: str) -> None:
    error = await error_of(run.sessions.CreateSession(sessions.CreateSessionRequest(name=name)))
    assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST")
    await create(run, "a" * 64)
    fork = sessions.ForkSessionRequest(name="a" * 64, new_name=name)
    assert reason_of(await error_of(run.sessions.ForkSession(fork)))[1] == "BAD_REQUEST"
    error = await error_of(run.sessions.GetSession(sessions.GetSessionRequest(name=name)))
    assert reason_of(error) == ("NOT_FOUND", "SESSION_NOT_FOUND")


@pytest.mark.parametrize("ttl", [(0, 0), (-1, 0), (30 * 86400, 1), (1, -1), (0, 1 << 30)])
async def test_a_ttl_is_some_time_and_no_age(run: Running, ttl: tuple[int, int]) -> None:
    lasts = duration_pb2.Duration(seconds=ttl[0], nanos=ttl[1])
    error = await error_of(run.sessions.CreateSession(sessions.CreateSessionRequest(ttl=lasts)))
    assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST")


async def test_they_are_listed_in_pages_by_name(run: Running) -> None:
    names = ["b", "a.1", "c", "a"]
    for name in names:
        await create(run, name)
    found, token, pages = [], "", 0
    while pages == 0 or token:
        request = sessions.ListSessionsRequest(page_size=3, page_token=token)
        page = await run.sessions.ListSessions(request)
        found += [session.name for session in page.sessions]
        token, pages = page.next_page_token, pages + 1
    assert found == sorted(names) and pages == 2
    bad = sessions.ListSessionsRequest(page_token="A b")
    assert reason_of(await error_of(run.sessions.ListSessions(bad)))[1] == "BAD_REQUEST"


async def test_forks_and_rollbacks_hold_a_beginning(run: Running) -> None:
    await create(run)
    await turn(run, prompt_of(*PROMPT, session="a", max_tokens=5))
    held = await ids_of(run)
    fork = sessions.ForkSessionRequest(name="a", at_token=57, new_name="b")
    assert (await run.sessions.ForkSession(fork)).session.tokens == 57
    unnamed = await run.sessions.ForkSession(sessions.ForkSessionRequest(name="a", at_token=0))
    assert unnamed.session.tokens == 0
    assert await ids_of(run, "b") == held[:57]
    back = sessions.RollbackSessionRequest(name="a", to_token=56)
    assert (await run.sessions.RollbackSession(back)).session.tokens == 56
    replies = [await turn(run, prompt_of(9, session=name, max_tokens=3)) for name in "ab"]
    assert replies == [reply_to([*held[:56], 9], 3), reply_to([*held[:57], 9], 3)]
    assert reason_of(await error_of(run.sessions.RollbackSession(
        sessions.RollbackSessionRequest(name="a", to_token=1000)
    ))) == ("INVALID_ARGUMENT", "BAD_REQUEST")  # fmt: skip
    exists = sessions.ForkSessionRequest(name="a", new_name="b")
    error = await error_of(run.sessions.ForkSession(exists))
    assert reason_of(error) == ("ALREADY_EXISTS", "SESSION_EXISTS")


async def test_the_context_counts_the_whole_path(run: Running) -> None:
    await create(run)
    most = CONTEXT - 10
    await turn(run, prompt_of(*[5] * (most - 1), session="a", max_tokens=1))
    error = await error_of(run.generation.Generate(prompt_of(*[5] * 10, session="a")))
    assert reason_of(error) == ("INVALID_ARGUMENT", "CONTEXT_TOO_LONG")
    assert f"{CONTEXT} tokens" in (error.details() or "")
    text = pb.GenerateRequest(text="x" * 40, session="a")
    error = await error_of(run.generation.Generate(text))
    assert reason_of(error) == ("INVALID_ARGUMENT", "CONTEXT_TOO_LONG")
    ids = await turn(run, prompt_of(*[5] * 9, session="a", max_tokens=1))
    assert len(ids) == 1


async def test_n1_one_request_runs_in_it() -> None:
    async with running(FakeDevice(gated=True)) as run:
        await stepped(run, create(run))
        call = await began(run, prompt_of(*PROMPT, session="a", max_tokens=900))
        other = error_of(run.generation.Generate(prompt_of(5, session="a")))
        assert reason_of(await stepped(run, other)) == ("FAILED_PRECONDITION", "SESSION_BUSY")
        back = error_of(run.sessions.RollbackSession(sessions.RollbackSessionRequest(name="a")))
        assert reason_of(await stepped(run, back)) == ("FAILED_PRECONDITION", "SESSION_BUSY")
        get = run.sessions.GetSession(sessions.GetSessionRequest(name="a"))
        held = (await stepped(run, get)).session
        assert held.busy and not held.HasField("expire_time")
        call.cancel()


async def test_r9_names_are_the_principals_own_and_counted(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[principals.alice]\nsessions_max = 1\n")
    tokens = Tokens(folder)
    alice, bob = shown(tokens.new("alice")), shown(tokens.new("bob"))
    settings = {"tokens": str(tokens.path), "config": file}
    async with running(settings=settings) as run:
        make = sessions.CreateSessionRequest(name="a")
        for who in (alice, bob):
            await run.sessions.CreateSession(make, metadata=who)
        request = prompt_of(*PROMPT, session="a", max_tokens=3)
        await collect(run.generation.Generate(request, metadata=alice))
        get = sessions.GetSessionRequest(name="a", include_tokens=True)
        assert len((await run.sessions.GetSession(get, metadata=alice)).token_ids) == 58
        assert not (await run.sessions.GetSession(get, metadata=bob)).token_ids
        more = sessions.CreateSessionRequest(name="b")
        error = await error_of(run.sessions.CreateSession(more, metadata=alice))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        await run.sessions.CreateSession(more, metadata=bob)
        error = await error_of(run.sessions.GetSession(
            sessions.GetSessionRequest(name="b"), metadata=alice
        ))  # fmt: skip
        assert reason_of(error) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        error = await error_of(run.sessions.ListSessions(sessions.ListSessionsRequest()))
        assert error.code().name == "UNAUTHENTICATED"


async def test_deleting_one_ends_its_stream() -> None:
    async with running(FakeDevice(gated=True)) as run:
        await stepped(run, create(run))
        call = await began(run, prompt_of(*PROMPT, session="a", max_tokens=900))
        delete = sessions.DeleteSessionRequest(name="a")
        await stepped(run, run.sessions.DeleteSession(delete))
        assert (await stepped(run, ended(call))).code().name == "CANCELLED"
        run.device.ungate()
        for request in (prompt_of(5, session="a"), resume(0)):
            error = await error_of(run.generation.Generate(request))
            assert reason_of(error) == ("NOT_FOUND", "SESSION_NOT_FOUND")


async def test_too_many_are_refused() -> None:
    async with running(limits=Limits(sessions_max=2)) as run:
        await create(run, "a")
        await create(run, "b")
        error = await error_of(run.sessions.CreateSession(sessions.CreateSessionRequest()))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        error = await error_of(run.sessions.ForkSession(sessions.ForkSessionRequest(name="a")))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        await run.sessions.DeleteSession(sessions.DeleteSessionRequest(name="b"))
        await create(run, "c")


async def test_a_reply_that_was_cancelled_gets_its_end_of_turn_with_the_next(run: Running) -> None:
    await create(run)
    call = run.generation.Generate(say("hi", max_tokens=900))
    async for event in call:
        if event.delta.token_ids:
            break
    call.cancel()
    await until(lambda: not open_rpcs(run))
    request = sessions.GetSessionRequest(name="a")
    while (await run.sessions.GetSession(request)).session.busy:
        pass  # between two steps each: the cancel is behind a few of them
    held = await ids_of(run)
    assert held[-1] != EOS
    await turn(run, say("more", max_tokens=1))
    after = await ids_of(run)
    assert after[: len(held)] == held and after[len(held)] == EOS
    assert bytes(id - FIRST_BYTE for id in after[len(held) + 1 : -1]) == b"user:more\n"
