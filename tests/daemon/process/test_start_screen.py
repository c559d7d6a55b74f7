"""What `serve` shows on a terminal; nothing anywhere else."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sapwood.daemon.engine.account import MemoryUse
from sapwood.daemon.process import start_screen
from sapwood.daemon.process.start_screen import StartScreen, start_lines
from sapwood.daemon.settings.config import load_config
from sapwood.scheduler.limits import Limits
from tests.daemon.fakes import FACTS, FakeDevice, make_loader

CARD = make_loader(FakeDevice(), Limits())().card
MEMORY = MemoryUse(8 << 30, 2 << 30, 0, 0, 0, 0, 0, 0, 6 << 30, 0)


def lines(**flags: str) -> dict[str, str]:
    return dict(start_lines(load_config(flags), CARD, MEMORY))


def test_what_one_asks_first() -> None:
    told = lines()
    assert told["memory"] == "8.0 GiB to use, by the device (--memory): weights 2.0 GiB"
    assert told["context"] == f"{FACTS.context_tokens_max} tokens"
    assert told["drafter"] == "fake-drafter"
    assert lines(memory="8G")["memory"] == "8.0 GiB to use: weights 2.0 GiB"


@pytest.mark.parametrize(("draft", "says"), [(None, "came without one"), ("none", "--draft none")])
def test_why_there_is_no_drafter(draft: str | None, says: str) -> None:
    config = load_config({"draft": draft})
    assert says in dict(start_lines(config, replace(CARD, drafter=""), MEMORY))["drafter"]


def test_a_bar_and_then_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, bars = io.StringIO(), []
    monkeypatch.setattr(start_screen, "log_over", lambda bar: bars.append(bar))
    screen = StartScreen(Console(file=file, width=100, force_terminal=True, color_system=None))
    screen.report(1, 2)
    print("ready")
    screen.report(2, 2)
    screen.show(load_config({}), CARD, MEMORY, ["unix:/s", "127.0.0.1:1"])
    screen.close()
    text = file.getvalue()
    assert bars[0] and not bars[-1]  # the log knows of it
    assert capsys.readouterr().out == "ready\n"  # standard output is not the screen's
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    assert text.index("warming up") < text.index("drafter  fake-drafter") < text.index("unix:/s")
