"""The live page in a real Chromium: it draws, moves on, survives a restart, and is for everybody.

The daemon is a process on the fake device, with streams that have begun and go on for long.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sapwood import Client, Delta
from tests.daemon.process.processes import QUIET, appeared, started
from tests.system.browsers import LIVE, axe_finds, chromium, opened, wait_for_text

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.outside("axe", "chromium", "playwright"),
]

STREAMS = 3
REPLY = "#streams tr:first-child td:nth-child(5)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(QUIET + "page = true\n")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def begun(client: Client, prompt: Sequence[int]) -> Any:
    """A reply that has begun and is long; nobody reads on."""
    stream = client.generate(prompt, max_tokens=4000, ignore_eos=True)
    next(event for event in stream if isinstance(event, Delta))
    return stream


@contextmanager
def talking(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A daemon whose metrics are at a port of ours, with streams that go on."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)  # of one that was killed
    with ExitStack() as stack:
        environ = os.environ | {"FAKE_METRICS": f"127.0.0.1:{port}"}
        process = stack.enter_context(started(folder, "0.02", env=environ))
        address = json.loads(appeared(ready, process).read_text())["grpc"][1]
        client = stack.enter_context(Client(address))
        streams = [begun(client, (*range(5, 50), *[60 + n] * 20)) for n in range(STREAMS)]
        yield process
        del streams


@contextmanager
def looking(browser: Any, port: int, **options: Any) -> Iterator[Any]:
    """A page that shows a tree and all streams."""
    with opened(browser, f"http://127.0.0.1:{port}/page", **options) as page:
        page.wait_for_selector(f"{LIVE} #streams tr:nth-child({STREAMS})")
        page.wait_for_selector("#tree [role=treeitem].used")
        yield page


def test_it_draws_and_moves_on(browser: Any, folder: Path) -> None:
    port = free_port()
    with talking(folder, port), looking(browser, port) as page:
        assert page.inner_text("#f-running") == str(STREAMS)
        assert page.locator("#streams tr").count() == STREAMS
        assert page.inner_text("#model").startswith("fake drafted by fake-drafter")
        page.wait_for_selector("#steps rect.target >> nth=3", state="attached")
        page.wait_for_selector("#chart-tokens path.lineway", state="attached")
        kinds = page.locator("#memory-kinds dd").all_inner_texts()
        assert len(kinds) == 8 and all("%" in text for text in kinds)
        wait_for_text(page, REPLY, page.inner_text(REPLY), there=False)
        assert page.inner_text("#f-tokens") != "\N{EN DASH}"
        assert (
            page.locator("#tree .used b").first.inner_text() == f"\N{MULTIPLICATION SIGN}{STREAMS}"
        )


def test_the_keyboard_goes_through_the_tree(browser: Any, folder: Path) -> None:
    port = free_port()
    with talking(folder, port), looking(browser, port) as page:
        focused = "document.activeElement"
        while page.evaluate(f"{focused}.role") != "treeitem":
            page.keyboard.press("Tab")
        assert page.locator("#tree [tabindex='0']").count() == 1
        first = page.evaluate(f"{focused}.ariaLabel")
        assert f"in use by {STREAMS} streams" in first
        assert "[0, " in page.inner_text("#node")
        page.keyboard.press("ArrowDown")
        assert page.evaluate(f"{focused}.ariaLevel") == "2"
        assert page.evaluate(f"{focused}.ariaSelected") == "true"
        page.keyboard.press("Enter")
        page.wait_for_selector("#trail:not([hidden])")
        page.keyboard.press("Escape")
        page.wait_for_selector("#trail", state="hidden")
        page.keyboard.press("ArrowUp")
        assert page.evaluate(f"{focused}.ariaLevel") == "1"
        page.hover("#tree [role=treeitem]:nth-child(2)")
        assert "[0, " not in page.inner_text("#node"), "what is pointed at is told"


def test_it_survives_a_restart(browser: Any, folder: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        process = stack.enter_context(talking(folder, port))
        page = stack.enter_context(looking(browser, port))
        process.kill()
        page.wait_for_selector("body[data-link=lost]")
        assert page.inner_text("#link") == "reconnecting"
        assert "What is shown is from" in page.inner_text("#banner")
        assert page.locator("#streams tr").count() == STREAMS, "what was seen last stays"
        with talking(folder, port):
            page.wait_for_selector(f"{LIVE} #streams tr:nth-child({STREAMS})")
            page.wait_for_selector("#banner", state="hidden")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(browser: Any, folder: Path, scheme: str, width: int) -> None:
    port = free_port()
    size = {"width": width, "height": 844}
    with talking(folder, port), looking(browser, port, color_scheme=scheme, viewport=size) as page:
        assert axe_finds(page) == {}, "where nobody points at anything"
        page.focus("#tree [tabindex='0']")
        assert axe_finds(page) == {}
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_who_wants_no_motion_gets_none(browser: Any, folder: Path) -> None:
    port = free_port()
    still = "getComputedStyle(document.querySelector('#tree div')).transitionProperty"
    with talking(folder, port):
        with looking(browser, port, reduced_motion="reduce") as page:
            assert page.evaluate(still) == "none"
        with looking(browser, port) as page:
            assert "width" in page.evaluate(still)
