"""The fake device with bytes, latencies and a failing allocation.

- Rows lie where the device's own Placement puts them, and pools weigh what they do there, holes
  too: to the byte what the ledger says that slots have (M1). Payloads weigh what they hold, and
  stay within what is reserved. What is copied out of a slot fits beside all slots that there were.
- Copies count as allocations: `Tracker.operations_until_failure` makes the Nth one fail. Within a
  step all slots are gone then, and the step is lost.
- A step takes what the scenario's cost shape says, times what slows it; a hitch comes by the step's
  number, so that the same scenario has the same times.
"""

from __future__ import annotations

from functools import partial

from sapwood.cache.arrays.placement import Placement
from sapwood.cache.geometry import row_tokens
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import Admit, Capture, PrefillSlice, StepPlan
from sapwood.scheduler.replay import Replay
from sapwood.scheduler.result import Prefilled, StepLost, StepResult
from tests.fakes import OutOfDeviceMemory, Tracker
from tests.scheduler.fake_device import FakeDevice
from tests.sim.story import Config

HITCH_STEPS = 37


class SimDevice(FakeDevice):
    """A FakeDevice of one configuration. `slow`: how many times as long its steps take now."""

    def __init__(self, config: Config, facts: ModelFacts, limits: Limits, ledger: Ledger) -> None:
        tracker = Tracker(config.full_bytes, config.sliding_bytes, config.page_bytes)
        super().__init__(facts, limits, config.quality, tracker)
        self.slow = 1.0
        self.heals = False  # whether it fails only once
        self._made: list[Payload] = []  # by the step under way
        self._config = config
        self._ledger = ledger
        self._rows, self._rings = self._no_rows()

    def run(self, plan: StepPlan) -> StepResult:
        self._made.clear()
        try:
            result = super().run(plan)
        except OutOfDeviceMemory:
            self._lose()
            raise StepLost from None
        self._move(plan)
        assert self.live_bytes == self._ledger.held("live"), (
            f"M1: slots of {self.live_bytes} bytes, {self._ledger.held('live')} reserved"
        )
        held = self._ledger.held("snapshots")
        stored = self.tracker.bytes + self.tracker.buffers * self.facts.reuse_bytes
        assert stored <= held, f"M1: {stored} bytes stored, {held} reserved"
        return result

    def forget(self, plan: StepPlan) -> None:
        """The step is lost as it was when it was played first."""
        self.steps = plan.number
        self._made.clear()
        self._lose()

    def _lose(self) -> None:
        """Slots, their rows and what the step made: all of it is gone."""
        for payload in self._made:
            payload.close()
        self.slots.clear()
        self._rows, self._rings = self._no_rows()
        if self.heals:
            self.tracker.operations_until_failure = None

    def _no_rows(self) -> tuple[Placement, Placement]:
        sized = partial(row_tokens, tokens_min=self.facts.row_tokens_min)
        return Placement(sized), Placement(lambda _: 1)

    @property
    def live_bytes(self) -> int:
        """Live K/V of all slots, and the holes that others have left in pools."""
        facts, rows = self.facts, self._rows
        classes = {place.capacity for place in rows.places.values()}
        full = sum(rows.rows(capacity) * capacity for capacity in classes)
        rings = self._rings.rows(1) * facts.ring_bytes
        own = len(rows.places) * facts.slot_bytes
        return full * facts.full_bytes_per_token + rings + own

    def _move(self, plan: StepPlan) -> None:
        """As the device does: LiveCaches in the runner's order."""
        rows, rings = self._rows, self._rings
        for slot in plan.releases:
            rows.free(slot)
            rings.free(slot)
        if plan.pack:
            rows.pack()
            rings.pack()
        rows.reserve((grow.slot, grow.room) for grow in plan.grows)
        for admit in plan.admits:
            rows.begin_at(admit.slot, admit.base)
            rows.reserve([(admit.slot, admit.room)])
            rings.reserve([(admit.slot, 1)])
        for seal in plan.seals:
            rows.free(seal.slot)
            rows.begin_at(seal.slot, self.slots[seal.slot].base)
            rows.reserve([(seal.slot, seal.room)])

    def seconds(self, plan: StepPlan) -> float:
        hitch = self._config.hitch_s if plan.number % HITCH_STEPS == 0 else 0.0
        return self.slow * self.steady_s(plan) + hitch

    def replay_s(self, replay: Replay) -> float:
        config = self._config
        return self.slow * (config.step_s * (1 + replay.rows) + config.token_s * len(replay.tokens))

    @property
    def token_s(self) -> float:
        """Of a step's tokens each, where nothing slows it."""
        return self._config.token_s

    def steady_s(self, plan: StepPlan) -> float:
        """What it takes where nothing slows it."""
        config, depth = self._config, max((row.iterations for row in plan.decodes), default=0)
        return config.step_s + config.token_s * plan.tokens + config.draft_s * depth

    def _capture(self, capture: Capture) -> Payload:
        self.tracker.operate()
        payload = super()._capture(capture)
        self._made.append(payload)
        ledger, reuse = self._ledger, self.facts.reuse_bytes
        held = self.live_bytes + self.tracker.bytes + self.tracker.buffers * reuse
        room = ledger.budget_bytes - ledger.weights_bytes
        assert held <= room, f"M1: {held} bytes with a capture, {room} there are"
        return payload

    def _admit(self, admit: Admit) -> None:
        self.tracker.operate()
        super()._admit(admit)

    def _prefill(self, piece: PrefillSlice) -> Prefilled:
        self.tracker.operate()
        prefilled = super()._prefill(piece)
        if prefilled.payload is not None:
            self._made.append(prefilled.payload)
        return prefilled
