"""Any bytes to any method: an answer, or a reason of ours, and nothing lost for anybody else.

- Bytes of three kinds: any at all; messages that are well formed, with values at and past every
  bound; and such messages with a few bytes changed, left out or put in.
- A status is OK or one of a reason that carries it (scheduler/reasons.py): UNKNOWN and INTERNAL are
  our bugs, and so is a daemon that does not go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.daemon.rpc.services import CACHE, GENERATION, SESSION
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from tests.daemon.conftest import (
    Running,
    collect,
    on_own_loop,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import FACTS, VOCABULARY, reply_to

CONTEXT = 128
LIMITS = Limits(sessions_max=4, tokenise_calls_max=4)
METHODS: dict[str, MethodDescriptor] = {
    method.full_name: method
    for service in (CACHE, GENERATION, SESSION)
    for method in service.methods
}
GENERATE = "sapwood.v1.GenerationService.Generate"
DEPTH_MAX = 4
# At, below and past bounds of ours and of the types.
WHOLE = st.sampled_from(
    (0, 1, 2, 5, 8, 9, 64, CONTEXT - 1, CONTEXT, VOCABULARY - 1, VOCABULARY, 1024, 4097, 2**31 - 1)
) | st.integers(0, 2**31 - 1)
REAL = st.sampled_from((0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 2.01, 1e38, float("inf"), float("nan")))
TEXT = st.sampled_from(
    ("", "a", "x" * 65, "user", "assistant", "tool", "system", "<|turn>", "{}", '{"type":"object"}')
) | st.text(max_size=20)


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kinds: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_STRING: TEXT,
        FieldDescriptor.CPPTYPE_FLOAT: REAL,
        FieldDescriptor.CPPTYPE_DOUBLE: REAL,
        FieldDescriptor.CPPTYPE_UINT64: WHOLE | st.just(2**64 - 1),
        FieldDescriptor.CPPTYPE_UINT32: WHOLE | st.just(2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: WHOLE | st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_INT32: WHOLE | st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_ENUM: st.integers(-1, 5),
    }
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20)
    return kinds[field.cpp_type]


def drawn(draw: Callable[[st.SearchStrategy[Any]], Any], kind: Descriptor, depth: int) -> Message:
    """A message with a few of its fields."""
    message: Any = GetMessageClass(kind)()
    fields = [f for f in kind.fields if f.message_type is None or depth < DEPTH_MAX]
    if not fields:
        return message  # type: ignore[no-any-return]
    for field in draw(st.lists(st.sampled_from(fields), max_size=4)):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            getattr(message, field.name)[draw(scalar(key))] = draw(scalar(value))
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                item = draw_value(draw, field, depth)
                getattr(message, field.name).append(item)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(drawn(draw, field.message_type, depth + 1))
        else:
            setattr(message, field.name, draw(scalar(field)))
    return message  # type: ignore[no-any-return]


def draw_value(
    draw: Callable[[st.SearchStrategy[Any]], Any], field: FieldDescriptor, depth: int
) -> Any:
    if field.message_type is not None:
        return drawn(draw, field.message_type, depth + 1)
    return draw(scalar(field))


@st.composite
def requests(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[str, bytes]:
    """A method, and what is sent to it."""
    name = draw(st.sampled_from([*METHODS, *[GENERATE] * 8]))
    kind = draw(st.sampled_from(("any", "formed", "formed", "formed", "changed")))
    if kind == "any":
        return name, draw(st.binary(max_size=60))
    message: Any = drawn(draw, METHODS[name].input_type, 0)
    if name == GENERATE and draw(st.booleans()):  # what is asked beside a prompt is looked at then
        message.token_ids.ids.append(5)
    data = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(1, 3)) if kind == "changed" else 0):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return name, bytes(data)


async def send(run: Running, name: str, data: bytes) -> None:
    """One call, to its end."""
    service, method = name.rsplit(".", 1)
    path = f"/{service}/{method}"
    streams = METHODS[name].server_streaming
    stub: Any = run.channel.unary_stream if streams else run.channel.unary_unary
    call = stub(path)(data)
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as refusal:
        judge(refusal)


def judge(refusal: grpc.aio.AioRpcError) -> None:
    """It is a reason of ours, by its own status, and no fault."""
    status, reason = reason_of(refusal)
    told = {each.name: each for each in Reason}.get(reason or status)
    assert told is not None and told.status.name == status, f"{status} {reason}: {refusal}"
    assert told is not Reason.INTERNAL, refusal.details()


async def is_well(run: Running) -> None:
    """Somebody else is served, and nothing of all that is left."""
    ids, _, _ = await collect(run.generation.Generate(prompt_of(5, 6, 7, max_tokens=9)))
    assert ids == reply_to((5, 6, 7), 9)
    await until(lambda: not open_rpcs(run))


@pytest.fixture(scope="module")
def sent() -> Iterator[Callable[[list[tuple[str, bytes]]], None]]:
    """Sends requests, one after another, to one daemon of the module."""
    facts = replace(FACTS, context_tokens_max=CONTEXT)
    with on_own_loop(running(limits=LIMITS, facts=facts)) as (loop, run):

        async def send_all(asked: list[tuple[str, bytes]]) -> None:
            for name, data in asked:
                await send(run, name, data)
            await is_well(run)

        yield lambda asked: loop.run_until_complete(send_all(asked))


Sent = Callable[[list[tuple[str, bytes]]], None]


@settings(max_examples=25)
@given(st.lists(requests(), min_size=1, max_size=6))
def test_whatever_comes_is_answered_or_refused_with_a_reason(
    sent: Sent, asked: list[tuple[str, bytes]]
) -> None:
    sent(asked)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=3000)
@given(st.lists(requests(), min_size=1, max_size=6))
def test_whatever_comes_for_a_long_time(sent: Sent, asked: list[tuple[str, bytes]]) -> None:
    sent(asked)
