"""Several replies to one prompt over a real socket: one stream, one prompt, places for each row."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import anyio
import pytest

from sapwood.daemon.rpc.candidates import forks_of, pump_all, seed_of
from sapwood.daemon.rpc.mailbox import Mailbox, ReplyEvent
from sapwood.daemon.rpc.quotas import Accounts
from sapwood.daemon.rpc.refusals import engine_failed
from sapwood.scheduler.events import Delta, Progress
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import collect, error_of, prompt_of, running, stats, until
from tests.daemon.fakes import FakeDevice, reply_to
from tests.daemon.rpc.test_mailbox import FINISHED
from tests.daemon.rpc.test_quotas import Clock, principal

pytestmark = pytest.mark.anyio
PROMPT = tuple(range(5, 100))
WARM = {"temperature": 1.0, "seed": 5}


def asked(candidates: int, **fields: Any) -> pb.GenerateRequest:
    fields = {"max_tokens": 9, "sampling": WARM, **fields}
    return prompt_of(*PROMPT, candidates=candidates, **fields)


async def test_each_reply_is_whole_and_the_prompt_is_told_of_once() -> None:
    async with running() as run:
        _, _, events = await collect(run.generation.Generate(asked(3)))
        await until(lambda: not stats(run).requests_running)
        counted = stats(run)
    kinds = [event.WhichOneof("event") for event in events]
    finishes = [event.finish for event in events if event.WhichOneof("event") == "finish"]
    assert kinds[0] == "prefill" and kinds[-1] == "finish" and len(finishes) == 3
    for candidate in range(3):
        deltas = [e.delta for e in events if e.WhichOneof("event") == "delta"]
        own = [delta for delta in deltas if delta.candidate == candidate]
        assert [i for delta in own for i in delta.token_ids] == reply_to(PROMPT, 9)
    usage = {finish.candidate: finish.usage for finish in finishes}
    told = [(usage[c].prompt_tokens, usage[c].cached_tokens) for c in range(3)]
    assert told == [(len(PROMPT), 0), (0, 0), (0, 0)]
    assert [usage[c].completion_tokens for c in range(3)] == [9] * 3
    assert usage[0].prefill_seconds > 0 and usage[1].prefill_seconds == 0
    assert (counted.prompt_tokens, counted.requests[Outcome.LENGTH]) == (len(PROMPT), 1)
    assert counted.generated_tokens == 27


async def test_who_goes_frees_all_its_rows() -> None:
    async with running(FakeDevice(gated=True)) as run:
        call = run.generation.Generate(asked(4, max_tokens=4000))
        run.device.step(6)
        await until(lambda: stats(run).requests_running == 4)
        call.cancel()
        run.device.ungate()
        await until(lambda: not stats(run).requests_running and not run.daemon._gate.mailboxes)
        assert stats(run).requests[Outcome.CANCELLED] == 1


async def test_a_row_for_each_counts_in_quotas() -> None:
    accounts, who = Accounts(60, Clock()), principal(running_max=4, queued_max=2)
    with accounts.stake(who) as first, accounts.stake(who) as second, accounts.stake(who) as third:
        first.enter(3)
        second.enter(2)
        with pytest.raises(Refused) as caught:
            third.enter(1)
        assert caught.value.retry_after_s, "a place may be free later, behind who waits"
        with accounts.stake(who) as large, pytest.raises(Refused) as never:
            large.enter(5)
        assert never.value.reason is Reason.CLIENT_QUOTA and never.value.retry_after_s is None
        first.leave()
        await second.turn(1, 1)
        with accounts.stake(who) as fourth:
            fourth.enter(2)
            await fourth.turn(1, 1)
            assert accounts._holdings[who.name].running == 4
        # Left by its own context too, which gives nothing back twice.
        first._turn = None


async def test_a_request_with_too_many_rows_is_refused_by_its_field() -> None:
    async with running() as run:
        error = await error_of(run.generation.Generate(asked(9)))
        assert "candidates" in (error.details() or "")


def test_seeds_are_those_of_the_documents() -> None:
    for seed in (0, 5, 2**64 - 1):
        assert seed_of(seed, 0) == seed
        found = {seed_of(seed, candidate) for candidate in range(8)}
        assert len(found) == 8 and max(found) < 2**64
    data = (5).to_bytes(8, "little") + (3).to_bytes(8, "little")
    assert seed_of(5, 3) == int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
    ids = iter(range(10, 20))
    seeded = Sampling(1.0, seeded=True, noise_key=5)
    forks = forks_of(4, seeded, lambda: next(ids))
    assert [(f.id, f.noise_key) for f in forks] == [(9 + c, seed_of(5, c)) for c in (1, 2, 3)]
    drawn = forks_of(8, Sampling(1.0, noise_key=5), lambda: next(ids))
    assert len({fork.noise_key for fork in drawn}) == 7
    assert forks_of(0, seeded, lambda: 1) == forks_of(1, seeded, lambda: 1) == ()


async def test_a_slow_reply_holds_up_nobodys_end_and_a_failure_ends_all() -> None:
    quick, slow = Mailbox(1, Limits()), Mailbox(2, Limits())
    written: list[tuple[int, ReplyEvent]] = []

    async def write(event: ReplyEvent, candidate: int) -> None:
        written.append((candidate, event))

    quick.put(Progress(1, 0, 3, 3))
    quick.put(Delta(1, "x", (7,)))
    quick.put(FINISHED)
    failure: list[Refused] = []

    async def pump() -> None:
        try:
            await pump_all([quick, slow], write)
        except Refused as refusal:
            failure.append(refusal)

    async with anyio.create_task_group() as group:
        group.start_soon(pump)
        while (0, FINISHED) not in written:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        slow.put(Delta(2, "y", (8,)))
        while len(written) < 4:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        assert not failure
        slow.fail(engine_failed())
    assert [refusal.reason for refusal in failure] == [Reason.ENGINE_FAILED]
    assert written[-1] == (1, Delta(2, "y", (8,)))


async def test_a_bug_in_one_is_raised_as_it_is() -> None:
    mailbox, other = Mailbox(1, Limits()), Mailbox(2, Limits())
    mailbox.put(FINISHED)

    async def write(event: ReplyEvent, candidate: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pump_all([mailbox, other], write)
