"""Calls are read in every form that models write them in, and in no other."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sapwood.scheduler.reply.tool_calls import read_calls

MARK = "\udc00"  # the quote token where the text is any text: in none of them


def calls_of(block: str, quote: str = '<|"|>') -> list[tuple[str, Any]]:
    """Of a block, its quote tokens spelled."""
    calls = read_calls(block.split(quote))
    for call in calls:
        call.arguments.encode()  # text, half characters nowhere
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{note:"hello, world",n:1}', {"note": "hello, world", "n": 1}),
        ("{note:'hello, world',n:1}", {"note": "hello, world", "n": 1}),
        ('{opts:{"mode": "fast"}}', {"opts": {"mode": "fast"}}),
        ('{data_refs:["ds_1","a, b"]}', {"data_refs": ["ds_1", "a, b"]}),
        ("{data_refs:['ds_1' , 'a, b']}", {"data_refs": ["ds_1", "a, b"]}),
        ('{"city": "Paris", "nights": 2}', {"city": "Paris", "nights": 2}),
        ("{'city': 'Paris', 'nights': 2}", {"city": "Paris", "nights": 2}),
        ('{"city": <|"|>Paris<|"|>, n:\'1\'}', {"city": "Paris", "n": "1"}),
        ('{<|"|>city<|"|>: "Paris"}', {"city": "Paris"}),
        ("{a:\"}]{[,:\",b:'}]{[,:'}", {"a": "}]{[,:", "b": "}]{[,:"}),
        ('{"a, b: {c}":1}', {"a, b: {c}": 1}),
        ("{a:[{'b':[\"c\",{d:'e'}]},[]]}", {"a": [{"b": ["c", {"d": "e"}]}, []]}),
        ('{"":"",b:\'\'}', {"": "", "b": ""}),
        ('{<|"|><|"|>:1}', {"": 1}),
        ('{a:"it\'s",b:\'say "hi"\'}', {"a": "it's", "b": 'say "hi"'}),
        ('{ "a" :\t"x" ,\r\n b : \'y\' }\n', {"a": "x", "b": "y"}),
        # Template quotes hold anything, to the letter.
        ('{a:<|"|>"x, y"<|"|>}', {"a": '"x, y"'}),
        ('{a:<|"|>\\n\\"\'<|"|>}', {"a": "\\n\\\"'"}),
        # Words and numbers.
        (
            "{a:None,b:True,c:False,d:null,e:true,f:false}",
            {"a": None, "b": True, "c": False, "d": None, "e": True, "f": False},
        ),
        ("{a:[None, True],b:\"None\",c:'true'}", {"a": [None, True], "b": "None", "c": "true"}),
        ('{a:<|"|>None<|"|>,b:NULL,c:Nonesuch}', {"a": "None", "b": "NULL", "c": "Nonesuch"}),
        ("{a:-0.5e-3,b:1E2,c:0,d:-7}", {"a": -0.0005, "b": 100.0, "c": 0, "d": -7}),
        ("{a:007,b:+1,c:.5,d:1_0}", {"a": "007", "b": "+1", "c": ".5", "d": "1_0"}),
        ("{a:NaN,b:-Infinity,c:1e999}", {"a": "NaN", "b": "-Infinity", "c": "1e999"}),
        ("{a:" + "9" * 4300 + "}", {"a": int("9" * 4300)}),
        # Escapes of JSON and of Python; a backslash that begins none is a letter.
        (r'{a:"\"\\\/\b\f\n\r\t\u00e9"}', {"a": '"\\/\b\f\n\r\té'}),
        (r"{a:'it\'s \"so\" \x41\u00e9\U0001f600'}", {"a": 'it\'s "so" Aé😀'}),
        (r'{a:"C:\dir\users",b:"\d+\.\d"}', {"a": r"C:\dir\users", "b": r"\d+\.\d"}),
        (r'{a:"\U00110000\u12\x4"}', {"a": r"\U00110000\u12\x4"}),
        (r'{a:"x\\",b:"\\\\"}', {"a": "x\\", "b": "\\\\"}),
        (r'{a:"\ud83d\ude00",b:"\ud83dx",c:"\ude00"}', {"a": "😀", "b": "\ufffdx", "c": "\ufffd"}),
        (r'{"\u0061\ud800":1}', {"a\ufffd": 1}),
        ('{a:"two\nlines\t"}', {"a": "two\nlines\t"}),
        # No quotes at all.
        (
            "{a:New York,b:12:30,c:http://x/y?z=1}",
            {"a": "New York", "b": "12:30", "c": "http://x/y?z=1"},
        ),
        ("{a:it's fine,b:l\u2019eau (Paris)}", {"a": "it's fine", "b": "l\u2019eau (Paris)"}),
        (
            "{filter[name]:1,First Name:2,größe:3,$top:4}",
            {"filter[name]": 1, "First Name": 2, "größe": 3, "$top": 4},
        ),
        ("{a:1,a:2}", {"a": 2}),
    ],
)
def test_every_known_form_is_read(written: str, arguments: dict[str, Any]) -> None:
    assert calls_of("call:f" + written) == [("f", arguments)]


@pytest.mark.parametrize(
    "written",
    [
        *('{a:"x}', "{a:'x}", '{a:"x\\"}', '{"a:1}', "{'a:1}", '{a:"x"y}', "{a:'it's'}"),
        *('{a:"say "hi", b: c"}', '{a:"x" "y"}', '{a:"x" b:"y"}', '{a:"x"+"y"}', '{a:"""x"""}'),
        *('{a:say "x, b:c" so}', "{a:say 'x, b:c' so}", '{a:5" x}', "{a:`x, b:c`}", "{a:dogs' x}"),
        *("{a:\u201cx, b:c\u201d}", "{a:\u2018x, b:c\u2019}", "{a:\u00abx, b:c\u00bb}"),
        *("{a:f(x, b:c)}", "{a:(1, 2)}", "{a:1,2,b:3}", "{a:hello, big world,n:1}", "{a:x{y}"),
        *("{a:x[0]}", "{{a:1}}", "{[a]:1}", '{a"b":1}', "{say 'a':1}", '{"a"}', '{"a" 1}', "{a:,}"),
        *(
            '{a:"x<|"|>y<|"|>"}',
            '{a:"<|"|>}',
            '{a:<|"|>x"}',
            '{a:<|"|>x<|"|>y}',
            '{a:"x"<|"|>y<|"|>}',
        ),
        *(
            '{<|"|>a<|"|>b:1}',
            '{a<|"|>b<|"|>:1}',
            '{a:x<|"|>}',
            '{a:"x",}',
            "{,}",
            '["a"]',
            '("a")',
        ),
        *("{a:1}b", "{a:1} b", "{a:1}}", "{a:1},", "(a=1)", '({"a":1})', "{a:1}call:g", '"x"{}'),
        *("(a=1) call:g{}", " call:g{}", ":{}x{}", '{a:1}{"b":2}', '{a:1}<|"|>'),
    ],
)
def test_what_is_none_of_them_is_no_call(written: str) -> None:
    assert calls_of("call:f" + written) == []


@pytest.mark.parametrize(
    "head",
    ['call:"f"', "call:'f'", 'call:<|"|>f<|"|>', "call:", "call: ", "f", "", "CALL:f", "xcall:f"],
)
def test_a_call_has_a_name(head: str) -> None:
    assert calls_of(head + "{a:1}") == []


@pytest.mark.parametrize(
    "name", ["f", "get-it", "google:mcp:text.create-pdf", "get it", "größe", "a/b"]
)
def test_a_name_comes_as_it_is_written(name: str) -> None:
    assert calls_of(f" call: {name} {{}} ") == [(name, {})]


@pytest.mark.parametrize("between", ["", " ", "\n", ",", " , \n"])
def test_calls_in_one_block_are_as_many_calls(between: str) -> None:
    block = between.join(['call:f{a:<|"|>call:x{}<|"|>}', "call:g{}", 'call:f{"a": "}call:y{"}'])
    assert calls_of(block) == [("f", {"a": "call:x{}"}), ("g", {}), ("f", {"a": "}call:y{"})]
    assert calls_of(block + between + "call:h{") == [], "whole calls, or text"


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def objects(keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    scalars = st.none() | st.booleans() | st.integers() | _FLOATS | st.text(max_size=8)
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(keys, values, max_size=4)


_ARGUMENTS = objects(st.text(max_size=6))


def spelled(value: Any, quote: str, *, python: bool, bare_keys: bool = False) -> str:
    """A value with one kind of quotes, with JSON's words or with Python's."""
    match value:
        case str():
            return quote + (value if quote == MARK else escaped(value, quote)) + quote
        case dict():
            keys = [
                key if bare_keys else spelled(key, quote, python=python) for key in sorted(value)
            ]
            values = [
                spelled(value[key], quote, python=python, bare_keys=bare_keys)
                for key in sorted(value)
            ]
            return "{" + ",".join(":".join(pair) for pair in zip(keys, values, strict=True)) + "}"
        case list():
            items = [spelled(item, quote, python=python, bare_keys=bare_keys) for item in value]
            return "[" + ", ".join(items) + "]"
        case _:
            return repr(value) if python else json.dumps(value)


def escaped(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote)


@given(_ARGUMENTS, st.sampled_from(['"', "'", MARK]), st.booleans())
@example({"a": "\ud7ff\ue000\ufffd\u2028\x00\\\"'", "\\": ["\\\\'", '"']}, "'", True)
def test_any_object_in_any_quotes_comes_back(
    arguments: dict[str, Any], quote: str, python: bool
) -> None:
    assert calls_of("call:f" + spelled(arguments, quote, python=python), MARK) == [("f", arguments)]


@given(_ARGUMENTS, st.booleans(), st.sampled_from([None, 2]))
def test_any_object_in_json_comes_back(
    arguments: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    assert calls_of("call:f" + written, MARK) == [("f", arguments)]


@given(_ARGUMENTS)
def test_any_object_in_python_comes_back(arguments: dict[str, Any]) -> None:
    """Quotes and escapes as Python's own repr has them."""
    for written in (repr(arguments), ascii(arguments)):
        assert calls_of("call:f" + written, MARK) == [("f", arguments)]


_PLAIN_KEYS = st.text(st.characters(categories=["L", "N"], include_characters="_-.$@"), min_size=1)


@given(objects(_PLAIN_KEYS))
def test_what_the_template_writes_comes_back(arguments: dict[str, Any]) -> None:
    """Its keys have no quotes; None is how it wrote null before July 2026."""
    for python in (False, True):
        written = spelled(arguments, MARK, python=python, bare_keys=True)
        assert calls_of("call:f" + written, MARK) == [("f", arguments)]


@given(st.lists(st.text("call:f{}[],x1\n \"'\\u(", max_size=14), max_size=5))
def test_no_block_is_an_error(pieces: list[str]) -> None:
    for block in (pieces, ["call:f{", *pieces, "}"], ['call:f{a:"', *pieces, '"}']):
        for call in read_calls(block):
            assert isinstance(json.loads(call.arguments), dict)


@given(st.text("ab, :{}[]\"'()\n", max_size=12), st.sampled_from(['"', "'"]))
def test_a_quoted_string_is_whole_or_the_block_is_text(text: str, quote: str) -> None:
    """Unescaped quotes in it end it early: then there is no call, unless the rest is one too."""
    calls = calls_of(f"call:f{{note:{quote}{text}{quote},n:1}}")
    if quote not in text:
        assert calls == [("f", {"note": text, "n": 1})]
    elif calls and quote == '"':
        assert '\\"' not in json.dumps(calls), "a quote that is not escaped is part of no string"


@pytest.mark.parametrize("depth", [31, 32, 33, 5_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ("{a:", "}")])
def test_depth_is_bounded(depth: int, start: str, end: str) -> None:
    calls = calls_of("call:f{a:" + start * (depth - 1) + "1" + end * (depth - 1) + "}")
    assert len(calls) == (depth <= 32)


@pytest.mark.parametrize(
    ("head", "item", "tail", "values_max"),
    [
        ("call:f{a:[", "1,", "]}", 16_382),  # beside the call and its pair
        ("call:f{", "a:1,", "}", 16_383),
        ("call:f{a:{", "a:1,", "}}", 16_382),
        ("", "call:f{},", "", 16_384),
    ],
)
def test_the_number_of_values_is_bounded(head: str, item: str, tail: str, values_max: int) -> None:
    """400,000 characters of them took 0.7 s, in which nobody else's reply went on."""
    for values, whole in ((values_max, True), (values_max + 1, False)):
        assert bool(calls_of(head + (item * values)[:-1] + tail)) == whole


def test_a_long_string_is_one_value() -> None:
    for quote in (MARK, '"', "'"):
        text = "a, b: {c} [d]\n" * 20_000
        assert calls_of(f"call:f{{a:{quote}{text}{quote}}}", MARK) == [("f", {"a": text})]


@pytest.mark.parametrize(
    ("head", "middle"),
    [
        *(('call:f{a:"', middle) for middle in ("x", "\\", '\\"', '"')),
        *(("call:f{a:'", middle) for middle in ("x", "\\", "\\'", "'")),
        *((f"call:f{{a:{MARK}", middle) for middle in ("x", "\\", MARK)),
        *(("call:f{a:", middle) for middle in ("x", "1", "'", "x'x", " ", "(", "x:", "{a:", "[")),
        *(("call:f{", middle) for middle in ("x", " ", "x'x", "a:1,", "a:1 ", '"a":1,', ",")),
        *(("call:f{a:[", middle) for middle in ("1,", "[],", "{},", '"x",', "x ", "{a:[")),
        *(("", middle) for middle in ("call:f{}", "call:", "call:f ", " ", "call:f{} ")),
        *(("call:f", middle) for middle in (" ", "\u00a0", " call")),
    ],
)  # fmt: skip
def test_hostile_blocks_take_linear_time(head: str, middle: str) -> None:
    """A quadratic reader would take minutes: 400,000 characters, squared."""
    start = perf_counter()
    read_calls((head + middle * (400_000 // len(middle))).split(MARK))
    assert perf_counter() - start < 10
