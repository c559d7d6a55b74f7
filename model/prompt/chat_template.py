"""The model's own chat template, rendered so that contents can never become control tokens.

- A template comes from the model's directory and is fixed at load; clients send none. It runs
  in jinja's immutable sandbox, with the settings of transformers.
- Contents go in as they are: the template trims, sorts, compares and drops them as it does
  anywhere. What is replaced are its own control tokens, in its syntax tree, each by one lone
  surrogate. No client's text holds those, so afterwards exactly what the template itself wrote
  is a control token. (Marking the contents instead was tried: a sorted or compared one is lost.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from secrets import token_hex
from typing import Any

from jinja2 import TemplateError, nodes

from sapwood.model.checkpoint.files import ModelRefused, shown
from sapwood.model.prompt.bounds import SURROGATE, OutOfBounds
from sapwood.model.prompt.errors import GivenUp, PromptAbandoned, PromptRefused, never
from sapwood.model.prompt.sandbox import Sandbox

# A closed set: a role picks a branch of the template, and a misspelt one would pick none.
ROLES = frozenset({"system", "developer", "user", "assistant", "model", "tool"})

_CONTENT = "qvolt7zink"  # no template says that by itself
_CALL_END = "<tool_call|>"
_STAND_INS = range(0xD800, 0xE000)
_SEARCHED_CHARS = 64 * 1024
# What a conversation may hold besides roles and contents, and by which names templates use it.
_FEATURES = {
    "tools": ("tools",),
    "tool_calls": ("tool_calls",),
    "enable_thinking": ("enable_thinking",),
    "reasoning": ("reasoning", "reasoning_content"),
}
# Every template has the word "name", of tools; so whose name it writes is tried out.
_NAMED = ("system", "developer", "user", "assistant")
_NAME = "qvolt7name"


class ChatTemplate:
    """A compiled template. Safe to use from several threads.

    `features`: which of `tools`, `tool_calls`, `enable_thinking` and `reasoning` it uses, and
    `name of ROLE` where it writes the name of who speaks.
    `where`: the file that it is from.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], control: Collection[str], where: str
    ) -> None:
        """`control`: the spellings of all control tokens. Raises ModelRefused."""
        self.where = where
        self._sandbox = Sandbox()
        self._sandbox.globals["raise_exception"] = _decline
        self._stand_ins = _StandIns(control, where)
        try:
            tree = self._sandbox.parse(source)
            self._knows_developer = _has_text(tree, "developer")
            self._stand_ins.replace_in(tree)
            _end_settled_scans(tree)
            self._template = self._sandbox.compiled(tree)
        except TemplateError as error:
            raise ModelRefused(f"{where}: is not a template: {error}") from None
        except ModelRefused:
            raise
        except Exception:
            # Nested deeper, or with more blocks, than Python compiles.
            raise ModelRefused(f"{where}: is not a template that can be compiled") from None
        self._names = {key: self._stand_ins.of(text) for key, text in special_tokens.items()}
        words = set(re.findall(r"\w+", source))
        self.features = frozenset(
            f for f, names in _FEATURES.items() if not words.isdisjoint(names)
        ) | {f"name of {role}" for role in _NAMED if self._writes_name_of(role)}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        given_up: GivenUp = never,
    ) -> list[str]:
        """The prompt, the assistant's turn opened at its end: text, control, text, ..., text.

        Joined it is what transformers would render. Messages and tools are JSON values in the form
        that transformers takes: `role`, `content`, `tool_calls`, ... Raises PromptRefused, and
        PromptAbandoned soon after `given_up` says so.
        """
        if not messages:
            raise PromptRefused("messages are empty")
        if any(message["role"] not in ROLES for message in messages):
            raise PromptRefused(f"role must be one of {', '.join(sorted(ROLES))}")
        for value in (*messages, *tools):
            _check_unicode(value)
        try:
            return self._render(messages, tools, thinking, given_up)
        except PromptAbandoned:
            raise
        except OutOfBounds:
            raise PromptRefused(
                "the model's chat template makes too much of these messages"
            ) from None
        except Exception:
            # A template is code of the model's author: any error of it refuses this prompt only.
            raise PromptRefused("the model's chat template does not take these messages") from None

    def render_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        calls: Sequence[Mapping[str, Any]] = (),
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        given_up: GivenUp = never,
    ) -> list[str]:
        """As `render`, of what follows an assistant's reply, from the end of its content on.

        calls: of the reply, with results of which `messages` begin: then from the last call's end.
        """
        mark = token_hex(8)  # found in what is rendered, so that nobody may know it before
        reply: dict[str, Any] = {"role": "assistant", "content": "" if calls else mark}
        if calls:
            function = {**calls[-1]["function"], "arguments": {"mark": mark}}
            reply["tool_calls"] = [*calls[:-1], {**calls[-1], "function": function}]
        before = [{"role": "user", "content": "-"}, reply]
        parts = self.render([*before, *messages], tools, thinking, given_up)
        at = next((i for i in range(0, len(parts), 2) if mark in parts[i]), len(parts))
        parts[:at] = []
        if calls:
            end = next((i for i in range(1, len(parts), 2) if parts[i] == _CALL_END), len(parts))
            parts[: end + 1] = []
        if not parts:
            raise PromptRefused("the model's chat template cannot go on from a reply")
        parts[0] = parts[0].rpartition(mark)[2]
        return parts

    def _writes_name_of(self, role: str) -> bool:
        named = {"role": role, "content": _CONTENT, "name": _NAME}
        plain = {"role": "user", "content": _CONTENT}
        # Some take a system's message nowhere but in front, and none of an assistant there.
        return self._says(_NAME, [named, plain]) or self._says(_NAME, [plain, named])

    def _says(self, text: str, messages: Sequence[Mapping[str, Any]]) -> bool:
        try:
            parts = self._render(messages, (), None, never)
        except Exception:  # it does not take such a conversation
            return False
        return any(text in run.casefold() for run in parts[::2])

    def tried_out(self, tools: Sequence[Mapping[str, Any]]) -> list[str]:
        """`render` of one plain user turn, whose content must be in it. Raises ModelRefused."""
        try:
            parts = self._render([{"role": "user", "content": _CONTENT}], tools, None, never)
        except Exception as error:
            raise ModelRefused(
                f"{self.where}: cannot render one plain user turn: {shown(str(error))}"
            ) from None
        if not any(_CONTENT in run.casefold() for run in parts[::2]):
            raise ModelRefused(f"{self.where}: loses the content of one plain user turn")
        return parts

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        thinking: bool | None,
        given_up: GivenUp,
    ) -> list[str]:
        """Raises whatever the template does, and PromptAbandoned."""
        if not self._knows_developer and any(m["role"] == "developer" for m in messages):
            messages = [{**m, "role": _known_role(m["role"])} for m in messages]
        values: dict[str, Any] = {**self._names, "messages": messages}
        values |= {"tools": list(tools) or None, "documents": None, "add_generation_prompt": True}
        if thinking is not None:
            values["enable_thinking"] = thinking
        parts = _split(self._sandbox.rendered(self._template, values, given_up))
        parts[1::2] = map(self._stand_ins.token, parts[1::2])
        return parts


class _StandIns:
    """One lone surrogate for each control token that the template writes."""

    def __init__(self, control: Collection[str], where: str) -> None:
        longest_first = sorted(control, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._char_of: dict[str, str] = {}
        self._token_of: dict[str, str] = {}
        self._where = where

    def of(self, text: str) -> str:
        """The text with its control tokens replaced."""
        if SURROGATE.search(text):
            raise ModelRefused(f"{self._where}: holds surrogates, which are no characters")
        return self._tokens.sub(lambda found: self._char(found[0]), text)

    def token(self, char: str) -> str:
        return self._token_of[char]

    def _char(self, token: str) -> str:
        if token not in self._char_of:
            if len(self._char_of) == len(_STAND_INS):
                raise ModelRefused(f"{self._where}: more than {len(_STAND_INS)} control tokens")
            char = chr(_STAND_INS[len(self._char_of)])
            self._char_of[token], self._token_of[char] = char, token
        return self._char_of[token]

    def replace_in(self, tree: nodes.Template) -> None:
        for data in tree.find_all(nodes.TemplateData):
            data.data = self.of(data.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self.of(constant.value)


def _split(rendered: str) -> list[str]:
    """Text, stand-in, text, ..., text. Searched in pieces: a search holds the GIL to its end."""
    parts: list[str] = []
    position = 0
    for start in range(0, len(rendered), _SEARCHED_CHARS):
        for found in SURROGATE.finditer(rendered, start, start + _SEARCHED_CHARS):
            parts += [rendered[position : found.start()], found[0]]
            position = found.end()
    return [*parts, rendered[position:]]


def _end_settled_scans(tree: nodes.Template) -> None:
    """Break out of loops that only skip the rest of their items once a flag is set.

    Gemma's template looks ahead like that from every message, which takes 30 s for 4,096 of them.
    Two forms: `for ...: if not x.flag: ...`, and `for ...: if x.flag: (nothing) elif ... else ...`.
    Only the skipped body could change the flag again, so the rest of the loop does nothing.
    """
    for loop in tree.find_all(nodes.For):
        match loop.body:
            case [
                nodes.If(
                    test=nodes.Not(node=nodes.Getattr(node=nodes.Name(name=name))),
                    elif_=[],
                    else_=[],
                ) as only
            ] if not loop.else_ and name not in _names(loop.target):
                only.else_ = [nodes.Break(lineno=only.lineno)]
            case [nodes.If(test=nodes.Getattr(node=nodes.Name(name=name)), body=[]) as only] if (
                not loop.else_ and name not in _names(loop.target)
            ):
                only.body = [nodes.Break(lineno=only.lineno)]


def _names(target: nodes.Node) -> set[str]:
    found = {name.name for name in target.find_all(nodes.Name)}
    return found | {target.name} if isinstance(target, nodes.Name) else found


def _has_text(tree: nodes.Template, text: str) -> bool:
    return any(constant.value == text for constant in tree.find_all(nodes.Const))


def _known_role(role: str) -> str:
    """What OpenAI calls a developer now is what it called the system before."""
    return "system" if role == "developer" else role


def _decline(message: Any) -> str:
    """A template's raise_exception; its words are for whoever tries the template out."""
    raise TemplateError(str(message))


def _check_unicode(values: Any) -> None:
    """JSON can spell lone surrogates; here they stand for control tokens."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise PromptRefused("the messages hold what is no text, or no number") from None
