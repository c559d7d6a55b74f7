"""What `/set` knows: the options of a request that are numbers or words, and how each is written.

Only the kind of a value is judged here; what is in range is the daemon's to say, with the next
message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sapwood.daemon.errors import UsageError
from sapwood.daemon.sizes import unsigned
from sapwood.daemon.suggestion import suggestion

OPTIONS: dict[str, Callable[[str], Any]] = {
    "max_tokens": unsigned(32),
    "min_tokens": unsigned(32),
    "thinking_tokens_max": unsigned(32),
    "temperature": float,
    "top_k": unsigned(32),
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": unsigned(64),
    "draft_tokens": unsigned(32),
    "stop": lambda text: [text],
    "priority": str,
}


def parse_setting(name: str, text: str) -> tuple[str, Any]:
    """The option's own name and its value. Raises UsageError."""
    name = name.replace("-", "_")
    if name not in OPTIONS:
        raise UsageError(f"there is no setting {name!r}{suggestion(name, OPTIONS)}")
    try:
        return name, OPTIONS[name](text)
    except ValueError:
        wanted = getattr(OPTIONS[name], "__name__", "value")
        raise UsageError(f"{name}: {text!r} is no {wanted}") from None


def check_saved(name: str, value: Any) -> Any:
    """A value that a file has for the option. Raises ValueError."""
    if name == "stop" and isinstance(value, list) and all(isinstance(s, str) for s in value):
        return value
    if name in OPTIONS and not isinstance(value, bool) and isinstance(value, str | int | float):
        return OPTIONS[name](str(value))
    raise ValueError
