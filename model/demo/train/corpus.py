"""Text to packed rows of tokens: deterministic from the seed, computed once into a folder.

rows.npz holds [rows, ROW] arrays: tokens (uint16), documents (uint16, counted within a row) and
learn (bool: this token is to be predicted). Chats are learnt on replies only, prose on every token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sapwood.model.demo.train.chats import Chat, held_out_chat, train_chat
from sapwood.model.demo.train.draw import Draw
from sapwood.model.demo.train.prose import paragraphs
from sapwood.model.demo.train.shape import ROW, SEED
from sapwood.model.demo.train.tokens import BOS, EOS, train_tokenizer

PROSE_OF_1000 = 70  # documents
HELD_ROWS = 32
WAITING = 256  # documents that may wait for a row with room for them

Document = tuple[list[int], list[bool]]


def chat_parts(chat: Chat) -> list[tuple[str, bool]]:
    """The pieces of a chat as its template writes it, each with whether it is learnt."""
    head = f"<|turn>system\n{chat.system}<turn|>\n" if chat.system else ""
    parts = [(f"<bos>{head}", False)]
    for question, reply in chat.turns:
        parts += [(f"<|turn>user\n{question}<turn|>\n<|turn>model\n", False)]
        parts += [(f"{reply}<turn|>", True), ("\n", False)]
    return parts


def encode_chat(tokenizer: Tokenizer, chat: Chat) -> Document:
    tokens: list[int] = []
    learn: list[bool] = []
    for text, learnt in chat_parts(chat):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokens += ids
        learn += [learnt] * len(ids)
    return tokens, learn


def encode_prose(tokenizer: Tokenizer, text: str) -> Document:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [BOS, *ids, EOS], [False] + [True] * (len(ids) + 1)


def documents(tokenizer: Tokenizer, seed: int | str) -> Iterator[Document]:
    """To learn from, without end; the prose comes in a new order each time that it is used up."""
    draw, prose, left = Draw(seed), paragraphs(), list[str]()
    while True:
        if draw.number(0, 999) >= PROSE_OF_1000:
            yield encode_chat(tokenizer, train_chat(draw))
            continue
        left = left or draw.some(prose, len(prose))
        yield encode_prose(tokenizer, left.pop())


def held_out_documents(tokenizer: Tokenizer) -> Iterator[Document]:
    draw = Draw(f"held out {SEED}")
    while True:
        yield encode_chat(tokenizer, held_out_chat(draw))


def pack_rows(source: Iterator[Document], rows: int) -> Iterator[list[Document]]:
    """Documents row by row; what has waited longest is placed first."""
    waiting = list(islice(source, WAITING))
    for _ in range(rows):
        row, room = [], ROW
        while (at := next((i for i, (ids, _) in enumerate(waiting) if len(ids) <= room), -1)) >= 0:
            document = waiting.pop(at)
            row.append(document)
            room -= len(document[0])
            waiting += islice(source, 1)
        assert row, "no document fits an empty row"
        yield row


def packed_arrays(source: Iterator[Document], rows: int) -> dict[str, Any]:
    tokens = np.zeros((rows, ROW), np.uint16)
    belongs = np.zeros((rows, ROW), np.uint16)
    learn = np.zeros((rows, ROW), bool)
    for index, row in enumerate(pack_rows(source, rows)):
        at = 0
        for number, (ids, learnt) in enumerate(row):
            end = at + len(ids)
            tokens[index, at:end], belongs[index, at:end], learn[index, at:end] = (
                ids,
                number,
                learnt,
            )
            at = end
        belongs[index, at:] = len(row)
    return {"tokens": tokens, "documents": belongs, "learn": learn}


def make_tokenizer(path: Path) -> Tokenizer:
    """Trained on what is said in the chats, without the system prompts, and on the prose."""
    if not path.exists():
        draw = Draw(f"tokenizer {SEED}")
        chats = [train_chat(draw) for _ in range(20_000)]
        said = [text for chat in chats for turn in chat.turns for text in turn]
        train_tokenizer(said + paragraphs(), path)
    return Tokenizer.from_file(str(path))


def prepare(folder: Path, target_rows: int, drafter_rows: int) -> None:
    """tokenizer.json and the packed rows, where they are not there yet.

    rows.npz is for the target, drafts.npz for the drafter; held.npz has held-out chats.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder / "tokenizer.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old docstrings have odd escapes
        for name, source, count in (
            ("held", held_out_documents(tokenizer), HELD_ROWS),
            ("rows", documents(tokenizer, SEED), target_rows),
            ("drafts", documents(tokenizer, f"drafts {SEED}"), drafter_rows),
        ):
            path = folder / f"{name}.npz"
            if not path.exists() or np.load(path)["tokens"].shape[0] != count:
                np.savez(path, **packed_arrays(source, count))
