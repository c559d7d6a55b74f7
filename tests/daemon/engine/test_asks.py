"""Asks of an engine that ends: who still waits is refused, and who has left is in nobody's way."""

from __future__ import annotations

import pytest

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Engine, EngineEnded, Fault
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError
from sapwood.scheduler.events import Effect
from sapwood.scheduler.limits import Limits


class Heard:
    """A Listener that keeps how the engine ended."""

    def __init__(self) -> None:
        self.ends: list[Fault | None] = []

    def loaded(self, card: ModelCard) -> None:
        raise AssertionError("nothing is loaded here")

    def effects(self, effects: tuple[Effect, ...]) -> None:
        raise AssertionError("nothing runs here")

    def ended(self, fault: Fault | None) -> None:
        self.ends.append(fault)


def refused() -> Loaded:
    raise StartError("no such model")


def test_an_ask_that_was_taken_back_keeps_no_engine_from_ending() -> None:
    heard = Heard()
    engine = Engine(refused, heard, Limits())
    left, waits = engine.ask(Loaded.view_account), engine.ask(Loaded.view_account)
    assert left.cancel()
    engine.start()
    assert engine.join(100.0)
    assert heard.ends == [Fault("no such model")]
    with pytest.raises(EngineEnded):
        waits.result(0)
