"""Every example, run as a user runs it, against a real daemon with the bundled pair.

The tool call is played by a script: the bundled model's template has no place for tools.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sapwood.daemon import blas
from sapwood.daemon.demo.process import running, serve_command
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.sapwood.client.fake import USAGE, FakeDaemon, delta, finish, part, prefill
from tests.sapwood.client.fake import serving as serving_fake
from tests.test_rooms import ROOT

EXAMPLES = ROOT / "examples"
LINES_MAX = 60
START_S_MAX = 90.0  # a first start compiles kernels


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = serve_command("--memory", "1GiB")
    deadline = time.monotonic() + START_S_MAX
    with running(command, blas.environment(os.environ), deadline) as daemon:
        yield daemon.address


def run(
    address: str, name: str, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Of the checkout that the test is in, installed or not."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | {"SAPWOOD_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def output(address: str, name: str, *arguments: str, stdin: str = "") -> str:
    done = run(address, name, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_one_question(address: str) -> None:
    told = output(address, "ask.py", "What is the capital of France?")
    assert told.startswith("The capital of France is Paris.\n")
    counts = re.search(r"(\d+) tokens, .* in (\d+) forwards: (\d+) of (\d+) drafts", told)
    assert counts is not None
    tokens, forwards, accepted, drafted = map(int, counts.groups())
    assert tokens in (forwards + accepted, forwards + accepted + 1) and accepted <= drafted


def test_a_chat_remembers_and_finds_its_history(address: str) -> None:
    told = output(address, "chat.py", stdin="My name is Clara.\nWhat is my name?\n")
    first, second = re.findall(r"^(.*)\n\((\d+) of (\d+) prompt tokens were known\)", told, re.M)
    assert "Clara" in first[0] and "Clara" in second[0]
    assert int(second[1]) >= int(first[2]), "the second turn finds all of the first prompt"


def test_many_questions_share_one_beginning(address: str) -> None:
    told = output(address, "many.py")
    assert "What is a river? A river is" in told and "What is bread? Bread is" in told
    cached = [
        int(n) for n in re.findall(r"^    (\d+) of \d+ prompt tokens were cached", told, re.M)
    ]
    assert len(cached) == 5 and sum(n > 80 for n in cached) >= 4, "one computed it for all"
    computed, whole = map(int, re.findall(r"^(\d+) of (\d+) were computed", told, re.M)[0])
    assert computed < whole / 2


def test_seeds_and_log_probabilities(address: str) -> None:
    told = output(address, "seeds.py")
    seed, undrafted, other = re.findall(r"^(?:seed \d|without drafts): +(.*)$", told, re.M)
    assert seed == undrafted != other
    assert "same tokens: True" in told
    percents = re.findall(r"^'.*' +(\d+)%   of .* (\d+)%, .* (\d+)%, .* (\d+)%$", told, re.M)
    assert len(percents) == 5
    for own, best, second, third in (tuple(map(int, row)) for row in percents):
        assert best >= second >= third and own <= best


def test_errors_deadlines_and_cancelling(address: str) -> None:
    answer, refused, late, cancelled = output(address, "errors.py").splitlines()
    assert answer.startswith("A river is")
    assert refused.startswith("refused: BAD_REQUEST, {'max_tokens': ")
    assert late.startswith("the deadline passed") and cancelled == "cancelled"


def test_a_reply_that_is_data(address: str) -> None:
    told = output(address, "structured.py")
    assert re.fullmatch(r"name: .*\nlength_km: \d+\nsea: (\w| )+\n", told)


def test_a_model_without_tools_is_said(address: str) -> None:
    done = run(address, "tool_call.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "this model takes no tools: messages.tools\n"


def calls_once(
    request: pb.GenerateRequest, _context: grpc.ServicerContext
) -> Iterator[pb.GenerateResponse]:
    """The model's side: a call, and once there is a result the answer."""
    yield prefill(0, 9, 9)
    last = request.messages.messages[-1]
    if last.role == "tool":
        yield delta(f"Yes: {last.content}.", 12)
    else:
        call = prompt_pb2.ToolCall(name="weather", arguments='{"city": "Paris"}')
        yield part(token_ids=[10, 11], tool_calls=[call])
    yield finish(**USAGE)


def test_a_tool_call_there_and_back() -> None:
    daemon = FakeDaemon(calls_once)
    with serving_fake(daemon, "127.0.0.1:0") as address:
        told = output(address, "tool_call.py", "Do I need a coat in Paris?")
    result = "8 degrees and rain in Paris"
    assert told == f"looking up Paris\nYes: {result}.\n"
    first, second = (request.messages for request in daemon.requests)
    assert [tool.name for tool in first.tools] == ["weather"]
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[1].tool_calls[0].name == second.messages[2].tool_name == "weather"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_has_its_test(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LINES_MAX
    assert f"python examples/{path.name}" in path.read_text(), "it says how to run it"
    assert f'"{path.name}"' in Path(__file__).read_text()
