"""Chromium, driven by Playwright: what tests and screenshots of the live page look through.

Imported inside of functions: neither is in the lock (tests/outside.py), nor is axe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.outside import program

WAIT_MS = 60_000.0  # beside everything else that a machine does
LIVE = "body[data-link=live]"
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window, of Playwright's synchronous API."""
    from playwright.sync_api import sync_playwright

    with _nothing_preloaded():
        playwright = sync_playwright().start()
        browser = playwright.chromium.launch(
            executable_path=str(program("chromium")), headless=True, args=_FLAGS
        )
    try:
        yield browser
    finally:
        browser.close()
        playwright.stop()


def wait_for_text(page: Any, at: str, text: str, there: bool = True) -> None:
    """Until the element has this text and no other, or another one.

    By a selector: the page forbids what Page.wait_for_function does from its second look on.
    """
    is_it = f":text-is({json.dumps(text)})"
    page.wait_for_selector(f"{at}{is_it}" if there else f"{at}:not({is_it})")


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page, in which no error may have come up. options: of a new context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(url)
    yield page
    assert [text for text in wrong if "ERR_" not in text] == []  # but a daemon that was not there
    context.close()


def axe_finds(page: Any) -> dict[str, list[str]]:
    """What axe-core calls serious or worse, where it is on the page, by the rule's name."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None and spec.submodule_search_locations
    (axe,) = Path(spec.submodule_search_locations[0]).glob("axe.min.js")
    page.evaluate(axe.read_text())
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15, "it has looked"
    return {
        each["id"]: [node["html"] for node in each["nodes"]]
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    }


@contextmanager
def _nothing_preloaded() -> Iterator[None]:
    """For what is started meanwhile: with our BLAS in it a browser does not come up."""
    kept = os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["LD_PRELOAD"] = kept
