"""Request ids, in trailers and in the log's one line a request; how RPCs are counted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.log import HumanFormat, JsonFormat, LineWriter
from sapwood.daemon.telemetry.calls import REQUEST_ID_CHARS_MAX
from sapwood.model.prompt.errors import GivenUp, never
from sapwood.scheduler.limits import Limits
from sapwood.v1 import cache_pb2
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import (
    Running,
    collect,
    error_of,
    open_rpcs,
    prompt_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import ByteTokenizer, FakeDevice
from tests.daemon.tenants import Tokens, shown

pytestmark = pytest.mark.anyio

LOGGER = "sapwood.daemon.telemetry.request_log"
SECRET = "the name of the rose"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The fields of each line, as they come."""
    told: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append({"level": record.levelname, **record.__dict__["fields"]})

    keep = Keep()
    with caplog.at_level(logging.DEBUG, LOGGER):
        logging.getLogger(LOGGER).addHandler(keep)
        yield told
        logging.getLogger(LOGGER).removeHandler(keep)


def id_in(metadata: Any) -> str:
    found = [value for key, value in metadata or () if key == "x-request-id"]
    assert len(found) == 1, found
    return str(found[0])


async def test_a_whole_reply_is_one_line_with_its_usage(lines: list[dict[str, Any]]) -> None:
    async with running() as run:
        call = run.generation.Generate(
            pb.GenerateRequest(text=SECRET, max_tokens=9), metadata=(("x-request-id", "a/b-1"),)
        )
        usage = (await collect(call))[2][-1].finish.usage
        assert id_in(await call.trailing_metadata()) == "a/b-1"
    (line,) = lines
    assert line.pop("duration_s") > 0
    times = [line.pop(name) for name in ("queue_s", "prefill_s", "decode_s")]
    assert times == pytest.approx(
        [usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds], abs=2e-6
    )
    assert line == {
        "level": "INFO",
        "id": "a/b-1",
        "method": "sapwood.v1.GenerationService/Generate",
        "principal": "local",
        "outcome": "length",
        "code": "OK",
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": 0,
        "completion_tokens": 9,
        "rounds": usage.rounds,
        "draft_tokens": usage.draft_tokens,
        "accepted_tokens": usage.accepted_tokens,
    }


@pytest.mark.parametrize(
    "given", ["", "a b", 'a"b', "x" * (REQUEST_ID_CHARS_MAX + 1), "a;b", "{}"], ids=repr
)
async def test_an_id_that_may_not_stand_in_a_log_is_not_taken(given: str) -> None:
    async with running() as run:
        call = run.generation.Generate(
            prompt_of(5, max_tokens=1), metadata=(("x-request-id", given),)
        )
        await collect(call)
        told = id_in(await call.trailing_metadata())
    assert len(told) == 16 and told != given and int(told, 16) >= 0


async def test_every_end_has_its_id_its_line_and_its_count(
    lines: list[dict[str, Any]], folder: Path
) -> None:
    """Refused by the guard, at the door and by the core; given up, too late, and a bug of ours."""
    tokens = Tokens(folder)
    metadata = shown(tokens.new("alice"))
    tokenizer = ByteTokenizer()
    device = FakeDevice(gated=True)
    settings = {"tokens": str(tokens.path)}
    async with running(device, Limits(), tokenizer=tokenizer, settings=settings) as run:
        generate = run.generation.Generate
        errors = [
            await error_of(generate(prompt_of(5))),
            await error_of(generate(pb.GenerateRequest(), metadata=metadata)),
            await error_of(run.cache.ClearCache(cache_pb2.ClearCacheRequest(), metadata=metadata)),
            await error_of(generate(prompt_of(7), metadata=metadata, timeout=0.3)),
        ]
        await until(lambda: len(lines) == 4)  # and the one past its deadline is gone
        given_up = generate(prompt_of(6), metadata=metadata)
        await until(lambda: open_rpcs(run) == 1)
        given_up.cancel()
        await until(lambda: len(lines) == 5)
        tokenizer.encode_text = broken  # type: ignore[method-assign, assignment]
        bug = await error_of(generate(pb.GenerateRequest(text=SECRET), metadata=metadata))
        ended = Counter(run.daemon._gate.telemetry.ended)
        assert not run.daemon._gate.telemetry.open
    ids = [line["id"] for line in lines]
    assert len(set(ids)) == 6
    # A deadline is the client's own word: it waits for no trailers.
    told = [id_in(error.trailing_metadata()) for error in (*errors[:3], bug)]
    assert told == [ids[0], ids[1], ids[2], ids[5]]
    keys = ("code", "reason", "principal", "outcome")
    assert [tuple(line.get(key) for key in keys) for line in lines] == [
        ("UNAUTHENTICATED", None, None, "rejected"),
        ("INVALID_ARGUMENT", "EMPTY_PROMPT", "alice", "rejected"),
        ("PERMISSION_DENIED", None, None, None),
        ("DEADLINE_EXCEEDED", None, "alice", "deadline"),
        ("CANCELLED", None, "alice", "cancelled"),
        ("INTERNAL", None, "alice", "failed"),
    ]
    assert all(line["level"] == "INFO" for line in lines)
    assert ["peer" in line for line in lines] == [True, False, True, False, False, False]
    counted = {key: count for key, count in ended.items() if count}
    ours = {(line["method"], line["code"]) for line in lines}
    assert counted == dict.fromkeys(ours, 1)


def broken(text: str, tokens_max: int | None = None, given_up: GivenUp = never) -> list[int]:
    raise RuntimeError(text)


async def test_what_the_core_refuses_is_rejected_and_what_a_drain_cuts_off_has_failed(
    lines: list[dict[str, Any]],
) -> None:
    limits = Limits(slots_max=1, queued_max=1, drain_s_max=0.2)
    async with running(FakeDevice(gated=True), limits) as run:
        runs = asyncio.ensure_future(error_of(run.generation.Generate(prompt_of(5, max_tokens=99))))
        await until(lambda: stepped(run) and stats(run).requests_running == 1)
        waits = asyncio.ensure_future(error_of(run.generation.Generate(prompt_of(6))))
        await until(lambda: stepped(run) and stats(run).requests_waiting == 1)
        full = asyncio.ensure_future(error_of(run.generation.Generate(prompt_of(7))))
        await until(lambda: stepped(run) and full.done())
        run.daemon.drain()
        run.device.step()
        await waits
        await run.daemon.stop()
        await runs
    told = [(line["outcome"], line.get("reason"), line["prompt_tokens"]) for line in lines]
    assert told == [
        ("rejected", "QUEUE_FULL", 1),
        ("rejected", "DRAINING", 1),
        ("failed", "DRAINING", 1),
    ]
    assert lines[-1]["completion_tokens"] > 0


def stepped(run: Running) -> bool:
    run.device.step()
    return True


async def test_other_rpcs_are_for_who_looks_closer(lines: list[dict[str, Any]]) -> None:
    async with running() as run:
        call = run.cache.GetCacheStats(cache_pb2.GetCacheStatsRequest())
        await call
        assert id_in(await call.trailing_metadata()) == lines[0]["id"]
    (line,) = lines
    assert (line["level"], line["code"]) == ("DEBUG", "OK")
    assert line["method"] == "sapwood.v1.CacheService/GetCacheStats"


async def test_a_sink_that_fails_costs_nobody_a_reply(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_record: object) -> None:
        raise RuntimeError(SECRET)

    async with running() as run:
        run.daemon._gate.telemetry.add_sink(fails)
        assert len((await collect(run.generation.Generate(prompt_of(5, max_tokens=3))))[0]) == 3
    assert "an RPC was not told of: RuntimeError" in caplog.text and SECRET not in caplog.text


@contextmanager
def written(form: logging.Formatter) -> Iterator[tuple[logging.Logger, list[str]]]:
    """A logger, and the lines that a writer of this form has written when it is left."""
    read_end, write_end = os.pipe()
    logger = logging.getLogger("test.form")
    found: list[str] = []
    writer = LineWriter(write_end)
    writer.setFormatter(form)
    logger.addHandler(writer)
    try:
        yield logger, found
        writer.flush()
        found += os.read(read_end, 1 << 16).decode().splitlines()
    finally:
        logger.removeHandler(writer)
        os.close(read_end)
        os.close(write_end)


def fault() -> Sequence[Any]:
    return ("it failed with %s", "ValueError\n  a frame\n")


async def test_json_is_one_object_a_line_whatever_a_message_holds() -> None:
    with written(JsonFormat()) as (logger, lines):
        logger.warning(*fault())
        logger.warning("request", extra={"fields": {"id": "a\nb", "n": 1.5, "name": "ü"}})
    first, second = map(json.loads, lines)
    assert first["message"] == "it failed with ValueError\n  a frame\n"
    assert first["level"] == "warning" and first["logger"] == "test.form"
    assert first["time"].endswith("Z") and len(first["time"]) == len("2026-01-01T00:00:00.000Z")
    assert (second["message"], second["id"], second["n"], second["name"]) == (
        "request",
        "a\nb",
        1.5,
        "ü",
    )


async def test_fields_of_a_human_line_cannot_be_mistaken() -> None:
    with written(HumanFormat()) as (logger, lines):
        logger.warning("request", extra={"fields": {"id": "a b=c", "evil": "x\nERROR y", "n": 2}})
    (line,) = lines
    assert line.endswith('WARNING test.form: request id="a b=c" evil="x\\nERROR y" n=2')
