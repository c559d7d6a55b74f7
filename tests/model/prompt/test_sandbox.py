"""A chat template's text and time have bounds, whatever it does."""

from __future__ import annotations

import itertools
import resource
import time
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sapwood.model.prompt import bounds, sandbox
from sapwood.model.prompt.bounds import RENDERED_CHARS_MAX, OutOfBounds
from sapwood.model.prompt.chat_template import ChatTemplate
from sapwood.model.prompt.errors import PromptRefused
from sapwood.model.prompt.sandbox import Sandbox

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
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%.1000000000000f' % 1 }}",
        "{{ '%(a(b))1000000000000d' % {'a(b)': 1} }}",
        "{{ '%(a)s' * 99 % {'a': 'x' * 900000} }}",
        "{{ '%s' % (['x' * 9000000] * 1000,) }}",
        "{{ '%s' % {'a': ['x' * 9000000] * 1000} }}",
        "{{ '%(a)s%s' % {'a': ['x' * 9000000] * 1000} }}",
        "{{ '%s%s' | format('x' * 9000000, 'x' * 9000000) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ 'x'.encode() % 1 }}",
        "{{ '{:1000000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 12) }}",
        "{{ ('{:1000000}' * 99).format(*[1] * 99) }}",
        "{{ ('{0}' * 99).format('x' * 900000) }}",
        "{{ ('{0!r}' * 99).format('x' * 900000) }}",
        "{{ '{a}'.format_map({'a': ['x' * 9000000] * 1000}) }}",
        "{{ ('<{0}>' | safe).format(['x' * 9000000] * 1000) }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ ('x\n' * 9) | indent(10 ** 12) }}",
        "{{ ('x\n' * 999999) | indent(' ' * 99) }}",
        "{{ [1] | batch(10 ** 12, 0) | list }}",
        "{{ [1] | slice(10 ** 12, 0) | list }}",
        "{{ 'x' | wordwrap(1, true, 'y' * 9000000) }}",
        "{{ ('x ' * 999999) | wordwrap(1) }}",
        "{{ ('x' * 999999) | wordwrap(1) }}",
        "{{ ('(' * 99999 ~ ')' * 99999) | urlize }}",
        "{{ ('www.x.org ' * 9999) | urlize(target='x' * 9999) }}",
        "{{ lipsum(10 ** 12) }}",
        "{{ lipsum(1, false, 10 ** 12, 10 ** 12 + 1) }}",
        "{{ 1.5 | round(10 ** 9, 'ceil') }}",
        "{{ ([[0] * 9000000] * 2) | sum(start=[]) | length }}",
        "{{ ['x' * 9000000] * 1000 }}",
        "{{ [{'a': ['x' * 9000000] * 1000}] | string }}",
        "{{ (['x' * 9000000] * 1000) | upper }}",
        "{{ [['x' * 9000000] * 1000] | join }}",
        "{{ (['x' * 9000000] * 1000) | tojson }}",
        "{{ namespace(x=['x' * 9000000] * 1000) }}",
        "{% set n = namespace() %}{% set n.x = ['x' * 9000000] * 1000 %}{{ [n] }}",
        "{% set n = namespace(s='\"') %}{% for i in range(60) %}"
        "{% set n.s = n.s | tojson %}{% endfor %}",
        "{% set n = namespace(s='&' * 999999) %}{% for i in range(999) %}"
        "{% set n.s = n.s | forceescape %}{% endfor %}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x'.encode().rjust(10 ** 12) }}",
        "{{ '7'.zfill(10 ** 12) }}",
        "{{ ('\t' * 99).expandtabs(10 ** 9) }}",
        "{{ ('x' * 999999).translate({120: 'y' * 999}) }}",
        "{{ 'x'.encode().join(['x'.encode() * 9000000] * 99) }}",
        "{{ ('x'.encode() * 999999).replace('x'.encode(), 'y'.encode() * 999) }}",
        "{{ (1).to_bytes(10 ** 12, 'big') }}",
        "{{ strftime_now('%Y' * 999999) }}",
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
        "{{ 'x'.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_what_reaches_out_is_not_there(source: str) -> None:
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


@pytest.mark.parametrize("way", ["'%s' % x", "'{}'.format(x)", "'%(x)s' % d", "'%s'|format(x)"])
def test_a_long_content_may_be_put_into_a_format(way: str) -> None:
    long = "x" * (RENDERED_CHARS_MAX * 3 // 4)
    assert _render(f"{{{{ {way} }}}}", x=long, d={"x": long}) == long
    assert _render(f"{{{{ ({way}) ~ '%d%%' % 5 }}}}", x="%%", d={"x": "%%"}) == "%%5%"


def test_the_longest_text_is_rendered() -> None:
    assert len(_render("{{ 'x' * n }}", n=RENDERED_CHARS_MAX)) == RENDERED_CHARS_MAX


def test_output_is_measured_while_it_is_made() -> None:
    """jinja joins what a template writes with this; a list of it all would come too late."""
    with pytest.raises(OutOfBounds):
        Sandbox.concat(itertools.repeat("x" * 1000))


@pytest.mark.parametrize("filter", ["pprint", "tojson(indent=2)", "tojson(indent='  ')"])
def test_indents_of_what_lies_deep_are_measured(
    filter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's own schema is nested as deep as it likes, and each line indented as far."""
    monkeypatch.setattr(bounds, "RENDERED_CHARS_MAX", 1 << 16)
    deep = (
        "{% set n = namespace(d=0) %}{% for i in range(99) %}{% set n.d = [n.d] %}{% endfor %}"
        f"{{{{ ([n.d] * count) | {filter} | length }}}}"
    )
    assert int(_render(deep, count=1)) > 200
    with pytest.raises(OutOfBounds):
        _render(deep, count=200)


def test_a_format_is_measured_wherever_a_template_finds_it() -> None:
    """jinja hands out str.format by another way than other attributes."""
    many = "'{:1000000000000}'"
    for way in (".format", "['format']", " | attr('format')"):
        with pytest.raises(OutOfBounds):
            _render(f"{{{{ ({many}{way})(1) }}}}")
    with pytest.raises(OutOfBounds):
        _render(
            f"{{% set f = {many}.format_map %}}{{{{ f({{'a': 1}}) if f }}}}".replace(":", "a:", 1)
        )


def test_an_indent_has_a_bound() -> None:
    source = "{{ messages | tojson(indent=%d) }}{{ messages[0].content }}"
    messages = [{"role": "user", "content": "x"}]
    assert ChatTemplate(source % 2, {}, (), "here").render(messages)
    with pytest.raises(PromptRefused, match="makes too much"):
        ChatTemplate(source % 10**12, {}, (), "here").render(messages)
