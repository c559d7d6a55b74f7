"""Prefixes that outlive the process, over a socket, with the bundled pair."""

from __future__ import annotations

import os
import signal
import stat
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sapwood import Client, Reply, SapwoodError, Tier
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command

PROMPT = "The old lighthouse keeper counted ships every evening. " * 30
START_S_MAX = 90.0


@contextmanager
def serving(cache: Path, *flags: str) -> Iterator[DaemonProcess]:
    command = serve_command("--cache-dir", str(cache), "--cache-disk", "1GiB", *flags)
    with running(command, os.environ, time.monotonic() + START_S_MAX) as daemon:
        yield daemon


def ask(daemon: DaemonProcess, prompt: str = PROMPT) -> Reply:
    with Client(daemon.address) as client:
        return client.generate(prompt, max_tokens=12, temperature=0.0).collect()


def metric(daemon: DaemonProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://{daemon.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    [value] = [line.split(" ")[1] for line in lines if line.startswith(f"sapwood_{name} ")]
    return float(value)


def written(daemon: DaemonProcess) -> float:
    """Once nothing more is written."""
    last = -1.0
    while (now := metric(daemon, 'page_out_bytes_total{tier="disk"}')) != last or not now:
        last = now
        time.sleep(0.3)
    return now


def blocks_in(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_a_warm_restart_serves_its_first_hit_from_disk(tmp_path: Path) -> None:
    """C6 and S1, after kill -9; and what is cleared is gone before it is told (T14)."""
    cache = tmp_path / "cache"
    with suppress(DemoError), serving(cache) as daemon:
        cold = ask(daemon)
        assert cold.finish.usage.cached_tokens == 0
        written(daemon)
        assert metric(daemon, 'disk_state{state="ok"}') == 1
        os.kill(daemon.pid, signal.SIGKILL)
    assert {stat.S_IMODE(path.stat().st_mode) for path in blocks_in(cache)} == {0o600}
    with serving(cache) as daemon:
        warm = ask(daemon)
        assert warm.token_ids == cold.token_ids and warm.text == cold.text
        usage = warm.finish.usage
        assert usage.cached_tokens == usage.prompt_tokens // 128 * 128 > 0
        assert metric(daemon, 'page_in_bytes_total{tier="disk"}') > 0
        with Client(daemon.address) as client:
            nodes = list(client.describe_tree())
            assert any(size for n in nodes for (t, _), size in n.stored.items() if t is Tier.DISK)
            client.clear_cache()
        assert not blocks_in(cache)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_folder_full_of_damage_serves_the_same_text(tmp_path: Path) -> None:
    """T3: and so does a folder that is in use, not at all."""
    cache = tmp_path / "cache"
    with serving(cache) as daemon:
        cold = ask(daemon)
        written(daemon)
        with pytest.raises(DemoError, match="another process uses it"), serving(cache):
            pass
    damaged = blocks_in(cache)
    for number, path in enumerate(damaged):
        data = bytearray(path.read_bytes())
        data[(number * 7919) % len(data)] ^= 4
        path.write_bytes(data)
    with serving(cache) as daemon:
        assert ask(daemon).token_ids == cold.token_ids
        assert 0 < metric(daemon, "disk_quarantined_total") <= len(damaged)
        written(daemon)
    with serving(cache) as daemon:
        again = ask(daemon)
        assert again.token_ids == cold.token_ids


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_folder_that_cannot_be_made_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    """From memory alone; and nobody is told that files are gone where nobody can look."""
    with serving(tmp_path / ("x" * 300)) as daemon:
        assert ask(daemon).finish.usage.cached_tokens == 0
        assert ask(daemon).finish.usage.cached_tokens > 0
        assert metric(daemon, 'disk_state{state="degraded"}') == 1
        with Client(daemon.address) as client, pytest.raises(SapwoodError) as told:
            client.clear_cache()
        assert told.value.reason == "UNSUPPORTED"
