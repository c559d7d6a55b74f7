"""The eight dialogues over real gRPC, all together or one after another.

- Each client has a connection of its own, made and its prompts encoded before the clock starts.
- Together: the first wave begins at one moment; who joins later waits for another client's tokens,
  not for a time, so it always comes in while others decode.
- One by one: the same requests in the same order, the cancelled one last and between two scrapes of
  its own, so that the counters are compared exactly over everything that finished.
- The span runs from the first request to the last end and leaves out the scrape in between.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread

from sapwood import AsyncClient, FinishReason, Model, Prompt, TreeNode
from sapwood.daemon.demo.dialogue import Dialogue, TurnState, follow_up_messages, messages, prompts
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.over_http import HttpChat
from sapwood.daemon.demo.process import DaemonProcess
from sapwood.daemon.demo.scrape import Check, compare, settled
from sapwood.daemon.demo.script import ClientPart
from sapwood.daemon.demo.view import View

_TICK_S = 0.125
_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Seat:
    """A client's connection and what it says there; over HTTP its words go another way."""

    client: AsyncClient
    speaker: AsyncClient | HttpChat
    dialogue: Dialogue


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase measured. dialogues: in the order of the cast."""

    dialogues: tuple[Dialogue, ...]
    span_s: float
    checks: tuple[Check, ...]
    model: Model
    nodes: tuple[TreeNode, ...]
    splits: int

    @property
    def tokens_per_s(self) -> float:
        """Every token that a client saw, the cancelled one's included, over the whole span."""
        return sum(c.tokens for c in self.dialogues) / self.span_s


async def play(
    daemon: DaemonProcess, cast: Sequence[ClientPart], together: bool, view: View
) -> Phase:
    """Runs all dialogues against a fresh daemon. Raises DemoError or a SapwoodError."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(daemon.address)) for _ in cast]
        model = await clients[0].get_model()
        seats = [
            await _seat(c, HttpChat(daemon.http, model.name) if daemon.http else c, part, model)
            for c, part in zip(clients, cast, strict=True)
        ]
        dialogues = tuple(seat.dialogue for seat in seats)
        async with _shown(view, "together" if together else "one by one", dialogues):
            windows = [await _window(daemon, group, together) for group in _groups(seats, together)]
        return Phase(
            dialogues,
            sum(span_s for span_s, _ in windows),
            tuple(check for _, checks in windows for check in checks),
            model,
            # Asked of the engine itself, which has stored the last reply by then. The published
            # stats may be a step behind: what they say of nodes and bytes is not used.
            tuple([node async for node in clients[0].describe_tree()]),
            (await clients[0].cache_stats()).splits,
        )


def _groups(seats: Sequence[Seat], together: bool) -> list[list[Seat]]:
    if together:
        return [list(seats)]
    cancelled = [seat for seat in seats if seat.dialogue.part.cancels_at]
    return [[seat for seat in seats if seat not in cancelled], cancelled]


async def _seat(
    client: AsyncClient, speaker: AsyncClient | HttpChat, part: ClientPart, model: Model
) -> Seat:
    await client.is_serving()  # connects
    first = await client.tokenize(messages(part))
    both = await client.tokenize(follow_up_messages(part)) if part.follow_up else ()
    dialogue = Dialogue(part, prompts(first, both, model.eos_token_ids))
    dialogue.over_http = isinstance(speaker, HttpChat)
    if not model.drafter or dialogue.over_http:
        dialogue.depth = 0
    return Seat(client, speaker, dialogue)


async def _window(
    daemon: DaemonProcess, seats: Sequence[Seat], together: bool
) -> tuple[float, list[Check]]:
    """(seconds from the first request to the last end, what the counters say about it)"""
    before = await to_thread.run_sync(settled, daemon.metrics)
    if together:
        await _all_at_once(seats)
    else:
        for seat in seats:
            await _converse(seat)
    after = await to_thread.run_sync(settled, daemon.metrics)
    dialogues = [seat.dialogue for seat in seats]
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    span_s = max(turn.ended or 0.0 for turn in turns) - min(turn.asked for turn in turns)
    return span_s, compare(before, after, dialogues)


async def _all_at_once(seats: Sequence[Seat]) -> None:
    pacer = next(seat.dialogue for seat in seats if seat.dialogue.part.cancels_at)
    async with anyio.create_task_group() as tasks:
        for seat in seats:
            tasks.start_soon(_join, seat, pacer, seats)


async def _join(seat: Seat, pacer: Dialogue, seats: Sequence[Seat]) -> None:
    while pacer.tokens < seat.dialogue.part.joins_at:
        await pacer.moved.wait()
    states = [other.dialogue.state for other in seats]
    seat.dialogue.company = states.count(TurnState.STREAMING)
    await _converse(seat)


async def _converse(seat: Seat) -> None:
    dialogue = seat.dialogue
    await _turn(seat, messages(dialogue.part), dialogue.prompts.first)
    if dialogue.part.follow_up:
        reply = dialogue.turns[0]
        stopped = reply.outcome == FinishReason.STOP
        if dialogue.over_http:
            said = follow_up_messages(dialogue.part, reply.text)
            await _turn(seat, said, tuple(await seat.client.tokenize(said)))
        else:
            prompt_ids = dialogue.prompts.second(reply.token_ids, stopped)
            await _turn(seat, prompt_ids, prompt_ids)


async def _turn(seat: Seat, prompt: Prompt, prompt_ids: tuple[int, ...]) -> None:
    dialogue = seat.dialogue
    turn = dialogue.ask(prompt_ids, _clock())
    options = dialogue.part.options(has_drafter=dialogue.depth > 0)
    async with seat.speaker.generate(prompt, **options) as stream:
        async for event in stream:
            dialogue.note(event, _clock())
            if dialogue.wants_to_hang_up:
                break  # leaving the context cancels, with nothing awaited in between
    hung_up = dialogue.wants_to_hang_up
    if turn.finish is None and not hung_up:
        raise DemoError(f"the reply to {dialogue.part.id} ended without a finish")
    dialogue.end(TurnState.CANCELLED if hung_up else TurnState.DONE, _clock())


@asynccontextmanager
async def _shown(view: View, title: str, dialogues: Sequence[Dialogue]) -> AsyncIterator[None]:
    """Keeps `view` up to date while the body runs, and once more at its end."""

    async def follow() -> None:
        while True:
            view.tick()
            await anyio.sleep(_TICK_S)

    with view.showing(title, dialogues):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            yield
            tasks.cancel_scope.cancel()
        view.tick()
