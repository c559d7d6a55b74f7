"""Conversations as if they had happened, made of plain values."""

from __future__ import annotations

from collections.abc import Sequence

from sapwood import Delta, Finish, FinishReason, Prefill, Usage
from sapwood.daemon.demo.dialogue import Dialogue, Prompts, TurnState
from sapwood.daemon.demo.script import ClientPart

TURN_END = 6


def usage(prompt: int, cached: int, completion: int, rounds: int = 0, drafts: int = 0) -> Usage:
    """Of a reply whose every draft was accepted."""
    return Usage(prompt, cached, completion, rounds, rounds, drafts, drafts, 0.0, 0.0, 0.0)


def told(
    part: ClientPart,
    *replies: Sequence[Sequence[int]],
    prompt: Sequence[int] = (2, 7, 6, 8),
    cached: Sequence[int] = (0,),
    reported: Usage | None = None,
) -> Dialogue:
    """One turn per reply, each given as the ids of its messages. The clock advances by seconds.

    The last turn is cut off if its part cancels. reported: instead of what the stream carried.
    """
    dialogue = Dialogue(part, Prompts(tuple(prompt), TURN_END, (9, 9)))
    now, ids = 0.0, tuple(prompt)
    for reply, hit in zip(replies, cached, strict=True):
        dialogue.ask(ids, now)
        dialogue.note(Prefill(hit, len(ids), len(ids)), now)
        for message in reply:
            now += 1.0
            dialogue.note(Delta("".join(map(chr, message)), tuple(message)), now)
        flat = [id for message in reply for id in message]
        if part.cancels_at:
            dialogue.end(TurnState.CANCELLED, now)
            break
        took = reported or usage(len(ids), hit, len(flat), rounds=2, drafts=4)
        dialogue.note(Finish(FinishReason.STOP, "", took), now)
        dialogue.end(TurnState.DONE, now)
        ids = dialogue.prompts.second(flat, stopped=True)
    return dialogue
