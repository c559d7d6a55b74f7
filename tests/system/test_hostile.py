"""What one client sends does not keep a running stream waiting."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import pytest

from sapwood import AsyncClient
from sapwood.daemon.demo.process import DaemonProcess
from tests.quick import few_quick
from tests.system.hostile import KINDS
from tests.system.test_daemon import ENDLESS, serving

# A text or Tokenize once held up every stream for 2 s, control tokens for 0.1 s. Beside others that
# compute each gap is some times as long by itself.
SLACK, SLACK_S = 1.5, 0.05
ATTACK_S = 1.0
ATTEMPTS = 5  # the machine has others to serve, and a gap of theirs is no gap of the daemon's


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with serving(tmp_path_factory.mktemp("hostile")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Another daemon: what is done to it costs the same processor as much."""
    with serving(tmp_path_factory.mktemp("neighbour")) as neighbour:
        yield neighbour


async def _worst_gap_s(address: str, seconds: float) -> float:
    """Between two messages of a stream."""
    worst_s, until = 0.0, time.monotonic() + seconds
    async with AsyncClient(address) as client:
        stream = client.generate((2, 5, 9), max_tokens=ENDLESS, ignore_eos=True, temperature=0.0)
        last = None
        async for _ in stream:
            now = time.monotonic()
            worst_s = max(worst_s, now - (last or now))
            last = now
            if now > until:
                return worst_s
    raise AssertionError("the stream ended by itself")


async def _attack(address: str, kind: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "tests.system.hostile", address, kind, str(ATTACK_S), "2")
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


_SERVED = ("many messages", "a content of marks")  # and cost that
_REFUSED = [kind for kind in KINDS if kind not in _SERVED]


# The quick one once froze every stream. The others are as many ways to the same places.
@pytest.mark.parametrize("kind", few_quick(_REFUSED, "text"))
def test_a_hostile_request_holds_up_nobody(
    daemon: DaemonProcess, neighbour: DaemonProcess, kind: str
) -> None:
    """The worst gap of a stream is that beside an attack on another daemon, or not much more.

    What the attack costs the processor is not the daemon's to answer for.
    """

    async def worst_gap_s(attacked: DaemonProcess) -> float:
        attack = await _attack(attacked.address, kind)
        worst_s = await _worst_gap_s(daemon.address, ATTACK_S + 1)
        sent, _ = await attack.communicate()
        assert attack.returncode == 0
        assert int(sent) > 0
        return worst_s

    async def both() -> tuple[float, float]:
        return await worst_gap_s(neighbour), await worst_gap_s(daemon)

    seen: list[tuple[float, float]] = []
    for _ in range(ATTEMPTS):
        beside_s, attacked_s = asyncio.run(both())
        if attacked_s <= SLACK * beside_s + SLACK_S:
            return
        seen.append((round(beside_s, 3), round(attacked_s, 3)))
    raise AssertionError(f"gaps in seconds (another attacked, this one attacked): {seen}")
