"""The kinds of traces: who asks what, in which order. The same seed draws the same.

- Tokens are ids below 2**31; what is fresh is never drawn twice, so nothing agrees by chance.
- Who goes next is drawn as well: sessions are interleaved as they would be on one machine.
- `scale` is for a quick look: below 1 there are fewer turns or sessions, as each kind says.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from random import Random
from typing import TypeAlias

from bench.replay.trace import TraceRequest

ZIPF_EXPONENT = 1.2

_Tokens: TypeAlias = "array[int]"
_Session = Iterator[TraceRequest]
TraceKind = Callable[[int, float], list[TraceRequest]]


class _Drawing:
    """Randomness of one trace, and ids that nobody has used yet."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._ids = count(1)

    def fresh(self, least: int, most: int) -> _Tokens:
        """A text of so many tokens that nobody has seen."""
        length = self.random.randint(least, most)
        return array("i", (next(self._ids) for _ in range(length)))

    def interleaved(
        self, sessions: Sequence[_Session], at_once: int | None = None
    ) -> list[TraceRequest]:
        """One request of a session that is drawn, until all have ended.

        at_once: the most that have begun and not ended, in turn; None: all of them.
        """
        requests, waiting, left = list[TraceRequest](), iter(sessions), list[_Session]()
        while True:
            left += islice(waiting, (at_once or len(sessions)) - len(left))
            if not left:
                return requests
            session = self.random.choice(left)
            request = next(session, None)
            if request is None:
                left.remove(session)
            else:
                requests.append(request)


def _scaled(number: int, scale: float) -> int:
    return max(1, round(number * scale))


def agents_trace(seed: int, scale: float) -> list[TraceRequest]:
    """Six agents on two system prompts of 5,000 to 6,000 tokens, each three loops of 20 turns.

    A turn's reply is 100 to 500 tokens of thinking, then a tool call of 40 to 160; the next prompt
    has the call without the thinking, and the tool's result of 200 to 1,600 tokens. A loop begins
    with a task of 100 to 400 tokens. Turns are scaled.
    """
    drawing = _Drawing(seed)
    systems = [drawing.fresh(5000, 6000) for _ in range(2)]
    turns = _scaled(20, scale)

    def loops(system: _Tokens) -> _Session:
        for _ in range(3):
            prompt = system + drawing.fresh(100, 400)
            for turn in range(turns):
                thinking, call = drawing.fresh(100, 500), drawing.fresh(40, 160)
                yield TraceRequest(prompt, thinking + call, len(system), turn == 0)
                prompt = prompt + call + drawing.fresh(200, 1600)

    return drawing.interleaved([loops(systems[agent % 2]) for agent in range(6)])


def edits_trace(seed: int, scale: float) -> list[TraceRequest]:
    """Ten chats of 12 turns over a system prompt of 400 that they share.

    A message has 50 to 500 tokens, a reply 100 to 600. With p = 0.3 a turn edits an earlier
    message, any of them, instead of adding one: it is drawn anew, and what followed is gone. Chats
    are scaled.
    """
    drawing = _Drawing(seed)
    system = drawing.fresh(400, 400)

    def chat() -> _Session:
        said: list[_Tokens] = []  # messages and replies by turns
        for _ in range(12):
            if said and drawing.random.random() < 0.3:
                del said[2 * drawing.random.randrange(len(said) // 2) :]
            said.append(drawing.fresh(50, 500))
            reply = drawing.fresh(100, 600)
            yield TraceRequest(_joined(system, said), reply, len(system))
            said.append(reply)

    return drawing.interleaved([chat() for _ in range(_scaled(10, scale))])


def uuid_trace(seed: int, scale: float) -> list[TraceRequest]:
    """Twelve sessions of 11 turns whose system prompt of 6,000 has an id of 20 from token 40 on.

    Each second session draws a new id each third turn: all behind it has to be computed again. All
    else of the prompt is the same in every session. A message has 30 to 150 tokens, a reply 50 to
    250. Sessions are scaled.
    """
    drawing = _Drawing(seed)
    head, body = drawing.fresh(40, 40), drawing.fresh(5940, 5940)

    def session(renewing: bool) -> _Session:
        id_, said = drawing.fresh(20, 20), array("i")
        for turn in range(11):
            if renewing and turn and turn % 3 == 0:
                id_ = drawing.fresh(20, 20)
            said = said + drawing.fresh(30, 150)
            reply = drawing.fresh(50, 250)
            yield TraceRequest(head + id_ + body + said, reply, 6000)
            said = said + reply

    sessions = _scaled(12, scale)
    return drawing.interleaved([session(number % 2 == 0) for number in range(sessions)])


def rag_trace(seed: int, scale: float) -> list[TraceRequest]:
    """Questions of 30 to 100 tokens on 4 of 40 documents of 400 to 1,200, behind a system prompt.

    The system prompt has 600 tokens. Documents are drawn by Zipf's law, none of them twice, and
    stand in the order drawn. Each third question has a follow-up, later: its reply of 100
    to 400 tokens and a new question behind it. Four at once, 120 in all, scaled.
    """
    drawing = _Drawing(seed)
    system = drawing.fresh(600, 600)
    documents = [drawing.fresh(400, 1200) for _ in range(40)]

    def question(number: int) -> _Session:
        chosen = _zipf_sample(drawing.random, documents, 4)
        prompt = _joined(system, chosen) + drawing.fresh(30, 100)
        reply = drawing.fresh(100, 400)
        yield TraceRequest(prompt, reply, len(system))
        if number % 3 == 2:
            yield TraceRequest(
                prompt + reply + drawing.fresh(30, 100), drawing.fresh(100, 400), len(system)
            )

    return drawing.interleaved([question(n) for n in range(_scaled(120, scale))], 4)


def branches_trace(seed: int, scale: float) -> list[TraceRequest]:
    """Four conversations of 4,000 to 9,000 tokens, then eight branches of 4 turns from each.

    A conversation's messages have 100 to 600 tokens, its replies 200 to 800. All its branches leave
    it at one point inside a reply of its older half. Theirs have 30 to 150 and 100 to 300; four
    branches go on at once. Branches are scaled.
    """
    drawing = _Drawing(seed)
    grown: list[tuple[_Tokens, int]] = []

    def conversation() -> _Session:
        prompt, replies, goal = array("i"), list[range](), drawing.random.randint(4000, 9000)
        while len(prompt) < goal:
            prompt = prompt + drawing.fresh(100, 600)
            reply = drawing.fresh(200, 800)
            yield TraceRequest(prompt, reply)
            replies.append(range(len(prompt) + 1, len(prompt) + len(reply)))
            prompt = prompt + reply
        older = replies[: -(-len(replies) // 2)]
        grown.append((prompt, drawing.random.choice(drawing.random.choice(older))))

    def branch(path: _Tokens, point: int) -> _Session:
        prompt = path[:point]
        for _ in range(4):
            prompt = prompt + drawing.fresh(30, 150)
            reply = drawing.fresh(100, 300)
            yield TraceRequest(prompt, reply)
            prompt = prompt + reply

    begun = drawing.interleaved([conversation() for _ in range(4)])
    branches = [branch(*where) for where in grown for _ in range(_scaled(8, scale))]
    return begun + drawing.interleaved(branches, 4)


def _joined(first: _Tokens, rest: Sequence[_Tokens]) -> _Tokens:
    for part in rest:
        first = first + part
    return first


def _zipf_sample(random: Random, items: Sequence[_Tokens], size: int) -> list[_Tokens]:
    """Different ones, each of what is left by its rank among all: Zipf's law."""
    left = list(range(len(items)))
    chosen = []
    for _ in range(size):
        (index,) = random.choices(left, [(1 + rank) ** -ZIPF_EXPONENT for rank in left])
        left.remove(index)
        chosen.append(items[index])
    return chosen


TRACE_KINDS: dict[str, TraceKind] = {
    "agents": agents_trace,
    "edits": edits_trace,
    "uuid": uuid_trace,
    "rag": rag_trace,
    "branches": branches_trace,
}
