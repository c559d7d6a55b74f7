"""Both sides of a comparison give as many tokens where bits are promised, and only there."""

from __future__ import annotations

import mlx.core as mx
import pytest

from bench import speculation
from bench.clients import Served, TimedReply
from bench.measure import BenchError
from sapwood.client.values import Usage


def served(tokens: int) -> Served:
    return Served(
        (TimedReply(0.0, 0.5, 1.0, tokens, Usage(1, 0, tokens, tokens, 0, 0, 0, 0.0, 0.5, 0.5)),)
    )


@pytest.mark.parametrize("kind", [mx.cpu, mx.gpu])
def test_as_many_tokens_are_well_anywhere(
    kind: mx.DeviceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    told = speculation._story(8, served(30), served(30))
    assert told == "clients 8: MTP 30, depth 0 30 tokens/s"


def test_on_a_cpu_other_counts_end_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    with pytest.raises(BenchError, match="31 tokens with MTP, 30 without: not lossless"):
        speculation._story(8, served(30), served(31))


def test_on_a_gpu_other_counts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may part within rounding; a quick benchmark of a device must not end there."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    told = speculation._story(8, served(30), served(31))
    assert told.endswith("; 31 tokens with MTP, 30 without")
