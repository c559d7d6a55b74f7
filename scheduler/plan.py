"""What the pure core asks of the device.

- A StepPlan is a value: the runner can execute it without asking the core anything.
- All ranges are half-open, all positions absolute in the sequence (0 = first prompt token).
- Order inside a step: captures, releases, admits, repoints, seals, then ONE forward for decodes and
  prefills.
- A slot is one sequence's from its Admit to its release; one step may release and admit it.
- In decode every layer holds `start` tokens; the row's `token` (the bonus) is in no cache yet.
- Payloads are opaque here: the tree owns them, a plan lends them until its commit. Full K/V that is
  held by reference is lent for longer: until a repoint, or the slot's release.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.cache.prefix.snapshot import Payload
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
    """

    slot: int
    target: int
    path: tuple[Payload, ...]
    sampling: Sampling
    tokens_max: int  # prompt + max_tokens: what the slot may grow to
    prompt: tuple[int, ...] = ()  # whole: penalties count restored tokens, which no slice holds
    top_logprobs: int = 0  # alternatives to report with each drawn token; 0: no report at all
    base: int = 0


@dataclass(frozen=True, slots=True)
class Repoint:
    """What a slot holds by reference lies in `path` now: the tree cut or joined payloads of it."""

    slot: int
    path: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Seal:
    """All that a slot holds of full layers lies in `path`: hold it by reference, free its rows."""

    slot: int
    path: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class PrefillSlice:
    """Evaluate prompt tokens [start, start + len(tokens)).

    draws: the slice ends the prompt, so the first token is drawn from its last row (index 0).
    capture: hand the slice's K/V back as a Payload.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    draws: bool
    capture: bool

    @property
    def end(self) -> int:
        """One past the slice's last position."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One round of one sequence: draft `depth` tokens, verify [start, start + depth + 1).

    `token` is the bonus token, to be evaluated at position `start`. `index` counts the tokens drawn
    so far: the first token this round draws is the index-th (0-based) of the reply.
    """

    slot: int
    start: int
    token: int
    depth: int
    index: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: fields in the order of execution, the last two in one forward. `number`: from 1."""

    number: int
    captures: tuple[Capture, ...] = ()
    releases: tuple[int, ...] = ()
    admits: tuple[Admit, ...] = ()
    repoints: tuple[Repoint, ...] = ()
    seals: tuple[Seal, ...] = ()
    decodes: tuple[DecodeRow, ...] = ()
    prefills: tuple[PrefillSlice, ...] = ()

    @property
    def tokens(self) -> int:
        """Packed rows of the step's one target forward."""
        return sum(d.depth + 1 for d in self.decodes) + sum(len(p.tokens) for p in self.prefills)
