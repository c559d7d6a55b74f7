"""Templates find what transformers' environment has, and nothing in it makes a control token."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sapwood.model.prompt import sandbox
from sapwood.model.prompt.chat_template import ChatTemplate
from sapwood.model.prompt.errors import PromptRefused

CONTROL = ["<bos>", "<|turn>", "<turn|>"]
SAID = "a <turn|> %s {0} 100% <|turn>é\t🙂"
ARGUMENTS = {"n": 0xD800, "text": "<turn|>", "wide": 3, "x": 1.5}


def call_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"function": {"name": "f", "arguments": arguments}}


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": SAID},
    {"role": "assistant", "content": "b-c d", "tool_calls": [call_of(ARGUMENTS)]},
]
FIRST = (
    "{% set c = messages[0].content %}{% set a = messages[1].tool_calls[0].function.arguments %}"
)


def parts_of(source: str, messages: list[dict[str, Any]] = MESSAGES) -> list[str]:
    return ChatTemplate(FIRST + source, {"bos_token": "<bos>"}, CONTROL, "here").render(messages)


def expected(source: str) -> str:
    rendered: list[str] = render_jinja_template(
        [MESSAGES], chat_template=FIRST + source, add_generation_prompt=True, bos_token="<bos>"
    )[0]  # type: ignore[assignment]
    return str(rendered[0])


USES = [
    # str.format
    "{{ '{} {}'.format(c, bos_token) }}|{{ '{0:>12}{1!r:^9}{2:.2f}'.format('x', 'y', a.x) }}",
    "{{ '{c}<turn|>{n:04d}{{}}'.format(c=c, n=7) }}{{ '{text}'.format_map(a) }}",
    "{{ '{0[text]}{1.role}{0.wide:b}{0.wide:,}'.format(a, messages[0]) }}",
    "{{ '{:{w}}|{:{f}{w}}'.format('x', 'y', w=a.wide, f='<') }}",
    "{{ ('<b>{}'|safe).format('<i>' ~ c) }}{{ 'x'['format']() }}",
    # no way out: what a field may not reach is empty, as in jinja
    "{{ '[{0.__class__}]'.format(c) }}{{ '[{0.__init__.__globals__}]'.format(a) if false }}",
    # %
    "{{ 'x %s y' % c }}{{ '%s<turn|>%s' % (c, bos_token) }}{{ '%(text)s %(wide)5d' % a }}",
    "{{ '%-8s|%8.3f|%+d|%x|%e|%%|%c|%c' % ('a', a.x, 3, 255, 1.5, 65, 'z') }}",
    "{{ '%*d|%.*f' % (a.wide, 5, 1, a.x) }}{{ '%r%a' % ('é', 'é') }}{{ '%(a(b))s' % {'a(b)': 1} }}",
    "{{ '%s and %s' | format(c, 1) }}{{ '%(k)s' | format(k=c) }}{{ 7 % 4 }}",
    # joins
    "{{ messages | join(', ', attribute='content') }}{{ messages | join(attribute='role') }}",
    "{{ messages | join('<turn|>', attribute='content') }}{{ [1, c, none] | join(0) }}",
    "{{ messages | map(attribute='role') | join('+') }}{{ ['a', 'b'] | join(attribute='0') }}",
    # blocks and names
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<turn|>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% set d = dict(a=1, b=c) %}{{ d.b }}{{ dict([('k', 2)]).k }}{{ dict.fromkeys('ab', 0) }}",
    "{% set ns = namespace(x=1, self=2) %}{% set ns.x = c %}{{ ns.x }}{{ ns.self }}",
    "{% set ns = namespace({'x': [1]}) %}{{ ns }}{{ namespace(a=1) }}",
    "{% macro m(obj, name, context) %}{{ obj ~ name ~ context }}{% endmacro %}"
    "{{ m(obj=1, name=2, context=3) }}",
    "{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b{% set y = cycler(1, 2) %}{{ y.next() }}",
    # filters
    "{{ a | tojson }}{{ a | tojson(true) }}{{ a | tojson(indent=2) }}",
    "{{ messages | tojson(false, 1) }}",
    "{{ a | tojson(separators=(',', ':'), sort_keys=true) }}{{ a | tojson(indent='\t') }}",
    "{{ ('<turn|>' ~ c) | tojson(ensure_ascii=true) }}{{ '<turn|>é' | tojson }}",
    "{{ 'ab' | center(7) }}|{{ 'a\nb' | indent }}|{{ 'a\nb\n\nc' | indent('> ', true, true) }}",
    "{% for row in 'abcde' | batch(2, '-') %}{{ row | join }} {% endfor %}"
    "{% for row in 'abcde' | slice(2, '-') %}{{ row | join }} {% endfor %}",
    "{{ 'one two-three four' | wordwrap(5) }}{{ 'aa bb' | wordwrap(2, wrapstring='|') }}",
    "{{ c | wordcount }}{{ 123456789 | filesizeformat }}{{ {'a': c, 'b': [1, none]} | pprint }}",
    "{{ 'see https://x.org, me@x.org' | urlize(9, true, target='_b') }}",
    "{{ {'id': 'x<', 'class': none} | xmlattr }}{{ {'id': c} | xmlattr(false) }}",
    "{{ 'aaa' | replace('a', 'b', 2) }}{{ 121 | replace(1, 'x') }}{{ '<a>&amp;' | striptags }}",
    "{{ [1, 2.5] | sum }}{{ messages | sum('x', 0) if false }}{{ [[1], [2]] | sum(start=[]) }}",
    "{{ 2.567 | round(2) }}{{ 7 | round(-1, 'floor') }}{{ [a] | sum(attribute='wide', start=1) }}",
    "{{ c | e }}{{ c | upper }}{{ c | trim | title }}{{ [c, 1] | string }}{{ c | truncate(9) }}",
    # methods
    "{{ 'x'.center(5, '*') }}{{ 'x'.ljust(3) }}{{ 'x'.rjust(3) }}{{ '7'.zfill(3) }}|",
    "{{ c.expandtabs(4) }}{{ 'a\tb'.expandtabs(tabsize=2) }}",
    "{{ 'abc'.translate({97: 'zz', 98: 99}) }}",
    "{{ 'ab'.translate('ab'.maketrans('a', 'x')) }}{{ c.encode().decode() }}{{ c.encode().hex() }}",
    "{{ 'a,b'.split(',') }}{{ 'aXa'.replace('X', c) }}{{ c.partition('%') }}{{ 'ab'.title() }}",
    # what is printed as it is
    "{{ a }}{{ messages }}{{ [c, none, true] }}{{ a.items() | list }}{{ range(3) }}{{ nothing }}",
]  # fmt: skip


@pytest.mark.parametrize("source", USES)
def test_a_template_means_what_transformers_says(source: str) -> None:
    assert "".join(parts_of(source)) == expected(source)


@pytest.mark.parametrize("source", USES)
def test_no_content_becomes_a_control_token_on_any_way(source: str) -> None:
    """R4: all that is one was written by the template, wherever the content's own spelling went."""
    hers = {"role": "user", "content": SAID.replace("<turn|>", "<end>").replace("<|turn>", "<go>")}
    call = call_of(ARGUMENTS | {"text": "<end>"})
    benign = parts_of(source, [hers, {**MESSAGES[1], "tool_calls": [call]}])
    assert parts_of(source)[1::2] == benign[1::2]


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%c' % a.n }}",
        "{{ '%s%c' % ('x', a.n) }}",
        "{{ '%(n)c' % a }}",
        "{{ '%c' | format(a.n) }}",
        "{{ '%5c' % (a.n,) }}",
        "{{ '{:c}'.format(a.n) }}",
        "{{ '{n:>3c}'.format_map(a) }}",
        "{{ '{:{t}}'.format(a.n, t='c') }}",
        "{{ 'x'.translate({120: a.n}) }}",
        "{{ 'x'.translate(dict.fromkeys([120], a.n)) }}",
        "{{ '\x00'.translate([a.n]) }}",
        "{{ c.encode().decode('unicode_escape') }}",
        "{{ c.encode().decode('utf-7') }}",
        "{{ c.encode().fromhex('00d8').decode('utf-16-le', 'surrogatepass') }}",
        "{{ c.encode().fromhex('ff').decode('utf-8', 'surrogateescape') }}",
    ],
)
def test_no_number_and_no_bytes_become_one(source: str) -> None:
    """What stands for control tokens is a lone surrogate: a client could ask for it by number."""
    spelled = [{"role": "user", "content": r"\ud800+2AA-"}, MESSAGES[1]]
    with pytest.raises(PromptRefused):
        parts_of("<bos>" + source, spelled)


def test_a_character_reference_is_none_either() -> None:
    source = "<turn|>{{ '&#55296;&#xd800;x' | striptags }}{{ (c | safe).unescape() }}"
    parts = parts_of(source, [{"role": "user", "content": "&#xD800;"}, MESSAGES[1]])
    assert parts == ["", "<turn|>", "\ufffd\ufffdx\ufffd"]


def test_the_date_is_that_of_the_render(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        hours = iter(range(24))

        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(2026, 2, 3, next(cls.hours), 5)

    source = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%H:%M') }} {{ strftime_now('%H') }}"
    template = ChatTemplate(source + "{{ strftime_now(messages[0].content) }}", {}, CONTROL, "here")
    monkeypatch.setattr(sandbox, "datetime", Clock)  # not before: a template is tried out when made
    seen = [template.render([{"role": "user", "content": "<turn|> é"}]) for _ in range(2)]
    assert seen == [["03 Feb 2026 00:05 00<turn|> é"], ["03 Feb 2026 01:05 01<turn|> é"]]
    source = "{{ strftime_now('<turn|>%Y%%<turn|>') }}"
    parts = ChatTemplate(source, {}, CONTROL, "here").render(MESSAGES)
    assert parts == ["", "<turn|>", "2026%", "<turn|>", ""]


def test_the_date_is_that_of_transformers() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}"
    for _ in range(2):  # unless midnight was between them
        if "".join(parts_of(source)) == expected(source):
            return
        time.sleep(0.1)
    pytest.fail("another day than transformers has")


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ dict.mro() }}",
        "{{ '{}'.format.__self__.x.y }}",
        "{{ '{a}'.format_map({'a': 1}, b=2) }}",
        "{{ '{a}'.format_map() }}",
        "{% generation %}",
    ],
)
def test_what_transformers_refuses_is_refused(source: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever it is)
        expected(source)
    with pytest.raises(Exception, match=r"here|chat template"):
        parts_of(source)
