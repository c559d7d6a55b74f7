"""The live page over HTTP: its files, what its stream tells, and what is done for nobody."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from sapwood.daemon.engine.engine import Engine
from sapwood.daemon.page import places
from sapwood.daemon.page.feed import Feed
from sapwood.daemon.page.places import page_places
from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import Running, collect, prompt_of, running, stats, until
from tests.daemon.fakes import FakeDevice
from tests.daemon.http.test_endpoint import parted, said
from tests.daemon.page.viewers import PAGE, QUICK, Told, own, viewing

pytestmark = pytest.mark.anyio


def feed_of(run: Running) -> Feed:
    """The daemon's own."""
    (found,) = [feed for feed in _feeds if feed._engine is run.daemon._engine]
    return found


def asks_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the engine thread is asked from here on."""
    asked: list[Any] = []
    ask = engine.ask

    def noted(work: Any) -> Any:
        asked.append(work)
        return ask(work)

    monkeypatch.setattr(engine, "ask", noted)
    return asked


_feeds: list[Feed] = []


@pytest.fixture(autouse=True)
def known_feeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def kept(feed: Feed, *rest: Any, **options: Any) -> Any:
        _feeds.append(feed)
        return page_places(feed, *rest, **options)

    monkeypatch.setattr("sapwood.daemon.process.server.page_places", kept)
    yield
    _feeds.clear()


async def test_there_is_no_page_unless_it_was_asked_for() -> None:
    async with running() as run:
        assert parted(await said(run.metrics, own("/page")))[0] == 404


async def test_the_files_are_served_and_bring_all_that_they_need() -> None:
    """Nothing of another origin, nothing that the policy would keep out."""
    async with running(settings=PAGE) as run:
        texts = {}
        for path in ("/page", *sorted(f"/page/{file.name}" for file in places._FOLDER.iterdir())):
            if path != "/page/index.html":
                status, fields, body = parted(await said(run.metrics, own(path)))
                assert status == 200 and fields["x-content-type-options"] == "nosniff"
                assert "default-src 'none'; script-src 'self';" in fields["content-security-policy"]
                assert "unsafe" not in fields["content-security-policy"]
                texts[path] = body.decode()
    asked = set(re.findall(r'(?:src|href)="([^"]+)"', texts["/page"]))
    asked |= {f"/page/{name}" for t in texts.values() for name in re.findall(r'"\./(\S+)"', t)}
    assert {"/page/page.js", "/page/page.css", "/page/tree.js"} <= asked <= texts.keys()
    outside = [
        text for text in texts.values() if re.search(r"https?://(?!www\.w3\.org/2000)", text)
    ]
    assert outside == []
    assert not re.search(r"<style|<script(?! type=\"module\" src=)| style=| on\w+=", texts["/page"])
    assert sum(map(len, texts.values())) < 64 * 1024


async def test_the_page_shows_a_request_under_way_and_no_word_of_it() -> None:
    device = FakeDevice(gated=True)
    async with running(device, QUICK, settings=PAGE) as run:
        reply = run.generation.Generate(
            pb.GenerateRequest(text="a zebra in pyjamas", max_tokens=4000, ignore_eos=True)
        )
        deltas: list[pb.Delta] = []
        reading = asyncio.ensure_future(_read(reply, deltas))
        heard: list[Told] = []
        async with viewing(run.metrics) as viewer:
            async for event in viewer.events():
                heard.append(event)
                device.step()
                if (stream := _under_way(heard)) and _held(heard):
                    break
        await until(lambda: sum(len(delta.text) for delta in deltas) >= 4)  # it is on its way
        reply.cancel()
        device.ungate()
        await asyncio.gather(reading, return_exceptions=True)
    (_, hello), (_, now) = heard[0], next(e for e in reversed(heard) if e[0] == "now")
    assert (stream["state"], stream["prompt"]) == ("decode", 19)
    assert hello["model"]["name"] == "fake" and hello["model"]["drafter"] == "fake-drafter"
    assert now["counts"]["running"] == 1 and len(now["steps"]) > 2
    assert sum(size for _, size in now["memory"]["kinds"]) == now["memory"]["budget"]
    written = json.dumps(heard)
    spoken = "".join(delta.text for delta in deltas)
    ids = [str(id) for delta in deltas for id in delta.token_ids]
    assert len(spoken) >= 4 and spoken[:4] not in written and "zebra" not in written
    assert ",".join(ids[:4]) not in written.replace(" ", "")
    assert "principal" not in written and "local" not in written


async def _read(reply: Any, deltas: list[pb.Delta]) -> None:
    async for event in reply:
        if event.WhichOneof("event") == "delta":
            deltas.append(event.delta)


def _rows(heard: list[Told], event: str, what: str, columns: str) -> list[dict[str, Any]]:
    """Of the newest event of a name."""
    names = heard[0][1]["columns"][columns]
    told = next((told for name, told in reversed(heard) if name == event), {})
    return [dict(zip(names, row, strict=True)) for row in told.get(what, ())]


def _under_way(heard: list[Told]) -> dict[str, Any]:
    """The stream, once it has said something."""
    streams = _rows(heard, "now", "streams", "streams")
    return next((stream for stream in streams if stream["emitted"] > 5), {})


def _held(heard: list[Told]) -> bool:
    nodes = _rows(heard, "tree", "nodes", "nodes")
    return any(node["leases"] == 1 and node["end"] > 0 for node in nodes)


async def test_nothing_is_looked_at_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(limits=QUICK, settings=PAGE) as run:
        feed, engine = feed_of(run), run.daemon._engine
        asked = asks_of(engine, monkeypatch)
        await collect(run.generation.Generate(prompt_of(*range(5, 30), max_tokens=20)))
        assert feed._looking is None and feed._looks == 0 and not asked
        async with viewing(run.metrics) as viewer:
            await viewer.first("tree")
            assert feed.viewers == 1 and asked
        await until(lambda: not feed.viewers)
        looks, count = feed._looks, len(asked)
        assert feed._looking is None and feed._asked is None
        await collect(run.generation.Generate(prompt_of(*range(7, 40), max_tokens=20)))
        assert (feed._looks, len(asked)) == (looks, count)
        async with viewing(run.metrics) as viewer:
            hello = await viewer.first("hello")
            now = await viewer.first("now")
        assert hello["history"] == [] or hello["history"][-1][0] <= now["at"]


async def test_what_has_not_changed_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(limits=QUICK, settings=PAGE) as run:
        feed, engine = feed_of(run), run.daemon._engine
        async with viewing(run.metrics) as viewer:
            await viewer.first("tree")
            await viewer.first("now")
            await until(lambda: feed._asked is None and feed._asked_by == stats(run))
            asked = asks_of(engine, monkeypatch)
            for _ in range(8):
                await viewer.first("now")
            assert not asked
            await collect(run.generation.Generate(prompt_of(*range(5, 30), max_tokens=20)))
            tree = await viewer.first("tree")
            assert asked and tree["total"] > 0


async def test_as_many_look_as_may_and_one_more_is_told_so() -> None:
    limits = Limits(page_period_s=0.02, page_viewers_max=2, http_request_s_max=60.0)
    async with running(limits=limits, settings=PAGE) as run, viewing(run.metrics) as first:
        await first.first("now")
        async with viewing(run.metrics) as second:
            await second.first("now")
            async with viewing(run.metrics) as third:
                assert await third.first("full") == {"viewers": 2}
                assert [event async for event in third.events()] == [] and third.over
            await second.first("now")
        await until(lambda: feed_of(run).viewers == 1)
        async with viewing(run.metrics) as fourth:
            await fourth.first("now")


async def test_the_stream_says_that_the_daemon_drains() -> None:
    device = FakeDevice(gated=True)
    async with running(device, QUICK, settings=PAGE) as run:
        reply = run.generation.Generate(prompt_of(*range(5, 20), max_tokens=5))
        async with viewing(run.metrics) as viewer:
            await viewer.first("now", state="serving")
            await until(lambda: device.begun > 0)
            run.daemon.drain()
            await viewer.first("now", state="ending")
        device.ungate()
        reply.cancel()
