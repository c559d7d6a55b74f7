"""Helpers of tests of sessions: calls of SessionService, turns, and streams of a gated device."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
import pytest

from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from sapwood.v1 import session_pb2 as sessions
from tests.daemon.conftest import Running, collect

PROMPT = tuple(range(5, 60))

_T = TypeVar("_T")


async def create(run: Running, name: str = "a", **fields: Any) -> Any:
    response = await run.sessions.CreateSession(sessions.CreateSessionRequest(name=name, **fields))
    return response.session


async def ids_of(run: Running, name: str = "a") -> list[int]:
    request = sessions.GetSessionRequest(name=name, include_tokens=True)
    response = await run.sessions.GetSession(request)
    assert response.session.tokens == len(response.token_ids)
    return list(response.token_ids)


async def turn(run: Running, request: pb.GenerateRequest) -> list[int]:
    ids, _, _ = await collect(run.generation.Generate(request))
    return ids


def say(text: str, role: str = "user", **fields: Any) -> pb.GenerateRequest:
    message = prompt_pb2.Message(role=role, content=text, tool_name=fields.pop("tool_name", ""))
    tools, thinking = fields.pop("tools", ()), fields.pop("thinking", None)
    said = prompt_pb2.Messages(messages=[message], tools=tools, thinking=thinking)
    return pb.GenerateRequest(messages=said, session="a", **{"max_tokens": 4, **fields})


def resume(from_token: int, name: str = "a", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(resume=sessions.Resume(session=name, from_token=from_token), **fields)


async def stepped(run: Running, asked: Awaitable[_T]) -> _T:
    """What is answered while the device makes one step after another."""
    answer = asyncio.ensure_future(asked)
    while not answer.done():
        run.device.step()
        await asyncio.sleep(0.002)
    return answer.result()


async def began(run: Running, request: pb.GenerateRequest) -> Any:
    """A stream of a gated device that has told of its prompt."""
    call = run.generation.Generate(request)
    event = await stepped(run, anext(aiter(call)))
    assert event.WhichOneof("event") == "prefill"
    return call


async def ended(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value
