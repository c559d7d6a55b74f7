"""The daemon's log: in order, and in nobody's way (R6)."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sapwood import Client
from sapwood.daemon import log
from sapwood.daemon.log import LINES_MAX, LineWriter, log_over
from tests.daemon.fakes import reply_to
from tests.daemon.process.processes import serving


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def fill(write_end: int) -> int:
    """Until not a byte more goes in; returns how many did."""
    os.set_blocking(write_end, False)
    filled = 0
    try:
        while True:
            filled += os.write(write_end, b"." * 512)
    except BlockingIOError:
        os.set_blocking(write_end, True)
    return filled


def logger_to(writer: LineWriter) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(writer)
    return logger


def test_lines_come_out_in_order(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    for number in range(100):
        logger_to(writer).warning("line %d", number)
    writer.flush()
    assert os.read(pipe[0], 1 << 16).decode() == "".join(f"line {n}\n" for n in range(100))


def test_a_line_takes_the_place_of_what_is_drawn_last(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.addFilter(logging.Filter("root"))  # threads that other tests left may log, too
    logging.getLogger().addHandler(writer)
    try:
        for bar in (True, False):
            log_over(bar)
            logging.getLogger().warning("a line")
            writer.flush()
    finally:
        logging.getLogger().removeHandler(writer)
    assert os.read(pipe[0], 1 << 16) == b"\r\x1b[2Ka line\na line\n"


def test_r6_a_stderr_that_nobody_reads_holds_up_nobody(pipe: tuple[int, int]) -> None:
    filled = fill(pipe[1])
    writer = LineWriter(pipe[1])
    logger = logger_to(writer)
    for number in range(LINES_MAX + 50):
        logger.warning("line %d", number)
    began = time.monotonic()
    writer.flush()
    assert time.monotonic() - began < 10, "it has a limit"
    read = os.read(pipe[0], filled)
    while b"line 999\n" not in read:
        read += os.read(pipe[0], 1 << 16)
    logger.warning("the last")
    while b"the last" not in read:
        read += os.read(pipe[0], 1 << 16)
    lines = read.lstrip(b".").decode().splitlines()
    dropped = re.fullmatch(r"(\d+) lines were dropped", lines[-2])
    assert dropped is not None and lines[-1] == "the last"
    kept = LINES_MAX + 50 - int(dropped[1])
    assert lines[:-2] == [f"line {number}" for number in range(kept)]
    assert LINES_MAX <= kept <= LINES_MAX + 1, "one may be in the thread's hands"


def test_a_stderr_whose_reader_left_is_passed_over() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = LineWriter(write_end)
    logger = logger_to(writer)
    for number in range(2 * LINES_MAX):
        logger.warning("to nobody")
        if not number % 100:  # each of these waits for the writer's thread
            writer.flush()
    writer.flush()
    os.close(write_end)


def test_at_the_end_what_waits_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    fill(write_end)
    monkeypatch.setattr(log, "LAST_LINES_S", 0.05)
    writer = LineWriter(write_end)
    logger_to(writer).warning("late")
    writer.flush()  # gives up
    while b"late" not in os.read(read_end, 1 << 16):
        pass
    writer.flush()
    os.close(read_end)
    os.close(write_end)


def test_r6_a_daemon_serves_while_its_stderr_is_full(tmp_path: Path, pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    with serving(tmp_path, "0", popen={"stderr": pipe[1]}) as (process, ready):
        os.kill(process.pid, signal.SIGHUP)  # a line in the log
        with closing(Client(ready["grpc"][-1])) as client:
            for ids in ([5, 6], [7, 8]):
                reply = client.generate(ids, max_tokens=5, timeout=30).collect()
                assert list(reply.token_ids) == reply_to(ids, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_daemon_logs_as_it_is_told(tmp_path: Path) -> None:
    """Each request is one object on a line, and the prompt is nowhere."""
    settings = {"log_format": "json", "log_level": "info"}
    with serving(tmp_path, "0", settings=settings) as (process, ready):
        with closing(Client(ready["grpc"][-1])) as client:
            client.generate("the name of the rose", max_tokens=5, timeout=30).collect()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    (line,) = [json.loads(line) for line in err.splitlines()]
    assert (line["message"], line["outcome"], line["completion_tokens"]) == ("request", "length", 5)
    assert "rose" not in err and "\\u" not in err


def test_a_daemon_that_is_to_be_quiet_says_nothing_of_requests(tmp_path: Path) -> None:
    with serving(tmp_path, "0", settings={"log_level": "warning"}) as (process, ready):
        with closing(Client(ready["grpc"][-1])) as client:
            client.generate([5, 6], max_tokens=5, timeout=30).collect()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1] == ""
