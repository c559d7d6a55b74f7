"""Replies that are held to something, through real core and runner: exact, alone and in company."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sapwood.model.constraints.guide import Guide
from sapwood.model.pair import model_facts
from sapwood.model.sampler import Sampler
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.events import Failed, Finished
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import FinishReason, Outcome
from sapwood.scheduler.plan import Admit
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from tests.quick import few_quick
from tests.system.device_bytes import exact_buffers
from tests.system.held import best_tokens, held
from tests.system.pairs import DEMO, oracle, pair, prompts
from tests.system.stack import GREEDY, Stack

ORDER = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["new", "used"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "count", "name", "tags"],
    "additionalProperties": False,
}
TEXT = json.dumps(ORDER)
SEEDED = Sampling(0.9, 40, 0.95, seeded=True, noise_key=5)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": SEEDED,
    "seeded, all": Sampling(1.2, seeded=True, noise_key=6),
    "penalised": Sampling(repetition_penalty=1.2, frequency_penalty=0.2, logit_bias=((9, 1.0),)),
}
UNSEEDED = Sampling(1.0, 64, noise_key=77)
LIMITS = Limits(slots_max=12, prefill_tokens_max=64)
NAMES = [DEMO, *(pytest.param(name, marks=pytest.mark.long) for name in ("e2b-tiny", "a4b-tiny"))]


def said(name: str, tokens: Sequence[int]) -> str:
    return pair(name).tokenizer.decode(tokens)


def is_whole(name: str, tokens: Sequence[int]) -> None:
    """A document of ORDER, and the token that ended it."""
    assert tokens[-1] in pair(name).tokenizer.eos_token_ids
    Draft202012Validator(ORDER).validate(json.loads(said(name, tokens)))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_reply_at_any_depth_alone_and_in_company(name: str) -> None:
    """S1 and S5 under a constraint; and nobody beside it says anything else."""
    constraint, asked = held(name, TEXT), prompts(name)[:3]
    options: dict[str, Any] = {"ignore_eos": False, "constraint": constraint}
    stack = Stack(pair(name), LIMITS)
    alone = [
        stack.generate(asked[n % 3], 90, sampling=sampling, depth=0, **options)
        for n, sampling in enumerate(SAMPLINGS.values())
    ]
    free = [stack.generate(prompt, 40, sampling=SEEDED, depth=2) for prompt in asked]
    for depth in (3, None) if name == DEMO else (1, 4, 8, None):
        company = [
            stack.submit(asked[n % 3], 90, sampling=sampling, depth=depth, **options)
            for n, sampling in enumerate(SAMPLINGS.values())
        ]
        beside = [stack.submit(prompt, 40, sampling=SEEDED, depth=2) for prompt in asked]
        drawn = stack.submit(asked[0], 90, sampling=UNSEEDED, depth=depth, **options)
        stack.run()
        assert [s.tokens for s in company] == [s.tokens for s in alone]
        assert [s.tokens for s in beside] == [s.tokens for s in free]
        for stream in (*company, drawn):
            assert stream.finished.reason is FinishReason.STOP
            is_whole(name, stream.tokens)
    drafted = [s.finished.usage for s in stack.streams if s.request.depth and s.request.constraint]
    assert sum(usage.accepted_tokens for usage in drafted) > 0
    assert sum(usage.draft_tokens - usage.accepted_tokens for usage in drafted) > 0
    stack.close()


FIXED = "".join(f'"{name} of the thing":' for name in ("size", "colour", "weight", "price"))


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, UNSEEDED], ids=["greedy", "seeded", "drawn"])
def test_what_is_forced_costs_no_drafter(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a whole text is certain it takes a few rounds and hardly a draft of the drafter's.

    Hardly: a model may spell what is certain in its own way, and a round of it is then short.
    """
    stack = Stack(pair(DEMO), LIMITS)
    assert stack.runner.drafter is not None
    assistant = stack.runner.drafter.assistant
    step, iterations = assistant.step, 0

    def counted(*of: Any) -> Any:
        nonlocal iterations
        iterations += 1
        return step(*of)

    monkeypatch.setattr(assistant, "step", counted)
    options: dict[str, Any] = {"ignore_eos": False, "sampling": sampling}
    constraint = held(DEMO, f"{FIXED}[0-9]", "regex")
    found = {}
    for depth in (0, 8, None):
        stream = stack.generate(prompts(DEMO)[0], 90, depth=depth, constraint=constraint, **options)
        assert said(DEMO, stream.tokens).startswith(FIXED)
        found[depth] = stream.finished.usage
        if sampling.seeded or not sampling.temperature:
            assert stream.tokens == stack.streams[0].tokens
    assert found[0].rounds == found[0].draft_tokens == 0
    for usage in (found[8], found[None]):
        assert usage.accepted_tokens > 0.7 * usage.completion_tokens > 0
        assert usage.decode_steps < 0.5 * found[0].decode_steps
    assert iterations < 0.5 * (found[8].draft_tokens + found[None].draft_tokens)
    stack.close()


@pytest.mark.parametrize("name", NAMES)
def test_each_greedy_token_is_the_best_that_an_independent_matcher_allows(name: str) -> None:
    stack = Stack(pair(name), LIMITS)
    for prompt in prompts(name)[: 1 if name == DEMO else 3]:
        stream = stack.generate(prompt, 90, depth=4, ignore_eos=False, constraint=held(name, TEXT))
        found = best_tokens(name, TEXT, prompt, stream.tokens)
        assert all(below <= 1e-3 for _, below in found)
        assert sum(
            best == t for (best, _), t in zip(found, stream.tokens, strict=True)
        ) > 0.9 * len(found)
    stack.close()


@pytest.mark.long
def test_who_is_beside_a_constrained_row_gets_the_same_bits() -> None:
    """Log-probabilities and tokens of free rows, with a row beside them that is held or not.

    The rows beside have one prompt, so every step has the same shape while both last.
    """
    told = []
    for constraint in (None, held(DEMO, "[0-9a-z ,]{900}", "regex")):
        stack = Stack(pair(DEMO), LIMITS)
        free = [
            stack.submit(prompts(DEMO)[n], 24, sampling=sampling, depth=2, top_logprobs=4)
            for n, sampling in enumerate((GREEDY, SEEDED, UNSEEDED))
        ]
        beside = stack.submit(
            prompts(DEMO)[1], 60, depth=2, ignore_eos=constraint is None, constraint=constraint
        )
        stack.run()
        told.append([(stream.tokens, stream.logprobs) for stream in free])
        assert len(beside.tokens) == 60
        stack.close()
    assert told[0] == told[1]


ROW_TOKENS, REPLY = 16, 44
# Which says at each place where it is: whoever comes back elsewhere is noticed.
LETTERS = "abcdefghijklmnopqrst"
PLACED = "".join(f"[{letter}{letter.upper()}]{{5}}" for letter in LETTERS)
TIGHT = Limits(slots_max=6, prefill_tokens_max=40, reply_tokens_guess=1, draft_depth_max=8)


@pytest.mark.parametrize("kind", ["greedy", pytest.param("seeded", marks=pytest.mark.long)])
def test_who_is_parked_goes_on_where_its_constraint_was(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sampling = "e2b-tiny", SAMPLINGS[kind]
    replies = []
    with exact_buffers(monkeypatch):
        facts = replace(model_facts(pair(name), TIGHT.draft_depth_max), row_tokens_min=ROW_TOKENS)
        draw = facts.draw_bytes_per_row(sampling, masked=True)
        slots = slots_bytes(facts, TIGHT, [Demand(32, draw)] * 3)
        for budget in (4 << 30, facts.weights_bytes + slots):
            stack = Stack(pair(name), TIGHT, budget, row_tokens_min=ROW_TOKENS)
            known = [token for prompt in prompts(name) for token in prompt]
            streams = [
                stack.submit(
                    known[n * 20 : n * 20 + 20], REPLY, sampling=sampling, ignore_eos=False,
                    constraint=held(name, PLACED, "regex") if n else None,
                )
                for n in range(5)
            ]  # fmt: skip
            stack.run()
            replies.append([stream.tokens for stream in streams])
            parks = stack.core.stats().parks
            assert bool(parks) == (budget < 4 << 30)
            stack.close()
    assert replies[0] == replies[1]
    for tokens in replies[0][1:]:
        text = said(name, tokens)
        assert text.lower() == "".join(5 * letter for letter in LETTERS)[: len(text)]


@pytest.mark.parametrize("phase", few_quick(["first token", "round"], "round"))
def test_a_constraint_that_breaks_ends_its_request_alone(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(pair(DEMO), LIMITS)
    constraint = held(DEMO, "[a-z ]{600}", "regex")
    options: dict[str, Any] = {"ignore_eos": False, "constraint": constraint}
    undisturbed = [stack.generate(prompts(DEMO)[n], 30, **options).tokens for n in (1, 2)]
    free = stack.submit(prompts(DEMO)[0], 30)
    other = stack.submit(prompts(DEMO)[1], 30, **options)
    broken = stack.submit(prompts(DEMO)[2], 30, **options)
    made = Sampler.of

    def breaking(admit: Admit, vocabulary: int) -> Sampler:
        sampler = made(admit, vocabulary)
        if admit.prompt == broken.request.prompt:
            assert sampler.guide is not None
            guides.append(sampler.guide)
            sampler.guide.failure = "it broke" * (phase == "first token")
        return sampler

    guides: list[Guide] = []
    monkeypatch.setattr(Sampler, "of", breaking)
    while not broken.tokens and not broken.end:
        stack.step()
    guides[0].failure = "it broke"
    stack.run()
    assert broken.end == Failed(broken.request.id, Reason.BAD_CONSTRAINT, "it broke")
    assert len(broken.tokens) < 30 and bool(broken.tokens) == (phase == "round")
    assert broken.tokens == undisturbed[1][: len(broken.tokens)]
    assert isinstance(free.end, Finished) and other.tokens == undisturbed[0]
    assert stack.core.stats().requests[Outcome.FAILED] == 1
    assert not oracle(DEMO).judge(free.request.prompt, free.tokens, GREEDY).faults
    stack.close()
