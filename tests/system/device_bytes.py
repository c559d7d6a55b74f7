"""What the device holds while a stack serves, held against the ledger after every step (M1)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest

from sapwood.model import device
from tests.system.stack import Stack
from tests.system.traffic import Traffic

MLX_SCALARS_BYTES = 1024  # MLX keeps a few of its own


@contextmanager
def exact_buffers(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Buffers are as large as asked for: MLX keeps none, and nothing is reserved for those."""
    limit = mx.set_cache_limit(0)
    patch.setattr(device, "reuse_bytes", lambda: 0)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)


def active_bytes() -> int:
    """Of MLX, without what Python has let go of."""
    gc.collect()
    return mx.get_active_memory()


def slack_of(stack: Stack) -> int:
    """All that no ledger counts."""
    return stack.runner.frontier.nbytes + MLX_SCALARS_BYTES


def serve_within_the_ledger(stack: Stack, traffic: Traffic, requests: int, before: int) -> None:
    """before: active bytes when the stack was not there yet."""
    for _ in traffic.steps(stack, requests):
        held = stack.ledger.view()
        counted = held.live + held.snapshots + held.workspace
        assert mx.get_active_memory() - before <= counted + slack_of(stack), f"M1: {held}"
