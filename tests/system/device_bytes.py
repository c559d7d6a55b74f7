"""What the device holds while a stack serves, held against the ledger after every step (M1)."""

from __future__ import annotations

import gc

import mlx.core as mx

from tests.system.stack import Stack
from tests.system.traffic import Traffic

MLX_SCALARS_BYTES = 1024  # MLX keeps a few of its own


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
