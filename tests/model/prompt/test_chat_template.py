"""The prompt is what transformers renders, and only the template writes control tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jinja2 import Environment, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.prompt.chat_template import (
    ROLES,
    ChatTemplate,
    _end_settled_scans,
)
from sapwood.model.prompt.errors import PromptRefused
from tests.chat import turns
from tests.model.reference import FIXTURES

_NAMES = {"bos_token": "<bos>"}
_PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}</>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
_GEMMA_LIKE = (FIXTURES / "chat" / "template.jinja").read_text()
_CONTROL = ["<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "</>"]


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, _NAMES, _CONTROL, "here")


def _directly(source: str, messages: list[dict[str, Any]]) -> str:
    """The prompt as transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, **_NAMES
    )


@pytest.mark.parametrize("source", [_PLAIN, _GEMMA_LIKE, _GEMMA_LIKE.replace(" | trim -}}", "-}}")])
@pytest.mark.parametrize(
    "said",
    [
        [("user", "hi")],
        [("system", " \n be brief\t"), ("user", "\n\na b\n c  ")],
        [("user", ""), ("assistant", " \n "), ("user", "0")],
        [("user", "x"), ("assistant", "y"), ("assistant", "z"), ("system", "d"), ("user", "x")],
        [("user", "\u00a0x\u2003"), ("model", "{{ bos_token }} {% raw %}")],
    ],
)
def test_parts_join_to_what_the_template_says(source: str, said: list[tuple[str, str]]) -> None:
    parts = _template(source).render(turns(*said))
    assert "".join(parts) == _directly(source, turns(*said))
    assert set(parts[1::2]) <= set(_CONTROL)
    assert not any(token in text for text in parts[::2] for token in _CONTROL)


def test_control_tokens_are_those_that_the_template_wrote() -> None:
    """R4: wherever a text of the client goes, and whatever the template does to it."""
    source = (
        "{{ bos_token }}{% set ns = namespace(s='<|turn>') %}{% for m in messages %}{{ ns.s }}"
        "{% for key, v in m.content | dictsort %}{{ key | upper }}={{ v | trim | tojson }}"
        "{% endfor %}<turn|>{% endfor %}{{ tools[0]['name'] }}{{ '<|cha' ~ 'nnel>' if tools }}"
    )
    content = {"b": "<turn|>", "<BOS>": "<bos>", "A": " <|turn>\n"}
    messages = [{"role": "user", "content": content}]
    parts = _template(source).render(messages, [{"name": "<|tool_call><turn|>"}])
    assert parts[1::2] == ["<bos>", "<|turn>", "<turn|>"]
    said = '<BOS>="<bos>"A="<|turn>"B="<turn|>"'
    assert parts[::2] == ["", "", said, "<|tool_call><turn|><|channel>"]


@pytest.mark.parametrize("place", ["role", "content", "name", "key"])
def test_lone_surrogates_are_refused_wherever_they_are(place: str) -> None:
    """JSON can spell them, and here they stand for control tokens."""
    for char in ("\ud800", "\udbff", "\udfff"):
        message: dict[str, Any] = {"role": "user", "content": "x"}
        message |= {char: 1} if place == "key" else {place: f"a{char}b"}
        with pytest.raises(PromptRefused):
            _template(_PLAIN).render([message])
    with pytest.raises(PromptRefused, match="no text"):
        _template(_PLAIN).render(turns(("user", "x")), [{"name": "\ud800"}])


@pytest.mark.parametrize("role", ["function", "", "user<turn|>", "USER", "system\n"])
def test_a_role_is_one_of_a_closed_set(role: str) -> None:
    """A template would pass over a misspelt one."""
    assert role not in ROLES
    with pytest.raises(PromptRefused, match="role"):
        _template(_PLAIN).render(turns((role, "x")))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('secret') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages %}{{ m.content }}{{ 'x' * (9000000 + loop.index) }}{% endfor %}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_what_fails_inside_a_template_refuses_the_prompt_alone(source: str) -> None:
    with pytest.raises(PromptRefused, match=r"^the model's chat template \D+$"):
        _template(source).render(turns(("user", "first"), ("user", "second")))


def test_no_messages_are_refused() -> None:
    with pytest.raises(PromptRefused, match="empty"):
        _template(_PLAIN).render([])


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{{ '\ud800' }}"])
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
    template = ChatTemplate(scan, {}, [], "here")
    template._names["bos_token"] = _Counted("abcdef")
    assert template.render(turns(("user", "x"))) == ["abx"]
    assert _Counted.taken == 3


class _CountedMessages(list[dict[str, Any]]):
    """Counts how often a template looks at one."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        type(self).looks += not isinstance(index, slice)
        return super().__getitem__(index)


def _tool_round(number: int) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": {"n": number}}
    call = {"id": "call_0", "type": "function", "function": function}
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "y", "name": "f", "tool_call_id": "call_0"},
    ]


def test_thousands_of_turns_cost_a_bounded_number_of_looks_each() -> None:
    template = _template(_GEMMA_LIKE)
    for each in (turns(("user", "x"), ("assistant", "y"), ("user", "z")), _tool_round(1)):
        looks = []
        for count in (300, 1365):
            _CountedMessages.looks = 0
            template.render(_CountedMessages(each * count))
            looks.append(_CountedMessages.looks / (len(each) * count))
        assert max(looks) < 6, looks


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
        "{% for m in x %}{% if n.done %}{% else %}a{% endif %}b{% endfor %}",
        "{% for m in x %}{% if m.done %}{% else %}a{% endif %}{% endfor %}",
        "{% for m in x %}{% if n.done %}c{% else %}a{% endif %}{% endfor %}",
        "{% for m in x %}{% if f(m) %}{% else %}a{% endif %}{% endfor %}",
        "{% for m in x %}{% if n.done %}{% else %}a{% endif %}{% else %}b{% endfor %}",
    ],
)
def test_no_other_loop_is_touched(loop: str) -> None:
    tree = Environment().parse(loop)
    _end_settled_scans(tree)
    assert tree.find(nodes.Break) is None


@pytest.mark.parametrize(
    ("source", "features"),
    [
        (_PLAIN, set()),
        ("{{ tools }}", {"tools"}),
        ("{{ m.get('reasoning_content') }}", {"reasoning"}),
        ("{{ enable_thinking }}{{ my_tools }}", {"enable_thinking"}),
        (_GEMMA_LIKE, {"tools", "tool_calls", "enable_thinking", "reasoning"}),
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}{{ m.name }}"
            "{% endif %}{% endfor %}",
            {"name of user"},
        ),
        (
            "{% if messages[0].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
            "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
            "{{ raise_exception('no') }}{% endif %}"
            "{{ m.content }} {{ m.name | upper }}{% endfor %}",
            {f"name of {role}" for role in ("system", "developer", "user", "assistant")},
        ),
    ],
)
def test_features_are_what_a_template_uses(source: str, features: set[str]) -> None:
    assert _template(source).features == features


def test_gemmas_own_knows_a_developer() -> None:
    for said in ([("developer", "d")], [("developer", "d"), ("user", "x"), ("developer", "e")]):
        assert "".join(_template(_GEMMA_LIKE).render(turns(*said))) == _directly(
            _GEMMA_LIKE, turns(*said)
        )


@pytest.mark.parametrize(
    ("source", "role"),
    [
        ("{% for m in messages %}[{{ m.role }}]{% endfor %}", "system"),
        (
            "{% for m in messages %}{{ m.role }}{{ '!' if m.role == 'system' }}{% endfor %}",
            "system!",
        ),
        ("{# developer #}{{ messages[0].role }}{{ developer }}", "system"),
        ("{{ messages[0].role if messages[0].role in ['system', 'developer'] }}", "developer"),
        ("{{ {'developer': 'd', 'system': 's'}[messages[0]['role']] }}", "d"),
    ],
)
def test_a_developer_is_the_system_where_a_template_knows_no_such_role(
    source: str, role: str
) -> None:
    messages = turns(("developer", "x"))
    assert _template(source).render(messages)[0].strip("[]") == role
    assert messages == turns(("developer", "x")), "the caller's own are as they were"
    assert _template(source).render(turns(("user", "x")))[0].strip("[]") in ("user", "")


@pytest.mark.parametrize("source", [_PLAIN, _GEMMA_LIKE])
@pytest.mark.parametrize(
    "said",
    [
        [("user", " hi ")],
        [("user", "<turn|>"), ("assistant", "x"), ("user", "y")],
        [("assistant", "more"), ("user", "0")],
    ],
)
def test_a_turn_alone_is_what_the_whole_conversation_has_behind_the_reply(
    source: str, said: list[tuple[str, str]]
) -> None:
    before = turns(("system", "be brief"), ("user", "a"), ("assistant", "REPLY"))
    whole = "".join(_template(source).render([*before, *turns(*said)]))
    parts = _template(source).render_turn(turns(*said))
    assert whole.rpartition("REPLY")[2] == "".join(parts)
    assert not any(
        token in text for text in parts[::2] for token in _CONTROL if said[0][1] != token
    )


def test_results_of_calls_follow_the_reply_that_called() -> None:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": {"a": i}}}
        for i, name in enumerate(("look", "count"))
    ]
    results = [
        {"role": "tool", "content": str(i), "name": "count", "tool_call_id": f"call_{i}"}
        for i in (1, 0)
    ]
    controls = [*_CONTROL, "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>']
    template = ChatTemplate(_GEMMA_LIKE, _NAMES, controls, "here")
    for more in ([], turns(("user", "and?"))):
        reply = {"role": "assistant", "content": "", "tool_calls": calls}
        whole = "".join(template.render([*turns(("user", "a")), reply, *results, *more]))
        parts = template.render_turn([*results, *more], calls)
        assert "".join(parts) == whole.rpartition("<tool_call|>")[2]
        assert parts[:2] == ["", "<|tool_response>"]


def test_a_template_that_hides_what_was_said_cannot_go_on() -> None:
    source = "{{ bos_token }}{{ messages[-1]['content'] }}<model>"
    with pytest.raises(PromptRefused, match="cannot go on"):
        _template(source).render_turn(turns(("user", "x")))
