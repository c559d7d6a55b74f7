"""Executes step plans on the device: one lazy graph and one host sync per step.

- Owns the live caches, the frontier hidden row and the sampler of every slot, all on one thread.
- What penalties count and where a constraint has led advances in wait, by committed tokens: drafts
  are counted on the device, and walked without moving (constraints/guide).
- Where a row's masks depend on its drafts (a constraint, a thought's budget that may run out) the
  host reads them while the target computes, and gives the verification the masks. Nothing else
  reads anything before wait.
- submit: captures (copied out and evaluated first), releases, admits, then drafts -> packed target
  forward -> verify, started without waiting (hand_over says in which parts). wait: the one sync,
  every number held against its range, then commit, an integer per slot.
- A step that fails anywhere commits nothing: no offset, no penalty, no result. Where an allocation
  failed all slots are gone as well: an array that MLX was about to make may say that it is there.
- A plan that contradicts the device's state is our own mistake, and asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.full import FullStore
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload, LayerRange
from sapwood.cache.arrays.speculation import (
    Transaction,
    begin_isolated_speculation,
    begin_speculation,
)
from sapwood.cache.prefix.snapshot import Payload
from sapwood.model import device
from sapwood.model.constraints.step_masks import StepMasks
from sapwood.model.drafting import Drafter, DraftPosition, Drafts, packed_tokens
from sapwood.model.drawing import draw_rows, drawing_slots, follows_drafts, step_masks
from sapwood.model.gemma4 import Forward, PackedGemma4
from sapwood.model.hand_over import ForwardParts, HandOver
from sapwood.model.lost_step import attempted
from sapwood.model.pair import Pair
from sapwood.model.plain_forward import below_maximum
from sapwood.model.replay import kept_logits, kept_round
from sapwood.model.sampler import Sampler
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.logprobs import LogprobsReport, logprobs_report
from sapwood.model.scoring import PromptScores, drawing_rows, score_prompts
from sapwood.model.step_values import read_rows, read_scores
from sapwood.scheduler.plan import Admit, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.result import Decoded, Prefilled, StepResult, TokenLogprobs


@dataclass(slots=True)
class Ticket:
    """A step under way. drawn: int32 [B, K + 2] of verify, or None where nothing is drawn.

    kept: of the plan's kept_slot, float32 [depth + 1, vocabulary].

    `pending` is dropped by `wait`: it holds the pools, and one that grows would exist twice.
    """

    plan: StepPlan
    decodes: tuple[DecodeRow, ...]  # in packed order
    depths: tuple[int, ...]  # of the rows that draw
    drawn: mx.array | None
    report: LogprobsReport | None
    kept: mx.array | None
    scores: PromptScores | None
    payloads: tuple[EdgePayload | None, ...]
    captured: tuple[Payload | None, ...]
    pending: tuple[mx.array, ...]
    transaction: Transaction | None  # of what the forward wrote


class Runner:
    """The device's side of the engine loop."""

    def __init__(
        self,
        pair: Pair,
        slots_max: int,
        depth_max: int,
        draft_position: DraftPosition = "bonus",
        mask_s_max: float = 1.0,
    ) -> None:
        """mask_s_max: how long a step waits for the masks of constraints."""
        config = pair.target_config
        self.target = PackedGemma4(pair.target, config.placeholders, pair.kernels)
        self.vocabulary = config.text.vocabulary
        self._depth_max = depth_max
        self.dtype = self.target.text.norm.weight.dtype
        self.caches = LiveCaches(
            self.target.shapes,
            config.text.window_tokens,
            depth_max + 1,
            self.dtype,
            kernels=pair.kernels,
            page_bytes=device.page_bytes(),
        )
        self.suppression = pair.suppression
        self.drafter = None
        if pair.assistant is not None:
            self.drafter = Drafter(
                pair.assistant, self.target, self.caches, self.suppression, draft_position
            )
        self.frontier = mx.zeros((slots_max, pair.target.args.hidden_size), self.dtype)
        self._samplers: dict[int, Sampler] = {}
        self._masks = StepMasks(self.vocabulary, mask_s_max)
        self._hand_over = HandOver(device.layers_per_part())

    @property
    def device_s(self) -> float:
        """Seconds so far that submit and wait stood in calls of the device, moves of slots too."""
        return self._hand_over.seconds

    @property
    def drafted_at(self) -> float:
        """When the drafts of the newest step that had any were there, by perf_counter; 0: never."""
        return self._hand_over.drafted_at

    def submit(self, plan: StepPlan) -> Ticket:
        """Start a step. The plan's payloads stay the tree's; what the ticket holds is fresh.

        Raises StepLost, as `wait` does, where MLX could not allocate.
        """
        with self._hand_over.timed():
            self.make_copies(0)  # left over: what was evicted must be gone before anything comes
        return attempted(lambda: self._submit(plan), self._lose)

    def _submit(self, plan: StepPlan) -> Ticket:
        # Copied out and evaluated before anything is written: releases hand the slots on, admits
        # and the forward write into them.
        with self._hand_over.timed():
            captured = tuple(self.caches.capture(c.slot, c.start, c.end) for c in plan.captures)
            # Released before admitted: one plan may give a slot away and take it again.
            for slot in plan.releases:
                self.caches.release(slot)
                self._samplers.pop(slot, None)
            if plan.pack:
                self.caches.pack()
            self.caches.grow([(grow.slot, grow.room) for grow in plan.grows])
            for admit in plan.admits:
                self._admit(admit)
            for repoint in plan.repoints:
                path = cast("tuple[EdgePayload, ...]", repoint.path)
                self.caches.repoint(repoint.slot, path)
            for seal in plan.seals:
                path = cast("tuple[EdgePayload, ...]", seal.path)
                self.caches.seal(seal.slot, path, seal.room)
        # Rows in the pools' own order: attention has nothing to gather.
        places = self.caches.rings.places
        decodes = tuple(sorted(plan.decodes, key=lambda d: places[d.slot].row))
        if not decodes and not plan.prefills:
            return Ticket(plan, (), (), None, None, None, None, (), captured, (), None)
        return self._forward(plan, decodes, captured)

    def wait(self, ticket: Ticket) -> StepResult:
        """Block until the step is done, commit it and hand over what it drew.

        Once for each ticket. The payloads are the caller's. Raises DeviceFault, and what MLX does.
        """
        # Also where there was no forward: nobody else asks whether its captures went well.
        attempted(lambda: self._hand_over.finish(ticket.pending), lambda: self._lose(ticket))
        ticket.pending = ()
        transaction = ticket.transaction
        if transaction is None:
            return StepResult(captured=ticket.captured)
        # All of them before the first commit.
        drawn = iter(read_rows(ticket.drawn, ticket.report, ticket.depths, self.vocabulary))
        decoded: dict[int, Decoded] = {}
        for d in ticket.decodes:
            tokens, logprobs = next(drawn)
            failure = self._samplers[d.slot].push(tokens)
            forced = self._forced(d.slot)
            decoded[d.slot] = Decoded(tokens, d.depth, logprobs, failure, forced)
            transaction.commit(d.slot, len(tokens))
        prefilled = []
        told = self._read_scores(ticket)
        for p, payload, scores in zip(ticket.plan.prefills, ticket.payloads, told, strict=True):
            tokens, logprobs = next(drawn) if p.draws else ((), ())
            if p.index:
                tokens, logprobs = (), ()
            failure = self._samplers[p.slot].push(tokens)
            token = tokens[0] if tokens else None
            forced = self._forced(p.slot) if p.draws else 0
            prefilled.append(Prefilled(token, payload, logprobs, failure, scores, forced))
            transaction.commit(p.slot, len(p.tokens))
        in_order = tuple(decoded[d.slot] for d in ticket.plan.decodes)
        kept = kept_round(ticket.kept, ticket.plan.kept_slot, decoded, self._samplers)
        return StepResult(in_order, tuple(prefilled), ticket.captured, kept)

    def _forced(self, slot: int) -> int:
        """How many tokens the slot's constraint forces next, as far as a round can draft them."""
        if self.drafter is None:
            return 0
        return min(len(self._samplers[slot].forced), self._depth_max)

    def _read_scores(self, ticket: Ticket) -> list[tuple[TokenLogprobs, ...]]:
        asked = [self._samplers[p.slot].prompt_logprobs for p in ticket.plan.prefills]
        return read_scores(ticket.scores, asked, self.vocabulary)

    def make_copies(self, bytes_max: int) -> None:
        """Make what the tree has cut, joined and thinned, up to so many bytes in each wait.

        bytes_max: what is free, or reserved for a step, which is not under way then.
        """
        self.caches.copies.make(bytes_max)

    def replay(self, row: DecodeRow, tokens: Sequence[int]) -> list[float]:
        """How far each token of a committed round lies below the best that its place allows.

        `tokens`: what the round committed. It is evaluated once more, alone and through an isolated
        speculation, which leaves live state as it is; between wait() and the next submit().
        """
        fed = [row.token, *tokens[:-1]]
        layers = begin_isolated_speculation(self.caches, row.slot, row.start, len(fed))
        batch = Batch([Span(row.slot, row.start, len(fed))])
        hidden = self.target.forward(mx.array(fed), batch, layers).hidden
        # A round begins behind a reply's first token.
        firsts = np.zeros(len(tokens), np.bool_)
        logits = self.suppression.of_target(self.target.logits(hidden), firsts)
        return below_maximum(logits, tokens)

    def _lose(self, ticket: Ticket | None = None) -> None:
        """Drop all slots, and what a step under way holds."""
        if ticket is not None:
            ticket.pending, ticket.payloads, ticket.captured = (), (), ()
            ticket.kept = None
        self.caches.release_all()
        self._samplers.clear()
        self.frontier = mx.zeros(self.frontier.shape, self.dtype)
        mx.synchronize()
        mx.clear_cache()

    def close(self) -> None:
        """Drop every array, on the thread that made them."""
        self.caches.release_all()
        self._samplers.clear()
        self._masks.close()
        self.frontier = mx.array(())
        mx.clear_cache()

    def _admit(self, admit: Admit) -> None:
        path = cast("tuple[EdgePayload, ...]", admit.path)
        self.caches.restore(admit.slot, path, admit.target, admit.base, admit.room)
        self._samplers[admit.slot] = Sampler.of(admit, self.vocabulary)

    def _forward(
        self, plan: StepPlan, decodes: tuple[DecodeRow, ...], captured: tuple[Payload | None, ...]
    ) -> Ticket:
        batch = Batch(
            [Span(d.slot, d.start, d.depth + 1) for d in decodes],
            [
                Span(p.slot, p.start, len(p.tokens), p.draws, len(p.scored) > 0)
                for p in plan.prefills
            ],
        )
        self.caches.prepare(batch)
        slots = drawing_slots(decodes, plan.prefills)
        samplers = [self._samplers[slot] for slot in slots]
        rows = draw_rows(decodes, [p for p in plan.prefills if p.draws], samplers)
        drafts = self._drafts(decodes, rows)
        drafted = None if drafts is None else drafts.tokens
        parts = ForwardParts(self._hand_over, drafted, self.target.first_donor)
        tokens = packed_tokens(decodes, plan.prefills, drafts)
        layers, transaction = begin_speculation(self.caches, batch)
        forward = self.target.forward(tokens, batch, layers, parts.built)
        masks = None
        if rows is not None and rows.constrained:
            followed = drafts if follows_drafts(rows, samplers) else None
            if followed is not None:
                parts.rest((forward.hidden,))  # the device goes on while the host walks
            masks = step_masks(self._masks, rows, samplers, followed)
        hidden = drawing_rows(forward.hidden, batch)
        drawn, reported, kept = self._draw(slots, rows, drafts, hidden, masks, plan.kept_slot)
        asked = [self._samplers[p.slot].prompt_logprobs for p in plan.prefills]
        scores = score_prompts(self.target.logits, forward.hidden, batch, plan.prefills, asked)
        payloads = _payloads(plan.prefills, batch, forward, self.caches)
        fresh = [a for p in payloads if p is not None for a in p.arrays]
        first = [each for each in (drawn, kept) if each is not None]
        extra = [each.arrays for each in (reported, scores) if each is not None]
        pending = (*first, *chain.from_iterable(extra), self.frontier, *self.caches.arrays, *fresh)
        parts.rest(pending)
        depths = () if rows is None else rows.depth
        told = drawn, reported, kept, scores
        return Ticket(plan, decodes, depths, *told, payloads, captured, pending, transaction)

    def _drafts(self, decodes: Sequence[DecodeRow], rows: DrawRows | None) -> Drafts | None:
        if not any(d.depth for d in decodes):
            return None
        assert self.drafter is not None and rows is not None, "a depth without a drafter"
        forced = [self._samplers[d.slot].forced[: d.forced] for d in decodes]
        assert all(len(f) == d.forced for f, d in zip(forced, decodes, strict=True)), "too many"
        early = self._hand_over.start_early
        drafts = self.drafter.run(decodes, self.frontier, rows, early, forced)
        self._hand_over.start(drafts.tokens)  # in any case before the target's first layer
        return drafts

    def _draw(
        self,
        slots: tuple[int, ...],
        rows: DrawRows | None,
        drafts: Drafts | None,
        hidden: mx.array,
        masks: mx.array | None,
        kept_slot: int | None,
    ) -> tuple[mx.array | None, LogprobsReport | None, mx.array | None]:
        """Accept, draw, report, keep; move the frontier to each row's last committed position."""
        if rows is None:
            return None, None, None
        table, distributions = (
            (None, ()) if drafts is None else (drafts.table(len(rows.depth)), drafts.distributions)
        )
        logits = self.target.logits(hidden)
        kept = None if kept_slot is None else kept_logits(logits, rows, slots.index(kept_slot))
        allowed = self.suppression.of_target(logits, rows.firsts)
        drawn = verify(allowed, rows, table, distributions, masks)
        newest = hidden[mx.array(rows.starts.astype(np.int32)) + drawn[:, -1]]
        self.frontier[mx.array(np.array(slots, np.int32))] = newest
        asked = tuple(self._samplers[slot].top_logprobs for slot in slots)
        return drawn, logprobs_report(logits, rows, drawn, asked), kept


def _payloads(
    prefills: Sequence[PrefillSlice], batch: Batch, forward: Forward, caches: LiveCaches
) -> tuple[EdgePayload | None, ...]:
    """Each captured slice's own K/V, lazily; evaluated with the step."""
    payloads: list[EdgePayload | None] = []
    for index, p in enumerate(prefills):
        if not p.capture:
            payloads.append(None)
            continue
        first, end = batch.queries_of(index, trimmed=False)
        full: list[LayerRange | None] = []
        sliding: list[LayerRange | None] = []
        for (keys, values), store in zip(forward.written, caches.stores, strict=True):
            own = [a[first:end].transpose(1, 0, 2) for a in (keys, values)]
            kind = full if isinstance(store, FullStore) else sliding
            kind.append(LayerRange(p.start, p.end, own[0], own[1]))
        payloads.append(caches.payload(p.start, p.end, full, sliding))
    return tuple(payloads)
