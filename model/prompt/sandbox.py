"""Where a chat template runs: it can read its arguments and write text, within bounds.

- jinja's immutable sandbox keeps it from everything else. It has no bounds of its own: a template
  of forty characters can ask for a terabyte, some while it is compiled, or for an hour.
- No text is ever longer than `RENDERED_CHARS_MAX`: sums and products, joins and replacements are
  measured before they are made, and what pads, wraps or indents is not there.
- No loop or macro goes on after `RENDER_S_MAX`: each begins its body with a look at the clock,
  and at whether anybody still waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sapwood.model.prompt.errors import GivenUp, PromptAbandoned, never

RENDERED_CHARS_MAX = 16 << 20
RENDER_S_MAX = 10.0
_INTEGER_BITS_MAX = 256
_GROWING_FILTERS = (
    *("batch", "center", "filesizeformat", "format", "indent", "pprint"),
    *("slice", "urlize", "wordcount", "wordwrap", "xmlattr"),
)
_GROWING_METHODS = frozenset(
    {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}
)


class OutOfBounds(SecurityError):
    """Raised when a template would make too much or takes too long."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment with the settings of transformers. Safe to use from several threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for name in _GROWING_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters["join"] = _join
        self.filters["replace"] = _replace
        self._local = threading.local()

    def compiled(self, tree: nodes.Template) -> Template:
        """The template of a tree, which is changed for it. Raises TemplateError, among others."""
        for loop in list(tree.find_all(nodes.For)):
            if loop.test is not None:
                loop.test = nodes.And(_tick(), loop.test)
            loop.body.insert(0, nodes.ExprStmt(_tick()))
        for macro in list(tree.find_all(nodes.Macro)):
            macro.body.insert(0, nodes.ExprStmt(_tick()))
        _add_instead_of_concat(tree)
        tree.set_environment(self).set_lineno(1)
        return self.from_string(tree)

    def rendered(
        self, template: Template, values: dict[str, Any], given_up: GivenUp = never
    ) -> str:
        """Raises whatever the template does, OutOfBounds past a bound, and PromptAbandoned."""
        self._local.ends_at = time.monotonic() + RENDER_S_MAX
        self._local.given_up = given_up
        return template.render(values)

    def tick(self) -> bool:
        """True, until this thread's render has lasted too long or nobody waits: then raises."""
        if time.monotonic() > self._local.ends_at:
            raise OutOfBounds(f"a template ran longer than {RENDER_S_MAX} s")
        if self._local.given_up():
            raise PromptAbandoned
        return True

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What jinja joins all output with, that of macros and blocks included."""
        taken: list[str] = []
        chars = 0
        for part in parts:
            chars += len(part)
            _check_chars(chars)
            taken.append(part)
        return "".join(taken)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """jinja's, of intercepted_binops: measured first. Raises OutOfBounds."""
        if operator == "%":
            _check(not isinstance(left, str))  # a format can pad
        elif operator == "**":
            _check(not _wide(left) and isinstance(right, int | float) and abs(right) <= 64)
        elif operator == "*":
            sizes = [v for v in (left, right) if isinstance(v, Sequence)]
            counts = [v for v in (left, right) if isinstance(v, int)]
            _check(not any(_wide(v) for v in counts))
            if sizes and counts:
                _check_chars(len(sizes[0]) * counts[0])
        elif isinstance(left, Sequence) and isinstance(right, Sequence):
            _check_chars(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """jinja's: str has no method that pads or expands."""
        if isinstance(obj, str) and attr in _GROWING_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> None:
        """jinja lets str.format through, past is_safe_attribute."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """jinja's: str.join and str.replace are measured first. Raises OutOfBounds."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return _join(args[0], owner)
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


def _tick() -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)


def _add_instead_of_concat(node: nodes.Node) -> None:
    """`a ~ b` as a sum of texts, which is measured."""
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, name, _summed(value))
        elif isinstance(value, list):
            value[:] = [_summed(v) if isinstance(v, nodes.Node) else v for v in value]


def _summed(node: nodes.Node) -> nodes.Node:
    _add_instead_of_concat(node)
    if not isinstance(node, nodes.Concat):
        return node
    texts = [nodes.Filter(part, "string", [], [], None, None) for part in node.nodes]
    total: nodes.Expr = texts[0]
    for text in texts[1:]:
        total = nodes.Add(total, text)
    return total


def _join(values: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    _check(attribute is None)
    parts = [str(v) for v in values]
    _check_chars(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    whole = str(text)
    _check_chars(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _wide(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > _INTEGER_BITS_MAX


def _check_chars(chars: int) -> None:
    _check(chars <= RENDERED_CHARS_MAX)


def _check(holds: bool) -> None:
    if not holds:
        raise OutOfBounds("a template makes too much")
