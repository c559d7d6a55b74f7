"""Sixteen greedy clients together against the same clients one after another, tokens per second.

- 64 random prompt tokens each, never seen before; 128 new tokens whatever the model says.
- Plain: depth 0 on both sides. MTP: the daemon decides on both sides. Nothing of the synthetic
  drafter is ever accepted, so MTP over plain is what speculation costs where it cannot pay.
- The four sides are measured in every run, forwards and backwards in turn. One by one with MTP only
  four of the sixteen are served: its rate does not depend on how many wait, and it takes longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio

from bench.clients import Group, Served, connected
from bench.measure import Figure, Goal, alternated, at_least
from bench.setup import Setup
from sapwood import AsyncClient
from sapwood.client.values import GenerateOptions

_CLIENTS, _PROMPT_TOKENS, _NEW_TOKENS, _QUICK_TOKENS, _WARM_TOKENS = 16, 64, 128, 16, 24
ALONE_WITH_MTP = 4


def measure(setup: Setup) -> list[Figure]:
    with setup.synthetic() as daemon:
        return anyio.run(partial(_measure, daemon.address, setup))


async def _measure(address: str, setup: Setup) -> list[Figure]:
    groups = (
        Group("one by one", False, 0),
        Group("together", True, 0),
        Group("one by one, MTP", False, None),
        Group("together, MTP", True, None),
    )
    tokens = _QUICK_TOKENS if setup.quick else _NEW_TOKENS
    async with connected(address, _CLIENTS) as clients:
        for group in groups[1::2]:  # one by one needs nothing that these do not warm
            await _serve(clients, group, setup, _WARM_TOKENS)
        for run in range(setup.runs):
            for group in alternated(groups, run):
                few = not group.together and group.draft_tokens is None
                asking = clients[:ALONE_WITH_MTP] if few else clients
                group.served.append(await _serve(asking, group, setup, tokens))
                rate = group.served[-1].tokens_per_s
                setup.say(f"run {run + 1}: {group.name}: {rate:.0f} tokens/s")
    return _figures(*groups)


async def _serve(clients: Sequence[AsyncClient], group: Group, setup: Setup, tokens: int) -> Served:
    prompts = [setup.prompt(_PROMPT_TOKENS) for _ in clients]
    return await group.serve(clients, prompts, GenerateOptions(max_tokens=tokens, ignore_eos=True))


def _figures(alone: Group, company: Group, alone_mtp: Group, company_mtp: Group) -> list[Figure]:
    def figure(name: str, title: str, a: Group, b: Group, target: Goal | None = None) -> Figure:
        details = {} if a.draft_tokens == 0 else a.acceptance()
        return Figure(f"company/{name}", title, a.side, b.side, target, details)

    failing = "MTP whose drafts all fail ÷ depth 0"
    return [
        figure("plain", "16 clients together ÷ one by one, depth 0", company, alone, at_least(5)),
        figure("mtp", "The same with MTP on both sides", company_mtp, alone_mtp),
        figure("parking", f"16 together: {failing}", company_mtp, company),
        figure("parking_alone", f"One by one: {failing}", alone_mtp, alone),
    ]
