"""What the pure core asks of the device.

- A StepPlan is a value: the runner can execute it without asking the core anything.
- All ranges are half-open, all positions absolute in the sequence (0 = first prompt token).
- Order inside a step: captures, releases, pack, grows, admits, repoints, seals, then ONE forward
  for decodes and prefills.
- Which pool a slot's row lies in follows from the rooms that plans give it, and the number of rows
  from their order: the core knows to the byte what pools weigh, and says when they are packed.
- A slot is one sequence's from its Admit to its release; one step may release and admit it.
- In decode every layer holds `start` tokens; the row's `token` (the bonus) is in no cache yet.
- Payloads are opaque here: the tree owns them, a plan lends them until its commit. Full K/V that is
  held by reference is lent for longer: until a repoint, or the slot's release.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Capture:
    """Copy [start, end) out of a slot's live caches into a Payload, before anything is written."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a slot to a sequence and restore [0, target) from `path` (payloads root to leaf).

    The payloads are contiguous from 0; the last may reach past `target`. target 0 = cold.
    base: full layers hold [0, base) by reference, base <= target, and copy the rest.
    room: tokens that the slot has room for until a Grow; 0: what each step takes.
    reply: what was drawn already, of a sequence that was parked; its newest token is in no cache.
    constraint, prompt_logprobs: as in Request. bounds: None where they bind nothing.
    """

    slot: int
    target: int
    path: tuple[Payload, ...]
    sampling: Sampling
    tokens_max: int  # prompt + max_tokens: what the slot may grow to
    prompt: tuple[int, ...] = ()  # whole: penalties count restored tokens, which no slice holds
    top_logprobs: int = 0  # alternatives to report with each drawn token; 0: no report at all
    base: int = 0
    room: int = 0
    reply: tuple[int, ...] = ()
    constraint: object | None = None
    bounds: ReplyBounds | None = None
    prompt_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Grow:
    """A slot needs room for so many tokens in all: its row moves to a pool of longer ones."""

    slot: int
    room: int


@dataclass(frozen=True, slots=True)
class Repoint:
    """What a slot holds by reference lies in `path` now: the tree cut or joined payloads of it."""

    slot: int
    path: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Seal:
    """All that a slot holds of full layers lies in `path`: hold it by reference, free its rows.

    room: tokens that the slot has room for from now on, as in Admit.
    """

    slot: int
    path: tuple[Payload, ...]
    room: int


@dataclass(frozen=True, slots=True)
class PrefillSlice:
    """Evaluate tokens [start, start + len(tokens)) of a prompt, or of a reply that was parked.

    draws: the slice ends what is to be read, so the first token is drawn from its last row.
    capture: hand the slice's K/V back as a Payload. index: as in DecodeRow. Above 0 what is drawn
    counts nowhere: the token behind the slice is known, and only the drafter wants its last row.
    scored: the tokens behind its rows, where the slot asks for their log-probabilities: of the last
    row none where a prompt ends.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    draws: bool
    capture: bool
    index: int = 0
    scored: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """One past the slice's last position."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One round of one sequence: draft `depth` tokens, verify [start, start + depth + 1).

    `token` is the bonus token, to be evaluated at position `start`. `index` counts the tokens drawn
    so far: the first token this round draws is the index-th (0-based) of the reply. forced: of the
    drafts those that its constraint forces, forced <= depth; which they are, the slot knows.
    """

    slot: int
    start: int
    token: int
    depth: int
    index: int
    forced: int = 0

    @property
    def iterations(self) -> int:
        """Of the drafter that the row takes part in: none where all its drafts are forced."""
        return self.depth if self.depth > self.forced else 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: fields in the order of execution, one forward of decodes and prefills.

    number: from 1. pack: close the holes that slots have left in pools. kept_slot: of the decode
    row whose logits come back, for a replay.
    """

    number: int
    captures: tuple[Capture, ...] = ()
    releases: tuple[int, ...] = ()
    pack: bool = False
    grows: tuple[Grow, ...] = ()
    admits: tuple[Admit, ...] = ()
    repoints: tuple[Repoint, ...] = ()
    seals: tuple[Seal, ...] = ()
    decodes: tuple[DecodeRow, ...] = ()
    prefills: tuple[PrefillSlice, ...] = ()
    kept_slot: int | None = None

    @property
    def tokens(self) -> int:
        """Packed rows of the step's one target forward."""
        return sum(d.depth + 1 for d in self.decodes) + sum(len(p.tokens) for p in self.prefills)

    @property
    def copied(self) -> bool:
        """Whether prefixes are copied in, out or to other rows."""
        moved = bool(self.captures or self.grows or self.pack)
        return moved or any(admit.target for admit in self.admits)
