"""What a constraint costs: a step of eight rows that are held to a schema against one of free ones.

- In this process, core and runner in line: the given pair, rows at an equal pinned depth, sampled.
  The schema asks for more than anybody writes, so that all rows stay in every step.
- A run is worth its median step with all rows in it and nobody who comes or goes, in seconds and in
  processor seconds of this process: a neighbour makes the one longer and the other hardly.
- Masks alone, of a vocabulary of 262,144 made-up tokens: a walk over a round's drafts, where a text
  leads the first time (cold) and once more in the same state (warm). There is no peer for it.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.in_line import InLineStep, in_line, served_in_line
from bench.measure import BenchError, Figure, Side, alternated, at_most
from bench.setup import Setup
from sapwood.daemon.engine.loaded import Loaded
from sapwood.model.constraints.compiler import ConstraintCompiler
from sapwood.model.constraints.guide import Guide
from sapwood.model.constraints.spec import ConstraintSpec
from sapwood.model.constraints.step_masks import StepMasks
from sapwood.model.constraints.vocabulary import Vocabulary
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import Request
from sapwood.scheduler.sampling import Sampling

MASKED_ROWS, HELD_PROMPT_TOKENS, HELD_TOKENS, QUICK_HELD_TOKENS = 8, 48, 96, 32
HELD_DEPTHS, QUICK_HELD_DEPTHS = (0, 2, 4), (2,)
MADE_UP_TOKENS = 262_144
SAMPLED = Sampling(temperature=1.0, top_k=64, top_p=0.95, seeded=True, noise_key=5)
ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["new", "used", "broken"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["name", "kind", "count", "tags"],
    "additionalProperties": False,
}
LONG = {"type": "array", "items": ORDER, "minItems": 1000}


class StepSeconds(NamedTuple):
    """Seconds, and processor seconds of all threads of this process."""

    seconds: float
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.2f} ms ({self.cpu_s * 1e3:.2f} ms processor)"


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_given_pair()
    depths = (0,) if pair.assistant is None else QUICK_HELD_DEPTHS if setup.quick else HELD_DEPTHS
    held: dict[int, list[StepSeconds]] = {depth: [] for depth in depths}
    free: dict[int, list[StepSeconds]] = {depth: [] for depth in depths}
    with in_line(pair) as loaded:
        constraint = _constraint(loaded)
        _step(loaded, setup, depths[-1], constraint)  # warms shapes and what masks remember
        for run in range(setup.runs):
            for depth in depths:
                for found, held_to in alternated([(held, constraint), (free, None)], run):
                    found[depth].append(_step(loaded, setup, depth, held_to))
                setup.say(
                    f"run {run + 1}: depth {depth}: held {held[depth][-1]}, free {free[depth][-1]}"
                )
    details = masks_alone(50 if setup.quick else 400)
    return [each for depth in depths for each in _figures(depth, held[depth], free[depth], details)]


def _figures(
    depth: int, held: Sequence[StepSeconds], free: Sequence[StepSeconds], details: dict[str, float]
) -> list[Figure]:
    name, title = (
        f"structured/{depth}",
        f"{MASKED_ROWS} rows, depth {depth}: held to a schema ÷ free",
    )
    return [
        Figure(
            name, title,
            Side("held", "s", tuple(step.seconds for step in held)),
            Side("free", "s", tuple(step.seconds for step in free)),
            at_most(1.25), details,
        ),
        Figure(
            f"{name}/cpu", f"{title}, processor time",
            Side("held", "s", tuple(step.cpu_s for step in held)),
            Side("free", "s", tuple(step.cpu_s for step in free)),
        ),
    ]  # fmt: skip


def _constraint(loaded: Loaded) -> object:
    served = loaded.card.constraints
    assert served is not None
    constraint = served.compile(ConstraintSpec("json_schema", json.dumps(LONG)))
    served.close()
    return constraint


def _step(loaded: Loaded, setup: Setup, depth: int, constraint: object | None) -> StepSeconds:
    """Medians of a step with all rows in it."""
    tokens = QUICK_HELD_TOKENS if setup.quick else HELD_TOKENS
    requests = [
        Request(
            id, b"bench", tuple(setup.prompt(HELD_PROMPT_TOKENS)), tokens, SAMPLED,
            ignore_eos=constraint is None, depth=depth, cache_bypass=True, constraint=constraint,
        )
        for id in range(MASKED_ROWS)
    ]  # fmt: skip
    steps: list[StepSeconds] = []

    def told(step: InLineStep) -> None:
        full = [row.depth for row in step.plan.decodes] == [depth] * MASKED_ROWS
        if full and not step.moves and not step.plan.prefills:
            steps.append(StepSeconds(step.run_s + step.host_s, step.cpu_s))

    served_in_line(loaded, requests, told)
    if len(steps) < 4:
        raise BenchError("too few steps had all rows in them")
    return StepSeconds(*map(statistics.median, zip(*steps, strict=True)))


def masks_alone(replies: int) -> dict[str, float]:
    """Microseconds of one call for one row with four drafts, and of the processor in it."""
    vocabulary = _made_up()
    compiler = ConstraintCompiler(vocabulary, 10.0, 1 << 30, 10.0, takes_lark=False)
    constraint = compiler.compile(ConstraintSpec("json_schema", json.dumps(ORDER)))
    compiler.close()
    masks, drawn = StepMasks(vocabulary.size, 10.0), random.Random(1)
    cold: list[StepSeconds] = []
    warm: list[StepSeconds] = []
    for _ in range(replies // 10):
        guide = Guide(constraint, ())
        for text in (
            '{"name":"',
            "".join(drawn.choices("abcdefgh ", k=12)),
            '","kind":"new","count":',
        ):
            ids = _bytes_of(text)
            guide.push(ids)
            path = [_FIRST_BYTE + byte for byte in b"1234"]
            cold.append(_timed(lambda g=guide, p=path: masks.of([g], [p])))  # type: ignore[misc]
            warm.append(_timed(lambda g=guide, p=path: masks.of([g], [p])))  # type: ignore[misc]
    masks.close()
    found = {}
    for name, times in (("cold", cold), ("warm", warm)):
        seconds, cpu_s = zip(*times, strict=True)
        found[f"masks_{name}_us"] = statistics.median(seconds) * 1e6
        found[f"masks_{name}_cpu_us"] = statistics.median(cpu_s) * 1e6
        found[f"masks_{name}_most_us"] = max(seconds) * 1e6
    return found


_FIRST_BYTE = 10


def _bytes_of(text: str) -> list[int]:
    return [_FIRST_BYTE + byte for byte in text.encode()]


def _made_up() -> Vocabulary:
    """Bytes, then words of two to eight letters, with a space before half of them."""
    drawn, names = random.Random(0), {f"<{id}>": id for id in range(_FIRST_BYTE)}
    words: dict[bytes, None] = {bytes([byte]): None for byte in range(256)}
    while len(words) < MADE_UP_TOKENS - _FIRST_BYTE:
        word = "".join(drawn.choices("etaoinshrdlucmfwypvbgkjqxz", k=drawn.randint(2, 8)))
        words[(" " * drawn.randint(0, 1) + word).encode()] = None
    token_bytes: Sequence[bytes] = [b""] * _FIRST_BYTE + list(words)
    return Vocabulary(token_bytes, names, {1}, ControlTokens(), _bytes_of)


def _timed(call: Callable[[], object]) -> StepSeconds:
    begun, cpu_s = time.perf_counter(), time.process_time()
    call()
    return StepSeconds(time.perf_counter() - begun, time.process_time() - cpu_s)
