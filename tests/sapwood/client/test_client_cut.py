"""A stream that something between client and daemon cut is not called a fault of the daemon."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

import sapwood
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import FakeDaemon, done, refuse

pytestmark = pytest.mark.anyio

DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
PREFACE_BYTES, HEAD_BYTES = 24, 9
GRPC_IS_OK = b"\x88\x00\x0ccontent-type\x10application/grpc"
ENDS: dict[str, tuple[int, int, bytes]] = {
    "reset": (RST_STREAM, 0, struct.pack(">I", 2)),  # INTERNAL_ERROR
    "ended": (DATA, 1, b""),  # without a word how
}


@contextmanager
def proxy(end: tuple[int, int, bytes]) -> Iterator[str]:
    """Begins to answer every call, and ends it with this frame."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer, peer.makefile("rwb") as stream:
                    stream.read(PREFACE_BYTES)
                    stream.write(_frame(SETTINGS, 0, 0))
                    stream.flush()
                    while head := stream.read(HEAD_BYTES):
                        stream.read(int.from_bytes(head[:3]))
                        number = int.from_bytes(head[5:])
                        if head[3] == HEADERS:
                            stream.write(_frame(HEADERS, 4, number, GRPC_IS_OK))
                            stream.write(_frame(end[0], end[1], number, end[2]))
                            stream.flush()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", number) + payload


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_that_was_cut_is_no_fault_of_the_daemon(connect: Connect, end: str) -> None:
    with proxy(ENDS[end]) as address:
        async with connect(address) as client:
            with pytest.raises(sapwood.SapwoodError) as caught:
                await done(client.generate("hello").collect())
    assert caught.value.status in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    assert "not the daemon's own status" in caught.value.message
    assert "Stream removed" in caught.value.message, "what gRPC knows of it"


async def test_a_fault_of_the_daemon_is_told_as_it_is(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    fault = "a fault of the daemon"
    daemon.reply = lambda request, context: refuse(context, grpc.StatusCode.INTERNAL, fault)
    async with connect(address) as client:
        with pytest.raises(sapwood.SapwoodError) as caught:
            await done(client.generate("hello").collect())
    assert str(caught.value) == f"INTERNAL: {fault}"
