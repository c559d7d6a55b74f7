"""The bench of fair shares: what it says of a crowd that is fair, and of one that is not."""

from __future__ import annotations

import pytest

from bench import fair
from bench.measure import at_least
from tests.sim.crowd import Client, unfair

TWO = fair.FairCase(
    "one stream beside ten",
    (Client("one", 1, reply_tokens=40), Client("ten", 10, reply_tokens=40)),
    {"one": 1.0, "ten": 7.0},
    at_least(0.95),
)


def test_a_stream_beside_many_has_a_slot_and_without_fairness_less() -> None:
    shared = fair.attained(TWO, 0.6, 210)
    assert shared.jain > 0.98 and shared.lacks < 1.0
    with unfair():
        other = fair.attained(TWO, 0.6, 210)
    assert other.lacks > 2.0 > shared.lacks
    assert fair.attained(TWO, 0.6, 210) == shared, "fair again behind it, and the same"


def test_every_case_is_judged_by_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([fair.Attained(0.99, 0.5, 100.0)] * 3 + [fair.Attained(0.4, 30.0, 102.0)] * 3)
    monkeypatch.setattr(fair, "attained", lambda *_: next(told))
    jain, lacks, tokens = fair._figures(_Silent(), "two", TWO, 0)  # type: ignore[arg-type]
    assert [figure.name for figure in (jain, lacks, tokens)] == [
        "fair/two/jain", "fair/two/lacks", "fair/two/tokens"
    ]  # fmt: skip
    assert jain.met and jain.details["unfair_0.3"] == 0.4
    assert lacks.met and lacks.spread.median == 0.5
    assert tokens.met and tokens.spread.median == pytest.approx(100 / 102)


def test_the_newcomer_comes_in_five_steps() -> None:
    assert fair._newcomer().met


class _Silent:
    def say(self, _: str) -> None:
        """Nothing."""
