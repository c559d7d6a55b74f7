"""How much slower prompts make those who decode (L3), by the device's own times.

- Looked at are steps that one prompt shares with decode rows, of one principal, once some such were
  seen: nobody is owed more then, and what slices cost is known.
- What a step takes beside what its rows take is held to the target, with room for what is tried and
  for what was learned of other steps, over the newest few of them. Less one token: steps of one are
  not looked at, and where a token takes half as long as rows do, two are no mistake.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from sapwood.scheduler.core.core import Core
from sapwood.scheduler.core.sequence import SequenceState
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from tests.sim.device import SimDevice

LEARNED_STEPS = 24
NEWEST_STEPS = 12
ROOM = 1.4  # times the target, of their mean


class PaceChecks:
    """Over the plans of one core, on a device whose times are known."""

    def __init__(self, core: Core, device: SimDevice, limits: Limits) -> None:
        self._core, self._device, self._limits = core, device, limits
        self._seen = 0
        self._newest: deque[float] = deque(maxlen=NEWEST_STEPS)

    def planned(self, plan: StepPlan | None) -> None:
        """Before the plan is carried out."""
        if plan is None or not plan.decodes or not plan.prefills:
            return
        self._seen += 1
        roster = self._core._roster
        principals = {s.request.principal for s in (*roster.live.values(), *roster.waiting)}
        one = len(roster.in_state(SequenceState.PREFILL)) == len(principals) == 1
        tokens = sum(len(piece.tokens) for piece in plan.prefills)
        if self._seen <= LEARNED_STEPS or not one or tokens < 2:
            return
        rows_s = self._device.steady_s(replace(plan, prefills=()))
        token_s = self._device.token_s
        self._newest.append((self._device.steady_s(plan) - token_s) / rows_s)
        mean = sum(self._newest) / len(self._newest)
        most = ROOM * self._limits.itl_target
        full = len(self._newest) == NEWEST_STEPS
        assert not full or mean <= most, f"L3: steps with prompts take {mean} times as long"
