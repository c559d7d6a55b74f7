"""The template sees sentinels, the prompt gets contents, the text is what it would have been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.chat_template import (
    ROLES,
    ChatTemplate,
    PromptRefused,
    _end_settled_scans,
    load_chat_template,
)
from model.files import ModelDirectory, ModelRefused

_NAMES = {"bos_token": "<bos>"}
_PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}</>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
# In the manner of Gemma 4's own: a macro that rebuilds replies, captured output that is tested for
# emptiness, replies in a row joined, and a look-ahead from every message.
_GEMMA_LIKE = """
{%- macro stripped(text) -%}
    {%- set ns = namespace(kept='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set ns.kept = ns.kept + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- ns.kept | trim -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set last = namespace(role=None) -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if not (role == 'model' and last.role == 'assistant') -%}
        {{- '<|turn>' + role + '\\n' }}
    {%- endif -%}
    {%- set captured -%}
        {{- stripped(message['content']) if role == 'model' else message['content'] | trim -}}
    {%- endset -%}
    {{- captured -}}
    {%- if not captured | trim | length > 0 -%}{{- '(empty)' -}}{%- endif -%}
    {%- set next = namespace(role=None, found=false) -%}
    {%- for j in range(loop.index0 + 1, messages | length) -%}
        {%- if not next.found -%}
            {%- if messages[j]['role'] != 'developer' -%}
                {%- set next.role = messages[j]['role'] -%}
                {%- set next.found = true -%}
            {%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if not (role == 'model' and next.role == 'assistant') -%}{{- '<turn|>\\n' -}}{%- endif -%}
    {%- set last.role = message['role'] -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, _NAMES, "here")


def _directly(source: str, messages: list[tuple[str, str]]) -> str:
    """The prompt with the contents in the template's hands, as transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    listed = [{"role": role, "content": content} for role, content in messages]
    return environment.from_string(source).render(
        messages=listed, add_generation_prompt=True, **_NAMES
    )


@pytest.mark.parametrize("source", [_PLAIN, _GEMMA_LIKE, _GEMMA_LIKE.replace(" | trim -}}", "-}}")])
@pytest.mark.parametrize(
    "messages",
    [
        [("user", "hi")],
        [("system", " \n be brief\t"), ("user", "\n\na b\n c  ")],
        [("user", ""), ("assistant", " \n "), ("user", "0")],
        [("user", "x"), ("assistant", "y"), ("assistant", "z"), ("developer", "d"), ("user", "x")],
        [("user", "\u00a0x\u2003"), ("model", "{{ bos_token }} {% raw %}")],
    ],
)
def test_pieces_join_to_what_the_template_says(
    source: str, messages: list[tuple[str, str]]
) -> None:
    pieces = _template(source).render(messages)
    assert "".join(text for text, _ in pieces) == _directly(source, messages)
    contents = [content.strip() for _, content in messages if content.strip()]
    assert [text for text, is_content in pieces if is_content] == contents


@pytest.mark.parametrize("role", ["tool", "", "user<turn|>", "USER", "system\n"])
def test_a_role_is_one_of_a_closed_set(role: str) -> None:
    """The role is template text: a free one could end a turn."""
    assert role not in ROLES
    with pytest.raises(PromptRefused, match="role"):
        _template(_PLAIN).render([(role, "x")])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",  # drops the second
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content[1:] }}{% endfor %}",
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        "{{ raise_exception('secret') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% for m in messages %}{{ m.content }}{{ 'x' * (9000000 + loop.index) }}{% endfor %}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_what_a_template_does_to_a_content_must_be_followed(source: str) -> None:
    with pytest.raises(PromptRefused, match=r"^the model's chat template \D+$"):
        _template(source).render([("user", "first"), ("user", "second")])


def test_no_messages_are_refused() -> None:
    with pytest.raises(PromptRefused, match="empty"):
        _template(_PLAIN).render([])


@pytest.mark.parametrize("source", ["{% for %}", "{{", "\U000f0000"])
def test_a_template_that_cannot_be_used_is_refused_at_load(source: str) -> None:
    with pytest.raises(ModelRefused, match=r"^here: "):
        _template(source)


class _Counted(str):
    """Counts how far a template iterates over it."""

    taken = 0

    def __iter__(self) -> Iterator[str]:
        for character in str.__iter__(self):
            type(self).taken += 1
            yield character


def test_a_settled_look_ahead_ends_its_loop() -> None:
    """4,096 messages took 30 s with Gemma 4's own template before."""
    scan = (
        "{% set next = namespace(found=false) %}{% for c in bos_token %}{% if not next.found %}"
        "{{ c }}{% set next.found = c == 'b' %}{% endif %}{% endfor %}{{ messages[0].content }}"
    )
    pieces = ChatTemplate(scan, {"bos_token": _Counted("abcdef")}, "here").render([("user", "x")])
    assert pieces[0] == ("ab", False)
    assert _Counted.taken == 3


@pytest.mark.parametrize(
    "loop",
    [
        "{% for m in x %}{% if not m.done %}a{% endif %}{% endfor %}",
        "{% for i, m in x %}{% if not m.done %}a{% endif %}{% endfor %}",
        "{% for m in x %}{% if not n.done %}a{% else %}b{% endif %}{% endfor %}",
        "{% for m in x %}{% if not n.done %}a{% elif m %}b{% endif %}{% endfor %}",
        "{% for m in x %}{% if not n.done %}a{% endif %}b{% endfor %}",
        "{% for m in x %}{% if not n.done %}a{% endif %}{% else %}b{% endfor %}",
        "{% for m in x %}{% if not f(m) %}a{% endif %}{% endfor %}",
    ],
)
def test_no_other_loop_is_touched(loop: str) -> None:
    tree = Environment().parse(loop)
    _end_settled_scans(tree)
    assert tree.find(nodes.Break) is None


def test_the_template_file_comes_before_the_tokenizers_own(tmp_path: Path) -> None:
    listed = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    directory = ModelDirectory(tmp_path)
    assert load_chat_template(directory, {}, {}) is None
    for settings, source in (({"chat_template": "s"}, "s"), ({"chat_template": listed}, "d")):
        found = load_chat_template(directory, settings, {})
        assert found is not None
        assert found.source == source
    (tmp_path / "chat_template.jinja").write_text("f")
    found = load_chat_template(directory, {"chat_template": "s"}, {})
    assert found is not None
    assert found.source == "f"
