"""Somebody who has read docs/start.md, at a shell in a terminal: what stands there is typed there.

And a browser, once there is a page to look at. All that a chat has: test_new_user_chat.py; all
other commands: test_new_user_commands.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.locate import locate
from tests.daemon.cli.hub import Hub, serving_hub
from tests.system.browsers import LIVE, axe_finds, chromium, opened, wait_for_text
from tests.system.shells import Shell, commands, retried, shell

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.outside("tmux")]

PULL, SERVE = commands("A real model")
MODEL, DRAFTER = PULL.split()[-1], SERVE.split()[-1]
LONG = ("/set min_tokens 3000", "/set max_tokens 3000")  # whoever stops it is in time
REPLY = "#streams tr:first-child td:nth-child(5)"


def test_the_five_minutes(folder: Path) -> None:
    (serve, ask, chat, status, stop) = commands("Try it without a download")
    with shell(folder) as daemon, shell(folder) as user:
        assert "sapwood serve" in user.run(ask, code=1), "what would help"
        daemon.begin(serve, until="/sapwood.sock\n")
        assert "river" in user.run(ask).partition("\n")[2]
        user.begin(chat, until="\n>")
        reply = user.answered("What is a river?", "prompt tokens cached")
        assert "river" in reply and "tokens/s" in reply and "drafts accepted" in reply
        user.say("/bye")
        user.ended()
        assert "sapwood-demo" in user.run(status)
        for command in commands("What everybody asks with")[:-1]:
            assert "tokens" in user.run(command)
        user.begin(commands("What everybody asks with")[-1], until="■ weights")
        user.interrupt(code=0)
        assert "stopped, process" in user.run(stop)
        daemon.ended()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def hub() -> Iterator[Hub]:
    """With the ids of the page. The pair behind them is the bundled one."""
    target, drafter = locate(None, None)
    assert drafter is not None
    with serving_hub(Hub({MODEL: target.path, DRAFTER: drafter.path})) as served:
        yield served


@pytest.mark.outside("axe", "chromium", "playwright")
def test_a_real_model_and_a_look_at_it(folder: Path, hub: Hub, browser: Any) -> None:
    environ = {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "*"}
    with shell(folder, environ) as daemon, shell(folder, environ) as user:
        fetch(user, hub)
        daemon.begin(f"{SERVE} --page")
        shown = daemon.screen.wait("(the live page)\n")
        (url,) = re.findall(r"(http://127\.0\.0\.1:\d+/page)", shown)
        user.begin("sapwood chat", until="\n>")
        user.answered("What is a river?", "prompt tokens cached")
        still = {
            "color_scheme": "dark",
            "reduced_motion": "reduce",
        }  # axe reads colours as they are
        with opened(browser, url, **still) as page:
            page.wait_for_selector(LIVE)
            assert MODEL in page.inner_text("#model") or "gemma" in page.inner_text("#model")
            look(page, user)
            restart(page, user, daemon, url)
            is_for_everybody(page)
        user.say("/bye")
        user.ended()
        assert "stopped, process" in user.run("sapwood stop")
        daemon.ended()


def fetch(user: Shell, hub: Hub) -> None:
    """Interrupted once, and then all of it; the last line is the command that the page has."""
    hub.flowing.clear()
    user.begin(PULL, until="Fetching")
    assert "the same command fetches the files that are missing" in user.interrupt()
    assert "INCOMPLETE" in user.run("sapwood list")
    hub.flowing.set()
    pulled = [line.rstrip() for line in user.run(PULL).splitlines()]
    assert f"serve it: {SERVE}" in pulled, "on a line of its own"
    assert [line.split()[0] for line in pulled[1:3]] == [MODEL, DRAFTER]
    listed = user.run("sapwood list")
    assert MODEL in listed and DRAFTER in listed and "INCOMPLETE" not in listed
    assert "context" in user.run(f"sapwood show {MODEL}")


def look(page: Any, user: Shell) -> None:
    """While there is a chat: its stream, which moves, its nodes, the memory; then nobody."""
    page.wait_for_selector("#tree [role=treeitem]")
    assert page.locator("#memory-kinds dd").count() == 8
    user.say(*LONG)
    user.say("Go on for long.")
    page.wait_for_selector("#streams tr")
    page.wait_for_selector("#tree [role=treeitem].used")
    wait_for_text(page, "#f-running", "1")
    page.wait_for_selector("#steps rect.target >> nth=3", state="attached")
    wait_for_text(page, REPLY, page.inner_text(REPLY), there=False)
    page.hover("#tree [role=treeitem]")
    assert "[0, " in page.inner_text("#node")
    user.screen.keys("C-c")
    user.screen.wait("\nstopped")
    wait_for_text(page, "#f-running", "0")
    user.say("/set min_tokens", "/set max_tokens")


def restart(page: Any, user: Shell, daemon: Shell, url: str) -> None:
    """Ctrl-C where it serves, and the same again: neither page nor chat are begun anew."""
    daemon.interrupt(code=0)
    page.wait_for_selector("body[data-link=lost]")
    assert page.inner_text("#link") == "reconnecting"
    assert "What is shown is from" in page.inner_text("#banner")
    assert "sapwood serve" in user.answered("What is a lake?", "no daemon answers")
    port = url.removesuffix("/page").rpartition(":")[2]
    daemon.begin(f"SAPWOOD_METRICS=127.0.0.1:{port} {SERVE} --page")
    daemon.screen.wait("(the live page)\n", 2)
    page.wait_for_selector(LIVE)
    page.wait_for_selector("#banner", state="hidden")
    assert "prompt tokens cached" in retried(user)
    page.wait_for_selector("#tree [role=treeitem]")
    assert "6 messages" in user.answered("/show", " messages, think")


def is_for_everybody(page: Any) -> None:
    """At a desk in the dark, on a phone in the light."""
    assert axe_finds(page) == {}
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert axe_finds(page) == {}
    assert page.evaluate("document.documentElement.scrollWidth") == 390
