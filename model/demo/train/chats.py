"""Chats about everyday things: each move of a chat is one question and its reply.

A chat is a walk over moves that remember what was said: the thing it is about, the user's name,
the story. The form of a reply follows from the question, so that little is left to chance and much
can be predicted, by the model and by its drafter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from sapwood.model.demo.train import systems
from sapwood.model.demo.train.draw import Draw, held_out
from sapwood.model.demo.train.stories import HEROES, NAMES, Story
from sapwood.model.demo.train.things import Thing, all_things, article, lines, pool, things, upper

ChatTurn = tuple[str, str]

WHAT, BRIEF, IN_DETAIL, LOOKS, USE, MORE = (
    pool(name) for name in ("what", "brief", "whole", "looks", "use", "more")
)
LOOKS_AFTER, USE_AFTER, MORE_AFTER, WHAT_AFTER, NOBODY_KNOWS = (
    pool(name) for name in ("looks_after", "use_after", "more_after", "what_after", "nobody_knows")
)
HELLO, THANKS, BYE, WHO, CAN, TELL, SYLLABLES = (
    pool(name) for name in ("hello", "thanks", "bye", "who", "can", "tell", "syllables")
)
DO_NOT_KNOW = "I am small and know only everyday things."
ASK_OTHERS = {
    "medicine": "I cannot give advice about medicine. A doctor can help you better.",
    "law": "I cannot give advice about law. A lawyer can help you better.",
    "money": "I cannot give advice about money. A person who has learned about it can help you "
    "better.",
    "unknown": "I am sorry, I do not know that.",
    "unable": "I am sorry, I cannot do that. I can only write short answers and stories.",
}


@dataclass(slots=True)
class ChatMemory:
    """What the moves of one chat know of it."""

    style: systems.Style
    thing: Thing | None = None
    told: set[str] = field(default_factory=set)
    user: str = ""
    story: list[ChatTurn] = field(default_factory=list)


def fill(form: str, thing: Thing) -> str:
    return upper(form.format(x=thing.name, xs=thing.many))


def fact(draw: Draw, memory: ChatMemory) -> ChatTurn:
    thing = memory.thing = draw.one(all_things())
    memory.told = {"what"}
    part = draw.weighted((("what", 50), ("brief", 8), ("whole", 10), ("one", 20), ("after", 12)))
    if part == "brief":
        return fill(draw.one(BRIEF), thing), thing.definition
    if part == "whole":
        memory.told |= {"looks", "use", "more"}
        return fill(draw.one(IN_DETAIL), thing), thing.sentences(4)
    if part == "one":
        forms, name = draw.one(((LOOKS, "looks"), (USE, "use"), (MORE, "more")))
        memory.told |= {name}
        return fill(draw.one(forms), thing), f"{getattr(thing, name)}."
    memory.told |= {"looks", "use"}
    return fill(draw.one(WHAT if part == "what" else WHAT_AFTER), thing), thing.sentences(3)


def about_it(draw: Draw, memory: ChatMemory) -> ChatTurn:
    """A follow-up that says "it"."""
    thing = memory.thing
    if thing is None:
        return fact(draw, memory)
    if draw.happens(0.07):
        return draw.one(NOBODY_KNOWS), ASK_OTHERS["unknown"]
    parts = ((LOOKS_AFTER, "looks"), (USE_AFTER, "use"), (MORE_AFTER, "more"))
    forms, name = draw.weighted([(part, 0.2 if part[1] in memory.told else 1) for part in parts])
    memory.told |= {name}
    return draw.one(forms), f"{getattr(thing, name)}."


def tell_story(draw: Draw, memory: ChatMemory) -> ChatTurn:
    size = draw.one(("short ", "short ", "", "", "little ", "long ", "long "))
    long = size == "long " or (not size and draw.happens(0.5))
    hero = draw.one(HEROES)
    adjective = draw.one(("little", "brave", "old", "young")) if draw.happens(0.15) else ""
    told = Story(draw, hero, long, adjective)
    memory.story = told.questions()
    if draw.happens(0.06):
        return draw.one(pool("any_story")), told.text
    noun = f"{adjective} {hero}".strip()
    return draw.one(TELL).format(s=size, a=article(noun), h=noun), told.text


def about_story(draw: Draw, memory: ChatMemory) -> ChatTurn:
    return draw.one(memory.story) if memory.story else tell_story(draw, memory)


def capital(draw: Draw, memory: ChatMemory) -> ChatTurn:
    country, city, land = draw.one(lines("capitals.txt"))
    form = draw.one(("capital", "capital", "capital", "where", "city"))
    if form == "where":
        return f"Where is {country}?", f"{country} is in {land}. Its capital is {city}."
    if form == "city":
        return draw.one(pool("city")).format(city), f"{city} is the capital of {country}."
    return draw.one(pool("capital")).format(country), f"The capital of {country} is {city}."


def arithmetic(draw: Draw, memory: ChatMemory) -> ChatTurn:
    """The result first, as a number; small numbers, which the model can learn by heart."""
    sign = draw.weighted((("plus", 5), ("minus", 3), ("times", 3), ("word", 1)))
    if sign == "times":
        a, b = draw.number(1, 10), draw.number(1, 10)
        result = a * b
    else:
        a, b = draw.number(1, 20), draw.number(1, 20)
        a, b = (max(a, b), min(a, b)) if sign == "minus" else (a, b)
        result = a - b if sign == "minus" else a + b
    if sign == "word":
        what = draw.one(pool("counted"))
        question = f"I have {a} {what} and get {b} more. How many {what} do I have?"
        return question, f"{result}. If you have {a} {what} and get {b} more, you have {result}."
    symbol = {"plus": "+", "minus": "-", "times": "*"}[sign]
    question = draw.one(pool("sum")).format(a=a, b=b, w=sign, s=symbol)
    return question, f"{result}. {a} {sign} {b} is {result}."


@cache
def lists() -> list[tuple[str, list[str]]]:
    return [(group, members.split(", ")) for group, members in lines("lists.txt")]


def listing(draw: Draw, memory: ChatMemory) -> ChatTurn:
    group, members = draw.one(lists())
    count = draw.number(3, 5)
    word = {3: "three", 4: "four", 5: "five"}[count]
    forms = pool("list")
    if draw.happens(0.25):
        forms, count = pool("list_some"), 4
        word = ""
    shown = [upper(member) for member in members[:count]]
    return draw.one(forms).format(word, group).replace("  ", " "), "\n".join(shown)


def difference(draw: Draw, memory: ChatMemory) -> ChatTurn:
    topic = draw.one(("nature", "animals", "animals", "made", "food_people"))
    one, two = draw.some(things(topic), 2)
    question = upper(draw.one(pool("differ")).format(one.name, two.name))
    return question, f"{one.definition} {two.definition}"


def both(draw: Draw, memory: ChatMemory) -> ChatTurn:
    one, two = draw.some(all_things(), 2)
    question = draw.one(pool("both")).format(one.many, two.many)
    return question, f"{one.sentences(3)}\n\n{two.sentences(3)}"


def simple(draw: Draw, memory: ChatMemory) -> ChatTurn:
    question, answer = draw.one(lines("facts.txt"))
    leads = (("", 6), ("Please tell me: ", 1), ("I have a question. ", 1), ("Hello! ", 1))
    lead = draw.weighted(leads)
    return lead + question, answer


def hello(draw: Draw, memory: ChatMemory) -> ChatTurn:
    question = draw.one(HELLO)
    if "how are" in question.lower():
        return question, "I am well, thank you. How can I help you?"
    return question, "Hello! How can I help you?"


def introduce(draw: Draw, memory: ChatMemory) -> ChatTurn:
    memory.user = draw.one((*NAMES, *systems.MODEL_NAMES[9:]))
    return draw.one(pool("introduce")).format(
        memory.user
    ), f"Hello {memory.user}! How can I help you?"


def my_name(draw: Draw, memory: ChatMemory) -> ChatTurn:
    forms = pool("my_name")
    if not memory.user:
        return draw.one(forms), "I do not know your name. Please tell me."
    return draw.one(forms), f"Your name is {memory.user}."


def who(draw: Draw, memory: ChatMemory) -> ChatTurn:
    return draw.one(WHO), memory.style.introduction()


def can(draw: Draw, memory: ChatMemory) -> ChatTurn:
    able = "answer short questions about everyday things, work out small sums, make lists and tell"
    return draw.one(CAN), f"I can {able} stories. What would you like?"


def thanks(draw: Draw, memory: ChatMemory) -> ChatTurn:
    name = f", {memory.user}" if memory.user else ""
    return draw.one(THANKS), f"You are welcome{name}! Thank you for asking. Have a nice day!"


def bye(draw: Draw, memory: ChatMemory) -> ChatTurn:
    name = f", {memory.user}" if memory.user else ""
    return draw.one(BYE), f"Goodbye{name}! It was nice to talk with you."


def unknown(draw: Draw, memory: ChatMemory) -> ChatTurn:
    """Real words outside the table, and words that nobody knows."""
    if draw.happens(0.6):
        name = draw.one(lines("unknown.txt")[0][0].split(", "))
    else:
        word = "".join(draw.one(SYLLABLES) for _ in range(draw.number(2, 3)))
        name = f"{article(word)} {word}"
    if draw.happens(0.15):
        person = f"{draw.one(NAMES)} {upper(''.join(draw.some(SYLLABLES, 2)))}"
        reply = f"I am sorry, I do not know who {person} is. {DO_NOT_KNOW}"
        return draw.one(("Who is {}?", "Who was {}?", "Do you know {}?")).format(person), reply
    if draw.happens(0.12):
        country = draw.one(pool("countries"))
        if draw.happens(0.6):
            country = upper("".join(draw.some(SYLLABLES, 3)))
        reply = f"I am sorry, I do not know the capital of {country}. {DO_NOT_KNOW}"
        return f"What is the capital of {country}?", reply
    thing = Thing(name, "", "", "", "")
    reply = f"I am sorry, I do not know what {name} is. {DO_NOT_KNOW}"
    return fill(draw.one((*WHAT, *BRIEF[:3])), thing), reply


def refuse(draw: Draw, memory: ChatMemory) -> ChatTurn:
    kind, question = draw.one(lines("refuse.txt"))
    leads = (("", 5), ("Please help me. ", 1), ("Hello! ", 1), ("I have a question. ", 1))
    lead = draw.weighted(leads)
    return lead + question, ASK_OTHERS[kind]


FIRST = (
    (fact, 37), (tell_story, 17), (simple, 9), (unknown, 6), (refuse, 6), (capital, 4),
    (arithmetic, 7), (listing, 5), (difference, 3), (both, 3), (introduce, 5), (hello, 2),
    (who, 3), (can, 1), (my_name, 0.5), (thanks, 0.5),
)  # fmt: skip
AFTER = {
    fact: ((about_it, 60), (fact, 18), (thanks, 10), (unknown, 3), (tell_story, 3)),
    about_it: ((about_it, 40), (fact, 25), (thanks, 20), (bye, 5)),
    tell_story: ((about_story, 75), (thanks, 12), (fact, 8), (tell_story, 5)),
    about_story: ((about_story, 55), (thanks, 20), (fact, 10), (bye, 5)),
    introduce: ((my_name, 50), (fact, 20), (who, 10), (tell_story, 10)),
    my_name: ((thanks, 20), (fact, 30), (bye, 10), (introduce, 10)),
    hello: ((who, 20), (fact, 40), (introduce, 20), (tell_story, 10)),
    thanks: ((bye, 30), (fact, 40)),
}  # fmt: skip
ELSE = (*FIRST, (thanks, 12), (my_name, 6), (bye, 4))


@dataclass(frozen=True, slots=True)
class Chat:
    system: str
    turns: tuple[ChatTurn, ...]


def careless(draw: Draw, question: str) -> str:
    """As people type: now and then without capitals or without the last mark."""
    if draw.happens(0.08):
        question = question[:1].lower() + question[1:]
    if draw.happens(0.08):
        question = question.rstrip("?.!")
    return question


def any_chat(draw: Draw) -> Chat:
    style = systems.style(draw)
    memory = ChatMemory(style)
    longest = 4 if len(style.prompt) > 300 else 3
    move = draw.weighted(FIRST)
    turns = []
    for _ in range(draw.weighted(((1, 4), (2, 4), (3, 3), (longest, 2)))):
        question, reply = move(draw, memory)
        turns.append((careless(draw, question), style.dress(reply)))
        move = draw.weighted(AFTER.get(move, ELSE)) if draw.happens(0.85) else draw.weighted(ELSE)
    return Chat(style.prompt, tuple(turns))


def train_chat(draw: Draw) -> Chat:
    """A chat in which the user says nothing that is held out."""
    while True:
        made = any_chat(draw)
        if not any(held_out(question) for question, _ in made.turns):
            return made


def held_out_chat(draw: Draw) -> Chat:
    """A chat that opens with a question of the evaluation."""
    while True:
        made = any_chat(draw)
        if held_out(made.turns[0][0]):
            return made
