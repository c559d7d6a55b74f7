"""Measures a pair with the daemon's own runner on chats that no training text contains.

`python -m sapwood.model.demo.train.measure` runs in the project's own environment: no torch. Every
chat opens with a held-out question and keeps its system prompt; a second turn follows the corpus's
first reply. A draft counts where the drafts before it were accepted and the reply had not ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from sapwood.model.checkpoint.locate import locate
from sapwood.model.demo.train.chats import Chat, held_out_chat
from sapwood.model.demo.train.draw import Draw, held_out
from sapwood.model.demo.train.shape import SEED
from sapwood.model.drafting import DraftPosition
from sapwood.model.pair import Pair, load_pair
from sapwood.model.runner import Runner
from sapwood.scheduler.plan import Admit, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling

CHATS = 160
TOGETHER = 16
MEASURED_TOKENS_MAX = 200
DEPTHS = (7, 4)
POSITIONS: tuple[DraftPosition, ...] = ("bonus", "last")
SHOWN = 12  # chats in the card


@dataclass(slots=True)
class MeasuredReply:
    """One prompt, what was said to it, and how its rounds went."""

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    rounds: list[tuple[int, int]] = field(default_factory=list)  # (accepted, tokens that counted)
    ended: bool = False

    def take(self, tokens: Sequence[int], ends: frozenset[int]) -> int:
        """Keeps tokens up to the end of the reply and says how many."""
        at = next((at for at, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        self.tokens += tokens[: at + 1]
        self.ended = self.tokens[-1] in ends or len(self.tokens) >= MEASURED_TOKENS_MAX
        return at + 1


def held_out_chats(count: int) -> list[Chat]:
    """Different first questions, each chat cut to at most two turns."""
    draw, found = Draw(f"measured {SEED}"), dict[str, Chat]()
    while len(found) < count:
        chat = held_out_chat(draw)
        assert held_out(chat.turns[0][0])
        found.setdefault(chat.turns[0][0], Chat(chat.system, chat.turns[:2]))
    return list(found.values())


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def messages_of(chat: Chat, turns: int) -> list[dict[str, str]]:
    said = [message("system", chat.system)] if chat.system else []
    for question, reply in chat.turns[: turns - 1]:
        said += [message("user", question), message("assistant", reply)]
    return [*said, message("user", chat.turns[turns - 1][0])]


def answer(
    runner: Runner, prompts: Sequence[tuple[int, ...]], depth: int, sampling: Sampling, pair: Pair
) -> list[MeasuredReply]:
    """All prompts, TOGETHER at a time, every round with drafts of this depth."""
    found: list[MeasuredReply] = []
    waiting = iter(prompts)
    while group := [MeasuredReply(prompt) for prompt in islice(waiting, TOGETHER)]:
        converse(runner, group, depth, sampling, pair.tokenizer.eos_token_ids)
        found += group
    return found


def converse(
    runner: Runner, group: list[MeasuredReply], depth: int, sampling: Sampling, ends: frozenset[int]
) -> None:
    def step(**plan: Any) -> Any:
        return runner.wait(runner.submit(StepPlan(0, **plan)))

    for slot, reply in enumerate(group):
        tokens_max = len(reply.prompt) + MEASURED_TOKENS_MAX + depth + 1
        admit = Admit(slot, 0, (), sampling, tokens_max)
        result = step(
            admits=(admit,),
            prefills=(PrefillSlice(slot, 0, reply.prompt, draws=True, capture=False),),
        )
        reply.take((result.prefilled[0].token,), ends)
    while speaking := [slot for slot, reply in enumerate(group) if not reply.ended]:
        decodes = [next_round(slot, group[slot], depth) for slot in speaking]
        for slot, decoded in zip(speaking, step(decodes=tuple(decodes)).decoded, strict=True):
            counted = group[slot].take(decoded.tokens, ends)
            group[slot].rounds.append((decoded.accepted, counted))
    step(releases=tuple(range(len(group))))


def next_round(slot: int, reply: MeasuredReply, depth: int) -> DecodeRow:
    start = len(reply.prompt) + len(reply.tokens) - 1
    return DecodeRow(slot, start, reply.tokens[-1], depth, len(reply.tokens))


def acceptance(replies: Sequence[MeasuredReply], depth: int) -> dict[str, Any]:
    """By position, given that the drafts before it were accepted; and tokens per round."""
    rounds = [played for reply in replies for played in reply.rounds]
    by_position = []
    for position in range(1, depth + 1):
        tried = [
            accepted >= position
            for accepted, counted in rounds
            if accepted >= position - 1 and counted >= position
        ]
        by_position.append(round(sum(tried) / max(1, len(tried)), 3))
    committed = sum(counted for _, counted in rounds)
    return {
        "by_position": by_position,
        "tokens_per_round": round(committed / max(1, len(rounds)), 2),
        "rounds": len(rounds),
    }


def held_out_loss(pair: Pair, chats: Sequence[Chat]) -> dict[str, float]:
    """Of the corpus's replies to the first questions, per token."""
    losses: list[float] = []
    right: list[bool] = []
    for chat in chats:
        asked = messages_of(chat, 1)
        head = pair.tokenizer.encode_messages(asked)
        # A question after the reply, so that the template closes it.
        whole = [*asked, message("assistant", chat.turns[0][1]), message("user", "?")]
        after = pair.tokenizer.encode_messages(whole)[len(head) :]
        end = next(at for at, id in enumerate(after) if id in pair.tokenizer.eos_token_ids) + 1
        wanted = mx.array(after[:end])
        ids = mx.array([*head, *after[: end - 1]])
        logits = pair.target(ids[None])[0, len(head) - 1 :].astype(mx.float32)
        picked = mx.take_along_axis(logits, wanted[:, None], -1)[:, 0]
        losses += np.array(mx.logsumexp(logits, -1) - picked).tolist()
        right += np.array(mx.argmax(logits, -1) == wanted).tolist()
    return {"loss": round(float(np.mean(losses)), 3), "next_token": round(float(np.mean(right)), 3)}


def agreement(pair: Pair, reference: Path) -> float:
    """The largest difference from the logits that transformers computed in float32."""
    kept = np.load(reference)
    worst = 0.0
    for index in range(len(kept.files) // 2):
        ours = np.array(pair.target(mx.array(kept[f"ids{index}"][None]))[0])
        worst = max(worst, float(np.abs(ours - kept[f"logits{index}"]).max()))
    return worst


def measured(pair: Pair, chats: Sequence[Chat]) -> dict[str, Any]:
    prompts = [tuple(pair.tokenizer.encode_messages(messages_of(chat, 1))) for chat in chats]
    prompts += [
        tuple(pair.tokenizer.encode_messages(messages_of(chat, 2)))
        for chat in chats
        if len(chat.turns) > 1
    ]
    samplers = {"greedy": Sampling(), "T=1": Sampling(1.0, seeded=True, noise_key=SEED)}
    drafting: dict[str, Any] = {}
    for position in POSITIONS:
        runner = Runner(pair, TOGETHER, max(DEPTHS), position)
        for name, sampling in samplers.items():
            for depth in DEPTHS:
                replies = answer(runner, prompts, depth, sampling, pair)
                drafting[f"{name}, {position}, depth {depth}"] = acceptance(replies, depth)
        runner.close()
    return {"prompts": len(prompts), "drafting": drafting, "held_out": held_out_loss(pair, chats)}


def samples(pair: Pair, chats: Sequence[Chat]) -> Iterator[dict[str, str]]:
    runner = Runner(pair, TOGETHER, max(DEPTHS), "bonus")
    prompts = [tuple(pair.tokenizer.encode_messages(messages_of(chat, 1))) for chat in chats]
    for chat, reply in zip(chats, answer(runner, prompts, 4, Sampling(), pair), strict=True):
        ends = pair.tokenizer.eos_token_ids
        text = pair.tokenizer.decode([token for token in reply.tokens if token not in ends])
        yield {"system": chat.system, "question": chat.turns[0][0], "reply": text}
    runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sapwood.model.demo.train.measure", description=__doc__
    )
    parser.add_argument("--pair", help="directory with target/ and assistant/ (default: bundled)")
    parser.add_argument("--reference", type=Path, help="reference.npz of the export")
    parser.add_argument("--chats", type=int, default=CHATS)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    pair = load_pair(*locate(args.pair, None), "float32")
    chats = held_out_chats(args.chats)
    result = measured(pair, chats)
    if args.reference:
        result["transformers_difference"] = float(f"{agreement(pair, args.reference):.1e}")
    result["samples"] = list(samples(pair, chats[:SHOWN]))
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
