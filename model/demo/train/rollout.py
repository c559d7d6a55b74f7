"""Replies that the target itself writes, for the drafter to learn from.

Prompts are chats of the corpus cut before their last reply. Prompts whose corpus replies are about
as long are answered together, so that few rows wait for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from model.demo.train.chats import Chat, train_chat
from model.demo.train.corpus import Document, arrays, chat_parts, documents
from model.demo.train.draw import Draw
from model.demo.train.export import load
from model.demo.train.shape import SEED, Plan
from model.demo.train.tokens import EOS, TURN_END
from model.demo.train.work import PROCESSES

REPLIES = 3072
TOGETHER = 96
REPLY_TOKENS_MAX = 240
WARMTHS = (0.0, 0.8, 1.0)  # 0: greedy
WRITTEN_OF_100 = 40  # documents of the drafter's rows

Prompt = tuple[list[int], int]  # its tokens, and the length of the corpus's reply


def prompts(tokenizer: Tokenizer, count: int) -> list[Prompt]:
    draw = Draw(f"prompts {SEED}")
    return [cut(tokenizer, train_chat(draw)) for _ in range(count)]


def cut(tokenizer: Tokenizer, chat: Chat) -> Prompt:
    *before, (reply, _), _ = chat_parts(chat)
    texts = ["".join(text for text, _ in before), reply]
    head, tail = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return head, len(tail)


def write_replies(rank: int, work: Path, target: Path, count: int) -> None:
    """This process's share of the replies, into replies-RANK.npz."""
    path = work / f"replies-{rank}.npz"
    if path.exists():
        return
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    todo = sorted(prompts(tokenizer, count), key=lambda prompt: prompt[1])
    groups = [todo[at : at + TOGETHER] for at in range(0, len(todo), TOGETHER)]
    model = load(target)
    torch.manual_seed(SEED + rank)
    written: list[Document] = []
    for number, group in enumerate(groups[rank::PROCESSES]):
        heads = [head for head, _ in group]
        written += answered(model, heads, WARMTHS[number % len(WARMTHS)])
    tokens = np.array(list(chain.from_iterable(ids for ids, _ in written)), np.uint16)
    learn = np.array(list(chain.from_iterable(learnt for _, learnt in written)), bool)
    np.savez(path, tokens=tokens, learn=learn, lengths=[len(ids) for ids, _ in written])


def answered(model: torch.nn.Module, heads: list[list[int]], warmth: float) -> list[Document]:
    """The prompts with the target's replies; those without an end are cut where they stopped."""
    longest = max(len(head) for head in heads)
    padded = torch.tensor([[0] * (longest - len(head)) + head for head in heads])
    mask = torch.tensor([[0] * (longest - len(head)) + [1] * len(head) for head in heads])
    drawn = {"do_sample": True, "temperature": warmth, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
        replies = model.generate(
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=REPLY_TOKENS_MAX,
            **(drawn if warmth else {"do_sample": False}),
        )[:, longest:].tolist()
    found = []
    for head, reply in zip(heads, replies, strict=True):
        ends = [at + 1 for at, token in enumerate(reply) if token in (EOS, TURN_END)]
        reply = reply[: ends[0]] if ends else reply
        found.append((head + reply, [False] * len(head) + [True] * len(reply)))
    return found


def read_replies(work: Path) -> list[Document]:
    found: list[Document] = []
    for rank in range(PROCESSES):
        kept = np.load(work / f"replies-{rank}.npz")
        ends = np.cumsum(kept["lengths"])[:-1]
        parts = (np.split(kept[name], ends) for name in ("tokens", "learn"))
        found += [(ids.tolist(), learnt.tolist()) for ids, learnt in zip(*parts, strict=True)]
    return found


def prepare_drafts(work: Path, plan: Plan) -> None:
    """drafts.npz: rows of the target's own replies and of the corpus."""
    path = work / "drafts.npz"
    if path.exists() and np.load(path)["tokens"].shape[0] == plan.steps * plan.rows:
        return
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    draw, written = Draw(f"drafts {SEED}"), read_replies(work)
    corpus = documents(tokenizer, f"drafts {SEED}")

    def mixed() -> Iterator[Document]:
        while True:
            own = draw.number(0, 99) < WRITTEN_OF_100
            yield draw.one(written) if own else next(corpus)

    np.savez(path, **arrays(mixed(), plan.steps * plan.rows))
