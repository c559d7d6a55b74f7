"""Where a chat template runs: it can read its arguments and write text, within bounds.

- It finds what transformers' own environment has, by the same names and meanings: all filters and
  methods, strftime_now, dict, namespace, generation blocks, break and continue.
- jinja's immutable sandbox keeps it from everything else. It has no bounds of its own: a template
  of forty characters can ask for a terabyte, some while it is compiled, or for an hour.
- No text is longer than `RENDERED_CHARS_MAX`: what grows is measured before it is made (bounds).
- No loop or macro goes on after `RENDER_S_MAX`: each begins its body with a look at the clock,
  and at whether anybody still waits.
- A render has one time of day, whenever it asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sapwood.model.prompt.bounds import (
    SURROGATE,
    OutOfBounds,
    chars_of,
    check_bound,
    check_chars,
    is_wide,
)
from sapwood.model.prompt.errors import GivenUp, PromptAbandoned, never
from sapwood.model.prompt.formats import check_percent, format_of
from sapwood.model.prompt.template_functions import (
    check_decoded,
    check_method,
    checked_text,
    joined,
    lipsum,
    measured_filters,
    replaced,
)

RENDER_S_MAX = 10.0
_TIME_FORMAT_CHARS_MAX = 1000


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment with the settings of transformers. Safe to use from several threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationBlocks],
            finalize=_measured_value,
        )
        self.filters = measured_filters()
        self.globals |= {
            "dict": _Dict(),
            "lipsum": lipsum,
            "namespace": _Names,
            "strftime_now": self._strftime_now,
        }
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
        self._local.now = datetime.now()
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
            check_chars(chars)
            taken.append(part)
        return "".join(taken)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """jinja's, of intercepted_binops: measured first. Raises OutOfBounds."""
        if operator == "%":
            check_percent(left, right)
        elif operator == "**":
            check_bound(not is_wide(left) and isinstance(right, int | float) and abs(right) <= 64)
        elif operator == "*":
            sizes = [v for v in (left, right) if isinstance(v, Sequence)]
            counts = [v for v in (left, right) if isinstance(v, int)]
            check_bound(not any(is_wide(v) for v in counts))
            if sizes and counts:
                check_chars(len(sizes[0]) * counts[0])
        elif isinstance(left, Sequence) and isinstance(right, Sequence):
            check_chars(len(left) + len(right))
        return checked_text(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja's, which stands for str.format wherever a template finds it: measured."""
        if super().wrap_str_format(value) is None:
            return None
        return format_of(self, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """jinja's: what methods make is measured before. Raises OutOfBounds."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(args) == 1:
            return joined(args[0], owner)
        if isinstance(owner, str) and name == "replace":
            return replaced(owner, *args, **kwargs)
        check_method(owner, name, args, kwargs)
        made = super().call(context, obj, *args, **kwargs)
        if isinstance(owner, bytes):
            check_decoded(made)
        return checked_text(made)

    def _strftime_now(self, format: str) -> str:
        """The time of this render. What stands for control tokens is kept as it is."""
        check_bound(len(format) <= _TIME_FORMAT_CHARS_MAX)
        parts = SURROGATE.split(format)
        parts[::2] = map(self._local.now.strftime, parts[::2])
        return "".join(parts)


class _GenerationBlocks(Extension):
    """`{% generation %}`: what an assistant said, marked for training. It is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call, as in transformers: names that are set inside stay inside.
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(...)`, and no way to its class."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Names(Namespace):
    """jinja's namespace: no name in it begins with "_", its text is measured."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a name may be `self`
        names = dict(*rest, **kwargs)
        for name in names:
            _check_name(name)
        # Beside jinja's own, which it hides; so is this one from templates.
        object.__setattr__(self, "_held", names)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        object.__getattribute__(self, "_held")[name] = value
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        check_chars(chars_of(object.__getattribute__(self, "_held")))
        return super().__repr__()


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace holds no name that begins with _")


def _measured_value(value: Any) -> Any:
    """What a template writes, before it becomes text."""
    check_chars(chars_of(value))
    return value


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
