"""The report: its JSON is the agreed one, and every claim of it can fail."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from sapwood import LayerKind, Model, Tier, TreeNode
from sapwood.daemon.demo.dialogue import Dialogue
from sapwood.daemon.demo.phase import Phase
from sapwood.daemon.demo.report import DemoReport, claims, demo_report, shared_tokens
from sapwood.daemon.demo.scrape import Check
from sapwood.daemon.demo.script import CAST, SHARED_TOKENS_MIN, ClientPart
from sapwood.daemon.demo.tables import report_tables
from tests.daemon.demo.told import told, usage

RIVER, FOX, BREAD, CLARA, BOAT, VOLCANO, BICYCLE, MOON = CAST

SHARED = [7] * SHARED_TOKENS_MIN
MODEL = Model("demo", "gemma4", "c0ffee", 4096, 2048, (1, 6), "assistant", "", "fast", "cpu")
STORED = {(Tier.DEVICE, LayerKind.FULL): 1000, (Tier.DEVICE, LayerKind.SLIDING): 24}
NODES = (
    TreeNode(1, None, 0, 500, STORED, 0, 3, False, 7, (), None),
    TreeNode(2, 1, 500, 590, STORED, 0, 1, False, 1, (), None),
)
AGREED = (Check("prompt_tokens_total", 500.0, 500, 500),)
DIFFERED = (Check("prompt_tokens_total", 501.0, 500, 500),)


def turn(part: ClientPart, cached: Sequence[int] = (500,), **more: object) -> Dialogue:
    """A dialogue of the part's number of turns that went as it should."""
    prompt = [*SHARED, 100 + CAST.index(part), 6, 8]
    reply = [[30], [31, 32, 33], [34, 6]]
    replies = [reply, reply] if part.follow_up else [reply]
    hits = [*cached, len(prompt) + 6 - 2][: len(replies)] if len(cached) == 1 else cached
    made = told(part, *replies, prompt=prompt, cached=hits, **more)  # type: ignore[arg-type]
    made.company = 3 if part.joins_at else 0
    return made


def phase(
    dialogues: Sequence[Dialogue], checks: tuple[Check, ...] = AGREED, span_s: float = 2.0
) -> Phase:
    return Phase(tuple(dialogues), span_s, checks, MODEL, NODES, 4)


def whole_cast(**changed: Dialogue) -> list[Dialogue]:
    cold = {"river": turn(RIVER, cached=(0,))}
    return [(cold | changed).get(part.id) or turn(part) for part in CAST]


def whole_report(checks: tuple[Check, ...] = AGREED) -> DemoReport:
    together, alone = phase(whole_cast()), phase(whole_cast(), checks, span_s=5.0)
    return demo_report(together, alone, "OpenBLAS (libopenblas.so.0)")


def test_the_json_has_exactly_the_agreed_keys_and_types() -> None:
    found = json.loads(json.dumps(whole_report().as_json()))
    assert {key: type(value) for key, value in found.items()} == {
        "clients": list,
        "tokens_per_s_together": float,
        "tokens_per_s_one_by_one": float,
        "blas": str,
        "tree": dict,
        "metrics_agree": bool,
    }
    for client in found["clients"]:
        assert {key: type(value) for key, value in client.items()} == {
            "id": str,
            "prompt_tokens": int,
            "cached_tokens": int,
            "completion_tokens": int,
            "draft_tokens": int,
            "accepted_tokens": int,
            "rounds": int,
            "ttft_s": float,
            "finish": str,
        }
    assert found["tree"] == {"nodes": 2, "bytes": 2048, "splits": 4}


def test_two_turns_are_summed_and_the_first_one_gives_the_time_to_the_first_token() -> None:
    fox = whole_report().figures.clients[1]
    assert (fox.id, fox.completion_tokens, fox.ttft_s, fox.finish) == ("fox", 12, 1.0, "stop")
    assert fox.prompt_tokens == 503 + (503 + 6 + 2)
    assert fox.cached_tokens == 500 + (503 + 6 - 2)


def test_a_cancelled_client_is_reported_with_what_it_saw() -> None:
    boat = whole_report().figures.clients[4]
    assert (boat.finish, boat.completion_tokens, boat.rounds) == ("cancelled", 6, 2)


def test_throughput_counts_the_same_tokens_over_each_phase() -> None:
    figures = whole_report().figures
    assert figures.tokens_per_s_together == (8 + 2) * 6 / 2.0
    assert figures.tokens_per_s_one_by_one == (8 + 2) * 6 / 5.0


def test_a_disagreement_one_by_one_shows_in_the_json() -> None:
    assert whole_report().figures.metrics_agree
    assert not whole_report(DIFFERED).figures.metrics_agree


def test_every_claim_holds_when_all_went_well() -> None:
    assert [claim for claim in whole_report().claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        pytest.param(lambda: {"bread": turn(BREAD, cached=(40,))}, "computed once", id="twice"),
        pytest.param(lambda: {"moon": _alone()}, "others decoded", id="came in alone"),
        pytest.param(
            lambda: {"clara": turn(CLARA, cached=(500, 503 + 6 - 3))}, "second turns", id="cold"
        ),
        pytest.param(
            lambda: {"volcano": turn(VOLCANO, reported=usage(503, 500, 7))},
            "usage",
            id="usage lies",
        ),
    ],
)
def test_each_claim_can_fail(changed: Callable[[], dict[str, Dialogue]], broken: str) -> None:
    found = claims(phase(whole_cast(**changed())), metrics_agree=True)
    (claim,) = [claim for claim in found if not claim.holds]
    assert broken in claim.text


def test_counters_that_differ_break_a_claim() -> None:
    (claim,) = [c for c in claims(phase(whole_cast()), metrics_agree=False) if not c.holds]
    assert "counters" in claim.text


def test_a_prompt_that_is_shared_by_less_than_500_tokens_breaks_its_claim() -> None:
    river = turn(RIVER, cached=(0,))
    river.prompts = type(river.prompts)((1, *SHARED), 6)
    assert not claims(phase(whole_cast(river=river)), metrics_agree=True)[0].holds


def test_shared_tokens_end_at_the_first_difference_or_the_shortest_prompt() -> None:
    assert shared_tokens([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert shared_tokens([[1, 2], [1, 2, 4]]) == 2
    assert shared_tokens([[1], [2]]) == 0


def test_replies_are_the_same_only_token_for_token() -> None:
    together, alone = whole_cast(), whole_cast()
    alone[0].turns[0].token_ids[2] += 1
    assert demo_report(phase(together), phase(alone), "").same_replies == 7


def test_a_cancelled_reply_is_compared_as_far_as_both_saw_it() -> None:
    together, alone = whole_cast(), whole_cast()
    del alone[4].turns[0].token_ids[-1]
    assert demo_report(phase(together), phase(alone), "").same_replies == 8
    del alone[0].turns[0].token_ids[-1]
    assert demo_report(phase(together), phase(alone), "").same_replies == 7


def test_the_tables_show_every_figure() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(report_tables(whole_report(DIFFERED)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in CAST:
        assert part.id in shown
    for words in ("30.0 tokens/s together", "12.0 one by one", "2.50 times", "OpenBLAS"):
        assert words in shown
    assert "[500, 590)" in shown
    assert "0 of 1 agree" in shown
    assert "✗ the daemon's counters" in shown


def _alone() -> Dialogue:
    moon = turn(MOON)
    moon.company = 0
    return moon
