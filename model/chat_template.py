"""The model's own chat template, rendered so that contents can never become control text.

- The template comes from the model's directory and is fixed at load; clients send none. It runs
  in jinja's immutable sandbox, with the settings of transformers.
- What is rendered are sentinels in place of contents, one private-use character each run of a
  content between its outer white space: templates trim contents and test them for emptiness, and
  both work on a sentinel as on the content.
- Every sentinel must come back exactly once and in order, else the template did something to the
  content that we cannot follow, and the prompt is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes

from model.files import ModelDirectory, ModelRefused, shown
from model.sandbox import OutOfBounds, Sandbox

# A closed set: the role is template text, so a free one could end a turn.
ROLES = frozenset({"system", "developer", "user", "assistant", "model"})

# Private-use characters survive trim, upper and lower. No template may contain them.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_SENTINEL = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class PromptRefused(ValueError):
    """Messages that cannot be put into the model's template: the client's error."""


class ChatTemplate:
    """A compiled template. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        if _OPEN in source or _CLOSE in source:
            raise ModelRefused(f"{where}: contains characters that mark contents here")
        self._sandbox = Sandbox()
        self._sandbox.globals["raise_exception"] = _refuse
        try:
            tree = self._sandbox.parse(source)
            _end_settled_scans(tree)
            self._template = self._sandbox.compiled(tree)
        except TemplateError as error:
            raise ModelRefused(f"{where}: is not a template: {error}") from None
        except Exception:
            # Nested deeper, or with more blocks, than Python compiles.
            raise ModelRefused(f"{where}: is not a template that can be compiled") from None
        self._names = dict(special_tokens)
        self.source = source

    def render(self, messages: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
        """(text, is content) pieces of the prompt for (role, content) messages, in order.

        The pieces joined are what transformers would render, the assistant's turn opened at the
        end. Raises PromptRefused.
        """
        if not messages:
            raise PromptRefused("messages are empty")
        cores: list[str] = []
        marked: list[dict[str, Any]] = []
        for role, content in messages:
            if role not in ROLES:
                raise PromptRefused(f"role must be one of {', '.join(sorted(ROLES))}")
            marked.append({"role": role, "content": _mark(content, cores)})
        return _cut(self._render(marked), cores)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._sandbox.rendered(
                self._template,
                {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": True,
                    **self._names,
                },
            )
        except PromptRefused:
            raise
        except OutOfBounds:
            raise PromptRefused(
                "the model's chat template makes too much of these messages"
            ) from None
        except Exception:
            # A template is code of the model's author: any error of it refuses this prompt only.
            raise PromptRefused("the model's chat template does not take these messages") from None


def load_chat_template(
    directory: ModelDirectory, tokenizer_config: Mapping[str, Any], names: Mapping[str, str]
) -> ChatTemplate | None:
    """chat_template.jinja, else tokenizer_config.json's own (of several, its `default`)."""
    name = "chat_template.jinja"
    if directory.has(name):
        return ChatTemplate(directory.text(name), names, str(directory.path / name))
    where = f"{directory.path / 'tokenizer_config.json'}: chat_template"
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        ours = [t for t in source if isinstance(t, dict) and t.get("name") == "default"]
        source = ours[-1].get("template") if ours else None
    if source is not None and not isinstance(source, str):
        raise ModelRefused(f"{where} is {shown(source)}, expected a template or a list of them")
    return None if source is None else ChatTemplate(source, names, where)


def _end_settled_scans(tree: nodes.Template) -> None:
    """Break out of `for ...: if not x.flag: ...` once the flag is set.

    Gemma's template looks ahead like that from every message, which takes 30 s for 4,096 of them.
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


def _names(target: nodes.Node) -> set[str]:
    found = {name.name for name in target.find_all(nodes.Name)}
    return found | {target.name} if isinstance(target, nodes.Name) else found


def _refuse(_message: str) -> str:
    raise PromptRefused("the model's chat template does not take these messages")


def _mark(content: str, cores: list[str]) -> str:
    """The content with everything between its outer white space replaced by a sentinel."""
    core = content.strip()
    if not core:
        return content
    start = content.index(core[0])
    cores.append(core)
    sentinel = f"{_OPEN}{len(cores) - 1}{_CLOSE}"
    return f"{content[:start]}{sentinel}{content[start + len(core) :]}"


def _cut(rendered: str, cores: list[str]) -> list[tuple[str, bool]]:
    # split with a group gives text, number, text, number, ..., text.
    parts = _SENTINEL.split(rendered)
    if [int(n) for n in parts[1::2]] != list(range(len(cores))):
        raise PromptRefused("the model's chat template drops, repeats or reorders a message")
    pieces = [(parts[0], False)]
    for core, text in zip(cores, parts[2::2], strict=True):
        pieces += [(core, True), (text, False)]
    return pieces
