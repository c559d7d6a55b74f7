"""A reply is divided where its control tokens are, and nothing of it is lost (R3)."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import ToolCall
from sapwood.scheduler.reply.parts import ReplyParts

CONTROL_TOKENS = ControlTokens(
    turn_start=256, channel_start=257, channel_end=258, call_start=259, call_end=260, quote=261
)
TOKEN_BYTES = [bytes([b]) for b in range(256)] + [b""] * 6 + [b"thought\n", b"t\nA\xc3", b"\xa9"]
THINK, END, CALL, DONE, QUOTE, TURN = 257, 258, 259, 260, 261, 256

# Gemma's way to write a value, and the value. Strings are lists, so that quotes can be told apart.
Written = list[str | list[str]]


def tokens(*parts: str | int | list[str]) -> list[int]:
    """Ids of text, of control tokens, and of quoted strings (lists)."""
    ids: list[int] = []
    for part in parts:
        match part:
            case str():
                ids += part.encode()
            case int():
                ids.append(part)
            case [text]:
                ids += [QUOTE, *text.encode(), QUOTE]
    return ids


def divided(
    ids: list[int], prompt: tuple[int, ...] = (), **options: Any
) -> tuple[str, str, list[ToolCall]]:
    reply = ReplyParts(TOKEN_BYTES, control_tokens=CONTROL_TOKENS, prompt=prompt, **options)
    text, thinking = "", ""
    calls: list[ToolCall] = []
    for token in [*ids, None]:
        stopped = False
        if token is None:
            reply.finish()
        else:
            stopped = reply.push(token)
        text, thinking = text + reply.take_text(), thinking + reply.take_thinking()
        calls += reply.take_calls()
        if stopped:
            break
    return text, thinking, calls


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (tokens("plain"), ("plain", "")),
        (tokens(THINK, "thought\nwhy\n", END, "so"), ("so", "why\n")),
        (tokens("a", THINK, "thought\nb", END, "c", THINK, "thought\nd", END), ("ac", "bd")),
        (tokens(THINK, 262, "why", END, "so"), ("so", "why")),
        (tokens(THINK, "thought", END, "so"), ("so", "")),
        (tokens(THINK, "thought\ncut off"), ("", "cut off")),
        (tokens(THINK, 263, 264, "b", END), ("", "t\nAéb")),
        (tokens(END, "x"), ("x", "")),
        (tokens(0xC3, THINK, "thought\n", 0xC3, END, 0xA9), ("é", "\ufffd")),
        (tokens("<|channel>thought\nx<channel|>"), ("<|channel>thought\nx<channel|>", "")),
        (tokens(QUOTE, "x", DONE, TURN), ("x", "")),
        # No line break behind the name.
        (tokens(THINK, "thought I think so", END, "Answer"), ("Answer", "I think so")),
        (tokens(THINK, "thought \t I think\nso", END), ("", "I think\nso")),
        (tokens(THINK, "thought \r\n\n so", END), ("", "\n so")),
        (tokens(THINK, " thought\nso", END), ("", "so")),
        (tokens(THINK, "\nthought\n", END, "so"), ("so", "")),
        (tokens(THINK, "thought \n", END, "so"), ("so", "")),
        (tokens(THINK, "thought so"), ("", "so")),
        (tokens(THINK, "thought"), ("", "")),
        # No name: only the one that Gemma writes is no thought.
        (tokens(THINK, "I think\nso", END, "Yes"), ("Yes", "I think\nso")),
        (tokens(THINK, "Hmm\nso", END), ("", "Hmm\nso")),
        (tokens(THINK, "thoughtful\nso", END), ("", "thoughtful\nso")),
        (tokens(THINK, "thoughts: so", END), ("", "thoughts: so")),
        (tokens(THINK, "\n\nso", END), ("", "\n\nso")),
        (tokens(THINK, " " * 9 + "thought\nso", END), ("", " " * 9 + "thought\nso")),
        (tokens(THINK, "thou", END, "x"), ("x", "thou")),
        (tokens(THINK, "thou"), ("", "thou")),
        (tokens(THINK, "\n", END, "x"), ("x", "\n")),
        (tokens(THINK, "a\nb", END, THINK, "c\nd", END), ("", "a\nbc\nd")),
        (tokens(THINK, "thou", THINK, "thought\nx", END, "y"), ("y", "thoux")),
    ],
)
def test_thinking_is_apart_from_text(ids: list[int], expected: tuple[str, str]) -> None:
    assert divided(ids)[:2] == expected


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ((5, THINK, *b"thought\n"), "a\nb"),
        ((5, THINK, *b"thought\nsome"), "a\nb"),
        ((5, THINK, 262), "a\nb"),
        ((5, THINK, *b"thought"), "a\nb"),
        ((5, THINK, *b"thought "), "a\nb"),
        ((5, THINK), "a\nb"),
        ((5, THINK, *b"I "), "a\nb"),
        ((5, THINK, *b"thou"), "a\nb"),  # no name after all, and not the reply's
        ((5, THINK, *b"thought\n", CALL, *b"call:f{}", DONE), "a\nb"),
        ((5, THINK, *b"thought\n", END), ""),
        ((THINK, *b"thought\n", TURN, *b"model\n"), ""),
        ((), ""),
    ],
)
def test_the_prompt_may_have_opened_the_channel(prompt: tuple[int, ...], thinking: str) -> None:
    text = "" if thinking else "a\nb"
    # "thougha" is no name.
    assert divided(tokens("a\nb", END, "c"), prompt)[:2] == (f"{text}c", thinking)


@pytest.mark.parametrize("given", range(8))
@pytest.mark.parametrize("behind", ["\n", " "])
def test_the_name_may_begin_in_the_prompt_and_end_in_the_reply(given: int, behind: str) -> None:
    name = "thought" + behind
    prompt = (THINK, *name[:given].encode())
    assert divided(tokens(name[given:], "why", END, "c"), prompt)[:2] == ("c", "why")


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        (["{}"], {}),
        (
            ["{n:1,f:-2.5,t:true,no:false,z:null}"],
            {"n": 1, "f": -2.5, "t": True, "no": False, "z": None},
        ),
        (["{city:", ['a,b}"]{'], "}"], {"city": 'a,b}"]{'}),
        (["{", ["k:"], ":", [""], ",l:[1,", ["x"], ",[],{}]}"], {"k:": "", "l": [1, "x", [], {}]}),
        (["{ a : { b : ", ["c"], " } , d : [ ] }\n"], {"a": {"b": "c"}, "d": []}),
        (
            ["{a:forgotten quotes,b:1e999,c:NaN}"],
            {"a": "forgotten quotes", "b": "1e999", "c": "NaN"},
        ),
        (['{a:"\\ud800"}'], {"a": "\ufffd"}),
        (["{a:" + "9" * 5000 + "}"], {"a": "9" * 5000}),
        (["{a:" + "9" * 400 + "}"], {"a": int("9" * 400)}),
    ],
)
def test_a_call_is_read(written: Written, arguments: dict[str, Any]) -> None:
    text, _, calls = divided(tokens("hm", CALL, "call:get_it", *written, DONE, "."))
    assert (text, [call.name for call in calls]) == ("hm.", ["get_it"])
    assert json.loads(calls[0].arguments) == arguments
    calls[0].arguments.encode()


@pytest.mark.parametrize(
    "written",
    [
        ["call:f{"],
        ["call:f{a}"],
        ["call:f{a:1"],
        ["call:f{a:1}b"],
        ["call:f{a:1,}"],
        ["call:f{a:}"],
        ["call:f{:1}"],
        ["call:f{", ["a"], " 1}"],
        ["call:f{a:[1}"],
        ["call:f{a:x", ["y"], "}"],
        ["call:{a:1}"],
        ["call:", ["f"], "{}"],
        ["f{}"],
        ["call:f"],
        [""],
        [["x"]],
        ["call:f{a:" + "[" * 500 + "]" * 500 + "}"],
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_what_is_no_whole_call_is_text(written: Written, ended: bool) -> None:
    raw = "".join(part if isinstance(part, str) else f'<|"|>{part[0]}<|"|>' for part in written)
    end: tuple[str | int, ...] = (DONE, ".") if ended else ()
    ids = tokens("hm ", CALL, *written, *end)
    assert divided(ids) == (f"hm {raw}{'.' if ended else ''}", "", [])


def test_an_unfinished_call_with_good_syntax_is_text_too() -> None:
    assert divided(tokens(CALL, "call:f{a:1}")) == ("call:f{a:1}", "", [])
    cut = tokens(CALL, "call:f{a:1}call:g{b:", QUOTE, "h")
    assert divided(cut) == ('call:f{a:1}call:g{b:<|"|>h', "", [])


def test_two_calls_in_one_block_are_two_calls() -> None:
    ids = tokens("a", CALL, "call:f{a:", ["x"], "}\ncall:g{}", DONE, "b")
    text, _, calls = divided(ids)
    assert (text, calls) == ("ab", [ToolCall("f", '{"a": "x"}'), ToolCall("g", "{}")])


def test_a_call_inside_a_thought_does_not_end_it() -> None:
    call = tokens(CALL, "call:f{a:1}", DONE)
    ids = [*tokens(THINK, "thought\nwhy "), *call, *tokens("so", END, "Yes")]
    assert divided(ids) == ("Yes", "why so", [ToolCall("f", '{"a": 1}')])
    named = [*tokens(THINK, "thought"), *call, *tokens("so\nb", END)]
    assert divided(named) == ("", "so\nb", [ToolCall("f", '{"a": 1}')])


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_no_call_inside_a_thought_is_thought(ended: bool) -> None:
    """No thought is shown as an answer, and no stop string is looked for in one."""
    end: tuple[str | int, ...] = (DONE, " END", END, "Yes") if ended else ()
    ids = tokens(THINK, "thought\na ", CALL, "call:END{", ["x"], *end)
    thinking = 'a call:END{<|"|>x<|"|>' + (" END" if ended else "")
    assert divided(ids, stops=("END",)) == ("Yes" if ended else "", thinking, [])


def test_a_stop_string_in_a_call_that_was_cut_ends_the_text() -> None:
    reply = ReplyParts(TOKEN_BYTES, ("END", '<|"|>x'), CONTROL_TOKENS)
    for token in tokens("hm ", CALL, "call:f{a:", QUOTE, "x END"):
        assert not reply.push(token)
    reply.finish()
    assert (reply.take_text(), reply.stopped_by) == ("hm call:f{a:", '<|"|>x')


def test_a_long_call_is_linear() -> None:
    """What a call has so far is not copied with every token: it takes about as long as text."""
    count = 12_000
    call, text = (_seconds([start, *[6] * count]) for start in (CALL, END))
    assert call < 20 * text + 0.2, "copied each time it is 18 GB, a hundred times as long"


def _seconds(ids: list[int]) -> float:
    token_bytes = [*TOKEN_BYTES[:6], b"x" * 256, *TOKEN_BYTES[7:]]
    start = perf_counter()
    reply = ReplyParts(token_bytes, control_tokens=CONTROL_TOKENS)
    for token in ids:
        reply.push(token)
    return perf_counter() - start


_KEYS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


def written_by_gemma(value: Any) -> Written:
    match value:
        case str():
            return [[value]]
        case dict():
            items = [[f"{key}:", *written_by_gemma(item)] for key, item in sorted(value.items())]
        case list():
            items = [written_by_gemma(item) for item in value]
        case _:
            return [json.dumps(value)]
    joined = [atom for item in items for atom in [",", *item]][1:]
    return [
        "{" if isinstance(value, dict) else "[",
        *joined,
        "}" if isinstance(value, dict) else "]",
    ]


@given(arguments=st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_what_gemma_writes_is_read_to_the_letter(arguments: dict[str, Any]) -> None:
    _, _, (call,) = divided(tokens(CALL, "call:f", *written_by_gemma(arguments), DONE))
    assert json.loads(call.arguments) == arguments


@given(ids=st.lists(st.integers(0, len(TOKEN_BYTES) - 1), max_size=60))
def test_a_model_without_such_tokens_has_only_text(ids: list[int]) -> None:
    reply = ReplyParts(TOKEN_BYTES, prompt=[THINK])
    for token in ids:
        reply.push(token)
    reply.finish()
    whole = b"".join(TOKEN_BYTES[i] for i in ids).decode(errors="replace")
    assert (reply.take_text(), reply.take_thinking(), reply.take_calls()) == (whole, "", ())


@given(ids=st.lists(st.integers(0, len(TOKEN_BYTES) - 1), max_size=60))
def test_whatever_a_model_emits_leaves_and_nothing_twice(ids: list[int]) -> None:
    """Bytes in = bytes out, but for the names of channels and the syntax of calls."""
    text, thinking, calls = divided(ids)
    whole = b"".join(TOKEN_BYTES[i] for i in ids).decode(errors="replace")
    if not {THINK, CALL} & set(ids):
        assert (text, thinking, calls) == (whole, "", [])
    spelled_bytes = sum(5 if i == QUOTE else len(TOKEN_BYTES[i]) for i in ids)
    assert len(text.encode()) + len(thinking.encode()) <= 3 * spelled_bytes
    if CALL not in ids:
        assert len(text + thinking) >= len(whole.replace("thought\n", "")) - 7 * ids.count(THINK)
