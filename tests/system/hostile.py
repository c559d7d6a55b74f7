"""What one client can send to keep a daemon from everybody else: `python -m tests.system.hostile`.

Requests of the largest size that is taken, sent raw and in a process of their own: making them must
not hold up whoever measures.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import grpc

_MOST = 4 * 1024 * 1024 - 1024
_GENERATE, _TOKENIZE, _DETOKENIZE = "Generate", "Tokenize", "Detokenize"


def _number(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, payload: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(payload)) + payload


def _message(content: str) -> bytes:
    return _field(1, _field(1, b"user") + _field(2, content.encode()))


def _rare(chars: int) -> str:
    return "".join(Random(1).choices("qzjxvk", k=chars))


_PACKED, _TEXT, _IDS, _MESSAGES, _STOP = 1, 1, 2, 3, 7
KINDS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "text": lambda: (_GENERATE, _field(_TEXT, b"a" * _MOST)),
    "text that passes the floor": lambda: (_GENERATE, _field(_TEXT, _rare(200_000).encode())),
    "control tokens": lambda: (_GENERATE, _field(_TEXT, b"<|turn>" * (_MOST // 7))),
    "ids": lambda: (_GENERATE, _field(_IDS, _field(_PACKED, b"\x05" * _MOST))),
    "a content": lambda: (_GENERATE, _field(_MESSAGES, _message(_rare(_MOST)))),
    "a content of marks": lambda: (_GENERATE, _field(_MESSAGES, _message("<channel|>" * 300_000))),
    "empty messages": lambda: (_GENERATE, _field(_MESSAGES, b"\x0a\x00" * (_MOST // 2))),
    "many messages": lambda: (_GENERATE, _field(_MESSAGES, _message("x" * 990) * 4096)),
    "stop strings": lambda: (_GENERATE, _field(_STOP, b"") * (_MOST // 2)),
    "Tokenize": lambda: (_TOKENIZE, _field(_TEXT, _rare(_MOST).encode())),
    "Tokenize spaces": lambda: (_TOKENIZE, _field(_TEXT, b" " * _MOST)),
    "Tokenize control tokens": lambda: (_TOKENIZE, _field(_TEXT, b"<|turn>" * (_MOST // 7))),
    "Detokenize": lambda: (_DETOKENIZE, _field(_PACKED, b"\x05" * _MOST)),
    "Detokenize what is taken": lambda: (_DETOKENIZE, _field(_PACKED, b"\x05" * 262_144)),
}


def attack(address: str, kind: str, seconds: float, clients: int) -> int:
    """Send it again and again, without ever looking at what comes back; returns how often."""
    method, data = KINDS[kind]()
    until = time.monotonic() + seconds

    def one(_client: int) -> int:
        sent = 0
        with grpc.insecure_channel(address) as channel:
            call: grpc.UnaryStreamMultiCallable[bytes, bytes]
            call = channel.unary_stream(f"/sapwood.v1.GenerationService/{method}")
            while time.monotonic() < until:
                with contextlib.suppress(grpc.RpcError):
                    for _ in _ended(call(data, timeout=10)):
                        pass
                sent += 1
        return sent

    with ThreadPoolExecutor(clients) as threads:
        return sum(threads.map(one, range(clients)))


def _ended(call: Iterator[bytes]) -> Iterator[bytes]:
    """A prompt that is served after all generates one message and is left."""
    for message in call:
        yield message
        return


if __name__ == "__main__":
    print(attack(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
