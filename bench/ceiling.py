"""How fast a pair could be served if a step were its matmuls: tokens per second of N clients.

- ceiling(N) = max over depth d of N x reply / (prompts + rounds x step): a step is the matmuls of
  N x (d + 1) tokens with the weights as they are loaded, and those of the drafter for d iterations
  of N rows, each the least of several turns; prompts are the matmuls of what the clients' prompts
  did not find in the tree, all together. Attention, norms, sampler, host: nothing.
- A round gives E(d) = 1 + the sum of the chances that its drafts 1 to d are emitted. They are
  counted by position, once, with every round as deep as may be, on the pair and the questions of
  bench/speculation.py: core and runner in line, all questions together.
- Ours beside it: a daemon with the same pair and N clients, among whom the questions are dealt out,
  each client's one after another; at its own choice of depths, prompts found in the tree.
- All N rows decode all the time, at one depth. A company that shrinks when questions run out
  reaches less, one whose rows each have a depth of their own perhaps more. So the details tell what
  our own rate is made of, beside what the ceiling's is: `streams_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import anyio

from bench.clients import Group, Served, TimedReply, ask, connected
from bench.in_line import in_line, served_in_line
from bench.matmuls import MatmulWork, PairMatmuls, measure_least
from bench.measure import Figure, Side, alternated
from bench.setup import Setup
from bench.speculation import QUESTIONS, SPECULATION_OPTIONS
from sapwood import AsyncClient, Message
from sapwood.client.values import GenerateOptions
from sapwood.daemon.demo.process import serve_command
from sapwood.model.pair import Pair
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling

COMPANY_SIZES = (1, 2, 4, 8, 16, 32)
QUICK_SIZES = (1, 8)
TURNS_MIN = 5


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """What each of `clients` asks for: prompt tokens that are computed, and tokens of a reply."""

    clients: int
    prompt_tokens: int
    reply_tokens: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The best depth, and the tokens per second of all clients at it. Seconds are of matmuls."""

    depth: int
    tokens_s: float
    round_tokens: float
    step_s: float
    prompts_s: float


def emitted_chances(drafted: Sequence[int], accepted: Sequence[int]) -> list[float]:
    """By position: of the drafts there, the share that was emitted. 0 where nobody drafted."""
    return [a / d if d else 0.0 for d, a in zip(drafted, accepted, strict=True)]


def tokens_of_round(chances: Sequence[float], depth: int) -> float:
    """Expected, the drawn token included. chances: as `emitted_chances` gives them."""
    return 1.0 + sum(chances[:depth])


def tokens_per_s(load: ClientLoad, round_tokens: float, step_s: float, prompts_s: float) -> float:
    """Of all clients. A reply's first token is drawn where the prompt ends, the rest in rounds."""
    rounds = (load.reply_tokens - 1.0) / round_tokens
    return load.clients * load.reply_tokens / (prompts_s + rounds * step_s)


def ceiling(
    load: ClientLoad, chances: Sequence[float], seconds: Mapping[MatmulWork, float]
) -> Ceiling:
    """The best of all depths that there are chances for; seconds: of all `works`."""
    prompts_s = seconds[MatmulWork.of_prompts(load.clients, load.prompt_tokens)]
    found = []
    for depth in range(len(chances) + 1):
        step_s = seconds[MatmulWork.of_round(load.clients, depth)]
        a_round = tokens_of_round(chances, depth)
        rate = tokens_per_s(load, a_round, step_s, prompts_s)
        found.append(Ceiling(depth, rate, a_round, step_s, prompts_s))
    return max(found, key=lambda one: one.tokens_s)


def works(load: ClientLoad, depth_max: int) -> list[MatmulWork]:
    """What must be timed for a ceiling."""
    rounds = [MatmulWork.of_round(load.clients, depth) for depth in range(depth_max + 1)]
    return [*rounds, MatmulWork.of_prompts(load.clients, load.prompt_tokens)]


def questions_of(pair: Pair) -> list[Request]:
    """The questions of bench/speculation.py, in the model's own turns, as deep as may be."""
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tuple(pair.tokenizer.encode_messages(turn)) for turn in turns]
    tokens_max, depth = SPECULATION_OPTIONS["max_tokens"], Limits().draft_depth_max
    assert tokens_max is not None
    return [
        Request(id, b"ceiling", prompt, tokens_max, Sampling(), depth=depth)
        for id, prompt in enumerate(prompts)
    ]


def measured_chances(pair: Pair, requests: Sequence[Request]) -> list[float]:
    """As emitted_chances, of what becomes of the requests; [] without a drafter."""
    if pair.assistant is None:
        return []
    with in_line(pair) as loaded:
        served_in_line(loaded, requests)
        stats = loaded.core.stats()
    return emitted_chances(stats.draft_tokens, stats.accepted_tokens)


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_given_pair()
    chances = measured_chances(pair, questions_of(pair))
    shown = ", ".join(f"{chance:.2f}" for chance in chances)
    setup.say(f"emitted of the drafts at each position: {shown or 'no drafter'}")
    matmuls = PairMatmuls(pair)
    with setup.daemon(serve_command(*setup.given_flags)) as daemon:
        return anyio.run(partial(_measure, daemon.address, setup, matmuls, chances))


async def _measure(
    address: str, setup: Setup, matmuls: PairMatmuls, chances: Sequence[float]
) -> list[Figure]:
    groups = {n: Group("ours", True, None) for n in (QUICK_SIZES if setup.quick else COMPANY_SIZES)}
    async with connected(address, max(groups)) as clients:
        await serve_questions(clients, groups[max(groups)])  # warms tree, shapes, depth policy
        for run in range(setup.runs):
            for n, group in alternated(list(groups.items()), run):
                group.served.append(await serve_questions(clients[:n], group))
                setup.say(f"run {run + 1}: {n} clients: {group.served[-1].tokens_per_s:.0f}")
            loads = [load_of(n, group.served[0]) for n, group in groups.items()]
            timed = [work for load in loads for work in works(load, len(chances))]
            # The daemon is idle. At least so many turns in all, whatever the runs.
            measure_least(matmuls, list(dict.fromkeys(timed)), -(-TURNS_MIN // setup.runs))
    return [_figure(n, group, matmuls, chances) for n, group in groups.items()]


async def serve_questions(clients: Sequence[AsyncClient], group: Group) -> Served:
    """Every question at least once: each client asks its own, one after another."""
    options = GenerateOptions(
        **SPECULATION_OPTIONS, temperature=0.0, draft_tokens=group.draft_tokens
    )
    count, replies = max(len(QUESTIONS), len(clients)), list[TimedReply]()

    async def one(client: AsyncClient, first: int) -> None:
        for index in range(first, count, len(clients)):
            asked = [Message("user", QUESTIONS[index % len(QUESTIONS)])]
            replies.append(await ask(client, asked, options))

    async with anyio.create_task_group() as tasks:
        for first, client in enumerate(clients):
            tasks.start_soon(one, client, first)
    return Served(tuple(replies))


def load_of(clients: int, served: Served) -> ClientLoad:
    """What so many clients asked for, on the mean of their replies."""
    count = len(served.replies)
    computed = served.total("prompt_tokens") - served.total("cached_tokens")
    return ClientLoad(clients, round(computed / count), served.tokens / count)


def streams_of(turns: Sequence[Served]) -> dict[str, float]:
    """What the streams saw in the mean, over all turns.

    our_streams x tokens of a reply / (our_first_text_s + decode steps of a reply x our_step_s) is
    the rate of all turns together. our_streams: at work at a time, waiting ones included.
    """
    replies = [reply for served in turns for reply in served.replies]
    at_work_s = sum(reply.ended - reply.asked for reply in replies)
    decoding_s = sum(reply.ended - reply.first_token for reply in replies)
    steps = sum(served.total("decode_steps") for served in turns)
    return {
        "our_streams": at_work_s / sum(served.span_s for served in turns),
        "our_first_text_s": fmean(reply.first_token_s for reply in replies),
        "our_decode_steps": steps / len(replies),
        "our_step_s": decoding_s / steps if steps else 0.0,
    }


def _figure(clients: int, group: Group, matmuls: PairMatmuls, chances: Sequence[float]) -> Figure:
    load = load_of(clients, group.served[0])  # greedy replies are alike in all runs
    found = ceiling(load, chances, matmuls.least_s)
    bound = Side("ceiling", "tokens/s", (found.tokens_s,) * len(group.served))
    details = {
        "depth": found.depth,
        "round_tokens": found.round_tokens,
        "step_matmuls_s": found.step_s,
        "prompts_matmuls_s": found.prompts_s,
        "prompt_tokens": load.prompt_tokens,
        "reply_tokens": load.reply_tokens,
        "our_tokens_per_decode_step": group.acceptance()["tokens_per_decode_step"],
        **streams_of(group.served),
        **{f"chance_{position}": chance for position, chance in enumerate(chances, 1)},
    }
    who = "1 client" if clients == 1 else f"{clients} clients"
    title = f"{who}: ours ÷ what the matmuls alone would take"
    return Figure(f"ceiling/{clients}", title, group.side, bound, details=details)
