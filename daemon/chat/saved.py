"""Conversations in files: written whole, for their owner alone; read with every field checked.

- The file is JSON of one object; `sapwood_chat` is the version of its form.
- What cannot be read is a UsageError, and nothing of it is taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sapwood import Message, ToolCall
from sapwood.daemon.chat.settings import check_saved
from sapwood.daemon.chat.talk import Talk
from sapwood.daemon.errors import UsageError
from sapwood.daemon.input_files import read_json, tools_of
from sapwood.daemon.own_files import create_private

VERSION = 1
SAVED_CHARS_MAX = 64 * 1024 * 1024
_ROLES = ("user", "assistant", "tool")
_TEXTS = ("role", "content", "thinking", "tool_name", "tool_call_id", "name")


def save_talk(talk: Talk, path: Path) -> None:
    """Replaces what stands there, once all is written. Raises UsageError."""
    content = {"sapwood_chat": VERSION} | asdict(talk)
    del content["unanswered"]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with create_private(beside) as file:
            file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None


def load_talk(path: Path) -> Talk:
    """Raises UsageError."""
    content = read_json(os.fspath(path), SAVED_CHARS_MAX)
    if not isinstance(content, dict) or content.get("sapwood_chat") != VERSION:
        raise UsageError(f"{path}: is no conversation that this version saved")
    try:
        return _talk(content)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: is no conversation as /save writes it") from None


def _talk(content: Mapping[str, Any]) -> Talk:
    thinking = content["thinking"]
    if thinking is not None and not isinstance(thinking, bool):
        raise ValueError
    return Talk(
        system=_text(content["system"]),
        thinking=thinking,
        tools=tools_of(content["tools"]),
        options={name: check_saved(name, value) for name, value in content["options"].items()},
        messages=[_message(message) for message in content["messages"]],
    )


def _message(saved: Mapping[str, Any]) -> Message:
    if saved["role"] not in _ROLES:
        raise ValueError
    texts = {name: _text(saved[name]) for name in _TEXTS}
    return Message(tool_calls=tuple(map(_call, saved["tool_calls"])), **texts)


def _call(saved: Mapping[str, Any]) -> ToolCall:
    return ToolCall(_text(saved["name"]), dict(saved["arguments"]), _text(saved["id"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value
