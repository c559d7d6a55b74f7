"""Allocations that fail are told by MLX's words, and all is dropped behind the error."""

from __future__ import annotations

import gc
import weakref

import pytest

from sapwood.model.lost_step import attempted, lacks_memory
from sapwood.scheduler.result import StepLost


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[malloc] Unable to allocate 8589934592 bytes."),
        RuntimeError("[malloc_or_wait] Unable to allocate 134217728 bytes."),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 34359738368 bytes which is greater than the "
            "maximum allowed buffer size of 22906503168 bytes."
        ),
        RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_loses_the_step(error: Exception) -> None:
    assert lacks_memory(error)
    dropped = list[str]()

    def fails() -> None:
        raise error

    with pytest.raises(StepLost):
        attempted(fails, lambda: dropped.append("all"))
    assert dropped == ["all"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity"),
        RuntimeError("[matmul] Last dimension of first input must match"),
        ValueError("Unable to allocate anything"),
    ],
)
def test_what_else_fails_is_left_as_it_is(error: Exception) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        attempted(fails, lambda: pytest.fail("dropped"))
    assert raised.value is error


def test_what_the_step_held_is_gone_when_all_is_dropped() -> None:
    """Frames of a failed call hold its arrays as long as the error lives."""

    class Held:
        pass

    seen = list[weakref.ref[Held]]()

    def fails() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        raise RuntimeError("[malloc] Unable to allocate 8 bytes.")

    gc.disable()
    try:
        with pytest.raises(StepLost) as lost:
            attempted(fails, lambda: seen.append(seen[0]) if seen[0]() is None else None)
    finally:
        gc.enable()
    assert len(seen) == 2, "it was still there"
    assert lost.value.__context__ is None


def test_what_works_gives_what_it_gives() -> None:
    assert attempted(lambda: 7, lambda: pytest.fail("dropped")) == 7
