"""What is asked: fresh questions behind one shared system prompt, and prompts of a wanted length.

- Everything is a function of its arguments: all contestants get the same words.
- Questions are of two kinds that alternate, as in bench/speculation.py: what a thing is, and a
  story about it. No two turns ask the same, so nobody finds a whole prompt in a cache.
- Lengths are those of the whole conversation in the model's template, BOS included.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache

from bench.peers.heard import PeerChat
from sapwood import Message
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.demo.train.things import Thing, all_things, pool
from sapwood.model.prompt.tokenizer_file import load_tokenizer

SYSTEM_TOKENS = 550
# Two at a time alternate; the second two begin when the first two have asked about everything.
QUESTION_KINDS = (
    *("What is {}?", "Tell me a story about {}."),
    *("What does {} look like?", "Tell me everything about {}."),
)
_VOCABULARY = json.loads((DEMO / "target" / "config.json").read_text())["vocab_size"]
PROMPT_TOKENIZER = load_tokenizer(ModelDirectory(DEMO / "target"), _VOCABULARY)


def as_dicts(chat: PeerChat) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in chat]


def chat_tokens(chat: PeerChat) -> int:
    """Of the prompt that a server makes of it."""
    return len(PROMPT_TOKENIZER.encode_messages(as_dicts(chat)))


def text_tokens(text: str) -> int:
    """Of a reply's text, by the one tokenizer that counts for all; the BOS in front does not."""
    return len(PROMPT_TOKENIZER.encode_text(text)) - 1


def fresh_questions(count: int, skipped: int = 0) -> list[str]:
    """`count` of them, all unlike, behind the first `skipped`; they begin again at the end."""
    things = _shuffled(all_things(), 0)
    asked = [
        QUESTION_KINDS[turn // 2 * 2 + (at + turn) % 2].format(thing.name)
        for turn in range(len(QUESTION_KINDS))
        for at, thing in enumerate(things)
    ]
    return [asked[at % len(asked)] for at in range(skipped, skipped + count)]


def chats(count: int, skipped: int = 0) -> list[list[Message]]:
    """Each with the shared system prompt and a question of its own."""
    system = system_message()
    return [[system, Message("user", asked)] for asked in fresh_questions(count, skipped)]


@cache
def system_message(tokens: int = SYSTEM_TOKENS) -> Message:
    """Rules as operators write them, as many whole words as fit into `tokens`."""
    rules = [rule for rule in pool("rules") if "End every" not in rule]
    opening = "You are a helpful assistant. Answer with short and plain sentences."
    words = " ".join([opening, *pool("backgrounds"), *rules]).split()
    return Message("system", fitted(words, tokens, text_tokens))


def long_chat(tokens: int, seed: int) -> list[Message]:
    """One question of so many tokens, at most a word less, that no other seed begins alike."""
    return [Message("user", fitted(_words(tokens, seed), tokens, _user_tokens))]


def sharing_chats(shared: int, seed: int) -> tuple[list[Message], list[Message]]:
    """Two questions behind one system prompt of `shared` tokens, at most a word less.

    What is shared ends where the system prompt does: mlx_lm.server keeps a state for there, and
    none within a message, once it is longer than the model's window.
    """
    system = Message("system", fitted(_words(shared, seed), shared, text_tokens))
    first, second = fresh_questions(2, 2 * abs(seed))
    return [system, Message("user", first)], [system, Message("user", second)]


def _words(tokens: int, seed: int) -> list[str]:
    """More than `tokens` can hold, the first ones unlike those of any other seed."""
    names = [thing.name for thing in all_things()]
    return [f"({seed})", *" ".join(random.Random(seed).choices(names, k=tokens)).split()]


def _user_tokens(text: str) -> int:
    return chat_tokens([Message("user", text)])


def fitted(words: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    """As many of the first words, joined, as `count` to at most `tokens`."""
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    assert low < len(words), "too few words"
    return " ".join(words[:low])


def _shuffled(found: Sequence[Thing], seed: int) -> list[Thing]:
    mixed = list(found)
    random.Random(seed).shuffle(mixed)
    return mixed
