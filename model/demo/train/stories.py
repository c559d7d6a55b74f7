"""Tiny stories with a beginning, a middle and an end, and what may be asked about them.

Each plot of text/plots.txt is a list of sentences with slots; one hero and one friend keep their
names throughout. The answers to questions about a story are read from the same slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sapwood.model.demo.train.draw import Draw
from sapwood.model.demo.train.things import article, lines, pool, upper

NAMES, HEROES, FRIENDS, ADJECTIVES, PLACES, TREASURES = (
    pool(name) for name in ("names", "heroes", "friends", "adjectives", "places", "treasures")
)


@dataclass(frozen=True, slots=True)
class Plot:
    """The sentences of a long story, and the indices of those that make a short one."""

    short: tuple[int, ...]
    sentences: list[str]


@cache
def plots() -> dict[str, Plot]:
    """By name: text/plots.txt."""
    found: dict[str, Plot] = {}
    for name, *rest in lines("plots.txt"):
        if name.startswith("= "):
            plot = found[name.removeprefix("= ")] = Plot(tuple(map(int, rest[0].split())), [])
        else:
            plot.sentences.append(name)
    return found


class Story:
    """One story that is told, and the answers about it."""

    def __init__(self, draw: Draw, hero: str, long: bool, adjective: str = "") -> None:
        self.hero, self.plot = hero, draw.one(sorted(plots()))
        self.friend = draw.one([friend for friend in FRIENDS if friend != hero])
        self.name, self.other = draw.some(NAMES, 2)
        adjective = adjective or draw.one(ADJECTIVES)
        self.place, self.treasure = draw.one(PLACES), draw.one(TREASURES)
        slots = {
            "a": article(adjective),
            "adj": adjective,
            "hero": hero,
            "name": self.name,
            "other": self.other,
            "friend": self.friend,
            "place": self.place,
            "treasure": self.treasure,
        }
        plot = plots()[self.plot]
        every = plot.sentences
        told = every if long else [every[index] for index in plot.short]
        text = [sentence.format_map(slots).replace(" a owl", " an owl") for sentence in told]
        self.ending = text[-1]
        self.text = " ".join(upper(sentence) for sentence in text)

    def questions(self) -> list[tuple[str, str]]:
        hero, friend = self.hero, self.friend
        asked = [
            (f"What was the name of the {hero}?", f"The {hero} was called {self.name}."),
            (f"What was the {hero} called?", f"The {hero} was called {self.name}."),
            (f"What was the name of the {friend}?", f"The {friend} was called {self.other}."),
            (f"Where did the {hero} live?", f"The {hero} lived {self.place}."),
            (f"Where did {self.name} live?", f"{self.name} lived {self.place}."),
            (f"Who was {self.name}?", f"{self.name} was the {hero} in the story."),
            (f"Who was {self.other}?", f"{self.other} was the {friend} in the story."),
            ("How did the story end?", f"This is how it ended: {self.ending}"),
            ("Who is the story about?", f"It is about {article(hero)} {hero} named {self.name}."),
            ("What was its name?", f"The {hero} was called {self.name}."),
        ]
        if self.plot == "treasure":
            asked.append((f"What did {self.name} find?", f"{self.name} found {self.treasure}."))
        return asked
