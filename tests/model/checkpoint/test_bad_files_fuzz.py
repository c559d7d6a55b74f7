"""Whatever is done to a model's files: it loads as what it says, or is refused in one sentence.

- Never another exception, a hang or memory out of proportion.
- Damage that leaves every config alone changes no fact of the model.
- A few seconds by default; the same for minutes under the `long` marker.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.pair import model_facts
from sapwood.scheduler.model_facts import ModelFacts
from tests.model.checkpoint.damage import CONFIG, ONE_PATH, TWO_PATH
from tests.model.checkpoint.sound import DRAFT, Files, header_of, load, sound, with_header, write

ROOT = Path(__file__).parents[3]
# The quick ones are the same in every run; new ground is for the long ones.
QUICK = settings(max_examples=50, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=8_000, derandomize=False, database=None)
# Of a failure the files are told, however long: as an error this would take its place.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
BYTES_MAX = 64 << 20  # the sound pair's peak is under one MiB

WEIGHTS = (ONE_PATH, TWO_PATH, DRAFT)
DOCUMENTS = sorted(name for name in sound() if name.endswith(".json"))
CONFIGS = {CONFIG, "assistant/config.json", "target/generation_config.json"}

_numbers = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 10**400]),
    st.floats(),
)
_texts = st.one_of(st.text(max_size=8), st.sampled_from(["..", "a" * 300, "\0", "<bos>", "BPE"]))
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=4,
)


@cache
def _sound_facts(packed: bool) -> ModelFacts:
    with tempfile.TemporaryDirectory() as place:
        write(sound(packed), Path(place))
        return model_facts(load(Path(place)), 4)


def _judge(files: Files, packed: bool, *, same: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        write(files, Path(place))
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        try:
            found = model_facts(load(Path(place)), 4)
        except ModelRefused as refused:
            sentence = str(refused)
            assert sentence.isprintable() and len(sentence) < 2_000
            assert sentence.startswith((f"{place}/", "the target's logits", "the drafter's logits"))
        else:
            expected = _sound_facts(packed)
            # A tokenizer may be sound and lack the tokens that divide a reply.
            found = replace(found, control_tokens=expected.control_tokens)
            assert found == expected if same else found.weights_bytes == expected.weights_bytes
        assert mx.get_peak_memory() - before < BYTES_MAX


@st.composite
def _damaged_bytes(draw: st.DrawFn) -> tuple[Files, bool, str]:
    """A few bytes of one file set, a part cut out, or a part put in."""
    packed = draw(st.booleans())
    files = dict(sound(packed))
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    headers = [at for at in (8, 400, len(content)) if at <= len(content)]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, draw(st.sampled_from(headers)) - 1))
        match draw(st.sampled_from(["set", "cut", "end", "put"])):
            case "set":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[at : at + draw(st.integers(1, 200))]
            case "end":
                del content[at:]
            case "put":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
        headers = [at for at in (8, 400, len(content)) if 0 < at <= len(content)] or [1]
    files[name] = bytes(content)
    return files, packed, name


def _bytes(example: tuple[Files, bool, str]) -> None:
    files, packed, name = example
    _judge(files, packed, same=name in WEIGHTS)


def _spots(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    found: list[tuple[Any, Any]] = []
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        found.append((document, key))
        if isinstance(value, dict | list):
            found += _spots(value)
    return found


def _edit(draw: st.DrawFn, document: Any) -> None:
    """Replace, drop, add or swap values anywhere in it."""
    for _ in range(draw(st.integers(1, 2))):
        spots = _spots(document)
        if not spots:
            return
        container, key = draw(st.sampled_from(spots))
        match draw(st.sampled_from(["set", "set", "drop", "add", "swap"])):
            case "set":
                container[key] = draw(_values)
            case "drop":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(_texts)] = draw(_values)
            case "swap":
                other, place = draw(st.sampled_from(spots))
                container[key], other[place] = other[place], container[key]


@st.composite
def _damaged_documents(draw: st.DrawFn) -> tuple[Files, bool, str]:
    packed = draw(st.booleans())
    files = dict(sound(packed))
    name = draw(st.sampled_from([*DOCUMENTS, CONFIG]))
    document = json.loads(files[name])
    _edit(draw, document)
    files[name] = _dumped(document)
    return files, packed, name


def _dumped(document: Any) -> bytes:
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # a swap made a circle
        return b"{}"


def _documents(example: tuple[Files, bool, str]) -> None:
    files, packed, name = example
    _judge(files, packed, same=name not in CONFIGS)


@st.composite
def _damaged_headers(draw: st.DrawFn) -> tuple[Files, bool, str]:
    packed = draw(st.booleans())
    files = dict(sound(packed))
    name = draw(st.sampled_from(WEIGHTS))
    header, data = header_of(files[name])
    _edit(draw, header)
    files[name] = with_header(_dumped(header), data)
    return files, packed, name


def _headers(example: tuple[Files, bool, str]) -> None:
    _judge(example[0], example[1], same=True)


@given(_damaged_bytes())
@QUICK
def test_damaged_bytes_are_refused_or_harmless(example: tuple[Files, bool, str]) -> None:
    _bytes(example)


@given(_damaged_documents())
@QUICK
def test_damaged_documents_are_refused_or_mean_what_they_say(
    example: tuple[Files, bool, str],
) -> None:
    _documents(example)


@given(_damaged_headers())
@QUICK
def test_damaged_headers_are_refused_or_harmless(example: tuple[Files, bool, str]) -> None:
    _headers(example)


@pytest.mark.long
@given(_damaged_bytes(), _damaged_documents(), _damaged_headers())
@LONG
def test_damage_of_all_kinds_for_long(
    content: tuple[Files, bool, str],
    documents: tuple[Files, bool, str],
    headers: tuple[Files, bool, str],
) -> None:
    _bytes(content)
    _documents(documents)
    _headers(headers)
