"""The fake device with bytes, latencies and a failing allocation.

- Every slot weighs what its live K/V would, grown as it grows; payloads weigh what they hold. All
  of it has to stay within what the ledger says is reserved for it (M1), at every boundary.
- Copies count as allocations: `Tracker.operations_until_failure` makes the Nth one fail.
- A step takes what the scenario's cost shape says, times what slows it; a hitch comes by the step's
  number, so that the same scenario has the same times.
"""

from __future__ import annotations

from sapwood.cache.geometry import row_tokens
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import Admit, Capture, PrefillSlice, StepPlan
from sapwood.scheduler.result import Prefilled, StepResult
from tests.fakes import Tracker
from tests.scheduler.fake_device import FakeDevice
from tests.sim.story import Config

HITCH_STEPS = 37


class SimDevice(FakeDevice):
    """A FakeDevice of one configuration. `slow`: how many times as long its steps take now."""

    def __init__(self, config: Config, facts: ModelFacts, limits: Limits, ledger: Ledger) -> None:
        tracker = Tracker(config.full_bytes, config.sliding_bytes, config.page_bytes)
        super().__init__(facts, limits, config.quality, tracker)
        self.slow = 1.0
        self._config = config
        self._ledger = ledger

    def run(self, plan: StepPlan) -> StepResult:
        result = super().run(plan)
        assert self.live_bytes <= self._ledger.held("live"), (
            f"M1: slots of {self.live_bytes} bytes, {self._ledger.held('live')} reserved"
        )
        held = self._ledger.held("snapshots")
        stored = self.tracker.bytes + self.tracker.buffers * self.facts.reuse_bytes
        assert stored <= held, f"M1: {stored} bytes stored, {held} reserved"
        return result

    @property
    def live_bytes(self) -> int:
        """Live K/V of all slots: rings whole, full layers from the base on, in classes."""
        facts = self.facts
        rows = (
            row_tokens(len(slot.log) - slot.base, facts.row_tokens_min)
            for slot in self.slots.values()
        )
        return sum(facts.ring_bytes + row * facts.full_bytes_per_token for row in rows)

    def seconds(self, plan: StepPlan) -> float:
        config, depth = self._config, max((row.depth for row in plan.decodes), default=0)
        seconds = config.step_s + config.token_s * plan.tokens + config.draft_s * depth
        hitch = config.hitch_s if plan.number % HITCH_STEPS == 0 else 0.0
        return self.slow * seconds + hitch

    def _capture(self, capture: Capture) -> Payload:
        self.tracker.operate()
        return super()._capture(capture)

    def _admit(self, admit: Admit) -> None:
        self.tracker.operate()
        super()._admit(admit)

    def _prefill(self, piece: PrefillSlice) -> Prefilled:
        self.tracker.operate()
        return super()._prefill(piece)
