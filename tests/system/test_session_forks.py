"""What a fork takes, beside what it spares: a cold prefill of the same tokens."""

from __future__ import annotations

import time
from random import Random

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.session_events import (
    CreateSession,
    ForkSession,
    SessionCommand,
    SessionKey,
    SessionTold,
    SessionTurn,
    SessionView,
)
from tests.system.pairs import DEMO, pair
from tests.system.stack import Stack

TOKENS, FORKS = 8_000, 16
SHARE_MAX = 0.001


def told(stack: Stack, command: SessionCommand) -> SessionView:
    stack.core.handle(command, stack.now)
    (answer,) = stack.core.take_effects()
    assert isinstance(answer, SessionTold), answer
    return answer.view


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_fork_takes_a_thousandth_of_a_prefill_and_no_bytes_of_the_device() -> None:
    """In processor seconds of this process: what others take of the machine makes none longer."""
    stack = Stack(pair(DEMO), Limits(slots_max=2, prefill_tokens_max=512), check_steps=False)
    key = SessionKey("somebody", "a")
    told(stack, CreateSession(9_000, key, 1e6))
    held = stack.core.session(key, stack.now)
    assert held is not None
    prompt = Random(1).choices(range(100, 2000), k=TOKENS)
    began = time.process_time()
    stack.generate(prompt, 1, session=SessionTurn(key, held.revision))
    prefill_s = time.process_time() - began
    before = stack.tree.full_bytes, stack.tree.bytes, stack.tree.nodes
    for n in range(FORKS):
        began = time.process_time()
        view = told(stack, ForkSession(9_001 + n, key, f"b{n}"))
        fork_s = time.process_time() - began
        assert view.tokens == TOKENS + 1 and not view.parked
        assert fork_s <= SHARE_MAX * prefill_s, f"{fork_s} s beside {prefill_s} s"
    assert (stack.tree.full_bytes, stack.tree.bytes, stack.tree.nodes) == before
    assert not stack.runner.caches.arrays, "nobody has a slot"
    stack.close()
