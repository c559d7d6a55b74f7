"""The floor is never above what the tokenizer makes of a text, and high enough to be of use."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.prompt.errors import PromptTooLong
from sapwood.model.prompt.token_floor import TokenFloor
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.model.reference import checkpoint

_PLACES = {"e2b-tiny": checkpoint("e2b-tiny"), "demo": ModelDirectory(DEMO / "target")}
_pieces = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.tuples(st.sampled_from("a ▁é\n\t🙂<"), st.integers(1, 80)).map(lambda p: p[0] * p[1]),
    st.sampled_from([" the", "ing", "\n\n", "<|turn>", "<0x0A>"]),
)


@cache
def _document(place: str) -> dict[str, Any]:
    return dict(_PLACES[place].json("tokenizer.json"))


@cache
def _both(place: str) -> tuple[Tokenizer, Encoder]:
    vocabulary = 1 + max(Encoder.from_str(json.dumps(_document(place))).get_vocab().values())
    tokenizer = load_tokenizer(_PLACES[place], vocabulary, (1,))
    return tokenizer, tokenizer._pieces._encoder


@pytest.mark.parametrize("place", _PLACES)
@given(runs=st.lists(st.lists(_pieces, max_size=6).map("".join), min_size=1, max_size=3))
def test_no_text_has_fewer_tokens_than_its_floor(place: str, runs: list[str]) -> None:
    tokenizer, encoder = _both(place)
    actual = sum(len(e.ids) for e in encoder.encode_batch(runs, add_special_tokens=False))
    assert tokenizer._floor.of(runs) <= actual


@pytest.mark.parametrize("place", _PLACES)
@given(pieces=st.lists(_pieces, max_size=6))
def test_nor_fewer_than_the_floor_of_what_is_not_cut_yet(place: str, pieces: list[str]) -> None:
    tokenizer, _ = _both(place)
    text = "".join(pieces)
    assert tokenizer._floor.of_uncut(text) <= len(tokenizer.encode_text(text))


@pytest.mark.parametrize("place", _PLACES)
def test_control_tokens_may_be_longer_than_any_other(place: str) -> None:
    tokenizer, _ = _both(place)
    for token in tokenizer.control_ids:
        ids = tokenizer.encode_text(token * 1000)
        assert len(ids) <= 1001
        assert tokenizer._floor.of_uncut(token * 1000) <= len(ids), token


@pytest.mark.parametrize("place", _PLACES)
def test_a_long_text_counts_whole(place: str) -> None:
    """It is counted in pieces."""
    floor = _both(place)[0]._floor
    assert abs(floor.of(["é" * 400_000]) - 100 * floor.of(["é" * 4000])) <= 100
    assert floor.of(["a" * 70_000, "é" * 70_000]) >= floor.of(["é" * 70_000]) + 1
    assert floor.of(["ab" * 100_000]) == floor.of(["ab"] * 100_000)


@pytest.mark.parametrize("place", _PLACES)
def test_a_hopeless_prompt_is_refused_before_the_model_tokenises_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = _both(place)
    longest = max(len(token) for token in tokenizer.token_bytes)
    text = "a" * (longest * 1001)
    monkeypatch.setattr(tokenizer, "_pieces", None)
    monkeypatch.setattr(tokenizer, "_finder", None)
    for encode in (
        lambda: tokenizer.encode_text(text, 1000),
        lambda: tokenizer.encode_messages(turns(("user", text)), tokens_max=1000),
    ):
        with pytest.raises(PromptTooLong) as caught:
            encode()
        assert caught.value.fewest > 1000


def test_control_tokens_count_as_one_each() -> None:
    tokenizer, _ = _both("e2b-tiny")
    assert len(tokenizer.encode_text("<bos>" + "<|turn>" * 999, 1000)) == 1000
    with pytest.raises(PromptTooLong):
        tokenizer.encode_text("<|turn>" * 1001, 1000)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Split", "behavior": "Removed"}},
        {"model": {"byte_fallback": False}},
        {"added_tokens": [{"lstrip": True, "rstrip": False}]},
    ],
)
def test_a_tokenizer_that_may_leave_something_out_has_no_floor(change: dict[str, Any]) -> None:
    tokenizer, _ = _both("e2b-tiny")
    assert TokenFloor(_document("e2b-tiny"), tokenizer.token_bytes).of(["a" * 999]) > 0
    assert TokenFloor(_document("e2b-tiny") | change, tokenizer.token_bytes).of(["a" * 999]) == 0
    assert TokenFloor(_document("e2b-tiny"), [b"a", b"b"]).of(["a" * 999]) == 0, "bytes are missing"
