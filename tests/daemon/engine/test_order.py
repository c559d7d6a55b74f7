"""One turn of the engine's loop: a step's tokens leave before the device has the next one to do."""

from __future__ import annotations

import pytest

from sapwood.model import device
from sapwood.scheduler.events import Effect, Finished
from tests.daemon.engine.house import COMMIT, PLAN, POST, EngineHouse
from tests.model.device_log import START, SYNCHRONIZE, WAIT


def turns(log: list[str]) -> list[list[str]]:
    """What came after each `plan`, for turns with a step."""
    starts = [i for i, what in enumerate(log) if what == PLAN]
    parts = [log[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(log)], strict=True)]
    return [part for part in parts if COMMIT in part]


@pytest.mark.parametrize("layers_per_part", [0, 2])
def test_tokens_leave_first_and_nothing_is_committed_before_the_device_is_done(
    layers_per_part: int, house: EngineHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a full queue of command buffers they would wait for most of the step."""
    monkeypatch.setattr(device, "layers_per_part", lambda: layers_per_part)

    def end(effects: tuple[Effect, ...]) -> None:
        if any(isinstance(e, Finished) and e.id == 2 for e in effects):
            house.drain()

    house.on_effects = end
    house.submit(1, range(2, 40), tokens=6, depth=0)
    house.submit(2, range(3, 60), tokens=30, depth=2)
    house.engine.start()
    house.wait_ended()
    assert house.fault is None
    found = turns(house.log)
    assert len(found) == len(house.results) > 10
    posts = [turn for turn in found if POST in turn]
    assert len(posts) > 10
    assert all(turn.index(POST) == 0 and turn.count(POST) == 1 for turn in posts)
    for turn in found:
        assert turn.count(SYNCHRONIZE) == 1
        assert turn[turn.index(COMMIT) - 2 : turn.index(COMMIT)] == [WAIT, SYNCHRONIZE]
    # A step of rounds alone: two iterations, their drafts, five layers of which the drafter reads
    # 1 and 2, what is left, the end.
    parts = [START, WAIT, START, START] if layers_per_part else [WAIT]
    drafts = [START] * (3 if layers_per_part else 1)
    assert [POST, *drafts, *parts, START, WAIT, SYNCHRONIZE, COMMIT] in found


def test_the_phases_of_a_step_are_observed_together(house: EngineHouse) -> None:
    """Emission and the device's calls have their own, so that `build` is the host's alone."""

    def end(effects: tuple[Effect, ...]) -> None:
        if any(isinstance(e, Finished) for e in effects):
            house.drain()

    house.on_effects = end
    house.submit(1, range(2, 12), tokens=8)
    house.engine.start()
    house.wait_ended()
    published = house.engine.published
    assert published is not None
    assert set(published.phases) == {"plan", "emit", "build", "device", "commit"}
    assert {view.count for view in published.phases.values()} == {len(house.results)}
    assert all(view.total > 0 for view in published.phases.values())
