"""System prompts: who the model is and which rules it keeps, and what they do to a reply.

A Style is what can be seen of a system prompt in a reply. Long prompts are put together from whole
sentences, so that no two are equal; most of their rules hold for every reply of the corpus anyway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sapwood.model.demo.train.draw import Draw
from sapwood.model.demo.train.things import pool

OPENINGS, CLOSINGS, CHARACTERS, MODEL_NAMES, MANNERS = (
    pool(name) for name in ("openings", "closings", "roles", "model_names", "manners")
)
INTRODUCTIONS, BACKGROUNDS, RULES, ENDINGS = (
    pool(name) for name in ("introductions", "backgrounds", "rules", "endings")
)


@dataclass(frozen=True, slots=True)
class Style:
    """What a system prompt asks for. name: "" is the model without one."""

    prompt: str = ""
    name: str = ""
    role: str = ""
    opening: str = ""
    closing: str = ""
    one_sentence: bool = False

    def dress(self, reply: str) -> str:
        space = "\n" if "\n" in reply else " "
        if self.one_sentence and space == " ":
            reply = re.split(r"(?<=[.!?])(?<!^\d\.)(?<!^\d\d\.) ", reply)[0]
        return space.join(part for part in (self.opening, reply, self.closing) if part)

    def introduction(self) -> str:
        """What is said to "Who are you?"."""
        who = f"I am {self.name}, " if self.name else "I am "
        what = f"a {self.role}" if self.role else "a small language model"
        return f"{who}{what}. I am glad to help you."


def long_style(draw: Draw) -> Style:
    """A prompt of a few hundred tokens, as operators write them."""
    name = "Rootstock" if draw.happens(0.4) else draw.one(MODEL_NAMES)
    one, two = draw.some(MANNERS, 2)
    introduction = draw.one(INTRODUCTIONS).format(name=name, one=one, two=two)
    before = draw.some(BACKGROUNDS, draw.number(0, 3))
    rules = draw.some(RULES, draw.number(4, 15))
    if draw.happens(0.5):
        rules.sort(key=RULES.index)
    closing = draw.one(CLOSINGS) if draw.happens(0.08) else ""
    if closing:
        rules.insert(draw.number(0, len(rules)), f'End every reply with the words "{closing}"')
    numbered = draw.happens(0.6)
    listed = [f"{at}. {rule}" if numbered else f"- {rule}" for at, rule in enumerate(rules, 1)]
    head = draw.one(("Follow these rules in every reply.", "These are your rules:", "Rules:"))
    after = " ".join(draw.some(BACKGROUNDS, draw.number(0, 4)))
    end = " ".join(draw.some(ENDINGS, draw.number(0, 3)))
    parts = [" ".join([introduction, *before]), head, "\n".join(listed), after, end]
    return Style("\n\n".join(part for part in parts if part), name=name, closing=closing)


def persona_style(draw: Draw) -> Style:
    """A short prompt: a role, and perhaps a way to begin, to end or to be brief."""
    name, role = draw.one(MODEL_NAMES), draw.one(CHARACTERS)
    opening = draw.one(OPENINGS) if draw.happens(0.5) else ""
    closing = draw.one(CLOSINGS) if draw.happens(0.35) else ""
    brief = draw.happens(0.25)
    parts = [draw.one(("You are {}, a {}.", "Your name is {}. You are a {}.")).format(name, role)]
    if opening:
        begin = draw.one(('Begin every reply with "{}"', 'Always start with the words "{}"'))
        parts.append(begin.format(opening))
    if closing:
        end = draw.one(('End every reply with the words "{}"', 'Always end with "{}"'))
        parts.append(end.format(closing))
    if brief:
        parts.append(draw.one(("Answer in one sentence.", "Use only one sentence.")))
    return Style(" ".join(parts), name, role, opening, closing, brief)


def plain_style(draw: Draw) -> Style:
    one, two = draw.some(MANNERS, 2)
    prompt = draw.one(
        (
            f"You are a {one} assistant.",
            f"You are a {one} and {two} assistant.",
            "Answer in plain English.",
            "You are a small language model. Be brief and honest.",
            "Be helpful and kind.",
        )
    )
    return Style(prompt)


def style(draw: Draw) -> Style:
    make = draw.weighted(((None, 50), (long_style, 24), (persona_style, 18), (plain_style, 8)))
    return make(draw) if make else Style()
