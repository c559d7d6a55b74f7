"""Which of a model's chat templates a conversation is rendered with.

- As in transformers: `tool_use` with tools, where there is one of that name, `default` otherwise.
  Files (chat_template.jinja is `default`, additional_chat_templates/NAME.jinja) stand in place of
  all that tokenizer_config.json has: one text, a list with names, or a table by name.
- Each template has rendered one plain user turn before it is used for anybody: one that fails
  there would refuse every conversation, and one that loses the content answers none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sapwood.model.checkpoint.files import TEMPLATES, ModelDirectory, ModelRefused, shown
from sapwood.model.prompt.chat_template import ChatTemplate

DEFAULT, TOOL_USE = "default", "tool_use"
_FILE = "chat_template.jinja"
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template's text, and the file that has it."""

    text: str
    where: str


class NamedTemplates:
    """A model's compiled templates. Safe to use from several threads."""

    def __init__(
        self,
        sources: Mapping[str, TemplateSource],
        special_tokens: Mapping[str, str],
        control: Collection[str],
    ) -> None:
        """As ChatTemplate. Raises ModelRefused."""
        self._by_name = {
            name: ChatTemplate(source.text, special_tokens, control, source.where)
            for name, source in sources.items()
        }

    def of(self, tools: bool) -> ChatTemplate | None:
        """The template for a conversation with or without tools; None where there is none."""
        default = self._by_name.get(DEFAULT)
        return self._by_name.get(TOOL_USE, default) if tools else default

    def tried_out(self) -> Iterator[tuple[str, list[str]]]:
        """Where each template is from, and what it makes of one user turn. Raises ModelRefused."""
        for name, template in self._by_name.items():
            yield template.where, template.tried_out([_TOOL] if name == TOOL_USE else [])


def read_chat_templates(
    directory: ModelDirectory, tokenizer_config: Mapping[str, Any]
) -> dict[str, TemplateSource]:
    """The templates by name, those that conversations use. Raises ModelRefused."""
    return _of_files(directory) or _of_settings(directory, tokenizer_config)


def _of_files(directory: ModelDirectory) -> dict[str, TemplateSource]:
    found: dict[str, TemplateSource] = {}
    if directory.has(_FILE):
        found[DEFAULT] = TemplateSource(directory.text(_FILE), str(directory.path / _FILE))
    folder = directory.folder(TEMPLATES)
    for name in (DEFAULT, TOOL_USE):
        file = f"{name}.jinja"
        if folder is not None and folder.has(file):
            found[name] = TemplateSource(folder.text(file), str(folder.path / file))
    return found


def _of_settings(
    directory: ModelDirectory, tokenizer_config: Mapping[str, Any]
) -> dict[str, TemplateSource]:
    where = f"{directory.path / 'tokenizer_config.json'}: chat_template"
    told = tokenizer_config.get("chat_template")
    if isinstance(told, list):
        named = [(t.get("name"), t.get("template")) for t in told if isinstance(t, dict)]
    elif isinstance(told, dict):
        named = list(told.items())
    else:
        named = [] if told is None else [(DEFAULT, told)]
    found: dict[str, TemplateSource] = {}
    for name, text in named:
        if name not in (DEFAULT, TOOL_USE):
            continue
        if not isinstance(text, str):
            raise ModelRefused(f"{where} is {shown(text)}, expected a template or a list of them")
        found[name] = TemplateSource(text, where)
    return found
