"""Plain text to ids in pieces, so that no call lasts or holds the GIL in proportion to a text.

- Only `encode_batch` is called: `encode` holds the GIL from its beginning to its end. What still
  holds it is the making of a piece's list of ids.
- Pieces join exactly. A sequence of tokens is what BPE makes of its text exactly if each two
  neighbours are what it makes of theirs: the first merge across a border of the sequence would be
  made in the two neighbours alone as well. So a piece is cut where two of its tokens meet, well
  before its end, and the next piece has to begin with the second of them. Where one does not, the
  run is encoded anew in longer pieces.
- That holds where BPE sees the whole run: Gemma's tokenizers. Any other pre-tokenizer may look
  across a cut, so with one a run is encoded in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Encoding
from tokenizers import Tokenizer as Encoder

PIECE_CHARS = 16 * 1024
_RUNS_MAX = 256  # of one batch
_END_CHARS = 512  # of a piece, whose tokens may change with what follows
GEMMA_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LookUp = Callable[[int], None]
_FLAGS = ("single_word", "lstrip", "rstrip")


class PieceEncoder:
    """One tokenizer.json's BPE over plain runs. Safe to use from several threads."""

    def __init__(self, encoder: Encoder, document: Mapping[str, Any]) -> None:
        self._encoder = encoder
        added = document["added_tokens"]
        self._joins = _sees_whole_runs(document) and not _has_flags(added)
        # A token that was added is found before BPE, and must not be cut in two.
        self._end_chars = _END_CHARS + max((len(token["content"]) for token in added), default=0)

    def encode(self, runs: Sequence[str], look_up: LookUp) -> list[Sequence[int]]:
        """The ids of each run. `look_up` is told after each piece how many there are by then."""
        ids: list[Sequence[int]] = [()] * len(runs)
        tokens = 0
        for batch in _batches(runs):
            for index, found in zip(batch, self._batch(runs, batch, look_up, tokens), strict=True):
                ids[index] = found
                tokens += len(found)
            look_up(tokens)
        return ids

    def _batch(
        self, runs: Sequence[str], batch: Sequence[int], look_up: LookUp, before: int
    ) -> list[list[int]]:
        texts = [runs[index] for index in batch]
        if len(texts[0]) > PIECE_CHARS and self._joins:
            return [self._joined(texts[0], lambda tokens: look_up(before + tokens))]
        found = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _joined(self, run: str, look_up: LookUp) -> list[int]:
        """The ids of one long run."""
        piece_chars = PIECE_CHARS
        while (ids := self._joined_from(run, piece_chars, look_up)) is None:
            piece_chars *= 4
        return ids

    def _joined_from(self, run: str, piece_chars: int, look_up: LookUp) -> list[int] | None:
        """None where pieces of that length do not join."""
        ids: list[int] = []
        start, expected = 0, None
        while start + piece_chars < len(run):
            text = run[start : start + piece_chars]
            [piece] = self._encoder.encode_batch([text], add_special_tokens=False)
            cut = _last_cut(piece, piece_chars - self._end_chars)
            if cut is None or expected not in (None, piece.ids[0]):
                return None
            taken = piece.ids
            ids += taken[: cut.tokens]
            start, expected = start + cut.chars, taken[cut.tokens]
            look_up(len(ids))
        [last] = self._encoder.encode_batch_fast([run[start:]], add_special_tokens=False)
        if expected not in (None, last.ids[0]):
            return None
        return ids + last.ids


def _batches(runs: Sequence[str]) -> Iterator[list[int]]:
    """Indices of runs that are not empty; one that is longer than a piece is alone."""
    batch: list[int] = []
    chars = 0
    for index, run in enumerate(runs):
        if batch and (chars + len(run) > PIECE_CHARS or len(batch) == _RUNS_MAX):
            yield batch
            batch, chars = [], 0
        if run:
            batch.append(index)
            chars += len(run)
    if batch:
        yield batch


class _Cut(NamedTuple):
    """How much of a piece stands before a place."""

    tokens: int
    chars: int


def _last_cut(piece: Encoding, chars_max: int) -> _Cut | None:
    """The last place up to there where two tokens meet between two characters."""
    for tokens in range(len(piece) - 1, 0, -1):
        before, behind = piece.token_to_chars(tokens - 1), piece.token_to_chars(tokens)
        assert before is not None, "only added tokens have no characters"
        assert behind is not None, "only added tokens have no characters"
        if behind[0] == before[1] <= chars_max:
            return _Cut(tokens, behind[0])
    return None


def _has_flags(added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what is found of an added token depends on what stands around it."""
    return any(token[flag] for token in added for flag in _FLAGS)


def _sees_whole_runs(document: Mapping[str, Any]) -> bool:
    """Whether a run reaches BPE as one word, character for character, and is merged by it."""
    if document["model"].get("ignore_merges"):
        return False  # a word that is a token is that token, however its letters merge
    normalizer, pre_tokenizer = document.get("normalizer"), document.get("pre_tokenizer")
    if pre_tokenizer is None:
        return normalizer in (None, GEMMA_NORMALIZER)
    # Gemma's splits at spaces, of which its normalizer leaves none.
    splits_at = pre_tokenizer.get("pattern") if pre_tokenizer.get("type") == "Split" else None
    return normalizer == GEMMA_NORMALIZER and splits_at == {"String": " "}
