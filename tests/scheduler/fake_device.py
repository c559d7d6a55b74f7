"""A device without arrays: executes step plans over token logs and refuses every wrong one.

- A slot is the log of the tokens it has evaluated. Restored, captured and evaluated tokens are
  real, so wrong content shows in what is drawn next: the toy target hashes the whole log.
- The toy drafter agrees with the target with a set probability, also decided by a hash. A toy
  constraint changes nothing but that it forces tokens here and there, which nearly always agree.
- Asserted: slot ownership, contiguous positions, complete windows, bonus tokens, draw counts,
  captures within what a ring still holds, the step's prefill budget, that what a slot refers to
  lies where it was told last, and that nothing is written past the room that a slot was given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.result import Decoded, Prefilled, StepResult
from sapwood.scheduler.sampling import Sampling
from tests.fakes import FULL_BYTES, SLIDING_BYTES, TokenLog, Tracker, toy_logprobs

VOCABULARY = 48
EOS = 1
WINDOW = 8
_PRIME = (1 << 61) - 1

# Whole words, halves of characters, bytes that are none, and specials without text (0 to 3).
_PIECES = [b"a", b"b", b" the", b"ab", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80", b"\xff", b"\xe2"]
TOKEN_BYTES = tuple(b"" if id < 4 else _PIECES[id % len(_PIECES)] for id in range(VOCABULARY))


def toy_facts(
    has_drafter: bool = True,
    window: int = WINDOW,
    full_bytes: int = FULL_BYTES,
    sliding_bytes: int = SLIDING_BYTES,
    depth_max: int = Limits().draft_depth_max,
) -> ModelFacts:
    return ModelFacts(
        window_tokens=window,
        context_tokens_max=4096,
        vocabulary=VOCABULARY,
        eos_token_ids=frozenset({EOS}),
        has_drafter=has_drafter,
        weights_bytes=1000,
        full_bytes_per_token=full_bytes,
        sliding_bytes_per_token=sliding_bytes,
        ring_bytes=(window + depth_max + 1) * sliding_bytes,
        workspace_bytes_per_token=1,
        row_tokens_min=16,
    )


def mix(state: int, token: int) -> int:
    return (state * 1_000_003 + token + 1) % _PRIME


def said(tokens: Iterable[int]) -> int:
    """What penalties depend on: which tokens a sequence has, and how often, in any order."""
    return sum(mix(7, token) ** 2 for token in tokens) % _PRIME


def toy_draw(state: int, sampling: Sampling, counts: int, banned: Collection[int] = ()) -> int:
    """The target's next token after a log that hashes to `state` and said `counts`."""
    while (token := _unmasked(state, sampling, counts)) in banned:
        state = mix(state, 5)
    return token


def _unmasked(state: int, sampling: Sampling, counts: int) -> int:
    noise = 0 if sampling.greedy else sampling.noise_key + 1
    spread = mix(mix(state, noise), 77)
    spread = (mix(spread, counts) if sampling.penalised else spread) >> 17
    return EOS if spread % 41 == 0 else 4 + spread % (VOCABULARY - 4)


@dataclass
class Slot:
    """tokens [0, len(log)) are evaluated; `bonus` is drawn but in no cache."""

    sampling: Sampling
    tokens_max: int
    room: int
    top_logprobs: int
    counts: int  # of the prompt and of all that was drawn
    log: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=lambda: [0])  # states[n] hashes log[:n]
    bonus: int | None = None
    drawn: int = 0
    referred: list[tuple[int, ...]] = field(default_factory=list)  # full K/V of payloads
    base: int = 0
    known: int | None = None  # drawn before it was parked, and not to be drawn again
    bounds: ReplyBounds | None = None
    prompt_logprobs: int = 0
    held: bool = False  # to a constraint
    forced: int = 0  # drafts of the next round, as the core was told

    def append(self, token: int) -> None:
        assert len(self.log) < self.room, f"past the room for {self.room}"
        self.log.append(token)
        self.states.append(mix(self.states[-1], token))

    def restore(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.log.append(token)
            self.states.append(mix(self.states[-1], token))

    def draw(self, index: int) -> int:
        bounds, banned = self.bounds, frozenset[int]()
        if bounds is not None and index < bounds.min_tokens:
            banned = bounds.ending_ids
        token = toy_draw(self.states[-1], self.sampling, self.counts, banned)
        self.counts = (self.counts + said([token])) % _PRIME
        return token


class FakeDevice:
    """Runs one plan at a time. `quality` is the share of drafts that agree with the target."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        quality: float = 0.7,
        tracker: Tracker | None = None,
    ) -> None:
        self.facts = facts
        self.limits = limits
        self.quality = quality
        self.tracker = tracker or Tracker()
        self.slots: dict[int, Slot] = {}
        self.steps = 0
        self.restored_tokens = 0
        self.evaluated_tokens = 0

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.number == self.steps + 1, f"step {plan.number} after {self.steps}"
        self.steps += 1
        self._check_shape(plan)
        captured = tuple(self._capture(capture) for capture in plan.captures)
        for slot in plan.releases:
            assert slot in self.slots, f"releasing slot {slot}, which nobody owns"
            del self.slots[slot]
        for grow in plan.grows:
            assert self.slots[grow.slot].room < grow.room, f"{grow}"
            self.slots[grow.slot].room = grow.room
        for admit in plan.admits:
            self._admit(admit)
        for repoint in plan.repoints:
            self._refer(self.slots[repoint.slot], repoint.path)
        for seal in plan.seals:
            sealed = self.slots[seal.slot]
            sealed.base = self.facts.referred_tokens(len(sealed.log))
            sealed.room = seal.room
            self._refer(sealed, seal.path)
        for number in [row.slot for row in plan.decodes] + [piece.slot for piece in plan.prefills]:
            lying = self.tracker.lying
            assert all(lying[id(full)] for full in self.slots[number].referred), f"stale: {number}"
        decoded = tuple(self._decode(row) for row in plan.decodes)
        prefilled = tuple(self._prefill(piece) for piece in plan.prefills)
        kept = None if plan.kept_slot is None else tuple(self.slots[plan.kept_slot].log)
        return StepResult(decoded, prefilled, captured, kept)

    def replay(self, replay: Replay) -> Replayed:
        """Whether what a slot had evaluated is what the core says that it had."""
        same = replay.kept == replay.tokens and 0 < replay.rows <= len(replay.tokens)
        return Replayed(ReplayVerdict.SAME if same else ReplayVerdict.FAULT)

    def replay_s(self, replay: Replay) -> float:
        """As long as a prompt and single rows."""
        return 0.010 * (1 + replay.rows) + 0.0005 * len(replay.tokens)

    def seconds(self, plan: StepPlan) -> float:
        """What the plan costs on this device: linear, so that a policy can learn it."""
        depth = max((row.iterations for row in plan.decodes), default=0)
        return 0.010 + 0.0005 * plan.tokens + 0.001 * depth

    def _check_shape(self, plan: StepPlan) -> None:
        assert plan.releases or plan.decodes or plan.prefills, "L6: an empty plan"
        assert sum(len(p.tokens) for p in plan.prefills) <= self.limits.prefill_tokens_max, "L6"
        assert len(plan.prefills) <= self.limits.prefill_slices_max, "L6"
        rows = [row.slot for row in plan.decodes] + [piece.slot for piece in plan.prefills]
        assert len(set(rows)) == len(rows), f"a slot twice in {rows}"
        assert all(0 <= row.depth <= self.limits.draft_depth_max for row in plan.decodes), "S8"

    def _capture(self, capture: Capture) -> Payload:
        log = self.slots[capture.slot].log
        assert 0 <= capture.start < capture.end <= len(log), f"T11: {capture} of {len(log)}"
        ring = self.facts.window_tokens + self.limits.draft_depth_max + 1
        sliding_start = min(max(capture.start, len(log) - ring), capture.end)
        return self.tracker.log(log, capture.start, capture.end, sliding_start)

    def _admit(self, admit: Admit) -> None:
        assert admit.slot not in self.slots, f"slot {admit.slot} has an owner"
        read = len(admit.prompt) + max(0, len(admit.reply) - 1)
        assert admit.target < read < admit.tokens_max, f"{admit}: something is left to evaluate"
        assert read < admit.room <= admit.tokens_max, f"{admit}: room for all that is read"
        assert 0 <= admit.slot < self.limits.slots_max
        slot = self.slots[admit.slot] = Slot(
            admit.sampling,
            admit.tokens_max,
            admit.room,
            admit.top_logprobs,
            said((*admit.prompt, *admit.reply)),
            drawn=len(admit.reply),
            known=admit.reply[-1] if admit.reply else None,
            bounds=admit.bounds,
            prompt_logprobs=admit.prompt_logprobs,
            held=admit.constraint is not None,
        )
        needed = max(0, admit.target - self.facts.window_tokens)
        window: dict[int, int] = {}
        for payload in admit.path:
            assert isinstance(payload, TokenLog)
            assert payload.start == len(slot.log), f"a gap before {payload.start} in {admit}"
            slot.restore(payload.full)
            window.update(enumerate(payload.sliding, payload.sliding_start))
        assert len(slot.log) >= admit.target, f"the path ends before {admit.target}"
        del slot.log[admit.target :], slot.states[admit.target + 1 :]
        held = [window.get(position) for position in range(needed, admit.target)]
        assert held == slot.log[needed:], f"T9: no whole window before {admit.target}"
        self.restored_tokens += admit.target
        assert admit.base <= admit.target, f"{admit}"
        slot.base = admit.base
        self._refer(slot, admit.path)

    def _refer(self, slot: Slot, path: Sequence[Payload]) -> None:
        found: list[int] = []
        slot.referred = []
        for payload in path:
            assert isinstance(payload, TokenLog)
            if payload.start < slot.base:
                assert payload.start == len(found), f"a gap before {payload.start}"
                slot.referred.append(payload.full)
                found += payload.full
        assert found[: slot.base] == slot.log[: slot.base], f"[0, {slot.base}) lies elsewhere"

    def _prefill(self, piece: PrefillSlice) -> Prefilled:
        slot = self.slots[piece.slot]
        assert slot.bonus is None, f"slot {piece.slot} decodes already"
        assert piece.tokens, f"an empty slice {piece}"
        assert len(slot.log) == piece.start, f"{piece.start} after {len(slot.log)} tokens"
        for token in piece.tokens:
            slot.append(token)
        scores = toy_logprobs(piece.scored, slot.prompt_logprobs)
        assert len(piece.scored) <= self.limits.scored_tokens_max, "L6"
        assert not piece.scored or piece.scored[:-1] == piece.tokens[1 : len(piece.scored)]
        self.evaluated_tokens += len(piece.tokens)
        payload = self.tracker.log(slot.log, piece.start, piece.end) if piece.capture else None
        assert slot.drawn == piece.index, f"index {piece.index} after {slot.drawn} draws"
        if not piece.draws:
            return Prefilled(None, payload, prompt_logprobs=scores)
        if slot.known is not None:
            slot.bonus = slot.known
            return Prefilled(None, payload, prompt_logprobs=scores, forced=self._force(slot))
        slot.bonus, slot.drawn = slot.draw(0), 1
        told = toy_logprobs([slot.bonus], slot.top_logprobs)
        forced = self._force(slot)
        return Prefilled(slot.bonus, payload, told, prompt_logprobs=scores, forced=forced)

    def _decode(self, row: DecodeRow) -> Decoded:
        slot = self.slots[row.slot]
        assert len(slot.log) == row.start, f"C1: {row.start} after {len(slot.log)} tokens"
        assert slot.bonus == row.token, f"slot {row.slot} drew {slot.bonus}, not {row.token}"
        assert slot.drawn == row.index, f"index {row.index} after {slot.drawn} draws"
        assert row.start + row.depth + 1 <= slot.tokens_max, f"S3: {row} past {slot.tokens_max}"
        assert row.start + row.depth + 1 <= slot.room, f"M1: {row} past the room for {slot.room}"
        assert row.forced <= min(row.depth, slot.forced), f"{slot.forced} are forced: {row}"
        slot.append(row.token)
        self.evaluated_tokens += row.depth + 1
        accepted: list[int] = []
        while len(accepted) < row.depth and self._agrees(
            slot.states[-1], 0.95 if len(accepted) < row.forced else self.quality
        ):
            accepted.append(slot.draw(row.index + len(accepted)))
            slot.append(accepted[-1])
        slot.bonus = slot.draw(row.index + len(accepted))
        slot.drawn += len(accepted) + 1
        tokens = (*accepted, slot.bonus)
        told = toy_logprobs(tokens, slot.top_logprobs)
        return Decoded(tokens, row.depth, told, forced=self._force(slot))

    def _agrees(self, state: int, quality: float) -> bool:
        return (mix(state, 9999) >> 13) % 1000 < 1000 * quality

    def _force(self, slot: Slot) -> int:
        """What is told to be forced behind what was drawn."""
        chance = (mix(slot.states[-1], 777) >> 11) % 20
        if slot.held and self.facts.has_drafter:
            slot.forced = min(chance, self.limits.draft_depth_max) if chance < 12 else 0
        return slot.forced
