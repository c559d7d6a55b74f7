"""What the device gets and when: parts of a graph, drafts before pools, one end of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from sapwood.model import device, drafting, hand_over
from sapwood.model.hand_over import ForwardParts
from sapwood.model.pair import load_pair
from sapwood.model.runner import Runner
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.model.device_log import START, SYNCHRONIZE, WAIT, DeviceLog
from tests.model.reference import checkpoint
from tests.model.test_runner import Driver, prompts_of, replies_of
from tests.quick import few_quick
from tests.system.tiny import random_pair

END = [WAIT, SYNCHRONIZE]
SEEDED = Sampling(temperature=0.9, top_k=40, top_p=0.97, seeded=True, noise_key=99)


@pytest.mark.parametrize(("kind", "layers"), [(mx.cpu, 0), (mx.gpu, 8)])
def test_a_gpu_gets_a_forward_in_parts(
    kind: Any, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    assert device.layers_per_part() == layers


def twelve_layers(place: Path, borrowing: int) -> Runner:
    """The drafter reads layers 2 and 3 where the last eight borrow, else 10 and 11."""
    own = ("sliding_attention",) * 3 + ("full_attention",)
    kinds = own if borrowing else own * 3
    pair = random_pair("e2b-tiny", place, 64, kinds=kinds, borrowing=borrowing)
    return Runner(pair, slots_max=2, depth_max=4)


def read_prompts(runner: Runner) -> list[int]:
    """Two slots admitted, each with a prompt of ten tokens; what they drew."""
    admits = tuple(Admit(slot, 0, (), Sampling(), 64) for slot in (0, 1))
    prompts = tuple(PrefillSlice(s, 0, tuple(range(2, 12)), True, False) for s in (0, 1))
    result = runner.wait(runner.submit(StepPlan(1, admits=admits, prefills=prompts)))
    return [each.token or 0 for each in result.prefilled]


def logged(runner: Runner, log: DeviceLog, depths: Sequence[int]) -> tuple[list[str], list[str]]:
    """The calls of submit and of wait, of a step that decodes both slots."""
    tokens = read_prompts(runner)
    log.clear()
    rows = tuple(DecodeRow(s, 10, tokens[s], depth, 1) for s, depth in enumerate(depths))
    ticket = runner.submit(StepPlan(2, decodes=rows))
    submitted = log.taken()
    runner.wait(ticket)
    return submitted, log.taken()


def first(
    monkeypatch: pytest.MonkeyPatch, module: Any, function: str, act: Callable[[], object]
) -> None:
    """`act` runs before each call of a module's or a class's function."""
    call = getattr(module, function)

    def both(*args: Any) -> Any:
        act()
        return call(*args)

    monkeypatch.setattr(module, function, both)


def tell_of_building(log: DeviceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer of the target and each iteration of the drafter tells that it is built."""
    first(monkeypatch, ForwardParts, "built", lambda: log.append("layer"))
    first(monkeypatch, drafting, "draft", lambda: log.append("draft"))


@pytest.mark.parametrize(
    ("borrowing", "expected"),
    [
        # The pools that the drafter reads are written in the second part.
        (8, [START, *["layer"] * 8, WAIT, START, *["layer"] * 3, START]),
        # They are written in the last one.
        (0, [START, *["layer"] * 8, START, *["layer"] * 3, WAIT, START]),
    ],
)
def test_parts_leave_as_they_are_built_and_drafts_are_over_before_their_pools_are_written(
    borrowing: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "layers_per_part", lambda: 8)
    runner, log = twelve_layers(tmp_path, borrowing), DeviceLog(monkeypatch)
    tell_of_building(log, monkeypatch)
    submitted, waited = logged(runner, log, (2, 1))
    drafts = ["draft", START, "draft", START, START]
    assert submitted == [*drafts, "layer", *expected]
    assert waited == END
    runner.close()


def test_without_drafts_nothing_is_waited_for_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "layers_per_part", lambda: 8)
    runner, log = twelve_layers(tmp_path, 8), DeviceLog(monkeypatch)
    assert logged(runner, log, (0, 0)) == ([START] * 3, END)
    runner.close()


@pytest.mark.parametrize(("depths", "drafts"), [((0, 0), 0), ((2, 1), 2)])
def test_without_parts_a_graph_goes_whole(
    depths: tuple[int, int], drafts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "layers_per_part", lambda: 0)
    runner, log = twelve_layers(tmp_path, 8), DeviceLog(monkeypatch)
    tell_of_building(log, monkeypatch)
    submitted, waited = logged(runner, log, depths)
    before = [*["draft"] * drafts, START] if drafts else []
    after = [WAIT, START] if drafts else [START]
    assert submitted == [*before, *["layer"] * 12, *after]
    assert waited == END
    runner.close()


def test_captures_are_asked_for_without_a_forward_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload that nobody asked about would go into the tree."""
    runner, log = twelve_layers(tmp_path, 8), DeviceLog(monkeypatch)
    read_prompts(runner)
    log.clear()
    ticket = runner.submit(StepPlan(2, captures=(Capture(0, 0, 10),), releases=(0,)))
    assert START not in log.taken()
    (captured,) = runner.wait(ticket).captured
    assert log.taken() == END
    assert captured is not None
    captured.close()
    runner.close()


def test_the_seconds_are_those_of_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of building: every call takes its own power of ten, and each of twelve layers 1000 s."""
    monkeypatch.setattr(device, "layers_per_part", lambda: 0)
    runner, now = twelve_layers(tmp_path, 8), [0.0]

    def passes(seconds: float) -> Callable[[], None]:
        return lambda: now.append(now[-1] + seconds)

    monkeypatch.setattr(hand_over, "time", SimpleNamespace(perf_counter=lambda: now[-1]))
    for name, seconds in ((START, 1.0), (WAIT, 10.0), (SYNCHRONIZE, 100.0)):
        first(monkeypatch, mx, name, passes(seconds))
    first(monkeypatch, ForwardParts, "built", passes(1000.0))
    tokens = read_prompts(runner)
    before, begun = runner.device_s, now[-1]
    runner.wait(runner.submit(StepPlan(2, decodes=(DecodeRow(0, 10, tokens[0], 1, 1),))))
    assert runner.device_s - before == 1.0 + 10.0 + 1.0 + 10.0 + 100.0
    assert now[-1] - begun == runner.device_s - before + 12 * 1000.0
    assert runner.drafted_at - begun == 1.0 + 12 * 1000.0 + 10.0, "started, built, and waited for"
    runner.close()


@pytest.mark.parametrize("name", few_quick(["e2b-tiny", "a4b-tiny"], "a4b-tiny"))
def test_parts_change_no_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1, S5: greedy text is transformers' own, seeded text that of whole graphs."""
    pair = load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    monkeypatch.setattr(device, "layers_per_part", lambda: 0)
    whole = Runner(pair, slots_max=8, depth_max=8)
    monkeypatch.setattr(device, "layers_per_part", lambda: 2)
    parted, log = Runner(pair, slots_max=8, depth_max=8), DeviceLog(monkeypatch)
    prompts, depths = prompts_of(name)[:3], (5, 2, 0)
    greedy, _ = Driver(parted).generate(prompts, depths, (3, 0, 7))
    assert greedy == replies_of(name)[:3]
    assert log.count(START) > 4 * log.count(SYNCHRONIZE), "there were parts"
    texts = [
        Driver(runner).generate(prompts, depths, range(3), sampling=SEEDED)[0]
        for runner in (whole, parted)
    ]
    assert texts[0] == texts[1]
    for runner in (whole, parted):
        runner.close()
