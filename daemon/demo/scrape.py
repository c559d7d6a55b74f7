"""What the daemon's counters say, and whether the clients can confirm it.

- Between two scrapes the counters must have moved by exactly what the clients counted, for every
  request that finished.
- A cancelled request ran on until its cancel arrived: it generated at least what its client saw and
  at most two steps more. Its rounds and drafts are bounded by what so many tokens allow.
- A counter that is missing agrees with nothing.
"""

from __future__ import annotations

import math
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from sapwood.daemon.demo.dialogue import Counts, Dialogue, Turn
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.script import PINNED_DEPTH, REPLY_TOKENS_MAX
from sapwood.daemon.http.families import PREFIX
from sapwood.scheduler.outcomes import Outcome

CANCEL_STEPS_MAX = 2
CONFIRMED = {
    "prompt_tokens_total": "prompt_tokens",
    "prefix_cached_tokens_total": "cached_tokens",
    "generated_tokens_total": "completion_tokens",
    "draft_rounds_total": "rounds",
    "draft_tokens_total": "draft_tokens",
    "accepted_tokens_total": "accepted_tokens",
}
UNTOLD_OVER_HTTP = ("draft_rounds_total",)
SETTLE_S_MAX = 5.0
_HTTP_S_MAX = 5.0

# Samples by name and label value ("" without a label).
Counters = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Check:
    """One counter's difference between two scrapes, and the range [low, high] that clients saw."""

    name: str
    counted: float
    low: int
    high: int

    @property
    def agrees(self) -> bool:
        """False also for a counter that is missing: NaN lies in no range."""
        return self.low <= self.counted <= self.high


def parse_metrics(text: str) -> Counters:
    """Text exposition to our own samples, their labels joined; buckets are left out."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and not sample.name.endswith("_bucket"):
                label = ",".join(sample.labels.values())
                samples[sample.name.removeprefix(PREFIX), label] = sample.value
    return samples


def scrape(metrics: str) -> Counters:
    """Raises DemoError where nothing answers at HOST:PORT."""
    try:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=_HTTP_S_MAX) as answer:
            return parse_metrics(answer.read().decode())
    except OSError as error:
        reason = getattr(error, "reason", error)  # without urllib's dress
        told = getattr(reason, "strerror", None) or reason
        raise DemoError(f"the metrics endpoint does not answer: {told}") from error


def settled(metrics: str, read: Callable[[str], Counters] = scrape) -> Counters:
    """Counters once nothing runs: a cancelled request leaves at the step after its cancel."""
    deadline = time.monotonic() + SETTLE_S_MAX
    while True:
        counters = read(metrics)
        busy = total(counters, "requests_running") + total(counters, "requests_waiting")
        if busy == 0:
            return counters
        if time.monotonic() > deadline:
            raise DemoError(f"requests running {SETTLE_S_MAX:.0f} s after the last ended: {busy}")
        time.sleep(0.02)


def total(counters: Counters, name: str, label: str | None = None) -> float:
    """Sum over a metric's labels, or one of them; NaN, equal to nothing, where there is none."""
    found = [
        value
        for (sample, labelled), value in counters.items()
        if sample == name and label in (None, labelled)
    ]
    return sum(found) if found else math.nan


def compare(before: Counters, after: Counters, dialogues: Sequence[Dialogue]) -> list[Check]:
    """Every counter that a client can confirm, over the requests of `dialogues`."""
    low = high = Counts()
    for dialogue in dialogues:
        for turn in dialogue.turns:
            ranged = _range_over_http(turn) if dialogue.over_http else _range(turn, dialogue.depth)
            low, high = low + ranged[0], high + ranged[1]
    untold = UNTOLD_OVER_HTTP if any(dialogue.over_http for dialogue in dialogues) else ()
    outcomes = [turn.outcome for c in dialogues for turn in c.turns]
    checks = [
        Check(f"requests_total {label}", _moved(before, after, "requests_total", label), n, n)
        for label, n in ((label, outcomes.count(label)) for label in Outcome)
    ]
    return checks + [
        Check(name, _moved(before, after, name), getattr(low, field), getattr(high, field))
        for name, field in CONFIRMED.items()
        if name not in untold
    ]


def _moved(before: Counters, after: Counters, name: str, label: str | None = None) -> float:
    return total(after, name, label) - total(before, name, label)


def _range(turn: Turn, depth: int) -> tuple[Counts, Counts]:
    """What the daemon may have counted for a turn, at least and at most."""
    seen = turn.counts(depth)
    if turn.finish is not None:
        return seen, seen
    generated = seen.completion_tokens + CANCEL_STEPS_MAX * (depth + 1)
    # After the first token every round emits one of its own; what is accepted comes on top.
    rounds = generated - 1 if depth else 0
    most = replace(
        seen,
        completion_tokens=generated,
        rounds=rounds,
        draft_tokens=rounds * depth,
        accepted_tokens=rounds - seen.rounds,
    )
    return replace(seen, accepted_tokens=0), most


def _range_over_http(turn: Turn) -> tuple[Counts, Counts]:
    """Of a reply that its client left nothing is told but its tokens, nor when the daemon heard."""
    seen = turn.counts(0)
    if turn.finish is not None:
        return seen, seen
    most = replace(
        seen,
        cached_tokens=seen.prompt_tokens,
        completion_tokens=REPLY_TOKENS_MAX,
        draft_tokens=REPLY_TOKENS_MAX * PINNED_DEPTH,
        accepted_tokens=REPLY_TOKENS_MAX,
    )
    return seen, most
