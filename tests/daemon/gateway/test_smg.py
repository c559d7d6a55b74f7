"""The gateway beside the daemon: started, restarted, ended, with a stand-in for SMG itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sapwood import Client
from sapwood.daemon.errors import StartError
from sapwood.daemon.gateway import smg as smg_file
from sapwood.daemon.gateway.http_key import read_key
from sapwood.daemon.gateway.smg import Smg
from sapwood.daemon.settings.addresses import TcpAddress
from tests.daemon.conftest import config_for, until
from tests.daemon.gateway.conftest import needs_protocol
from tests.daemon.gateway.stand_in.smg.router import value_of
from tests.daemon.process.processes import appeared, ended, started, wait_for

pytestmark = pytest.mark.anyio

STAND_IN = Path(__file__).parent / "stand_in"
ROOT = Path(__file__).parents[3]
WORKER = TcpAddress("127.0.0.1", 1)
KEY = "a-key-of-enough-characters"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Returns where it writes its arguments."""
    told = tmp_path / "told.json"
    monkeypatch.setenv("PYTHONPATH", f"{STAND_IN}{os.pathsep}{ROOT}")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("STAND_IN_TOLD", str(told))
    monkeypatch.setattr(smg_file, "RESTART_S_MIN", 0.05)
    return told


def told_to(stand_in: Path) -> list[str]:
    found: list[str] = json.loads(stand_in.read_text())
    return found


@asynccontextmanager
async def beside(**settings: Any) -> AsyncIterator[Smg]:
    smg = Smg(config_for(http="127.0.0.1:0", **settings))
    smg.start(WORKER, None)
    try:
        await smg.wait_ready()
        yield smg
    finally:
        await smg.stop()


def process_of(smg: Smg) -> asyncio.subprocess.Process:
    assert smg._process is not None
    return smg._process


async def test_it_is_started_labelled_in_the_log_and_ended(
    stand_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside() as smg:
        assert smg.base_url == f"http://{smg.address}/v1"
        assert smg.address.port
        process = process_of(smg)
        assert process.returncode is None
    assert process.returncode is not None
    assert {"smg: a line on stdout", "smg: a line on stderr"} <= set(caplog.messages)
    told = told_to(stand_in)
    assert value_of("--worker-urls", told) == f"grpc://{WORKER}"
    assert value_of("--prometheus-host", told) == "127.0.0.1"
    assert value_of("--history-backend", told) == "none"


async def test_it_is_ready_when_it_says_so_and_not_when_it_lists_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN", "slow")
    async with beside() as smg:
        reader, writer = await asyncio.open_connection(smg.address.host, smg.address.port)
        writer.write(b"GET /readiness HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


async def test_a_flood_of_lines_is_cut_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0  # a clock that stands until the last line, however the others are read

    async def lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
        nonlocal now
        async for line in read_lines(stream):
            now += 100.0 if line == "z" else 0.0
            yield line

    read_lines = smg_file._lines
    monkeypatch.setattr(smg_file, "_LINES_MAX", 3)
    monkeypatch.setattr(smg_file, "_lines", lines)
    monkeypatch.setattr(smg_file, "time", SimpleNamespace(monotonic=lambda: now))
    code = "print('x\\n' * 9 + '\\x1b[31m' + 'y' * 9999); print('z')"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE
    )
    await smg_file._relay(process)
    await process.wait()
    assert caplog.messages == [*["smg: x"] * 3, "smg: (7 lines were dropped)", "smg: z"]


async def test_the_control_plane_gets_a_key_that_nobody_knows_and_another_each_time(
    stand_in: Path,
) -> None:
    seen = set()
    for _ in range(2):
        async with beside():
            told = told_to(stand_in)
        admin = value_of("--control-plane-api-keys", told) or ""
        assert admin.startswith("sapwood:sapwood:admin:")
        seen.add(admin)
    assert len(seen) == 2
    assert all(len(admin.rpartition(":")[2]) >= 43 for admin in seen), "256 bits"


async def test_one_that_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async with beside() as smg:
        for _ in range(2):
            process = process_of(smg)
            process.kill()
            await until(lambda: process_of(smg) is not process)  # noqa: B023 (at once)
            await smg.wait_ready()
    assert sum("starting it again" in message for message in caplog.messages) == 2
    assert {record.levelno for record in caplog.records if "again" in record.message} == {
        logging.ERROR
    }


async def test_the_pause_doubles_while_it_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    smg = Smg(config_for(http="127.0.0.1:0"))
    smg._serves = True
    monkeypatch.setattr("asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await smg._keep_running(lambda: [sys.executable, "-c", ""])
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert pauses[-1] == smg_file.RESTART_S_MAX


async def test_one_that_never_serves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "ends")
    with pytest.raises(StartError, match="SMG ends as soon as it starts"):
        async with beside():
            pass


async def test_a_key_goes_from_its_file_to_smg_and_into_no_command_line(
    tmp_path: Path, stand_in: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    async with beside(http_key_file=str(file)) as smg:
        told = told_to(stand_in)
        assert value_of("--api-key", told) == KEY
        line = command_line(process_of(smg).pid)
        assert str(file) in line
        assert KEY not in line
        assert (value_of("--control-plane-api-keys", told) or KEY) not in line


def command_line(pid: int) -> str:
    """As everybody on the machine can read it."""
    command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize("text", ["short", "with a space in it, so no key", "ä" * 20, "x" * 2000])
def test_what_is_no_key_is_refused_without_a_word_of_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(StartError) as caught:
        read_key(file)
    assert text not in str(caught.value)
    with pytest.raises(StartError, match="No such file"):
        read_key(tmp_path / "none")


def test_an_address_in_use_is_known_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match="it is in use"):
            Smg(config_for(http=f"127.0.0.1:{port}"))


@contextmanager
def serving_http(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A daemon process on the fake device with the stand-in beside it, and its ready file."""
    (folder / "c.toml").write_text('http = "127.0.0.1:0"\n')
    with started(folder, "0.01") as process:
        yield process, json.loads(appeared(folder / "ready.json", process).read_text())


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def runs(pid: int) -> bool:
    """A zombie that nobody reaps does not."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, check=False, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")


def child_of(process: subprocess.Popen[str]) -> int:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=True)
    (pid,) = found.stdout.split()
    return int(pid)


@needs_protocol
def test_it_ends_after_the_daemon_has_drained(folder: Path) -> None:
    with serving_http(folder) as (process, ready):
        assert answers(ready["http"]) and answers(ready["gateway"])
        process.terminate()
        code, out, err = ended(process, folder)
    assert (code, out.count(f"http http://{ready['http']}/v1")) == (0, 1), err
    assert not answers(ready["http"])


@needs_protocol
def test_it_ends_with_a_daemon_that_is_killed(folder: Path) -> None:
    with serving_http(folder) as (process, ready):
        assert answers(ready["http"])
        gateway = child_of(process)
        process.kill()
        process.communicate()
        wait_for(lambda: not runs(gateway))


@needs_protocol
def test_its_end_is_nothing_to_clients_of_the_daemon(folder: Path, stand_in: Path) -> None:
    with serving_http(folder) as (process, ready), Client(ready["grpc"][1]) as client:
        stream = client.generate([5, 6, 7], max_tokens=60, draft_tokens=0)
        next(iter(stream))
        stand_in.unlink()
        os.kill(child_of(process), signal.SIGKILL)
        wait_for(stand_in.exists)  # started again
        assert len([id for event in stream for id in getattr(event, "token_ids", ())]) > 40
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[0] == 0


@pytest.mark.long
@needs_protocol
def test_a_daemon_whose_gateway_does_not_serve_says_so_and_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "ends")
    (folder / "c.toml").write_text('http = "127.0.0.1:0"\n')
    with started(folder, "0.01") as process:
        code, _, err = ended(process, folder)
    assert code == 1
    assert err.splitlines()[-1] == (
        "sapwood: --http: SMG ends as soon as it starts; the log has its words"
    )
