"""Joined bytes of ids decode to the tokenizer's own text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.prompt.token_bytes import byte_table
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from sapwood.scheduler.reply.text import ReplyText
from tests.model.reference import checkpoint


@cache
def _both(directory: ModelDirectory, vocabulary: int) -> tuple[Tokenizer, Encoder]:
    encoder = Encoder.from_file(str(directory.path / "tokenizer.json"))
    return load_tokenizer(directory, vocabulary, (1,)), encoder


@given(st.lists(st.integers(0, 2047), max_size=40))
def test_byte_level_bytes_decode_exactly_as_the_tokenizer(ids: list[int]) -> None:
    tokenizer, encoder = _both(ModelDirectory(DEMO / "target"), 2048)
    assert tokenizer.decode(ids) == encoder.decode(ids, skip_special_tokens=True)


def _runs(tokenizer: Tokenizer, encoder: Encoder, ids: list[int]) -> list[list[int]]:
    """Runs of byte tokens and runs of others; control tokens, which have no text, left out."""
    runs: list[list[int]] = []
    was_byte = None
    for i in ids:
        if not tokenizer.token_bytes[i]:
            continue
        token = encoder.id_to_token(i) or ""
        is_byte = token.startswith("<0x") and len(token) == 6
        if is_byte != was_byte:
            runs.append([])
        runs[-1].append(i)
        was_byte = is_byte
    return runs


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


_BYTES = st.integers(238, 493)  # where the reference tokenizer keeps its byte tokens


@given(st.lists(st.one_of(st.integers(0, 1023), _BYTES), max_size=40))
def test_gemma_bytes_decode_as_the_tokenizer_wherever_bytes_are_utf8(ids: list[int]) -> None:
    """The one exception: of a run of byte tokens that is not UTF-8 as a whole, the tokenizer
    replaces every byte, we only those that belong to no character."""
    tokenizer, encoder = _both(checkpoint("e2b-tiny"), 1024)
    expected = ""
    for run in _runs(tokenizer, encoder, ids):
        data = b"".join(tokenizer.token_bytes[i] for i in run)
        own = encoder.decode(run, skip_special_tokens=True)
        if not _is_utf8(data):
            assert own == "\ufffd" * len(data)
            own = data.decode("utf-8", "replace")
        expected += own
    assert tokenizer.decode(ids) == expected


def test_the_byte_tokens_cover_all_bytes() -> None:
    tokenizer, encoder = _both(checkpoint("e2b-tiny"), 1024)
    for byte in range(256):
        index = encoder.token_to_id(f"<0x{byte:02X}>")
        assert index is not None
        assert tokenizer.token_bytes[index] == bytes([byte])


def test_control_tokens_and_unused_ids_have_no_bytes() -> None:
    table = byte_table({"type": "ByteLevel"}, {"a": 0, "<b>": 1, "Ġc": 3}, {1}, 5, "here")
    assert table == [b"a", b"", b"", b" c", b""]


def test_an_added_token_outside_the_byte_alphabet_stands_for_itself() -> None:
    assert byte_table({"type": "ByteLevel"}, {"a b": 0, "é": 1}, set(), 2, "") == [
        b"a b",
        b"\xe9",
    ]


@pytest.mark.parametrize(
    "decoder",
    [None, {"type": "WordPiece"}, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}],
)
def test_another_decoder_is_refused(decoder: Any) -> None:
    with pytest.raises(ModelRefused, match=r"^here: decoder"):
        byte_table(decoder, {}, set(), 0, "here")


_FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f466"  # one picture of five code points
_TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=10),
        st.sampled_from([_FAMILY, " a", "  ", "<turn|>", "日本"]),
    ),
    max_size=6,
).map("".join)


_PLACES = {"gemma": checkpoint("e2b-tiny"), "demo": ModelDirectory(DEMO / "target")}


@cache
def _loaded(place: str) -> Tokenizer:
    words = Encoder.from_file(str(_PLACES[place].path / "tokenizer.json")).get_vocab()
    return load_tokenizer(_PLACES[place], max(words.values()) + 1, (1,))


@pytest.mark.parametrize("place", _PLACES)
@given(data=st.data())
def test_streamed_pieces_join_to_the_decoded_whole(place: str, data: st.DataObject) -> None:
    """R3: of a text's own ids and of any ids, control tokens and half characters among them."""
    tokenizer = _loaded(place)
    text = data.draw(_TEXTS)
    ids = tokenizer.encode_messages([{"role": "user", "content": text}])
    for stray in data.draw(st.lists(st.integers(0, len(tokenizer.token_bytes) - 1), max_size=8)):
        ids.insert(data.draw(st.integers(0, len(ids))), stray)
    reply = ReplyText(tokenizer.token_bytes)
    pieces = []
    for token in ids:
        reply.push(token)
        pieces.append(reply.take())
    reply.finish()
    assert "".join(pieces) + reply.take() == tokenizer.decode(ids)


@pytest.mark.parametrize("place", _PLACES)
@given(text=_TEXTS)
def test_what_is_encoded_decodes_to_itself(place: str, text: str) -> None:
    """Leading and doubled spaces included; Gemma alone cannot tell its "▁" from a space."""
    tokenizer = _loaded(place)
    plain = text.replace("▁", "")
    ids = tokenizer.encode_text(plain)
    # A control token that somebody writes is one, and says nothing.
    said = [id for id in ids if tokenizer.token_bytes[id]]
    assume(len(ids) - len(said) == len(tokenizer.encode_text("")))
    assert tokenizer.decode(ids) == plain
