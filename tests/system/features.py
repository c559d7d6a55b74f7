"""Everything that clients can ask of a daemon, once: what a process must be ready for."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import sapwood
from sapwood import CacheOptions, Client, Conversation, GenerateOptions, Tool, ToolCall
from sapwood import Message as Turn

PROMPT = "Who are you, and what can you do?"
TURNS = [
    Turn("system", "Be brief."),
    Turn("user", "What is the weather in Paris?"),
    Turn("assistant", "", thinking="I ask.", tool_calls=[ToolCall("weather", {"city": "Paris"})]),
    Turn("tool", "rain", tool_name="weather"),
    Turn("user", "So?"),
]
TOOLS = [Tool("weather", "of a city", {"type": "object", "properties": {"city": {}}})]
PLAIN = [Conversation([{"role": "user", "content": "What is the weather?"}])]
WITH_TOOLS = [*PLAIN, *(Conversation(TURNS, TOOLS, thinking) for thinking in (None, False, True))]
OPTIONS: Mapping[str, GenerateOptions] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "wide": {"temperature": 1.3, "top_k": 0, "top_p": 1.0},
    "seeded": {"temperature": 1.0, "seed": 7},
    "seeded, filtered": {"temperature": 0.7, "seed": 7, "top_k": 5, "top_p": 0.5},
    "penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {5: 2.0, 6: -100.0},
    },
    "all at once": {
        "temperature": 0.9,
        "seed": 1,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {7: 1.0},
        "top_logprobs": 3,
    },
    "logprobs": {"top_logprobs": 20},
    "stops": {"stop": ["a", "the"], "stop_token_ids": [9, 10]},
    "past the end": {"ignore_eos": True},
    "deepest": {"draft_tokens": 8},
    "undrafted": {"draft_tokens": 0},
    "bypassing": {"cache": CacheOptions(bypass=True)},
    "not stored": {"cache": CacheOptions(store_reply=False)},
}
REFUSED: Mapping[str, Any] = {
    "too long": [5] * 2_000_000,
    "no such token": [1 << 31],
    "empty": "",
}


def ask_everything(client: Client, conversations: Sequence[Conversation]) -> None:
    """Over the client's one connection; raises where an answer is not what it should be."""
    for options in OPTIONS.values():
        reply = client.generate(PROMPT, **_short(options)).collect()
        assert reply.finish.usage.completion_tokens
    client.generate([2, 105, 106, 107, 108] * 8, **_short({})).collect()
    for conversation in conversations:
        client.generate(conversation, max_tokens=12).collect()
        client.tokenize(conversation)
    _ask_at_once(client)
    _ask_and_go(client)
    for prompt in REFUSED.values():
        with pytest.raises(sapwood.InvalidArgument) as caught:
            client.generate(prompt, max_tokens=2).collect()
        assert caught.value.reason
    ids = client.tokenize(PROMPT)
    assert client.detokenize(ids)
    client.get_model()
    client.cache_stats()
    assert list(client.describe_tree())
    pin = client.pin_prefix(PROMPT, ttl=60)
    assert client.list_pins() == [pin]
    client.unpin_prefix(pin.id)
    assert client.evict_prefix(PROMPT).nodes
    client.clear_cache()
    assert client.is_serving()


def _ask_at_once(client: Client) -> None:
    """Company of all kinds, prompts that share, and one that grows out of its class."""
    numbered = enumerate(OPTIONS.values())
    streams = [client.generate(f"{PROMPT} {n}", **_short(options)) for n, options in numbered]
    long = client.generate(PROMPT * 46, max_tokens=100, ignore_eos=True)
    for stream in (*streams, long):
        stream.collect()


def _short(options: GenerateOptions) -> GenerateOptions:
    return {"max_tokens": 12, **options}


def _ask_and_go(client: Client) -> None:
    """Cancelled, and out of time."""
    with client.generate(PROMPT, max_tokens=2000, ignore_eos=True) as stream:
        next(stream)
    with pytest.raises(sapwood.DeadlineExceeded):
        client.generate(PROMPT, max_tokens=100_000, ignore_eos=True, timeout=0.3).collect()


def ask_beside(channel: grpc.Channel) -> None:
    """Health, reflection and what is not built, over a connection of their own."""
    health = "/grpc.health.v1.Health"
    _called(channel, f"{health}/Check", health_pb2.HealthCheckRequest())
    _called(channel, f"{health}/List", health_pb2.HealthCheckRequest())
    for version in ("v1", "v1alpha"):
        ask: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="sapwood.v1.Delta"),
            reflection_pb2.ServerReflectionRequest(file_by_filename="nothing"),
        ]
        assert len(list(ask(request.SerializeToString() for request in requests))) == len(requests)
    for method in ("SessionService/Nothing", "Nobody/Nothing"):
        with pytest.raises(grpc.RpcError) as caught:
            _called(channel, f"/sapwood.v1.{method}", health_pb2.HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


def _called(channel: grpc.Channel, path: str, request: Message) -> bytes:
    call: Any = channel.unary_unary(path)
    answer: bytes = call(request.SerializeToString(), timeout=10)
    return answer


def scrape(ready_file: Path) -> None:
    """All pages of HTTP, in every format."""
    host, _, port = json.loads(ready_file.read_text())["metrics"].rpartition(":")
    for path in ("/metrics", "/healthz", "/readyz", "/nothing"):
        for accept in ("", "text/plain;version=1.0.0", "application/openmetrics-text"):
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            connection.request("GET", path, headers={"Accept": accept})
            assert connection.getresponse().read()
            connection.close()
