"""Clients of every contestant against small servers of their kind, ours against a real daemon."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from bench.measure import BenchError
from bench.peers.contestants import Running, contestants
from bench.peers.grpc_clients import SMG_SERVICE, our_clients, smg_clients
from bench.peers.heard import ChatClients, Heard
from bench.peers.http_client import http_clients
from bench.peers.load import all_ask
from bench.peers.prompts import PROMPT_TOKENIZER, chat_tokens
from sapwood import Message
from sapwood.daemon.demo.process import running, serve_command
from tests.sapwood.client.fake import FakeDaemon
from tests.sapwood.client.fake import serving as serving_fake

QUESTION = [Message("system", "Be brief."), Message("user", "What is a river?")]
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 20},
}


class ChatHandler(BaseHTTPRequestHandler):
    """Streams `events` of its server, after resetting as many connections as that was told to."""

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, ChatServer)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            if server.resets:
                server.resets -= 1
                linger = struct.pack("ii", 1, 0)  # close with a reset, not a goodbye
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()
                return
            server.asked.append(json.loads(body))
        self.send_response(server.status)
        self.end_headers()
        for event in server.events:
            self.wfile.write(event)
            self.wfile.flush()
            time.sleep(server.pause_s)

    def finish(self) -> None:
        if self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


class ChatServer(ThreadingHTTPServer):
    """events: raw lines of a reply. resets: connections to turn away first."""

    def __init__(
        self, events: Sequence[bytes], resets: int = 0, status: int = 200, pause_s: float = 0.0
    ) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.events, self.resets, self.status, self.pause_s = events, resets, status, pause_s
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        pass  # what was reset cannot be finished

    def shutdown_request(self, request: Any) -> None:
        if request.fileno() >= 0:
            super().shutdown_request(request)


def sse(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def text(content: str | None) -> bytes:
    return sse({"choices": [{"delta": {"content": content}}]})


REPLY = [
    b": keepalive 1/2\n\n",
    sse({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
    text("A river "),
    text(None),
    text("flows."),
    sse({"choices": [], "usage": USAGE, "timings": {"draft_n": 9, "draft_n_accepted": 7}}),
    b"data: [DONE]\n\n",
]


@contextmanager
def serving(server: ChatServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: ChatServer, count: int = 1) -> list[Heard]:
    async def run(address: str) -> list[Heard]:
        heard: list[Heard] = []
        async with (
            http_clients(address, count, "the model") as clients,
            anyio.create_task_group() as tasks,
        ):

            async def one(at: int) -> None:
                heard.append(await clients[at].ask(QUESTION, 7))

            for at in range(count):
                tasks.start_soon(one, at)
        return heard

    with serving(server) as address:
        return anyio.run(run, address)


def test_a_stream_is_read_message_by_message() -> None:
    server = ChatServer(REPLY, pause_s=0.01)
    (heard,) = ask(server)
    assert heard.text == "A river flows." and len(heard.messages) == 2
    assert heard.asked < heard.messages[0] < heard.messages[1] < heard.ended
    assert heard.message_gaps_s[0] >= 0.019  # two messages lie in between
    assert heard.first_text_s == heard.messages[0] - heard.asked
    assert (heard.prompt_tokens, heard.cached_tokens, heard.resets) == (30, 20, 0)
    assert (heard.drafts, heard.accepted) == (9, 7)
    (asked,) = server.asked
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a river?"},
    ]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("the model", 0.0, 7)
    assert asked["stream"] is True


def test_who_is_reset_connects_again_until_served_and_counts_it() -> None:
    server = ChatServer(REPLY, resets=5)
    heard = ask(server, 3)
    assert [h.text for h in heard] == ["A river flows."] * 3
    assert sum(h.resets for h in heard) == 5 and len(server.asked) == 3


@pytest.mark.parametrize(
    ("events", "status", "said"),
    [
        ([sse({"error": "broken"})], 200, "an error in the stream: broken"),
        ([text("A river")], 200, "without an end"),
        ([sse({"choices": [], "usage": USAGE})], 200, "without text"),
        ([b"not found"], 404, "status 404: not found"),
    ],
)
def test_what_is_no_reply_is_an_error(events: list[bytes], status: int, said: str) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        ask(ChatServer(events, status=status))
    (error,) = raised.value.exceptions
    assert isinstance(error, BenchError) and said in str(error)


@contextmanager
def smg_server(replies: list[Any], asked: list[Any]) -> Iterator[str]:
    """A server of SMG's contract, which it tells by reflection; `replies` are made of dicts."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(smg_file())
    file = pool.FindFileByName("mlx_engine.proto")
    make = {n: message_factory.GetMessageClass(m) for n, m in file.message_types_by_name.items()}

    def generate(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
        asked.append(request)
        for kind, fields in replies:
            message = {"chunk": "GenerateStreamChunk", "complete": "GenerateComplete"}[kind]
            yield make["GenerateResponse"](**{kind: make[message](**fields)})

    handler = grpc.unary_stream_rpc_method_handler(
        generate,
        request_deserializer=make["GenerateRequest"].FromString,
        response_serializer=make["GenerateResponse"].SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    generic = grpc.method_handlers_generic_handler(SMG_SERVICE, {"Generate": handler})
    server.add_generic_rpc_handlers((generic,))
    reflection.enable_server_reflection([SMG_SERVICE], server, pool=pool)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def smg_file() -> descriptor_pb2.FileDescriptorProto:
    """The part of the contract that the client uses."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="mlx_engine.proto", package="mlx.grpc.engine", syntax="proto3"
    )

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, detail in fields:
            added = made.field.add(name=field, number=number, type=kind)
            repeated = detail == "repeated"
            added.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind == kinds.TYPE_MESSAGE:
                added.type_name = f".mlx.grpc.engine.{detail}"

    u32, i32 = kinds.TYPE_UINT32, kinds.TYPE_INT32
    sub = kinds.TYPE_MESSAGE
    message("TokenizedInput", ("input_ids", 2, u32, "repeated"))
    message(
        "SamplingParams",
        ("temperature", 1, kinds.TYPE_FLOAT, ""),
        ("top_p", 2, kinds.TYPE_FLOAT, ""),
        ("max_tokens", 9, u32, ""),
        ("stop_token_ids", 10, u32, "repeated"),
        ("seed", 13, i32, ""),
    )
    message(
        "GenerateRequest",
        ("request_id", 1, kinds.TYPE_STRING, ""),
        ("tokenized", 2, sub, "TokenizedInput"),
        ("sampling_params", 4, sub, "SamplingParams"),
        ("stream", 5, kinds.TYPE_BOOL, ""),
    )
    counts = (("prompt_tokens", 2, u32, ""), ("cached_tokens", 4, u32, ""))
    message("GenerateStreamChunk", ("token_ids", 1, u32, "repeated"), *counts)
    message("GenerateComplete", ("prompt_tokens", 3, u32, ""), ("cached_tokens", 5, u32, ""))
    message(
        "GenerateResponse",
        ("chunk", 1, sub, "GenerateStreamChunk"),
        ("complete", 2, sub, "GenerateComplete"),
    )
    service = file.service.add(name="MlxEngine")
    service.method.add(
        name="Generate",
        input_type=".mlx.grpc.engine.GenerateRequest",
        output_type=".mlx.grpc.engine.GenerateResponse",
        server_streaming=True,
    )
    return file


async def first(clients: ChatClients, address: str, tokens_max: int = 8) -> Heard:
    async with clients(address, 2) as made:
        return await made[1].ask(QUESTION, tokens_max)


def test_smgs_servicer_is_asked_in_ids_and_heard_in_ids() -> None:
    ids = PROMPT_TOKENIZER.encode_text("A river flows.")[1:]
    asked: list[Any] = []
    chunks = [("chunk", {"token_ids": [one]}) for one in ids]
    end = ("complete", {"prompt_tokens": 25, "cached_tokens": 0})
    with smg_server([*chunks, end], asked) as address:
        heard = anyio.run(first, smg_clients, address)
    assert heard.text == "A river flows." and len(heard.messages) == len(ids)
    assert (heard.prompt_tokens, heard.cached_tokens, heard.drafts) == (25, 0, None)
    (request,) = asked
    assert len(request.tokenized.input_ids) == chat_tokens(QUESTION)
    assert list(request.sampling_params.stop_token_ids) == sorted(PROMPT_TOKENIZER.eos_token_ids)
    assert request.sampling_params.temperature == 0.0 and request.sampling_params.max_tokens == 8


def test_smgs_reply_without_an_end_is_an_error() -> None:
    chunk = ("chunk", {"token_ids": [100]})
    with (
        smg_server([chunk], []) as address,
        pytest.raises(BenchError, match="without an end"),
    ):
        anyio.run(first, smg_clients, address)


def test_who_does_not_serve_yet_is_not_ready() -> None:
    """Our client would ask again a second later, and that second would be our start's."""
    loading = FakeDaemon(lambda *_: iter(()))
    with serving_fake(loading, "localhost:0") as address:
        loading.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(BenchError, match="not serving yet"):
            anyio.run(first, partial(our_clients, draft_tokens=None), address)


@pytest.fixture(scope="module")
def daemon() -> Iterator[str]:
    with running(serve_command(), os.environ, time.monotonic() + 100) as found:
        yield found.address


def test_ours_is_heard_with_and_without_drafts(daemon: str) -> None:
    async def run() -> tuple[Heard, Heard, list[list[Heard]]]:
        auto = await first(partial(our_clients, draft_tokens=None), daemon, 40)
        plain = await first(partial(our_clients, draft_tokens=0), daemon, 40)
        contestant = contestants()["ours"]
        clients = partial(our_clients, draft_tokens=None)
        served = Running(contestant, daemon, os.getpid(), clients, 0.0, "")
        return auto, plain, await all_ask(served, [[QUESTION, QUESTION], [QUESTION]], 8)

    auto, plain, many = anyio.run(run)
    assert auto.text == plain.text and len(plain.text) > 20
    assert auto.drafts and auto.accepted and len(auto.messages) < len(plain.messages)
    assert plain.drafts == 0
    assert auto.prompt_tokens == chat_tokens(QUESTION) and (plain.cached_tokens or 0) > 0
    assert [len(of_client) for of_client in many] == [2, 1]
