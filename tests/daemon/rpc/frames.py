"""A client of HTTP/2 frames, for what no gRPC client does: it pings when the test says."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Frames:
    """One connection. `closed`: why the server said goodbye; b"" for none, or without a word."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, speaks: bool
    ) -> None:
        self._speaks = speaks
        self._reader = reader
        self._writer = writer
        self.pongs = 0
        self.ended_streams: set[int] = set()
        self.goodbye = b""
        self.open = True

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
        self._writer.write(head + struct.pack(">I", stream) + payload)

    def ping(self) -> None:
        self.send(PING, 0, 0, b"sapwood.")

    def call(self, path: str, message: bytes = b"") -> None:
        """The first stream: a request that is complete, as gRPC has it."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        literal = b"".join(
            b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self.send(HEADERS, END_HEADERS, 1, literal)
        self.send(DATA, END_STREAM, 1, b"\x00" + struct.pack(">I", len(message)) + message)

    async def read(self) -> None:
        """Until the server hangs up; its settings and pings are acknowledged."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                kind, flags = head[3], head[4]
                stream = struct.unpack(">I", head[5:])[0]
                payload = await self._reader.readexactly(struct.unpack(">I", b"\0" + head[:3])[0])
                if self._speaks:
                    self._take(kind, flags, stream, payload)
        self.open = False

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.send(SETTINGS, ACK, 0)
        elif kind == PING and flags & ACK:
            self.pongs += 1
        elif kind == PING:
            self.send(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            self.goodbye = payload[8:]
        elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended_streams.add(stream)


@asynccontextmanager
async def connected(address: str, *, speaks: bool = True) -> AsyncIterator[Frames]:
    """speaks: begins as HTTP/2 does, and not with silence."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    frames = Frames(reader, writer, speaks)
    if speaks:
        writer.write(PREFACE)
        frames.send(SETTINGS, 0, 0)
    reading = asyncio.create_task(frames.read())
    try:
        yield frames
    finally:
        reading.cancel()
        writer.close()
        # Seen here, or it is told when it is collected, in whichever test that is.
        with suppress(OSError):
            await writer.wait_closed()
