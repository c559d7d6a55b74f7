"""What a request must give, computed the naive way: one token after another, nothing shared."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.scheduler.events import Request
from tests.scheduler.fake_device import EOS, TOKEN_BYTES, mix, said, toy_draw


@dataclass(frozen=True)
class Expected:
    tokens: tuple[int, ...]
    text: str
    reason: str
    stop_sequence: str


def expected_reply(request: Request) -> Expected:
    """Quadratic on purpose: every prefix is decoded and searched afresh."""
    state = 0
    for token in request.prompt:
        state = mix(state, token)
    tokens: list[int] = []
    raw, ends = b"", request.stop_token_ids | (set() if request.ignore_eos else {EOS})
    skip = 0  # characters that came before stop strings are looked for
    while True:
        banned = ends if len(tokens) < request.min_tokens else ()
        token = toy_draw(state, request.sampling, said((*request.prompt, *tokens)), banned)
        if len(tokens) == request.min_tokens:
            skip = len(whole_characters(raw))
        state = mix(state, token)
        tokens.append(token)
        looked_for = request.stop if len(tokens) > request.min_tokens else ()
        if token in ends:
            return _ended(tokens, raw, "stop", looked_for, skip)
        raw += TOKEN_BYTES[token]
        cut = first_stop(whole_characters(raw), looked_for, skip)
        if cut is not None:
            return Expected(tuple(tokens), cut[0], "stop_sequence", cut[1])
        if len(tokens) == request.max_tokens:
            return _ended(tokens, raw, "length", looked_for, skip)


def _ended(
    tokens: list[int], raw: bytes, reason: str, stops: tuple[str, ...], skip: int
) -> Expected:
    """Half a character at the end is U+FFFD, which may complete a stop string."""
    text = raw.decode(errors="replace")
    cut = first_stop(text, stops, skip)
    if cut is not None:
        return Expected(tuple(tokens), cut[0], "stop_sequence", cut[1])
    return Expected(tuple(tokens), text, reason, "")


def whole_characters(raw: bytes) -> str:
    """`raw` as text, without an unfinished character at its end."""
    lengths = range(min(3, len(raw)), 0, -1)
    held = next((n for n in lengths if _unfinished(raw[-n:])), 0)
    return raw[: len(raw) - held].decode(errors="replace")


def _unfinished(tail: bytes) -> bool:
    """Whether `tail` is a proper beginning of some UTF-8 character."""
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.start == 0
    return False


def first_stop(text: str, stops: tuple[str, ...], skip: int = 0) -> tuple[str, str] | None:
    """The text before the stop string that is complete first, and the longest such.

    skip: characters that belong to none.
    """
    for end in range(skip + 1, len(text) + 1):
        matches = [stop for stop in stops if text[skip:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return None
