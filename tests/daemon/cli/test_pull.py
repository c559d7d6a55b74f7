"""`sapwood pull`, against a hub of our own; `list` and `show` of what it fetched."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sapwood.daemon.cli.pull import _bars, best_drafter
from tests.daemon.cli.hub import CUT_BYTES, Hub, serving_hub
from tests.daemon.process.processes import wait_for
from tests.model.reference import checkpoint
from tests.test_rooms import ROOT

TARGET, DRAFTER = checkpoint("12b-tiny").path, checkpoint("12b-tiny-assistant").path
STRANGER = checkpoint("e2b-tiny-assistant").path


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {
        "org/Tiny-it-4bit": TARGET,
        "org/other-assistant": STRANGER,
        "org/tiny-it-assistant-bf16": DRAFTER,
        "google/alone": TARGET,
        "google/misfit": TARGET,
        "google/misfit-assistant": STRANGER,
        "google/gated": TARGET,
        "google/text": ROOT / "docs" / "adr",
    }
    with serving_hub(Hub(repositories, frozenset({"google/gated"}))) as served:
        yield served


def started(hub: Hub, home: Path, *argv: str, **environ: str) -> subprocess.Popen[str]:
    kept = {name: it for name, it in os.environ.items() if not name.startswith("HF_")}
    environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "NO_PROXY": "*"}
    return subprocess.Popen(
        [sys.executable, "-m", "sapwood", *argv],
        cwd=ROOT, env=kept | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sapwood(hub: Hub, home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    with started(hub, home, *argv) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def test_a_model_comes_with_its_drafter_and_can_be_served(hub: Hub, tmp_path: Path) -> None:
    done = sapwood(hub, tmp_path, "pull", "org/Tiny-it-4bit")
    assert done.returncode == 0, done.stderr
    served = "serve it: sapwood serve --model org/Tiny-it-4bit --draft org/tiny-it-assistant-bf16"
    assert done.stdout.splitlines()[-1] == served
    fetched = {path for path, _ in hub.asked}
    assert {"org/Tiny-it-4bit/model.safetensors", "org/Tiny-it-4bit/tokenizer.json"} <= fetched
    assert not any(path.startswith("org/other") for path in fetched)
    listed = sapwood(hub, tmp_path, "list", "--json")
    models = {model["id"]: model for model in json.loads(listed.stdout)}
    assert {id: (model["kind"], model["lacks"]) for id, model in models.items()} == {
        "org/Tiny-it-4bit": ("target", ""),
        "org/tiny-it-assistant-bf16": ("drafter", ""),
    }


@pytest.mark.long
def test_what_was_cut_is_fetched_by_the_same_command_and_nothing_else(
    hub: Hub, tmp_path: Path
) -> None:
    hub.cut = True
    done = sapwood(hub, tmp_path, "pull", "google/alone", "--draft", "none")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]  # behind what the hub's library has logged
    assert last.startswith("sapwood: google/alone: ") and "the same command fetches" in last
    assert "INCOMPLETE" in sapwood(hub, tmp_path, "list").stdout
    hub.cut = False
    hub.asked.clear()
    done = sapwood(hub, tmp_path, "pull", "google/alone", "--draft", "none")
    assert done.returncode == 0, done.stderr
    assert {path for path, _ in hub.asked} == {"google/alone/model.safetensors"}
    shown = sapwood(hub, tmp_path, "show", "google/alone", "--json")
    assert json.loads(shown.stdout)["weights_bytes"] > CUT_BYTES


@pytest.mark.long
@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["google/none"], 1, "the hub has no such model"),
        (["google/gated"], 1, "its terms have to be accepted"),
        (["google/alone@nowhere"], 1, "has no such revision"),
        (["google/misfit"], 1, "the drafter does not fit the target"),
        (["a/b/c"], 2, "not a hub id"),
    ],
)
def test_what_cannot_be_fetched_is_said_before_anything_large(
    argv: list[str], code: int, says: str, hub: Hub, tmp_path: Path
) -> None:
    done = sapwood(hub, tmp_path, "pull", *argv)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert not any(path.endswith(".safetensors") for path, _ in hub.asked)


def test_ctrl_c_waits_for_no_file(hub: Hub, tmp_path: Path) -> None:
    """As the hub's library would."""
    hub.flowing.clear()
    with started(hub, tmp_path, "pull", "google/alone", HF_HUB_DOWNLOAD_TIMEOUT="600") as process:
        wait_for(lambda: ("google/alone/model.safetensors", "") in hub.asked)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("sapwood: interrupted; the same command fetches")


def test_no_bar_is_left_over_for_the_next_line() -> None:
    with _bars() as bar:
        for _ in range(2):
            bar(total=1, file=io.StringIO()).update()
    assert not bar._instances


@pytest.mark.long
def test_a_model_without_a_drafter_says_so(hub: Hub, tmp_path: Path) -> None:
    done = sapwood(hub, tmp_path, "pull", "google/alone")
    assert done.returncode == 0
    assert "no drafter was found" in done.stdout


def test_the_drafter_is_found_by_its_name() -> None:
    """Names as they are on the hub."""
    plain, packed = "m/gemma-4-E2B-it-assistant-bf16", "m/gemma-4-E2B-it-assistant-4bit"
    others = ["m/gemma-4-E4B-it-assistant-bf16", "m/gemma-4-E2B-assistant-bf16"]
    assert best_drafter("gemma-4-e2b-it-4bit", [*others, plain, packed]) == packed
    assert best_drafter("gemma-4-e2b-it-8bit", [*others, packed, plain]) == plain
    assert best_drafter("gemma-4-e2b-it-mxfp4", [*others, "m/gemma-4-e2b-it-assistant"]) == (
        "m/gemma-4-e2b-it-assistant"
    )
    assert best_drafter("gemma-4-31b-it", others) is None
