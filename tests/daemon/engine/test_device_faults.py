"""A device that fails in a step, at each place where it can: nothing of that step gets out (D3).

The step decodes one request, reads another's prompt and captures what a third one left, so that
there is something to tell a client, to put into the tree, and to record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.prefix.describe import NodeView
from sapwood.model.runner import Ticket
from sapwood.scheduler.events import Delta, Effect, Finished
from sapwood.scheduler.plan import StepPlan
from tests.daemon.conftest import collect, config_for, prompt_of, reason_of, running
from tests.daemon.engine.house import EngineHouse, WatchedRunner, load_watched
from tests.model.device_log import MESSAGE, NO_MEMORY, START, SYNCHRONIZE, WAIT
from tests.quick import few_quick
from tests.sim.replay import replay

VOCABULARY = 1024  # of the reference pair
FIRST, LATE, PROMPT = 1, 2, 3  # requests: ends early, goes on, comes when the first has ended
TOKENS = 8


class Scene:
    """The requests, and what stood in tree and mailboxes when the step began that fails."""

    def __init__(self, house: EngineHouse) -> None:
        self.house = house
        self.plan: StepPlan | None = None
        self.nodes: list[NodeView] = []
        self.later: list[NodeView] = []  # when the next step began
        self.effects = self.steps = 0

    def play(self, damage: Callable[[Ticket], object], at_submit: str = "") -> None:
        """Until the engine has ended."""

        def before_submit(plan: StepPlan) -> None:
            if self.plan is not None:
                self.later = self.later or self.house.nodes()
                return
            if not (plan.captures and plan.decodes and plan.prefills):
                return
            self.plan, self.nodes = plan, self.house.nodes()
            self.effects, self.steps = len(self.house.effects), len(self.house.results)
            if at_submit:
                self.house.log.raising = at_submit

        def before_wait(ticket: Ticket) -> None:
            if ticket.plan is self.plan:
                damage(ticket)

        def prepare(runner: WatchedRunner) -> None:
            runner.before_submit, runner.before_wait = before_submit, before_wait

        self.house.prepare, self.house.on_effects = prepare, self.go_on
        self.house.submit(FIRST, range(2, 20), TOKENS, depth=0)
        self.house.submit(LATE, range(3, 30), depth=1, top_logprobs=2)
        self.house.engine.start()
        self.house.wait_ended()
        assert self.plan is not None, "the step never came"

    def go_on(self, effects: tuple[Effect, ...]) -> None:
        """The third request comes just in time for the step in which the first one is captured."""
        told = [e for e in self.house.effects if isinstance(e, Delta) and e.id == FIRST]
        if len(told) == TOKENS - 1 and any(told[-1] is e for e in effects):
            self.house.submit(PROMPT, range(40, 70), depth=1, top_logprobs=2)
        if sum(isinstance(e, Finished) for e in self.house.effects) == 3:
            self.house.drain()

    def nothing_got_out(self) -> bool:
        house = self.house
        assert house.lines("plan")[-1]["plan"][0] == self.steps + 1, "the plan was on record"
        return (
            len(house.effects) == self.effects
            and len(house.results) == self.steps == len(house.lines("decoded"))
            and house.nodes() == self.nodes
        )


def nothing(_: Ticket) -> None:
    """A device without a fault."""


def test_without_a_fault_the_step_is_told_stored_and_recorded(house: EngineHouse) -> None:
    """What the others compare with: all three would show what slips through."""
    scene = Scene(house)
    scene.play(nothing)
    assert house.fault is None
    assert len(house.effects) > scene.effects
    assert len(house.lines("decoded")) > scene.steps
    assert len(scene.later) > len(scene.nodes)


def drawn(row: int, column: int, value: int) -> Callable[[Ticket], None]:
    """A number as the device might have left it where it drew no token. Row 0 decodes."""

    def damage(ticket: Ticket) -> None:
        assert ticket.drawn is not None
        rows = np.array(ticket.drawn)
        rows[row, column] = value
        ticket.drawn = mx.array(rows)

    return damage


def alternative(value: int) -> Callable[[Ticket], None]:
    """The same of an id in the report on log-probabilities."""

    def damage(ticket: Ticket) -> None:
        assert ticket.report is not None
        places = ticket.report.places
        ids = np.array(places.ids)
        ids.flat[0] = value
        ticket.report = replace(ticket.report, places=replace(places, ids=mx.array(ids)))

    return damage


VALUES: dict[str, Callable[[Ticket], None]] = {
    "a negative id": drawn(0, 0, -1),
    "an id past the vocabulary": drawn(0, 0, VOCABULARY),
    "a negative first token": drawn(1, 0, -5),
    "a first token past the vocabulary": drawn(1, 0, 1 << 30),
    "a negative count": drawn(0, -1, -1),
    "more accepted than drafted": drawn(0, -1, 2),
    "a prompt that accepts a draft": drawn(1, -1, 1),
    "an alternative past the vocabulary": alternative(VOCABULARY),
}


CALLS = few_quick(
    [(START, False), (WAIT, False), (WAIT, True), (SYNCHRONIZE, True)], (START, False), (WAIT, True)
)


@pytest.mark.parametrize(
    "damage",
    few_quick(VALUES.values(), VALUES["a negative id"], VALUES["more accepted than drafted"]),
    ids=VALUES,
)
def test_d3_numbers_that_cannot_be(
    damage: Callable[[Ticket], None], house: EngineHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed kernel may leave anything, and MLX need not say so."""
    scene = Scene(house)
    scene.play(damage)
    assert house.fault is not None
    assert house.fault.message == "the engine failed with DeviceFault"
    assert scene.nothing_got_out()
    assert "engine failed: DeviceFault" in caplog.text


@pytest.mark.parametrize(
    ("call", "late"),
    CALLS,
    ids=["start", "wait for a capture", "wait for the step", "synchronize"],
)
def test_d3_a_call_that_raises(
    call: str, late: bool, house: EngineHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a command buffer comes with any later use of the stream."""

    def fail(ticket: Ticket) -> None:
        house.log.raising = call

    scene = Scene(house)
    scene.play(fail if late else nothing, "" if late else call)
    assert house.fault is not None
    assert house.fault.message == "the engine failed with RuntimeError"
    assert scene.nothing_got_out()
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("call", "late"),
    CALLS,
    ids=["start", "wait for a capture", "wait for the step", "synchronize"],
)
def test_a_step_without_memory_is_lost_and_all_go_on(
    call: str, late: bool, house: EngineHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the step got out, every reply is whole, and the recording plays again."""

    def fail(ticket: Ticket) -> None:
        house.log.raising = call

    house.log.message = NO_MEMORY
    scene = Scene(house)
    scene.play(fail if late else nothing, "" if late else call)
    assert house.fault is None
    assert "a step is lost" in caplog.text
    ends = {e.id: e.reason for e in house.effects if isinstance(e, Finished)}
    assert ends == dict.fromkeys((FIRST, LATE, PROMPT), "length")
    told = [e.token_ids for e in house.effects if isinstance(e, Delta) and e.id != FIRST]
    assert sum(map(len, told)) == 2 * 40
    (lost,) = house.lines("lost")
    assert scene.plan is not None and lost["lost"] == scene.plan.number
    with house.record.open() as lines:
        assert replay(lines) == len(house.results) + 1


def test_d3_an_error_that_eval_does_not_tell(
    house: EngineHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLX has it on Metal: the values are there, the error is not, until the next use."""
    failed: list[bool] = []
    synchronize = mx.synchronize

    def next_use() -> None:
        synchronize()
        if failed:
            raise RuntimeError(MESSAGE)

    monkeypatch.setattr(mx, "synchronize", next_use)
    scene = Scene(house)
    scene.play(lambda ticket: failed.append(True))
    assert house.fault is not None
    assert scene.nothing_got_out()


def test_d3_a_capture_without_a_forward(house: EngineHouse) -> None:
    """Nothing runs beside it, so no other wait would tell that it failed."""
    nodes: list[NodeView] = []

    def before_submit(plan: StepPlan) -> None:
        if plan.captures and not (plan.decodes or plan.prefills):
            nodes.extend(house.nodes())
            house.log.raising = SYNCHRONIZE

    def prepare(runner: WatchedRunner) -> None:
        runner.before_submit = before_submit

    house.prepare = prepare
    house.submit(FIRST, range(2, 20), TOKENS)
    house.engine.start()
    house.wait_ended()
    assert house.fault is not None
    assert house.nodes() == nodes != []


async def read_into(ids: list[int], events: AsyncIterator[Any]) -> None:
    async for event in events:
        ids += event.delta.token_ids


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["a negative id", "more accepted than drafted"])
async def test_d3_clients_get_the_status_of_a_failed_device_and_the_process_its_code(
    name: str,
) -> None:
    watched: list[WatchedRunner] = []

    def before_wait(ticket: Ticket) -> None:
        if ticket.plan.decodes and ticket.plan.prefills:
            VALUES[name](ticket)

    def prepare(runner: WatchedRunner) -> None:
        watched.append(runner)
        runner.before_wait = before_wait

    ids: list[int] = []
    async with running(load=lambda: load_watched(config_for(), prepare)) as run:
        options = {"max_tokens": 400, "draft_tokens": 1, "ignore_eos": True}
        first = run.generation.Generate(prompt_of(*range(3, 30), **options))
        events = aiter(first)
        while not ids:
            ids += (await anext(events)).delta.token_ids
        second = run.generation.Generate(prompt_of(*range(40, 70), **options))
        with pytest.raises(grpc.aio.AioRpcError) as early:
            await read_into(ids, events)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await collect(second)
        assert [reason_of(error.value) for error in (early, late)] == [
            ("UNAVAILABLE", "ENGINE_FAILED")
        ] * 2
        assert await run.daemon.stop() == 1
        assert run.daemon.fault is not None
        assert run.daemon.fault.message == "the engine failed with DeviceFault"
    results = watched[0].results
    sound = [t for r in results for each in r.decoded for t in each.tokens]
    assert ids == [results[0].prefilled[0].token, *sound][: len(ids)]
