"""Chromium, driven by Playwright: what tests and screenshots of the live page look through.

Imported inside of functions: neither is in the lock (tests/outside.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.outside import program

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


@contextmanager
def _nothing_preloaded() -> Iterator[None]:
    """For what is started meanwhile: with our BLAS in it a browser does not come up."""
    kept = os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["LD_PRELOAD"] = kept
