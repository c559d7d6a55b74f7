"""A prefix hit against a cold prompt: time to first token, as a client sees it.

- Cold: 2,032 random tokens that the daemon has never seen. Hit: 2,000 of the same and 32 others.
- Fresh tokens in every run; the daemon's own count of cached tokens is checked in every request.
- A slow cold prompt would flatter the hit. So it has a peer as well: mlx-lm's own forward over the
  same tokens, in this process, without a daemon or a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import anyio

from bench.clients import TimedReply, ask, connected
from bench.measure import BenchError, Figure, Side, at_most
from bench.peer import MlxLm
from bench.setup import Setup
from sapwood import AsyncClient
from sapwood.client.values import GenerateOptions

_CACHED_TOKENS, _NEW_TOKENS = 2000, 32
PREFIX_OPTIONS = GenerateOptions(max_tokens=1, temperature=0.0, draft_tokens=0, ignore_eos=True)

MeasuredPrompt = list[int]


def measure(setup: Setup) -> list[Figure]:
    model = setup.load_target().target
    with setup.synthetic() as daemon:
        return anyio.run(partial(_measure, daemon.address, setup, partial(MlxLm, model)))


async def _measure(
    address: str, setup: Setup, peer: Callable[[MeasuredPrompt], object]
) -> list[Figure]:
    hits, colds, peers = [], [], []
    async with connected(address, 1) as (client,):
        await _run(client, *_prompts(setup))  # warms what is made once per shape
        peer(setup.prompt(_NEW_TOKENS))
        for run in range(setup.runs):
            prompt, other = _prompts(setup)
            cold, hit = await _run(client, prompt, other)
            start = time.perf_counter()
            peer(prompt)
            peers.append(time.perf_counter() - start)
            colds.append(cold.first_token_s)
            hits.append(hit.first_token_s)
            shown = (f"{s[-1] * 1e3:.0f}" for s in (hits, colds, peers))
            setup.say("run {}: hit {} ms, cold {} ms, mlx-lm {} ms".format(run + 1, *shown))
    return _figures(hits, colds, peers)


def _prompts(setup: Setup) -> tuple[MeasuredPrompt, MeasuredPrompt]:
    """Two that share their first _CACHED_TOKENS and not one more."""
    shared, first = setup.prompt(_CACHED_TOKENS), setup.prompt(_NEW_TOKENS)
    second = setup.prompt(_NEW_TOKENS)
    while first[0] == second[0]:
        second = setup.prompt(_NEW_TOKENS)
    return shared + first, shared + second


async def _run(
    client: AsyncClient, prompt: MeasuredPrompt, other: MeasuredPrompt
) -> tuple[TimedReply, TimedReply]:
    """The cold one has to come first: it is what the hit finds."""
    cold, hit = await ask(client, prompt, PREFIX_OPTIONS), await ask(client, other, PREFIX_OPTIONS)
    found = cold.usage.cached_tokens, hit.usage.cached_tokens
    if found != (0, _CACHED_TOKENS):
        raise BenchError(f"cached tokens were {found}, not {(0, _CACHED_TOKENS)}")
    return cold, hit


def _figures(hits: Sequence[float], colds: Sequence[float], peers: Sequence[float]) -> list[Figure]:
    cold = Side("cold", "s", tuple(colds))
    return [
        Figure(
            "prefix/hit",
            "Time to first token, 2,000 of 2,032 tokens cached ÷ cold",
            Side("prefix hit", "s", tuple(hits)),
            cold,
            at_most(0.10),
        ),
        Figure(
            "prefix/cold",
            "Time to first token, 2,032 cold tokens ÷ mlx-lm's own prefill",
            cold,
            Side("mlx-lm", "s", tuple(peers)),
        ),
    ]
