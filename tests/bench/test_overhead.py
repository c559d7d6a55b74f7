"""HTTP beside gRPC: figures of bursts that are known, and whose CPU is whose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from bench.measure import BenchError
from bench.overhead import ClientsDoor, DoorBurst, gateway_of, overhead_figures
from bench.peers.heard import Heard
from bench.peers.processes import CpuReading, read_cpu

TEXT = "What is a river?"


def burst(first_text_s: float, span_s: float, cpu: tuple[float, float] | None) -> DoorBurst:
    """Two clients, asked together; CPU of gateway and worker."""
    heard = [Heard(1.0, (1.0 + first_text_s,), 1.0 + span_s, TEXT, 9) for _ in range(2)]
    return DoorBurst(heard, *(cpu or (None, None)))


def door(name: str, bursts: Sequence[DoorBurst]) -> ClientsDoor:
    made = ClientsDoor(name, lambda address, count: pytest.fail("nobody is asked"), "")
    made.bursts.extend(bursts)
    return made


def test_the_figures_are_http_by_grpc() -> None:
    http = [burst(0.3, 2.0, (0.2, 1.0)), burst(0.2, 2.0, (0.4, 1.0))]
    direct = [burst(0.2, 1.5, (0.0, 0.5)), burst(0.2, 2.0, (0.0, 0.5))]
    rate, first = overhead_figures(door("gRPC", direct), door("HTTP", http))
    assert rate.ratios == pytest.approx([0.75, 1.0]) and rate.met is False
    assert first.ratios == pytest.approx([1.5, 1.0]) and first.spread.median == pytest.approx(1.25)
    tokens = http[0].tokens
    assert tokens > 4
    assert rate.details == pytest.approx(
        {
            "gateway_cpu_ms_a_token": 300 / tokens,
            "worker_cpu_ms_a_token_over_http": 1000 / tokens,
            "worker_cpu_ms_a_token_over_grpc": 500 / tokens,
        }
    )


def test_where_nobody_tells_of_cpu_nothing_is_said_of_it() -> None:
    rate, _ = overhead_figures(*(door(name, [burst(0.2, 2.0, None)]) for name in ("gRPC", "HTTP")))
    assert rate.details == {}


@pytest.mark.skipif(read_cpu() is None, reason="/proc is Linux's")
def test_the_gateway_is_found_among_the_daemons_processes() -> None:
    """Known by its command line; of the others here none has that."""
    waiting = [sys.executable, "-c", "input()", "sapwood.daemon.gateway.leash"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as gateway:
        try:
            reading = read_cpu()
            assert reading is not None
            assert gateway_of(os.getpid(), reading) == gateway.pid
        finally:
            gateway.kill()
    alone = CpuReading(0.0, {}, {})
    with pytest.raises(BenchError):
        gateway_of(os.getpid(), alone)
