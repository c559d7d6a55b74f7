"""`sapwood demo` as people run it: a process of its own, the bundled pair, an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sapwood.daemon.demo.command import LIMIT_S, main
from sapwood.daemon.demo.script import CAST, SHARED_TOKENS_MIN

COMMAND = [sys.executable, "-m", "sapwood", "demo"]


@pytest.mark.timeout(LIMIT_S + 20)
def test_the_demo_plays_to_its_end_and_tells_the_truth(tmp_path: Path) -> None:
    figures, picture = tmp_path / "demo.json", tmp_path / "demo.svg"
    arguments = ["--json", str(figures), "--svg", str(picture)]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert said.startswith("8 clients, first at once") and f"within {LIMIT_S:.0f} s" in said
    assert said.index("1 of 2, together") < said.index("2 of 2, one by one")
    found = json.loads(figures.read_text())
    assert found["metrics_agree"] is True
    assert found["tokens_per_s_together"] > 0 and found["tokens_per_s_one_by_one"] > 0
    assert found["tree"]["nodes"] > 0 and found["tree"]["bytes"] > 0
    clients = {client["id"]: client for client in found["clients"]}
    assert list(clients) == [part.id for part in CAST]
    cold = [c for c in clients.values() if c["cached_tokens"] < SHARED_TOKENS_MIN]
    assert len(cold) <= 1
    for part in CAST:
        client = clients[part.id]
        assert (client["finish"] == "cancelled") == bool(part.cancels_at)
        assert client["accepted_tokens"] <= client["draft_tokens"]
        assert client["ttft_s"] > 0
        if part.joins_at:
            assert client["cached_tokens"] >= SHARED_TOKENS_MIN
    assert sum(client["accepted_tokens"] for client in clients.values()) > 0
    assert picture.read_text().startswith("<svg")


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--json", str(tmp_path / "missing" / "demo.json")])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 1, "terminated", marks=pytest.mark.long),
    ],
)
def test_a_signal_in_the_middle_leaves_no_daemon_behind(
    number: signal.Signals, code: int, said: str
) -> None:
    demo = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stdout is not None
    assert any("first token" in line for line in demo.stdout)
    demo.send_signal(number)
    _, complaint = demo.communicate()
    assert demo.returncode == code
    assert complaint.strip() == f"sapwood demo: {said}"
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)


def test_a_model_that_does_not_load_fails_with_the_daemon_s_message(tmp_path: Path) -> None:
    model = tmp_path / "empty"
    model.mkdir()
    done = subprocess.run(
        [*COMMAND, "--model", str(model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sapwood demo: the daemon ended before it served" in done.stderr
    assert "Traceback" not in done.stderr
