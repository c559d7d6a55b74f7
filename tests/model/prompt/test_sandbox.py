"""A chat template's text and time have bounds, whatever it does."""

from __future__ import annotations

import itertools
import resource
import time
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sapwood.model.prompt import sandbox
from sapwood.model.prompt.chat_template import ChatTemplate
from sapwood.model.prompt.errors import PromptRefused
from sapwood.model.prompt.sandbox import RENDERED_CHARS_MAX, OutOfBounds, Sandbox

MEMORY_KIB_MAX = 400 << 10
_LONG = "{% set x = 'x' * 9000000 %}"
_MANY = "range(99999)"


def _render(source: str, **values: Any) -> str:
    made = Sandbox()
    return made.rendered(made.compiled(made.parse(source)), values)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('x' * 2 ** 25) | length }}",
        "{{ 10 ** 12 * 'x' }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 10 ** 10 ** 10 ** 10 }}",
        "{{ 2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64 }}",
        "{{ '%1000000000000d' % 1 }}",
        f"{_LONG}{{{{ (x + x) | length }}}}",
        f"{_LONG}{{{{ (x ~ x) | length }}}}",
        f"{_LONG}{{{{ x }}}}{{{{ x }}}}",
        f"{_LONG}{{{{ [x, x] | join | length }}}}",
        f"{_LONG}{{{{ ''.join([x, x]) | length }}}}",
        f"{_LONG}{{{{ x | replace('x', 'xx') | length }}}}",
        f"{_LONG}{{{{ x.replace('x', 'xx') | length }}}}",
        f"{_LONG}{{% set y %}}{{{{ x }}}}{{{{ x }}}}{{% endset %}}",
        f"{_LONG}{{% macro m() %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{{{{ m() | length }}}}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}"
        "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        f"{{% for i in {_MANY} %}}{{% for j in {_MANY} %}}{{% endfor %}}{{% endfor %}}",
        f"{{% for i in {_MANY} if {_MANY} | select | list and false %}}{{% endfor %}}",
        f"{{% for i in {_MANY} %}}{'x' * 1000}{{% endfor %}}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(99) }}",
    ],
)
def test_too_much_is_refused_soon(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "RENDER_S_MAX", 0.2)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OutOfBounds):
        _render(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < MEMORY_KIB_MAX


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' | center(10 ** 12) }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        "{{ 'x' | indent(10 ** 12) }}",
        "{{ lipsum(10 ** 12) }}",
        "{{ 'x'.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_what_grows_or_reaches_out_is_not_there(source: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        _render(source)


def test_the_clock_starts_anew_with_every_render(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sandbox()
    template = made.compiled(made.parse("{% for i in range(9) %}{{ i }}{% endfor %}"))
    for start in (0.0, 1e6):
        monkeypatch.setattr(time, "monotonic", lambda now=start: now)
        assert made.rendered(template, {}) == "012345678"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in x if i > 1 %}{{ loop.index }}{{ loop.last }}{{ i }}{% else %}-{% endfor %}",
        "{% for i in x %}{% if i == 2 %}{% break %}{% endif %}{{ i ~ '-' ~ none }}{% endfor %}",
        "{% macro m(a, b=2) %}{{ a + b }}{{ caller() if caller }}{% endmacro %}"
        "{{ m(1) }}{% call m(3) %}c{% endcall %}",
        "{{ 'a,b'.split(',') | join('+') }}{{ '-'.join(['a', 'b']) }}{{ 'aXa'.replace('X', 'y') }}",
        "{{ 'aaa' | replace('a', 'b', 2) }}{{ x | map('string') | join }}{{ 'ab' * 2 + 'c' }}",
        "{{ 7 % 3 }}{{ 2 ** 8 }}{{ 2 * 3 }}{{ x + [4] }}{{ 1.5 + 1 }}",
        "{% for a in [x] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    ],
)
def test_within_bounds_it_renders_like_jinja(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    assert _render(source, x=[1, 2, 3]) == plain.from_string(source).render(x=[1, 2, 3])


def test_replace_counts_by_name_and_join_wants_its_parts() -> None:
    """Python takes `count=` from 3.13 on: a template must not mean another text by it."""
    assert _render("{{ 'aaa'.replace('a', 'b', count=1) }}") == "baa"
    with pytest.raises(TypeError):
        _render("{{ '-'.join() }}")


def test_the_longest_text_is_rendered() -> None:
    assert len(_render("{{ 'x' * n }}", n=RENDERED_CHARS_MAX)) == RENDERED_CHARS_MAX


def test_output_is_measured_while_it_is_made() -> None:
    """jinja joins what a template writes with this; a list of it all would come too late."""
    with pytest.raises(OutOfBounds):
        Sandbox.concat(itertools.repeat("x" * 1000))


def test_the_way_that_jinja_lets_format_through_is_closed() -> None:
    assert ImmutableSandboxedEnvironment().wrap_str_format("{}".format) is not None
    Sandbox().wrap_str_format("{}".format)
    with pytest.raises(SecurityError):
        _render("{{ '{}'.format(1) }}")


def test_an_indent_has_a_bound() -> None:
    source = "{{ messages | tojson(indent=%d) }}{{ messages[0].content }}"
    messages = [{"role": "user", "content": "x"}]
    assert ChatTemplate(source % 2, {}, (), "here").render(messages)
    with pytest.raises(PromptRefused, match="makes too much"):
        ChatTemplate(source % 10**12, {}, (), "here").render(messages)
