"""Which rounds are computed once more, and when: the online self-check of `fast` numerics.

- A plan says of which row the logits are kept; the commit makes a Replay of them; between two later
  steps it is handed out, once there is time for it. One is on its way at a time.
- Who is chosen follows from a counter, and when from times that the core was told (L8).
- While anybody is served a replay takes no longer than check_s_max, or STEPS_MAX steps where these
  are slow; else it waits until nobody is, or for CHANCE_STEPS, and gives way to another row's.
- It lies in what nobody has between two steps, or is not made: no byte is reserved for it, nothing
  is leased, and no slot is held.
"""

from __future__ import annotations

from collections import abc

from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.meters import Meters
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import DecodeRow, StepPlan
from sapwood.scheduler.policy.device_time import DeviceTime
from sapwood.scheduler.policy.replay_budget import ReplayBudget
from sapwood.scheduler.replay import Replay, Replayed
from sapwood.scheduler.result import Decoded, StepResult

CHANCE_STEPS = 64
STEPS_MAX = 4
_OF_NEWEST = 0.1  # of what a step takes
_SCATTER, _BITS = 2654435761, 32  # Knuth's multiplicative hash: a count that keeps no rhythm


class RoundChecks:
    """Off until `start`. Written by the core alone."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        memory: DeviceMemory,
        time: DeviceTime,
        meters: Meters,
    ) -> None:
        self._facts, self._limits, self._memory = facts, limits, memory
        self._time, self._meters = time, meters
        self._budget = ReplayBudget(limits.check_share)
        self._on = False
        self._looks = 0
        self._step_s = 0.0
        self._pending: Replay | None = None
        self._pending_since = 0

    def start(self) -> None:
        """From now on."""
        self._on = True

    def choose(self, step: int, decodes: abc.Sequence[DecodeRow]) -> int | None:
        """The slot of the row whose logits this plan keeps; None: of none."""
        if not self._on or not decodes:
            return None
        if self._pending is not None and step - self._pending_since < CHANCE_STEPS:
            return None
        self._looks += 1
        row = decodes[(self._looks * _SCATTER % (1 << _BITS)) * len(decodes) >> _BITS]
        rows = row.depth + 1
        logits = rows * (self._facts.logits_bytes_per_row + self._facts.vocabulary * 4)
        small = row.start + rows <= self._limits.check_tokens_max
        if not small or logits > self._memory.bytes.free:
            return None
        return row.slot if self._budget.affords(self._priced_s(row.start, rows)) else None

    def committed(
        self,
        plan: StepPlan,
        decoding: abc.Sequence[Sequence],
        result: StepResult,
        seconds: float,
    ) -> None:
        """A step that took so long, before its rounds are. decoding: whose its decode rows are."""
        if not self._on:
            return
        self._step_s += (_OF_NEWEST if self._step_s else 1.0) * (seconds - self._step_s)
        self._budget.earn(seconds, self._most_s(served=False))
        if result.kept is None:
            return
        for at, (row, decoded) in enumerate(zip(plan.decodes, result.decoded, strict=True)):
            if row.slot == plan.kept_slot and not decoded.failure:
                self._pending = _replay(plan, decoding[at], row, decoded, result.kept)
                self._pending_since = plan.number

    def take(self, spare_bytes: int, *, served: bool) -> Replay | None:
        """What to compute now, between two steps; each once. served: somebody waits for it."""
        replay = self._pending
        if replay is None or self._bytes(replay) > spare_bytes:
            return None
        priced = self._priced_s(replay.start, replay.rows)
        long = self._budget.expected_s(priced) > self._most_s(served=served)
        if long or not self._budget.affords(priced):
            return None
        self._pending = None
        return replay

    def told(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """What came of one that was taken, and how long it took."""
        self._budget.spend(self._priced_s(replay.start, replay.rows), seconds)
        self._meters.count_replay(replayed.verdict)

    def _most_s(self, *, served: bool) -> float:
        """What one may take."""
        limits = self._limits
        seconds = limits.check_s_max if served else limits.check_idle_s_max
        return max(seconds, STEPS_MAX * self._step_s)

    def _priced_s(self, start: int, rows: int) -> float:
        """What a prompt of `start` tokens takes here, and `rows` single tokens behind it."""
        read = self._time.slice(1, 0, start) if start else 0.0
        return read + rows * self._time.row(1, 1, start)

    def _bytes(self, replay: Replay) -> int:
        """Most that is there at once: K/V of its own, and a slice's transient or a row's."""
        facts, tokens = self._facts, len(replay.tokens)
        slices = min(tokens, self._limits.prefill_tokens_max)
        step = facts.prefill_bytes(slices, tokens) + facts.round_bytes(1, tokens)
        return facts.live_bytes(tokens) + step + facts.late_bytes(slices)


def _replay(
    plan: StepPlan, sequence: Sequence, row: DecodeRow, decoded: Decoded, kept: object
) -> Replay:
    rows = len(decoded.tokens)
    tokens = (*sequence.request.prompt, *sequence.reply.tokens, *decoded.tokens[:-1])
    assert len(tokens) == row.start + rows, f"C1: {len(tokens)} tokens: {sequence.tell()}"
    sampling = sequence.request.sampling
    kind = "greedy" if sampling.greedy else "seeded" if sampling.seeded else "drawn"
    story = (
        f"step {plan.number}: tokens [{row.start}, {row.start + rows}) of slot {row.slot}, {kind}, "
        f"depth {row.depth}, beside {len(plan.decodes) - 1} rows and "
        f"{sum(len(p.tokens) for p in plan.prefills)} prompt tokens, "
        f"[0, {sequence.base}) by reference; {sequence.tell()}"
    )
    return Replay(tokens, rows, kept, story)
