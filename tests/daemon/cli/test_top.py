"""`sapwood top`: rates between two looks, and a bar whose parts are the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sapwood.daemon.cli import top
from sapwood.daemon.cli.main import main
from sapwood.daemon.cli.top import Look, draw_look, look_between
from sapwood.daemon.demo.scrape import Counters

BEFORE = {
    ("generated_tokens_total", ""): 100.0,
    ("prompt_tokens_total", ""): 50.0,
    ("prefix_cached_tokens_total", ""): 10.0,
    ("draft_tokens_total", "1"): 10.0,
    ("draft_rounds_total", ""): 10.0,
    ("accepted_tokens_total", "1"): 5.0,
}
AFTER = {
    ("generated_tokens_total", ""): 130.0,
    ("prompt_tokens_total", ""): 70.0,
    ("prefix_cached_tokens_total", ""): 25.0,
    ("draft_tokens_total", "1"): 18.0,
    ("draft_tokens_total", "2"): 4.0,
    ("draft_rounds_total", ""): 18.0,
    ("accepted_tokens_total", "1"): 11.0,
    ("requests_running", ""): 3.0,
    ("tree_nodes", ""): 7.0,
    ("tree_bytes", "device,full"): 1024.0,
    ("tree_bytes", "device,sliding"): 512.0,
    ("memory_bytes", "weights"): 3072.0,
    ("memory_bytes", "free"): 1024.0,
}


def test_rates_are_of_the_time_between() -> None:
    look = look_between(BEFORE, AFTER, 2.0)
    assert (look.running, look.waiting, look.tree_nodes, look.tree_bytes) == (3, 0, 7, 1536)
    assert (look.tokens_per_s, look.prompt_tokens_per_s) == (15.0, 10.0)
    assert (look.accepted_share, look.draft_tokens_per_round) == (0.5, 1.5)
    assert look.cached_share == 0.75


def test_of_nothing_there_is_no_share_and_a_new_daemon_begins_anew() -> None:
    look = look_between(AFTER, BEFORE, 1.0)
    assert (look.tokens_per_s, look.accepted_share, look.cached_share) == (0.0, None, None)


def test_memory_is_a_bar_that_sums() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100)
    console.print(draw_look("127.0.0.1:1", look_between(BEFORE, AFTER, 2.0)))
    drawn = file.getvalue()
    assert drawn.count("█") == 60
    assert "weights 3.0 KiB" in drawn and "free 1.0 KiB" in drawn and "live" not in drawn


def test_one_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The address is that of the ready file."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "sapwood.json").write_text(json.dumps({"metrics": "127.0.0.1:7"}))
    answers: list[Counters] = [BEFORE, AFTER, BEFORE, AFTER]
    asked: list[str] = []

    def scraped(metrics: str) -> Counters:
        asked.append(metrics)
        return answers.pop(0)

    monkeypatch.setattr(top, "scrape", scraped)
    assert main(["top", "--once", "--json", "--interval", "0.1"]) == 0
    assert Look(**json.loads(capsys.readouterr().out)).running == 3
    assert main(["top", "--once", "--interval", "0.1"]) == 0
    assert "accepted 50%  prompt cached 75%" in capsys.readouterr().out
    assert asked == ["127.0.0.1:7"] * 4


def test_nobody_to_look_at_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--metrics", "127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert "does not answer: Connection refused; `sapwood serve` starts" in said
    assert "--metrics names another" in said
