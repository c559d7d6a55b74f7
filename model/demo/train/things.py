"""The table of everyday things that the corpus is made from, read from text/things_*.txt.

A line is a name and four sentences: what it is, what it looks like, what it is for, one thing more.
A name carries its article; "+" marks a word that has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

TEXT = Path(__file__).parent / "text"
PLURALS = {
    "fox": "foxes", "mouse": "mice", "sheep": "sheep", "wolf": "wolves", "deer": "deer",
    "goose": "geese", "ostrich": "ostriches", "fish": "fish", "octopus": "octopuses",
    "jellyfish": "jellyfish", "starfish": "starfish", "knife": "knives", "tooth": "teeth",
    "leaf": "leaves", "butterfly": "butterflies", "fly": "flies", "beach": "beaches",
    "bus": "buses", "match": "matches", "tomato": "tomatoes", "potato": "potatoes",
    "volcano": "volcanoes", "cherry": "cherries", "strawberry": "strawberries",
    "library": "libraries", "family": "families", "story": "stories", "battery": "batteries",
    "dictionary": "dictionaries", "daisy": "daisies", "city": "cities", "valley": "valleys",
    "compass": "compasses", "hippo": "hippos", "cactus": "cactuses", "torch": "torches",
    "birch": "birches", "echo": "echoes", "firefighter": "firefighters", "day": "days",
    "piano": "pianos",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    name: str  # as in a sentence: "a river", "the moon", "rain"
    what: str
    looks: str
    use: str
    more: str

    @property
    def bare(self) -> str:
        return self.name.removeprefix("a ").removeprefix("an ").removeprefix("the ")

    @property
    def many(self) -> str:
        """For "Tell me about ...": rivers, the moon, rain."""
        if not self.name.startswith(("a ", "an ")):
            return self.name
        head, _, last = self.bare.rpartition(" ")
        return f"{head} {PLURALS.get(last, last + 's')}".strip()

    @property
    def definition(self) -> str:
        return f"{upper(self.name)} is {self.what}."

    def sentences(self, count: int) -> str:
        rest = [f"{part}." for part in (self.looks, self.use, self.more)]
        return " ".join([self.definition, *rest][:count])


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def lines(name: str) -> list[list[str]]:
    """The fields of a text file's lines; comments begin with '#'."""
    text = (TEXT / name).read_text(encoding="utf-8").splitlines()
    return [
        [field.strip() for field in line.split(" | ")]
        for line in text
        if line.strip() and not line.startswith("#")
    ]


@cache
def things(topic: str) -> tuple[Thing, ...]:
    rows = lines(f"things_{topic}.txt")
    assert all(len(row) == 5 for row in rows), [row for row in rows if len(row) != 5]
    return tuple(Thing(row[0].removeprefix("+"), *row[1:]) for row in rows)


@cache
def all_things() -> tuple[Thing, ...]:
    topics = ("nature", "animals", "made", "food_people")
    return tuple(thing for topic in topics for thing in things(topic))


@cache
def pools() -> dict[str, list[str]]:
    return {name: members for name, *members in lines("pools.txt")}


def pool(name: str) -> list[str]:
    return pools()[name]
