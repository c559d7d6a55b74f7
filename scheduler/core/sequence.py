"""One client's request on its way through the core, and the table of the ways there are.

- A sequence is in exactly one state; only edges of TRANSITIONS are taken; DONE is absorbing.
- Cancel, deadline and every other end are the one edge to DONE, from any state.
- A slot is held from PREFILL until the plan after DONE, which captures and releases it, or until
  the plan that parks the sequence.
- Positions are absolute: prompt tokens [0, P), reply tokens [P, P + emitted).

      [0, base)              of full layers held by reference, never copied; base <= cached
      [0, cached)            restored from the tree, never computed for this request
      [cached, processed)    prompt computed by this sequence's slices, and told of
      [0, evaluated)         held by every layer's live cache; in decode P + emitted - 1
      [0, stored)            held by the tree along this sequence's lease; stored <= evaluated

- What is read before it draws, its prefix, is the prompt: after it was parked, with all of the
  reply that was evaluated. The newest token is kept, and not drawn again. So it is of one that goes
  on with a reply of another.
"""

from __future__ import annotations

from array import array
from collections import abc
from enum import Enum

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.radix import pack
from sapwood.cache.prefix.tree import Match
from sapwood.scheduler.core.demand import Demand
from sapwood.scheduler.core.meters import COLD, DIVERGED, EVICTED, THINNED
from sapwood.scheduler.events import Clear, Request, Usage
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.depth import Drafting
from sapwood.scheduler.reply.reply import GeneratedReply


class SequenceState(Enum):
    """Where a request is; TRANSITIONS says where it may go."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PARKED = "parked"
    DONE = "done"


TRANSITIONS: dict[SequenceState, frozenset[SequenceState]] = {
    SequenceState.QUEUED: frozenset({SequenceState.PREFILL, SequenceState.DONE}),
    SequenceState.PREFILL: frozenset(
        {SequenceState.DECODE, SequenceState.PARKED, SequenceState.DONE}
    ),
    SequenceState.DECODE: frozenset({SequenceState.PARKED, SequenceState.DONE}),
    SequenceState.PARKED: frozenset({SequenceState.PREFILL, SequenceState.DONE}),
    SequenceState.DONE: frozenset(),
}


class IllegalTransition(AssertionError):
    """Our own mistake: an edge that TRANSITIONS does not have. Carries the sequence's story."""


class Sequence:
    """State of one request, written by the core alone. Times are the engine's clock, in seconds."""

    __slots__ = (
        "admitted_at",
        "asked_disk",
        "awaited",
        "begun",
        "cached",
        "calls",
        "causes",
        "cleared",
        "common",
        "demand",
        "drafting",
        "emitted_at",
        "evaluated",
        "expires_at",
        "first_token_at",
        "forced",
        "forced_drafts",
        "lease",
        "match",
        "match_version",
        "off_disk",
        "overtaken",
        "packed",
        "parks",
        "prefix",
        "processed",
        "queue_expires_at",
        "rank",
        "refused_room",
        "reply",
        "request",
        "resumed",
        "served_step",
        "slot",
        "state",
        "storing",
        "story",
        "stream",
        "submitted_at",
    )

    def __init__(
        self,
        request: Request,
        facts: ModelFacts,
        token_bytes: abc.Sequence[bytes],
        drafting: Drafting,
        now: float,
    ) -> None:
        self.request = request
        self.stream = request.id  # the id that it is told of under
        self.rank = 0  # in the order of all that ever came; Waiting's to give
        self.prefix = request.prompt
        self.packed = pack(request.prompt)
        self.reply = GeneratedReply(request, facts, token_bytes)
        self.calls: list[tuple[str, str]] = []  # ids and names of what the reply called
        self.drafting = drafting
        self.state = SequenceState.QUEUED
        self.story: list[tuple[float, SequenceState, str]] = [
            (now, SequenceState.QUEUED, "submitted")
        ]
        self.submitted_at = now
        self.admitted_at = now
        self.first_token_at = now
        self.emitted_at = now
        self.expires_at = now
        self.queue_expires_at = now
        # While queued: what the tree held and what memory was there when last asked, with whom
        # in prefill how many tokens are shared, for whose prefix it waits, who has gone first; and
        # whether the disk was asked for more of it.
        self.match: Match | None = None
        self.match_version = -1
        self.refused_room: tuple[int, ...] | None = None
        self.common: dict[int, int] = {}
        self.awaited: tuple[Sequence, int] | None = None
        self.overtaken = 0
        self.begun = False  # it is a fork, and its leader has had a slot
        self.asked_disk = False
        self.off_disk = False  # what it stores is not to go there: its session forgot it
        self.cleared = False  # what it held was, before it lost that
        self.resumed = False  # it goes on with a reply of another one
        # From admission on.
        self.slot = -1
        self.lease: Lease | None = None
        self.storing = False
        self.demand = Demand.of(request, facts)
        self.parks = 0
        self.forced = 0  # of these, however short it had its row
        self.forced_drafts = 0  # tokens that its constraint forces next
        self.evaluated = 0
        self.cached = 0
        self.causes: tuple[tuple[str, int], ...] = ()  # why [cached, P) is computed: (why, until)
        # Of a fork's prompt its leader tells.
        self.processed = 0 if request.fork_of is None else len(request.prompt)
        self.served_step = 0

    @property
    def id(self) -> int:
        """Unique for the process."""
        return self.request.id

    @property
    def base(self) -> int:
        """Where a row of a full layer begins."""
        return self.demand.base

    @property
    def prompt_tokens(self) -> int:
        """P: the reply begins at this position."""
        return len(self.request.prompt)

    @property
    def tokens_max(self) -> int:
        """Prompt and reply together, at most."""
        return self.request.tokens_max

    @property
    def emitted(self) -> int:
        """Reply tokens so far, the one that ends it included."""
        return len(self.reply.tokens)

    @property
    def unread(self) -> int:
        """Tokens of the prefix that no layer holds yet."""
        return len(self.prefix) - self.evaluated

    @property
    def scores_left(self) -> bool:
        """Whether log-probabilities of the prompt are due still: it is read for them."""
        return self.request.prompt_logprobs > 0 and self.processed < self.prompt_tokens

    @property
    def reads_tree(self) -> bool:
        """Whether it may begin with what others have stored. Of a prompt that is scored only what
        was told of already: it was parked."""
        return not self.bypasses and not (self.scores_left and not self.processed)

    @property
    def bypasses(self) -> bool:
        """Whether it finds and stores nothing: it was asked to, or would bring back what went.

        A pin was asked for to stay: it is made all the same.
        """
        return self.request.cache_bypass or (self.cleared and not self.request.pin)

    @property
    def restored_max(self) -> int | None:
        """How much it may begin with at most; None: whatever there is."""
        if self.request.pin:  # its own K/V reaches as far back as what it is to keep
            return self.prompt_tokens - 1 - PIN_MARGIN_TOKENS
        return self.processed if self.scores_left else None

    @property
    def stored(self) -> int:
        """Where the lease ends; 0 without one."""
        return self.lease.end if self.lease is not None else 0

    @property
    def storable(self) -> int:
        """Where the stored prefix may end at most, were the sequence to end now."""
        if self.bypasses:
            return 0
        if self.request.store_reply:
            return self.evaluated
        return min(self.evaluated, self.prompt_tokens)

    def restore(self) -> int:
        """The slot holds [0, stored) with this step; the rest of the prefix is computed.

        Returns how many of the prompt's tokens are found that were never told of.
        """
        assert self.match is not None, self.tell()
        if not self.parks:
            self.causes = recompute_causes(self.match, self.prompt_tokens)
        found = max(0, min(self.stored, self.prompt_tokens) - self.processed)
        self.cached += found
        self.processed += found
        return found

    def park(self, forced: bool) -> None:
        """Its slot goes. What it had evaluated is what it has to hold again to go on.

        forced: not only because it has had the slot for long.
        """
        self.parks += 1
        self.forced += forced
        self.slot = -1
        self.prefix = (*self.request.prompt, *self.reply.tokens[:-1])
        self.packed = pack(self.prefix)
        self.match = self.refused_room = None
        self.asked_disk = False
        self.common = {}

    def go_on(
        self,
        reply: GeneratedReply,
        usage: Usage,
        calls: abc.Iterable[tuple[str, str]],
        now: float,
    ) -> None:
        """It begins where another one with the same request ended, which had emitted `reply`.

        usage: of that one. The time between the two counts for nobody.
        """
        self.resumed, self.reply = True, reply
        self.calls = list(calls)
        self.prefix = (*self.request.prompt, *reply.tokens[:-1])
        self.packed = pack(self.prefix)
        self.cached, self.processed = usage.cached_tokens, self.prompt_tokens
        self.first_token_at = now - usage.decode_seconds
        self.admitted_at = self.first_token_at - usage.prefill_seconds
        self.submitted_at = self.admitted_at - usage.queue_seconds

    def begins_as(self, order: Clear) -> bool:
        """Whether its tokens so far begin as what is to be cleared."""
        count = len(order.tokens)
        return self.packed_path(count)[:count] == pack(order.tokens)

    def packed_path(self, end: int) -> array[int]:
        """Its tokens from 0 on, up to `end` at least."""
        if end <= len(self.packed):
            return self.packed
        return pack((*self.request.prompt, *self.reply.tokens[: end - self.prompt_tokens]))

    def move(self, state: SequenceState, now: float, why: str) -> None:
        """Take an edge of TRANSITIONS and tell of it; raises IllegalTransition for any other."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"{self.state.name} -> {state.name} ({why}) in {self.tell()}")
        self.state = state
        self.story.append((now, state, why))

    def tell(self) -> str:
        """The story, without a word of the prompt or the reply."""
        edges = ", ".join(f"{now:.6f} {state.name} ({why})" for now, state, why in self.story)
        return (
            f"sequence {self.id}: {edges}; slot {self.slot}, prompt {self.prompt_tokens},"
            f" cached {self.cached}, processed {self.processed}, emitted {self.emitted},"
            f" evaluated {self.evaluated}, stored {self.stored}, parked {self.parks} times"
        )

    def usage(self, now: float) -> Usage:
        """What a reply took that ends at `now`."""
        reply, leads = self.reply, self.request.fork_of is None
        return Usage(
            prompt_tokens=self.prompt_tokens if leads else 0,
            cached_tokens=self.cached,
            completion_tokens=self.emitted,
            thinking_tokens=reply.parts.thinking_tokens,
            decode_steps=reply.decode_steps,
            rounds=reply.rounds,
            draft_tokens=reply.draft_tokens,
            accepted_tokens=reply.accepted_tokens,
            queue_seconds=self.admitted_at - self.submitted_at,
            prefill_seconds=self.first_token_at - self.admitted_at if leads else 0.0,
            decode_seconds=now - self.first_token_at,
        )


def recompute_causes(match: Match, prompt_tokens: int) -> tuple[tuple[str, int], ...]:
    """Why a prompt is computed from where it was restored to: (cause, where it ends), ascending.

    What was matched and then could not be restored had to give way to something else. The one
    token that is evaluated in any case is nobody's loss: it counts to the rest.
    """
    new = DIVERGED if match.matched else COLD
    return (
        (EVICTED, match.tokens),
        (THINNED, min(match.matched, prompt_tokens - 1)),
        (EVICTED if match.evicted else new, prompt_tokens),
    )
