"""Several replies to one prompt: what each draws with, and one stream for all of them.

- The first draws with the request's seed, candidate c > 0 with a hash of seed and c, so that each
  can be asked for again by itself. Without a seed each has entropy of its own.
- What waits for a client is bounded for each reply by itself. A reply that is slow holds up no
  other's end; the first that fails ends them all.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b

import anyio

from sapwood.daemon.rpc.mailbox import Mailbox, ReplyEvent
from sapwood.scheduler.events import Fork
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling

_SEED_BYTES = 8

_Write = Callable[[ReplyEvent, int], Awaitable[None]]  # of a candidate


def seed_of(seed: int, candidate: int) -> int:
    """What a candidate draws with: as docs/sampling.md says, so that anybody can compute it."""
    if not candidate:
        return seed
    digest = blake2b(digest_size=_SEED_BYTES)
    for number in (seed, candidate):
        digest.update(number.to_bytes(_SEED_BYTES, "little"))
    return int.from_bytes(digest.digest(), "little")


def require_several(candidates: int, sampling: Sampling) -> None:
    """Greedy replies are all the same. Raises Refused."""
    if candidates > 1 and sampling.greedy:
        problem = "several candidates need a temperature above 0: without one all are the same"
        raise Refused(Reason.BAD_SAMPLING, problem, field="candidates")


def forks_of(candidates: int, sampling: Sampling, draw_id: Callable[[], int]) -> tuple[Fork, ...]:
    """The replies beside the first."""
    return tuple(
        Fork(draw_id(), _noise_key(sampling, candidate)) for candidate in range(1, candidates)
    )


def _noise_key(sampling: Sampling, candidate: int) -> int:
    if sampling.seeded:
        return seed_of(sampling.noise_key, candidate)
    return int.from_bytes(os.urandom(_SEED_BYTES))


async def pump_all(mailboxes: Sequence[Mailbox], write: _Write) -> None:
    """Write every event up to the last end, one at a time; raises what ends one of them."""
    lock, ends = anyio.Lock(), list[Exception]()

    async def pump(candidate: int, mailbox: Mailbox) -> None:
        async def write_in_turn(event: ReplyEvent) -> None:
            async with lock:
                await write(event, candidate)

        try:
            await mailbox.pump(write_in_turn)
        except Exception as end:
            ends.append(end)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for candidate, mailbox in enumerate(mailboxes):
            group.start_soon(pump, candidate, mailbox)
    if ends:
        raise ends[0]
