"""Who may look at the live page, under which name, and for how long."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.responses import PlainTextResponse, Response

from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import running, until
from tests.daemon.http.test_endpoint import asking, parted, said
from tests.daemon.page.viewers import EVENTS, PAGE, QUICK, Flood, own, shown, viewing

pytestmark = pytest.mark.anyio


async def test_at_loopback_only_its_own_names_are_answered() -> None:
    """Another name may lead here and be somebody else's: DNS rebinding."""
    ours = ("localhost", "127.0.0.1:9464", "[::1]:9464", "LOCALHOST:1")
    others = ("evil.example", "127.0.0.1.evil.example:80", "192.168.1.7", "[", "")
    async with shown(Flood(), QUICK) as address:

        async def status(path: str, host: str) -> int:
            request = asking(path).replace(b"Host: x", f"Host: {host}".encode())
            return parted(await said(address, request))[0]

        assert {await status("/page", host) for host in ours} == {200}
        found = {await status(path, host) for path in ("/page", "/page/events") for host in others}
        assert found == {403}
        assert await status("/metrics", "evil.example") == 200, "as it was"


async def test_another_site_does_not_get_the_stream() -> None:
    async with running(limits=QUICK, settings=PAGE) as run:
        for site, status in (("cross-site", 403), ("same-site", 403)):
            request = own("/page/events", f"Sec-Fetch-Site: {site}")
            assert parted(await said(run.metrics, request))[0] == status
        async with viewing(run.metrics, own("/page/events", "Sec-Fetch-Site: same-origin")) as same:
            await same.first("hello")
        head = EVENTS.replace(b"GET", b"HEAD")
        assert parted(await said(run.metrics, head))[0] == 200


async def test_who_takes_nothing_is_cut() -> None:
    feed = Flood()
    async with shown(feed, Limits(http_request_s_max=0.2)) as address, viewing(address):
        with anyio.fail_after(60):
            await until(lambda: feed.gone)


async def test_who_takes_what_comes_stays_for_longer_than_a_request_may() -> None:
    """A machine may stand still for as long as that is: then another comes."""
    limits = Limits(page_period_s=0.02, http_request_s_max=0.3)
    async with running(limits=limits, settings=PAGE) as run:
        seen_s = 0.0
        with anyio.fail_after(60):
            while seen_s < 4 * limits.http_request_s_max:
                began = None
                async with viewing(run.metrics) as viewer:
                    async for event, told in viewer.events():
                        if event == "now":
                            began = told["at"] if began is None else began
                            seen_s = told["at"] - began
                            if seen_s >= 4 * limits.http_request_s_max:
                                break


async def test_who_may_not_look_any_more_hears_nothing_more() -> None:
    allowed = [True]

    def refusal(_request: Any) -> Response | None:
        return None if allowed[0] else PlainTextResponse("no", 401)

    feed = Flood()
    async with shown(feed, QUICK, refusal) as address, viewing(address) as viewer:
        async for _ in viewer.events():
            allowed[0] = False
        assert viewer.over
