"""The commands of a chat: a line that is one word behind a slash, and what it is given.

- A command never ends the chat but `/bye`, whatever it is given: what is wrong is said in a line.
- A longer text that begins with a slash, such as a path, is a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.daemon.chat.chat import TALKS_MAX, HeldChat
from sapwood.daemon.chat.saved import load_talk, save_talk
from sapwood.daemon.chat.settings import OPTIONS, parse_setting
from sapwood.daemon.errors import UsageError
from sapwood.daemon.input_files import read_tools
from sapwood.daemon.suggestion import suggestion

_COMMAND = re.compile(r"/([A-Za-z]+|\?)(?:[ \t]+(.*))?", re.DOTALL)
_NAME = re.compile(r"[\w.-]{1,64}")
THINK_WORDS = {"on": True, "off": False, "auto": None}
SHOWABLE = ("settings", "system", "tools", "messages", "thinking", "model")
FAREWELLS = ("bye", "exit", "quit")


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """run: takes the chat and what stands behind the name; gives lines to show."""

    usage: str
    help: str
    run: Callable[[HeldChat, str], Iterator[str]]
    choices: tuple[str, ...] = ()  # for completion
    takes_file: bool = False


def read_command(line: str) -> tuple[str, str] | None:
    """The command's name and what it is given; None for a message."""
    match = _COMMAND.fullmatch(line.strip())
    return None if match is None else (match[1].lower(), (match[2] or "").strip())


def run_command(chat: HeldChat, name: str, given: str) -> Iterator[str]:
    """What to show, line by line. Raises UsageError."""
    command = COMMANDS.get("help" if name == "?" else name)
    if command is None:
        near = suggestion(f"/{name}", [f"/{known}" for known in (*COMMANDS, *FAREWELLS)])
        raise UsageError(f"there is no command /{name}{near}; /help lists them")
    yield from command.run(chat, given)


def _help(_chat: HeldChat, _given: str) -> Iterator[str]:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        yield f"{command.usage:{width}}  {command.help}"
    yield f"{'/bye':{width}}  leave, as Ctrl-D does"
    yield '"""          begins a text of several lines, and ends it; a paste is one message'
    yield "Alt-Enter    a new line; Ctrl-C clears the line or stops a reply"


def _system(chat: HeldChat, given: str) -> Iterator[str]:
    chat.talk.system = given
    yield "the system message is set" if given else "there is no system message"


def _set(chat: HeldChat, given: str) -> Iterator[str]:
    name, _, text = given.partition(" ")
    if not name:
        yield from _settings(chat)
    elif not text.strip():
        name, _ = parse_setting(name, "1")
        chat.talk.options.pop(name, None)
        yield f"{name}: as the model or the daemon has it"
    else:
        name, value = parse_setting(name, text.strip())
        chat.talk.options[name] = value
        yield f"{name} = {value}"


def _settings(chat: HeldChat) -> Iterator[str]:
    for name in OPTIONS:
        if name in chat.talk.options:
            yield f"{name} = {chat.talk.options[name]}"
    rest = [name for name in OPTIONS if name not in chat.talk.options]
    yield f"not set: {', '.join(rest)}"


def _show(chat: HeldChat, given: str) -> Iterator[str]:
    what, talk = given or "settings", chat.talk
    match what:
        case "settings":
            yield f"branch {chat.branch}, {len(talk.messages)} messages, think {_think_word(chat)}"
            yield from _settings(chat)
        case "system":
            yield talk.system or "there is no system message"
        case "tools":
            yield from (f"{t.name}  {t.description}" for t in talk.tools)
            if not talk.tools:
                yield "there are no tools"
        case "messages":
            yield from (f"{message.role}: {message.content}" for message in talk.messages)
        case "thinking":
            yield chat.last_thought or "nothing was thought yet"
        case "model":
            model = chat.model
            yield f"{model.name}, {model.family}, {model.quantization or 'not quantised'}"
            yield f"drafter {model.drafter or 'none'}, context {model.context_tokens_max} tokens"
        case _:
            raise UsageError(f"/show {' | '.join(SHOWABLE)}{suggestion(what, SHOWABLE)}")


def _think_word(chat: HeldChat) -> str:
    return next(word for word, value in THINK_WORDS.items() if value is chat.talk.thinking)


def _think(chat: HeldChat, given: str) -> Iterator[str]:
    if given and given not in THINK_WORDS:
        raise UsageError(f"/think {' | '.join(THINK_WORDS)}")
    chat.talk.thinking = THINK_WORDS[given] if given else not chat.talk.thinking
    yield f"think {_think_word(chat)}"


def _tools(chat: HeldChat, given: str) -> Iterator[str]:
    if given == "off":
        chat.talk.tools = ()
    elif given:
        chat.talk.tools = read_tools(str(Path(given).expanduser()))
    yield from _show(chat, "tools")


def _save(chat: HeldChat, given: str) -> Iterator[str]:
    save_talk(chat.talk, _path(given, "/save"))
    yield f"saved {len(chat.talk.messages)} messages"


def _load(chat: HeldChat, given: str) -> Iterator[str]:
    chat.take(load_talk(_path(given, "/load")))
    yield f"loaded {len(chat.talk.messages)} messages"


def _path(given: str, command: str) -> Path:
    if not given:
        raise UsageError(f"{command} FILE")
    return Path(given).expanduser()


def _clear(chat: HeldChat, _given: str) -> Iterator[str]:
    chat.talk.clear()
    yield "a new conversation; what is set stays"


def _retry(chat: HeldChat, _given: str) -> Iterator[str]:
    if not chat.retry():
        raise UsageError("there is nothing to ask again")
    yield from ()


def _fork(chat: HeldChat, given: str) -> Iterator[str]:
    """A copy of what was said; the tree on the device shares what both have."""
    if not given:
        for name, talk in chat.branches.items():
            yield f"{'*' if name == chat.branch else ' '} {name}  {len(talk.messages)} messages"
        return
    if not _NAME.fullmatch(given):
        raise UsageError("/fork NAME: letters, digits, . _ -")
    known = given in chat.branches
    if not known and len(chat.branches) >= TALKS_MAX:
        raise UsageError(f"there are {TALKS_MAX} branches already")
    if not known:
        chat.branches[given] = chat.talk.copy()
    chat.branch = given
    yield f"{'back on' if known else 'now on'} {given}, {len(chat.talk.messages)} messages"


COMMANDS: dict[str, ChatCommand] = {
    "help": ChatCommand("/help", "this", _help),
    "system": ChatCommand("/system [TEXT]", "the system message; none without a text", _system),
    "set": ChatCommand(
        "/set [NAME [VALUE]]", "temperature, max_tokens, seed, …", _set, (*OPTIONS,)
    ),
    "show": ChatCommand("/show [WHAT]", ", ".join(SHOWABLE), _show, SHOWABLE),
    "think": ChatCommand("/think [on|off|auto]", "before it answers", _think, (*THINK_WORDS,)),
    "tools": ChatCommand("/tools [FILE|off]", "JSON of what it may call", _tools, takes_file=True),
    "save": ChatCommand("/save FILE", "the conversation and what is set", _save, takes_file=True),
    "load": ChatCommand("/load FILE", "go on with a saved one", _load, takes_file=True),
    "clear": ChatCommand("/clear", "begin anew", _clear),
    "retry": ChatCommand("/retry", "ask the last question again", _retry),
    "fork": ChatCommand("/fork [NAME]", "go on apart, or back on NAME; lists branches", _fork),
}


def completed(line: str, chat: Any) -> tuple[str, list[str]]:
    """The word that the cursor ends, and what it could become; files are not of these."""
    head, space, rest = line.lstrip().partition(" ")
    if not line.startswith("/") or "\n" in line:
        return "", []
    if not space:
        return head, [f"/{name}" for name in (*COMMANDS, "bye") if f"/{name}".startswith(head)]
    command = COMMANDS.get(head[1:])
    if command is None or " " in rest:
        return "", []
    choices = tuple(chat.branches) if head == "/fork" else command.choices
    return rest, [choice for choice in choices if choice.startswith(rest)]
