"""Steps that MLX has no memory for, on real arrays: whichever call fails, replies are the same.

Calls of the device in a step are made to fail, one in each life: captures, restores, pools that
grow, parts of the forward, the wait. What the tree asks to be copied between steps is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from sapwood.cache.arrays.ranges import Copies
from sapwood.model.runner import Runner
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.device_log import NO_MEMORY, START, SYNCHRONIZE, WAIT
from tests.quick import few_quick
from tests.system.pairs import pair, prompts
from tests.system.stack import Stack, Stream

ROW_TOKENS = 16
STRIDE = 17  # of the calls, one of so many is made to fail
LIMITS = Limits(slots_max=3, prefill_tokens_max=24)
SAMPLINGS = (
    Sampling(),
    Sampling(0.9, 40, 0.9, seeded=True, noise_key=11),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, logit_bias=((9, 2.0),)),
)


class Failing:
    """Calls of the device within steps, of which number `fails` raises, once. 0: none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = self.fails = 0
        self._within = False
        for name in (START, WAIT, SYNCHRONIZE):
            patch.setattr(mx, name, self._counted(getattr(mx, name)))
        for owner, method, within in (
            (Runner, "submit", True),
            (Runner, "wait", True),
            (Runner, "_lose", False),
            (Copies, "make", False),
        ):
            patch.setattr(owner, method, self._set(getattr(owner, method), within))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> None:
            if self._within:
                self.calls += 1
                if self.calls == self.fails:
                    raise RuntimeError(NO_MEMORY)
            call(*args)

        return counted

    def _set(self, work: Callable[..., Any], within: bool) -> Callable[..., Any]:
        """`work`, while which calls count or do not."""

        def done(*args: Any) -> Any:
            before, self._within = self._within, within
            try:
                return work(*args)
            finally:
                self._within = before

        return done


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch)


def served(name: str) -> tuple[Stack, list[Stream]]:
    """Four requests in three slots, two of them behind one prefix; rows grow within replies."""
    stack = Stack(pair(name), LIMITS, row_tokens_min=ROW_TOKENS)
    known = [token for prompt in prompts(name) for token in prompt]
    asked = [known[:40], (*known[:32], *known[50:58]), known[60:70], known[70:95]]
    streams = [
        stack.submit(prompt, 14, sampling=SAMPLINGS[at % 3]) for at, prompt in enumerate(asked)
    ]
    stack.run()
    return stack, streams


@pytest.mark.parametrize("name", few_quick(["e2b-tiny", "a4b-tiny"], "e2b-tiny"))
def test_whichever_call_lacks_memory_replies_are_the_same(name: str, failing: Failing) -> None:
    whole, due = served(name)
    calls = failing.calls
    whole.close()
    lost = 0
    for call in range(1, calls + 1, STRIDE):
        failing.calls, failing.fails = 0, call
        stack, streams = served(name)
        assert [stream.tokens for stream in streams] == [stream.tokens for stream in due], call
        lost += bool(stack.core.stats().parks)
        stack.close()
        assert stack.runner.frontier.size == 0
    assert calls > 60 and lost > calls // STRIDE // 2, f"{lost} losses of {calls} calls"
