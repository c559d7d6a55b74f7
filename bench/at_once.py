"""Requests that run at once where each may say 2,000 tokens and none does.

- In this process, by the daemon's own core and runner: eight questions come together, into a budget
  that holds two were each as long as it may be.
- The other side is how many a core takes that reserves all that a request may grow to, reckoned:
  as ours did before rows grew with what is written.
"""

from __future__ import annotations

from bench.in_line import InLineStep, in_line, served_in_line
from bench.measure import Figure, Side, at_least
from bench.setup import Setup
from sapwood.model.pair import Pair, model_facts
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.sampling import Sampling

ASKED, MAX_TOKENS, WHOLE_ONES = 8, 2000, 2


def reserved_bytes(facts: ModelFacts, limits: Limits, tokens: list[int]) -> int:
    """Live K/V and step of slots that may grow to so many tokens each, from the first on."""
    return slots_bytes(facts, limits, [Demand(each) for each in tokens])


def whole_at_once(facts: ModelFacts, limits: Limits, tokens: list[int], budget_bytes: int) -> int:
    """How many of the requests fit as long as each may be."""
    room = budget_bytes - facts.weights_bytes
    fitting = range(1, len(tokens) + 1)
    return max((n for n in fitting if reserved_bytes(facts, limits, tokens[:n]) <= room), default=0)


def requests_of(pair: Pair, questions: list[str]) -> list[Request]:
    turns = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tuple(pair.tokenizer.encode_messages(turn)) for turn in turns]
    return [
        Request(id, b"at once", prompt, MAX_TOKENS, Sampling()) for id, prompt in enumerate(prompts)
    ]


def measure_at_once(setup: Setup, pair: Pair, questions: list[str]) -> Figure:
    limits = Limits()
    facts, requests = model_facts(pair, limits.draft_depth_max), requests_of(pair, questions)
    tokens = [request.tokens_max for request in requests]
    budget = facts.weights_bytes + reserved_bytes(facts, limits, [max(tokens)] * WHOLE_ONES)
    running: list[int] = []

    def look(step: InLineStep) -> None:
        running.append(len(step.plan.decodes) + len(step.plan.prefills))

    with in_line(pair, budget) as loaded:
        usages = served_in_line(loaded, requests, look)
        parks = loaded.core.stats().parks
    replies = [usage.completion_tokens for usage in usages]
    whole = whole_at_once(facts, limits, tokens, budget)
    setup.say(f"{max(running)} of {len(requests)} at once, {whole} whole, {parks} parked")
    details = {"parks": parks, "reply_tokens_min": min(replies), "reply_tokens_max": max(replies)}
    return Figure(
        "memory/at_once",
        f"{ASKED} requests that may say {MAX_TOKENS} tokens: at once ÷ were all that reserved",
        Side("ours", "requests", (float(max(running)),)),
        Side("whole", "requests", (float(whole),)),
        at_least(3),
        details={name: float(value) for name, value in details.items()},
    )
