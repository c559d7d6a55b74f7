"""Random requests of every kind, from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import prompts
from tests.system.stack import Stack, Stream

STOPS: tuple[tuple[str, ...], ...] = ((), (), ("e",), (" the", "a"), ("\u00e9", "zq"))


class Traffic:
    """Prompts that share beginnings with each other and with earlier turns, and all options."""

    def __init__(self, name: str, seed: int, prompt_tokens_max: int = 90) -> None:
        self.random = Random(f"{name} {seed}")
        self._prompts, self._prompt_tokens_max = prompts(name), prompt_tokens_max

    def submit(self, stack: Stack, **options: Any) -> Stream:
        random = self.random
        drawn = {
            "max_tokens": random.choice((1, 2, 9, 24)),
            "sampling": self._sampling(),
            "depth": random.choice((None, None, 0, 1, 3, 8)) if stack.facts.has_drafter else None,
            "stop": random.choice(STOPS),
            "stop_token_ids": frozenset(random.sample(range(2, 900), random.choice((0, 0, 40)))),
            "ignore_eos": random.random() < 0.8,
            "root": random.choice((b"root", b"root", b"other")),
            "top_logprobs": random.choice((0, 0, 0, 1, 5)),
            "cache_bypass": random.random() < 0.1,
            "store_reply": random.random() < 0.8,
        }
        return stack.submit(self.prompt(stack), **drawn | options)

    def steps(self, stack: Stack, requests: int) -> Iterator[None]:
        """So many requests, two in five steps; after every step, until all of them are over."""
        asked = 0
        while asked < requests or stack.core.has_work:
            if asked < requests and self.random.random() < 0.4:
                self.submit(stack)
                asked += 1
            stack.step()
            yield

    def prompt(self, stack: Stack) -> tuple[int, ...]:
        """A known beginning, an earlier turn and its reply, or something new; and a tail."""
        random = self.random
        tail = tuple(random.randrange(5, 900) for _ in range(random.randint(1, 30)))
        kind = random.random()
        if stack.streams and kind < 0.35:
            earlier = random.choice(stack.streams)
            tail = (*earlier.request.prompt, *earlier.tokens, *tail[:8])
        elif kind < 0.8:
            beginning = random.choice(self._prompts)
            tail = (*beginning[: random.randint(1, len(beginning))], *tail)
        return tail[: self._prompt_tokens_max]

    def _sampling(self) -> Sampling:
        random = self.random
        penalties: tuple[float, float, float, tuple[tuple[int, float], ...]]
        penalties = (1.0, 0.0, 0.0, ())
        if random.random() < 0.3:
            penalties = (random.choice((1.0, 1.3)), random.choice((0.0, 0.5)), 0.3, ((9, 2.0),))
        if random.random() < 0.6:
            return Sampling(0.0, 0, 1.0, 0.0, False, 0, *penalties)
        top_k, top_p = random.choice((0, 7, 40)), random.choice((1.0, 0.9))
        seeded = random.random() < 0.8
        return Sampling(0.9, top_k, top_p, 0.02, seeded, random.getrandbits(64), *penalties)
