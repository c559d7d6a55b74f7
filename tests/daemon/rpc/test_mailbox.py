"""The outbox of one RPC against a plain list, and its verdicts."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.daemon.rpc.mailbox import Mailbox, Mailboxes, ReplyEvent
from sapwood.daemon.rpc.refusals import engine_failed
from sapwood.scheduler.events import Delta, Effect, Failed, Finished, Progress, ToolCall, Usage
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.reasons import Reason, Refused
from tests.fakes import toy_logprobs

USAGE = Usage(3, 0, 5, 0, 4, 0, 0, 0, 0.0, 0.0, 0.0)
FINISHED = Finished(1, FinishReason.STOP, "", USAGE)


def delta(text: str, *ids: int) -> Delta:
    return Delta(1, text, ids)


def thoughtful(text: str, *ids: int) -> Delta:
    """What it thinks, calls and reports comes from the same arguments."""
    calls = tuple(ToolCall(text, f"{{{i}}}") for i in ids)
    return Delta(1, text, ids, text.upper(), calls, toy_logprobs(ids, 2))


async def pumped(mailbox: Mailbox) -> list[ReplyEvent]:
    written: list[ReplyEvent] = []

    async def write(event: ReplyEvent) -> None:
        written.append(event)

    await mailbox.pump(write)
    return written


@given(st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3))))
def test_r1_what_is_written_concatenates_to_what_was_put(
    parts: list[tuple[str, list[int]]],
) -> None:
    """However the deltas were coalesced: nothing lost, doubled or out of order."""

    async def main() -> None:
        mailbox = Mailbox(1, Limits())
        mailbox.put(Progress(1, 0, 3, 3))
        written: list[ReplyEvent] = []

        async def write(event: ReplyEvent) -> None:
            written.append(event)
            await anyio.lowlevel.checkpoint()

        async def feed() -> None:
            for index, (text, ids) in enumerate(parts):
                mailbox.put(thoughtful(text, *ids))
                if index % 3 == 0:
                    await anyio.lowlevel.checkpoint()
            mailbox.put(FINISHED)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            await mailbox.pump(write)
        deltas = [event for event in written if isinstance(event, Delta)]
        assert isinstance(written[0], Progress)
        assert written[-1] == FINISHED
        assert len(deltas) == len(written) - 2
        assert "".join(d.text for d in deltas) == "".join(text for text, _ in parts)
        assert [i for d in deltas for i in d.token_ids] == [i for _, ids in parts for i in ids]
        assert "".join(d.thinking for d in deltas) == "".join(text.upper() for text, _ in parts)
        calls = [call for text, ids in parts for call in thoughtful(text, *ids).tool_calls]
        assert [call for d in deltas for call in d.tool_calls] == calls
        assert all(d.logprobs == toy_logprobs(d.token_ids, 2) for d in deltas)

    anyio.run(main)


@pytest.mark.anyio
async def test_what_waits_is_one_delta() -> None:
    mailbox = Mailbox(1, Limits())
    for effect in (thoughtful("a", 1), thoughtful("b", 2, 3), FINISHED):
        mailbox.put(effect)
    calls = (*thoughtful("a", 1).tool_calls, *thoughtful("b", 2, 3).tool_calls)
    whole = Delta(1, "ab", (1, 2, 3), "AB", calls, toy_logprobs((1, 2, 3), 2))
    assert await pumped(mailbox) == [whole, FINISHED]


@pytest.mark.anyio
async def test_r6_bytes_at_the_limit_wait_and_one_more_is_slow_reader() -> None:
    limits = Limits(mailbox_bytes_max=20)
    full = Mailbox(1, limits)
    for effect in (delta("ä" * 8, 1), FINISHED):
        full.put(effect)
    assert await pumped(full) == [delta("ä" * 8, 1), FINISHED]
    call = ToolCall("f", "{}")
    for more in (
        delta("x"),
        Delta(1, "", (), "x"),
        Delta(1, "", (), "", (call,)),
        Delta(1, "", (), logprobs=toy_logprobs([5], 1)),
    ):
        over = Mailbox(1, limits)
        for effect in (delta("ä" * 8, 1), more, FINISHED):
            over.put(effect)
        with pytest.raises(Refused, match="not read in time"):
            await pumped(over)
        assert not over.settled


@pytest.mark.anyio
async def test_a_failure_comes_after_what_was_committed_and_nothing_after_it() -> None:
    mailbox = Mailbox(1, Limits())
    effects: list[Effect] = [
        delta("a", 1),
        Failed(1, Reason.OUT_OF_MEMORY, "no room", 2.0),
        delta("b"),
    ]
    for effect in effects:
        mailbox.put(effect)
    written: list[ReplyEvent] = []

    async def write(event: ReplyEvent) -> None:
        written.append(event)

    with pytest.raises(Refused, match="no room") as caught:
        await mailbox.pump(write)
    assert caught.value.retry_after_s == 2.0
    assert written == [delta("a", 1)]
    assert mailbox.settled


@pytest.mark.anyio
async def test_fail_interrupts_a_blocked_write() -> None:
    mailboxes = Mailboxes(Limits())
    mailbox = mailboxes.open(1)
    mailboxes.deliver([delta("a", 1), Delta(7, "nobody's", ())])

    async def write(_event: ReplyEvent) -> None:
        mailboxes.fail_all(engine_failed())
        await anyio.sleep_forever()

    with anyio.fail_after(5), pytest.raises(Refused, match="engine failed"):
        await mailbox.pump(write)
    mailboxes.close(mailbox)
    with anyio.fail_after(5):
        await mailboxes.wait_empty()


@pytest.mark.anyio
async def test_an_effect_that_cannot_be_taken_in_ends_one_rpc_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R5: a fault while a step is delivered must not cost a neighbour its tokens of that step."""
    mailboxes = Mailboxes(Limits())
    first, second = mailboxes.open(1), mailboxes.open(2)
    broken = Delta(1, "secret \ud800", (5,))  # no UTF-8 has a lone surrogate
    finished = Finished(2, FinishReason.STOP, "", USAGE)
    mailboxes.deliver((broken, Delta(2, "whole", (6,)), finished))
    with pytest.raises(Refused) as caught:
        await pumped(first)
    assert caught.value.reason is Reason.INTERNAL
    assert await pumped(second) == [Delta(2, "whole", (6,)), finished]
    assert "UnicodeEncodeError" in caplog.text and "secret" not in caplog.text


@pytest.mark.anyio
async def test_scores_of_prompts_wait_together_and_are_bounded() -> None:
    """What the newest event says stands for all, but each has logarithms of its own."""
    places = toy_logprobs(range(6), 3)
    mailbox = Mailbox(1, Limits())
    mailbox.put(Progress(1, 0, 3, 7, places[:3]))
    mailbox.put(Progress(1, 0, 7, 7, places[3:]))
    mailbox.put(delta("x", 9))
    mailbox.put(FINISHED)
    written: list[ReplyEvent] = []

    async def write(event: ReplyEvent) -> None:
        written.append(event)

    await mailbox.pump(write)
    assert written[0] == Progress(1, 0, 7, 7, places)
    full = Mailbox(1, Limits(mailbox_bytes_max=12 * 4 * 6))
    full.put(Progress(1, 0, 7, 9, places))
    full.put(Progress(1, 0, 8, 9, places[:1]))
    with pytest.raises(Refused) as caught:
        await full.pump(write)
    assert caught.value.reason is Reason.SLOW_READER
    read = Mailbox(1, Limits(mailbox_bytes_max=12 * 4 * 6))
    for _ in range(3):
        read.put(Progress(1, 0, 7, 9, places))
        assert isinstance(await read._take(), Progress)
