"""Texts encoded in pieces have the ids that they have in one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from sapwood.model.prompt import control_finder, pieces
from sapwood.model.prompt.errors import PromptAbandoned, PromptTooLong
from sapwood.model.prompt.pieces import PieceEncoder
from tests.model.prompt.loaded import PLACES, loaded, whole_encoder
from tests.quick import few_quick

_GEMMA = "e2b-tiny"
_parts = st.one_of(
    st.tuples(st.sampled_from("a ▁é\n\t🙂<x"), st.integers(1, 90)).map(lambda p: p[0] * p[1]),
    st.tuples(st.sampled_from(["ab", "the ", "th", "\n ", "日本", "<|"]), st.integers(1, 50)).map(
        lambda p: p[0] * p[1]
    ),
    st.text(st.characters(codec="utf-8"), max_size=40),
)


def _ignored(tokens: int) -> None:
    pass


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARS", 48)
    monkeypatch.setattr(control_finder, "PIECE_CHARS", 48)
    monkeypatch.setattr(pieces, "_END_CHARS", 8)


def _plain(encoder: Encoder, text: str) -> list[int]:
    return list(encoder.encode(text, add_special_tokens=False).ids)


@cache
def _document(place: str) -> dict[str, Any]:
    document = dict(PLACES[place][0].json("tokenizer.json"))
    return document | {"post_processor": None}


@cache
def _alone(place: str) -> Encoder:
    encoder = Encoder.from_str(json.dumps(_document(place)))
    encoder.encode_special_tokens = True
    return encoder


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("place", PLACES)
@given(runs=st.lists(st.lists(_parts, max_size=8).map("".join), max_size=4))
def test_runs_in_pieces_are_the_same_runs(place: str, runs: list[str]) -> None:
    ours = PieceEncoder(_alone(place), _document(place))
    assert list(map(list, ours.encode(runs, _ignored))) == [
        _plain(_alone(place), run) for run in runs
    ]


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("place", PLACES)
@given(parts=st.lists(st.one_of(_parts, st.sampled_from(["<|turn>", "<bos>", "<turn|>"]))))
def test_control_tokens_are_found_where_they_are_in_one_piece(place: str, parts: list[str]) -> None:
    text = "".join(parts)
    expected = _plain(whole_encoder(place), text)
    bos = [] if expected[:1] == [2] else [2]
    assert loaded(place).encode_text(text) == bos + expected


def _vocabulary(random: Random, letters: str) -> dict[str, Any]:
    """Merges drawn at random, of a kind that no training would give."""
    words = list(letters)
    merges: list[list[str]] = []
    while len(merges) < 40:
        left, right = random.choice(words), random.choice(words)
        if left + right not in words:
            words.append(left + right)
            merges.append([left, right])
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges}
    added: list[dict[str, Any]] = []
    return {"version": "1.0", "added_tokens": added, "model": model}


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_merges_are(
    seed: int, ignore_merges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at their very ends, pieces often do not join at their length, and are made longer."""
    monkeypatch.setattr(pieces, "_END_CHARS", 0)
    random = Random(seed)
    document = _vocabulary(random, "ab")
    document["model"]["ignore_merges"] = ignore_merges
    encoder = Encoder.from_str(json.dumps(document))
    ours = PieceEncoder(encoder, document)
    for _ in range(20):
        word = "".join(random.choices("ab", k=random.randint(1, 7)))
        text = (word * 400 + "".join(random.choices("ab", k=300)))[: random.randint(50, 900)]
        assert ours.encode([text], _ignored) == [_plain(encoder, text)], text


@pytest.mark.usefixtures("short_pieces")
def test_it_is_told_how_many_ids_there_are_after_each_piece() -> None:
    ours, told = PieceEncoder(_alone(_GEMMA), _document(_GEMMA)), list[int]()
    runs = ["the cat " * 100, "", "x", "the cat " * 100]
    count = sum(map(len, ours.encode(runs, told.append)))
    assert told == sorted(told)
    assert told[-1] == count
    assert max(b - a for a, b in pairwise(told)) <= 48


def _hostile(chars: int) -> dict[str, str]:
    """Many tokens for few characters or few for many, without a place to breathe."""
    letters = Random(1).choices("qzjxvk", k=chars)
    return {
        "one letter": "a" * chars,
        "rare letters": "".join(letters),
        "spaces": " " * chars,
        "bytes": "\u0bf5" * (chars // 3),
        "line breaks": "\n" * chars,
        "control tokens": "<|turn>" * (chars // 7),
        "almost control tokens": "<|turn" * (chars // 6),
    }


_QUICK = ("rare letters", "bytes", "control tokens")  # a letter, no letter, none of both


def test_a_long_text_is_left_where_its_ids_become_too_many() -> None:
    """One that the floor lets pass."""
    tokenizer, text = loaded(_GEMMA), "the cat sat " * 100_000
    tokens_max = max(tokenizer._floor.of_uncut(text), tokenizer._floor.of([text]))
    with pytest.raises(PromptTooLong) as caught:
        tokenizer.encode_text(text, tokens_max)
    assert tokens_max < caught.value.fewest <= tokens_max + pieces.PIECE_CHARS


_TRIES = 5  # others' processes make gaps too


@pytest.mark.parametrize("kind", few_quick(_hostile(8), *_QUICK))
def test_nobody_waits_for_the_gil_while_a_text_is_encoded(kind: str) -> None:
    """No worse than beside Python that only counts, for as long; in one of some tries."""
    tokenizer, text = loaded(_GEMMA), _hostile(1 << 20)[kind]
    gaps = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        worst_s = _worst_gap_s(lambda: tokenizer.encode_text(text))
        ends = 2 * time.perf_counter() - began
        baseline_s = _worst_gap_s(partial(_count_until, ends))
        gaps.append((worst_s, baseline_s))
        if worst_s <= baseline_s + 0.05:
            return
    raise AssertionError(f"worst gaps and their baselines, in seconds: {gaps}")


def _count_until(ends: float) -> None:
    while time.perf_counter() < ends:
        pass


def _worst_gap_s(work: Any) -> float:
    """The longest that a thread which only sleeps half a millisecond at a time is kept waiting."""
    gaps, done = [0.0], threading.Event()

    def look() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    return max(gaps)


def test_work_that_nobody_waits_for_stops() -> None:
    tokenizer, text = loaded(_GEMMA), _hostile(1 << 20)["rare letters"]
    looks: list[bool] = []

    def given_up() -> bool:
        looks.append(len(looks) == 2)
        return looks[-1]

    for work in (
        lambda: tokenizer._finder.cut(text, given_up),
        lambda: tokenizer._encode([text], [], None, given_up),
    ):
        looks.clear()
        with pytest.raises(PromptAbandoned):
            work()
        assert looks == [False, False, True], "after each piece"
    with pytest.raises(PromptAbandoned):
        tokenizer.decode(range(1024), lambda: True)


def test_ids_decode_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.model.prompt.tokenizer._DECODED_IDS", 3)
    tokenizer = loaded(_GEMMA)

    def whole(ids: Sequence[int]) -> str:
        return b"".join(tokenizer.token_bytes[i] for i in ids).decode("utf-8", "replace")

    for text in ("日本 🙂 café", "\u0bf5\u0bf5x", ""):
        ids = tokenizer.encode_text(text)
        for end in range(len(ids) + 1):
            assert tokenizer.decode(ids[:end]) == whole(ids[:end])
