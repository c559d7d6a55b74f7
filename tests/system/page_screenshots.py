"""`python -m tests.system.page_screenshots [FOLDER]`: pictures of the live page (docs/page).

Of a daemon with the bundled pair and eight clients, who share a few system prompts. What they say
is drawn from a seed; how fast it goes is the machine's. Needs what tests/outside.py says of
Chromium and Playwright.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from sapwood import AsyncClient, Message, SapwoodError
from sapwood.daemon import blas
from sapwood.daemon.demo.process import running, serve_command
from tests.outside import TOOLS
from tests.system.browsers import chromium
from tests.test_rooms import ROOT

CLIENTS = 8
GROWING_S, LOOKING_S = 25.0, 40.0  # so that there is a tree, and a history
START_S_MAX = 300.0
SYSTEMS = (
    "You are a guide in a small museum and talk to visitors of all ages. Answer in plain English, "
    "in two or three short sentences. Begin with the answer and explain it afterwards.",
    "You are a patient teacher of science. Explain everything with an example from the kitchen, "
    "never use more than four sentences, and end with a question to the pupil.",
    "You write short stories for children about animals that live in the forest. Each story has a "
    "beginning, a middle and an end, and nobody is hurt in it.",
)
QUESTIONS = (
    "What is a river?",
    "What is a volcano?",
    "What is bread?",
    "What is a bicycle?",
    "What is the moon?",
    "Why is the sky blue?",
    "What is a bird?",
    "Tell me about trees.",
)
DESK, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
SHOTS: dict[str, dict[str, Any]] = {
    "dark": {"color_scheme": "dark", "viewport": DESK},
    "light": {"color_scheme": "light", "viewport": DESK},
    "phone": {"color_scheme": "dark", "viewport": PHONE, "device_scale_factor": 2},
}


async def talk(client: AsyncClient, random: Random, over: threading.Event) -> None:
    while not over.is_set():
        messages = [Message("system", random.choice(SYSTEMS))]
        for _ in range(random.randint(1, 4)):
            messages.append(Message("user", random.choice(QUESTIONS)))
            length, seed = random.randint(30, 150), random.randrange(10**6)
            stream = client.generate(messages, max_tokens=length, temperature=0.8, seed=seed)
            messages.append(Message("assistant", (await stream.collect()).text or "."))
            if over.is_set():
                return
        await asyncio.sleep(random.random())


async def talk_all(address: str, over: threading.Event) -> None:
    async with AsyncClient(address) as client:
        with suppress(SapwoodError):  # the daemon ended first
            talks = (talk(client, Random(n), over) for n in range(CLIENTS))
            await asyncio.gather(*talks)


@contextmanager
def talked_to(address: str) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(talk_all(address, over)))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def draw(metrics: str, folder: Path) -> None:
    """All in one browser, each with a page of its own that has looked for as long."""
    with chromium() as browser:
        pages = {name: browser.new_context(**options).new_page() for name, options in SHOTS.items()}
        for page in pages.values():
            page.goto(f"http://{metrics}/page")
        time.sleep(LOOKING_S)
        for name, page in pages.items():
            page.bring_to_front()
            page.wait_for_selector("body[data-link=live] #streams tr", timeout=60_000)
            page.focus("#tree [tabindex='0']")
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(600)  # until what moves has arrived
            page.screenshot(path=folder / f"{name}.png", full_page=name != "phone")
            print(folder / f"{name}.png")


def main(argv: list[str]) -> int:
    folder = Path(argv[0]) if argv else ROOT / "docs/page"
    missing = [TOOLS[name].install for name in ("chromium", "playwright") if not TOOLS[name].found]
    if missing:
        print(f"pictures need a browser: {'; '.join(missing)}", file=sys.stderr)
        return 1
    folder.mkdir(exist_ok=True)
    command = serve_command(
        "--page", "--memory", "400MB", "--draft-depth", "4", "--log-level", "warning"
    )
    environ = blas.environment(os.environ)
    started = running(command, environ, time.monotonic() + START_S_MAX)
    with started as daemon, talked_to(daemon.address):
        time.sleep(GROWING_S)
        draw(daemon.metrics, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
