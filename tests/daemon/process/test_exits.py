"""What a daemon cannot write, and whose files it removes: real processes, one line, one code."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest

from sapwood import AsyncClient, Cancelled, Client, Stream, Unavailable
from sapwood.daemon.errors import StartError
from sapwood.daemon.process.ready import ReadyFile
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import config_for, until
from tests.daemon.fakes import FakeDevice, make_loader
from tests.daemon.process.processes import ended, serving, started

HERE = TcpAddress("127.0.0.1", 1)


def reader_gone() -> int:
    """The writing end of a pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        (reader_gone, "Broken pipe"),
        (lambda: os.open("/dev/full", os.O_WRONLY), "No space left on device"),
        (None, "standard output is closed"),
    ],
)
def test_stdout_that_takes_no_line_ends_the_daemon(folder: Path, stdout: Any, reason: str) -> None:
    options = {"preexec_fn": lambda: os.close(1)} if stdout is None else {"stdout": stdout()}
    with started(folder, "0", **options) as process:
        code, _, err = ended(process, folder)
    assert code == 1
    said = f"cannot write the ready line{'' if stdout is None else ' to standard output'}"
    assert err == f"sapwood: {said}: {reason}\n"


def test_a_stderr_that_takes_no_line_changes_no_code(folder: Path) -> None:
    with started(folder, "refused", stderr=reader_gone()) as process:
        assert ended(process, folder)[0] == 1
    with serving(folder, "0", popen={"stderr": reader_gone()}) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[0] == 0


def test_a_ready_file_that_cannot_be_is_refused_before_the_load(folder: Path) -> None:
    (folder / "ready.json").mkdir()
    with started(folder, "0") as process:
        err = process.communicate()[1]
    assert process.returncode == 1
    assert err == f"sapwood: cannot write the ready file {folder}/ready.json: it is a folder\n"
    assert not (folder / "loading").exists()


def test_a_ready_file_takes_the_place_of_no_device(folder: Path) -> None:
    """Renamed over one, the file would stand there for the whole machine."""
    path = folder / "ready.json"
    os.mkfifo(path)
    with pytest.raises(StartError, match="it is no plain file"):
        ReadyFile(path).check()
    assert path.is_fifo()


def test_a_ready_file_in_a_missing_folder(folder: Path) -> None:
    path = folder / "missing" / "ready.json"
    with pytest.raises(StartError, match=r"cannot write the ready file .*: No such file"):
        ReadyFile(path).check()


def test_a_ready_file_on_a_read_only_file_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There nothing can be written, and what was not written cannot be removed either."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    file = ReadyFile(folder / "ready.json")
    file.check()
    for name in ("write_text", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(StartError, match=r"cannot write the ready file .*: Read-only file system"):
        file.write([HERE], HERE)
    file.remove()


def test_a_ready_file_that_a_later_daemon_wrote_stays(folder: Path) -> None:
    """Also where the file system gives a removed file's inode to the next one at once."""
    path = folder / "ready.json"
    files = [ReadyFile(path) for _ in range(4)]
    for number, file in enumerate(files):
        file.write([TcpAddress("127.0.0.1", number)], HERE)
    for file in files[:-1]:
        file.remove()
    assert json.loads(path.read_text())["grpc"] == ["127.0.0.1:3"]
    files[-1].remove()
    assert not path.exists()


def test_the_first_of_two_daemons_leaves_the_seconds_ready_file(folder: Path) -> None:
    path, other = folder / "ready.json", folder / "other.json"
    with serving(folder, "0") as (process, _):
        other.write_text("the second's")
        other.replace(path)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0
        assert path.read_text() == "the second's"


@pytest.mark.anyio
async def test_a_new_daemon_on_the_socket_of_one_that_still_leaves(folder: Path) -> None:
    """The old one has closed its listener and waits for its engine, which hangs in the device."""
    with serving(folder, "stuck", drain_s_max=0.1) as (old, ready):
        with Client(ready["grpc"][1]) as client:
            stream = client.generate([5, 6, 7], max_tokens=9)
            Thread(target=cut_off, args=[stream], daemon=True).start()
            await until(lambda: b"sapwood_requests_running 1" in scraped(ready["metrics"]))
            old.send_signal(signal.SIGTERM)
            await until(lambda: not answers(folder / "s"))
            new = Daemon(
                config_for(listen=[f"unix:{folder}/s"]), make_loader(FakeDevice(), Limits())
            )
            await new.start()
            assert await new.wait_loaded()
            assert old.poll() is None, "it has not left yet"
        await until(lambda: old.poll() is not None)
        async with AsyncClient(f"unix:{folder}/s") as other:
            assert len((await other.generate([5], max_tokens=3).collect()).token_ids) == 3
        assert await new.stop() == 0
        assert not (folder / "s").exists()


def scraped(address: str) -> bytes:
    with urlopen(f"http://{address}/metrics") as answer:
        return bytes(answer.read())


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def cut_off(stream: Stream) -> None:
    """The daemon's end is seen, or it is asked for again when the client is closed."""
    with pytest.raises((Cancelled, Unavailable)):
        stream.collect()
