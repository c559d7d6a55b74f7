"""One bounded outbox per RPC, on the event loop only.

- What the engine posts waits here until the client has read what came before. Deltas that wait
  are coalesced into one: a slow reader gets fewer, larger messages, in order and none twice.
- Bytes that wait are at most `mailbox_bytes_max`, one write lasts at most `write_s_max`; past
  either the RPC alone ends with SLOW_READER. gRPC's own flow control starts megabytes later.
- A fault in one mailbox ends its RPC and nobody else's.
- Exactly one end: Finished, or the Refused that `pump` raises. What is put after it is dropped.
- An RPC without a stream waits for its one answer, or that Refused.
- The engine never waits for a client.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import anyio

from sapwood.daemon.faults import described
from sapwood.daemon.rpc.refusals import internal, refusal_of, slow_reader
from sapwood.scheduler.events import (
    Answered,
    Delta,
    Effect,
    Failed,
    Finished,
    Progress,
    Resumed,
    ToolCall,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Refused
from sapwood.scheduler.result import TokenLogprobs

_TOKEN_ID_BYTES = 4
_LOGPROB_BYTES = 12  # a log probability with its id and its tags

SentEvent = Progress | Delta | Finished  # a message of the stream, whatever its contract
ReplyEvent = Resumed | SentEvent
Observe = Callable[[Effect], None]

_log = logging.getLogger(__name__)


def _unobserved(_effect: Effect) -> None:
    """Where nobody else wants to know."""


class Mailbox:
    """The outbox of one sequence's RPC."""

    def __init__(self, id: int, limits: Limits, observe: Observe = _unobserved) -> None:
        self.id = id
        self._observe = observe
        self._limits = limits
        self._resumed: Resumed | None = None
        self._progress: Progress | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprobs] = []
        self._bytes = 0
        self._end: Finished | Answered | Refused | None = None
        self._settled = False
        self._arrived = anyio.Event()
        self._write: anyio.CancelScope | None = None

    @property
    def settled(self) -> bool:
        """The core itself ended the sequence; there is nothing left to cancel."""
        return self._settled

    def put(self, effect: Effect) -> None:
        """Take in an effect; where too much waits then, the RPC ends with SLOW_READER."""
        self._observe(effect)
        if self._end is not None:
            return
        match effect:
            case Resumed():
                self._resumed = effect
            case Progress():
                self._advance(effect)
            case Delta():
                self._append(effect)
            case Failed():
                self._end = refusal_of(effect)
                self._settled = True
            case _:
                self._end = effect
                self._settled = True
        self._arrived.set()

    def fail(self, refusal: Refused) -> None:
        """End now, dropping what waits and interrupting a write that is blocked."""
        if self._end is not None:
            return
        self._resumed = self._progress = None
        self._clear_delta()
        self._end = refusal
        self._arrived.set()
        if self._write is not None:
            self._write.cancel()

    async def answer(self) -> Answered:
        """What a command without a stream is answered; raises the Refused in its place."""
        while self._end is None:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        if isinstance(self._end, Refused):
            raise self._end
        assert not isinstance(self._end, Finished), "an answer to a prompt"
        return self._end

    async def pump(self, write: Callable[[ReplyEvent], Awaitable[None]]) -> None:
        """Write every event up to Finished; raises the Refused that ended the sequence instead."""
        while True:
            event = await self._take()
            with anyio.move_on_after(self._limits.write_s_max) as self._write:
                await write(event)
            if self._write.cancelled_caught:
                raise self._end if isinstance(self._end, Refused) else slow_reader()
            if isinstance(event, Finished):
                return

    async def _take(self) -> ReplyEvent:
        while not (self._resumed or self._progress or self._has_delta or self._end):
            self._arrived = anyio.Event()
            await self._arrived.wait()
        if (resumed := self._resumed) is not None:
            self._resumed = None
            return resumed
        if (progress := self._progress) is not None:
            self._progress = None
            self._bytes -= _logprobs_bytes(progress.logprobs)
            return progress
        if self._has_delta:
            return self._coalesced()
        if isinstance(self._end, Refused):
            raise self._end
        assert isinstance(self._end, Finished), "a stream of a command that has none"
        return self._end

    def _advance(self, progress: Progress) -> None:
        """Where the newest stands for all, but for what each says of its own tokens."""
        if self._progress is not None:
            logprobs = self._progress.logprobs + progress.logprobs
            self._progress = replace(progress, logprobs=logprobs)
        else:
            self._progress = progress
        self._add(_logprobs_bytes(progress.logprobs))

    def _add(self, size: int) -> bool:
        """Bytes more that wait; where they are too many the RPC ends, and it is False."""
        self._bytes += size
        if self._bytes <= self._limits.mailbox_bytes_max:
            return True
        self.fail(slow_reader())
        return False

    @property
    def _has_delta(self) -> bool:
        return bool(self._token_ids or self._texts)

    def _append(self, delta: Delta) -> None:
        texts = [delta.text, delta.thinking]
        texts += [text for call in delta.tool_calls for text in (call.name, call.arguments)]
        size = sum(len(text.encode()) for text in texts) + _TOKEN_ID_BYTES * len(delta.token_ids)
        if not self._add(size + _logprobs_bytes(delta.logprobs)):
            return
        self._texts.append(delta.text)
        self._token_ids.extend(delta.token_ids)
        self._thinking.append(delta.thinking)
        self._calls.extend(delta.tool_calls)
        self._logprobs.extend(delta.logprobs)

    def _coalesced(self) -> Delta:
        delta = Delta(
            self.id,
            "".join(self._texts),
            tuple(self._token_ids),
            "".join(self._thinking),
            tuple(self._calls),
            tuple(self._logprobs),
        )
        self._clear_delta()
        return delta

    def _clear_delta(self) -> None:
        self._texts.clear()
        self._token_ids.clear()
        self._thinking.clear()
        self._calls.clear()
        self._logprobs.clear()
        self._bytes = 0


def _logprobs_bytes(logprobs: Sequence[TokenLogprobs]) -> int:
    return _LOGPROB_BYTES * sum(1 + len(place.alternatives) for place in logprobs)


class Mailboxes:
    """The open mailboxes by sequence id, and the delivery of one engine step to all of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[int, Mailbox] = {}
        self._emptied = anyio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, id: int, observe: Observe = _unobserved) -> Mailbox:
        """A mailbox for a sequence that has none yet; whoever opens it closes it, once.

        observe: is told of every effect, read or not.
        """
        assert id not in self._open, id
        mailbox = self._open[id] = Mailbox(id, self._limits, observe)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """Effects of its sequence are dropped from here on."""
        del self._open[mailbox.id]
        if not self._open:
            self._emptied.set()

    def deliver(self, effects: Iterable[Effect]) -> None:
        """Effects of sequences whose RPC is gone are dropped.

        A fault in taking one in ends that RPC alone: the step's other effects are for others.
        """
        for effect in effects:
            if (mailbox := self._open.get(effect.id)) is None:
                continue
            try:
                mailbox.put(effect)
            except Exception as bug:
                _log.error("an effect was not delivered: %s", described(bug))
                mailbox.fail(internal())

    def fail_all(self, refusal: Refused) -> None:
        """Mailbox.fail for all that are open now, with the same refusal."""
        for mailbox in self._open.values():
            mailbox.fail(refusal)

    async def wait_empty(self) -> None:
        """Until every RPC has closed its mailbox; at once where none is open."""
        while self._open:
            self._emptied = anyio.Event()
            await self._emptied.wait()
