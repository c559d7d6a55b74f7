"""Where a text spells control tokens, found in pieces, so that no call lasts as long as a text.

- The same search as the tokenizer's own: an empty model with only the control tokens, which finds
  them and nothing else, leftmost and longest first.
- A piece reaches as far past what is taken from it as the longest of them. Where white space or
  letters beside a token count, the whole text is one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder
from tokenizers.models import BPE

from sapwood.model.prompt.errors import GivenUp, PromptAbandoned, never
from sapwood.model.prompt.pieces import PIECE_CHARS


class ControlFinder:
    """For one tokenizer's control tokens. Safe to use from several threads."""

    def __init__(self, control: Mapping[str, AddedToken], control_ids: Mapping[str, int]) -> None:
        self._encoder = Encoder(BPE())
        self._encoder.add_special_tokens(list(control.values()))
        self._id_of = {
            self._encoder.token_to_id(text): token_id for text, token_id in control_ids.items()
        }
        self._longest = max(map(len, control_ids), default=0)
        self._in_pieces = not any(t.single_word or t.lstrip or t.rstrip for t in control.values())

    def cut(self, text: str, given_up: GivenUp = never) -> tuple[list[str], list[int]]:
        """n + 1 plain runs around the n control ids of a text. Raises PromptAbandoned."""
        runs: list[str] = []
        controls: list[int] = []
        position = 0
        for start, end, control in self._found(text, given_up):
            runs.append(text[position:start])
            controls.append(control)
            position = end
        return [*runs, text[position:]], controls

    def starts(self, text: str, given_up: GivenUp) -> list[int]:
        """Where control tokens begin. Raises PromptAbandoned."""
        return [start for start, _, _ in self._found(text, given_up)]

    def _found(self, text: str, given_up: GivenUp) -> Iterator[tuple[int, int, int]]:
        position = 0
        piece_chars = PIECE_CHARS + self._longest if self._in_pieces else max(1, len(text))
        while position < len(text):
            piece = text[position : position + piece_chars]
            whole = position + len(piece) == len(text)
            taken = len(piece) if whole else PIECE_CHARS
            [found] = self._encoder.encode_batch([piece], add_special_tokens=False)
            for index, (start, end) in zip(found.ids, found.offsets, strict=True):
                if whole or start < PIECE_CHARS:
                    yield position + start, position + end, self._id_of[index]
                    taken = max(taken, end)
            position += taken
            if given_up():
                raise PromptAbandoned
