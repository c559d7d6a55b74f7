"""What becomes a constraint of a request: what is asked of its builder, and what is refused."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from typing import Any

import pytest

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.admission import Admission
from sapwood.model.constraints.spec import ConstraintRefused, ConstraintSpec
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import SamplingDefaults
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.daemon.conftest import prompt_of
from tests.daemon.fakes import FACTS, SOMEBODY, ByteTokenizer

pytestmark = pytest.mark.anyio

CALL = 200
CONTROL = ControlTokens(call_start=CALL, call_end=201, quote=202)
LIMITS = Limits(constraint_bytes_max=64, constraint_workers=1, constraint_calls_max=2)
TOOLS = (("f", '{"type": "object"}'), ("g", ""))


class Builder:
    """Takes whatever it is told, unless it is told to refuse; `gate` holds it."""

    def __init__(self, takes_lark: bool = True) -> None:
        self.takes_lark = takes_lark
        self.asked: list[ConstraintSpec] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def compile(self, spec: ConstraintSpec) -> object:
        self.threads.add(threading.current_thread().name)
        self.gate.wait(10)
        self.asked.append(spec)
        if "no" in spec.text:
            raise ConstraintRefused("it has a no in it")
        return spec

    def close(self) -> None:
        self.closed = True


def door(builder: Builder | None, control: ControlTokens = CONTROL) -> Admission:
    facts = replace(FACTS, control_tokens=control)
    card = ModelCard("m", "f", b"key", facts, SamplingDefaults(), ByteTokenizer(), builder)
    return Admission(card, LIMITS, None)


async def admitted(request: pb.GenerateRequest, builder: Builder | None = None) -> Request:
    admission = door(builder or Builder())
    try:
        return await admission.admit(request, 1.0, SOMEBODY)
    finally:
        admission.close()


def talk(thinking: bool | None = None, **fields: Any) -> pb.GenerateRequest:
    messages = prompt_pb2.Messages(
        messages=[prompt_pb2.Message(role="user", content="hi")],
        tools=[prompt_pb2.Tool(name=name, parameters=text) for name, text in TOOLS],
        thinking=thinking,
    )
    return pb.GenerateRequest(messages=messages, **fields)


def mode(value: int) -> prompt_pb2.ToolChoice:
    return prompt_pb2.ToolChoice(mode=value)  # type: ignore[arg-type]


ASKED: dict[str, tuple[pb.GenerateRequest, ConstraintSpec | None]] = {
    "nothing": (talk(), None),
    "a schema": (prompt_of(5, json_schema="{}"), ConstraintSpec("json_schema", "{}")),
    "a regex": (talk(True, regex="a"), ConstraintSpec("regex", "a", thinks=True)),
    "a grammar": (talk(False, grammar="start:"), ConstraintSpec("grammar", "start:")),
    "auto": (
        talk(tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_AUTO)),
        ConstraintSpec("calls", tools=TOOLS, talks=True),
    ),
    "required": (
        talk(True, tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_REQUIRED)),
        ConstraintSpec("calls", tools=TOOLS, thinks=True),
    ),
    "by name": (
        talk(tool_choice=prompt_pb2.ToolChoice(name="g")),
        ConstraintSpec("calls", tools=TOOLS[1:], once=True),
    ),
    "none": (talk(tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_NONE)), None),
    "none, and a schema": (
        talk(tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_NONE), json_schema="{}"),
        ConstraintSpec("json_schema", "{}"),
    ),
}


@pytest.mark.parametrize("name", ASKED)
async def test_what_is_asked_of_the_builder_and_carried_on(name: str) -> None:
    request, spec = ASKED[name]
    builder = Builder()
    result = await admitted(request, builder)
    assert result.constraint == spec
    assert builder.asked == ([] if spec is None else [spec])
    assert all(thread.startswith("constraints") for thread in builder.threads)
    assert builder.closed


async def test_no_calls_is_a_bias_that_no_bias_brings_back() -> None:
    sampling = {"logit_bias": {CALL: 100.0, 7: 1.0}}
    choice = mode(prompt_pb2.TOOL_CHOICE_MODE_NONE)
    result = await admitted(talk(tool_choice=choice, sampling=sampling))
    assert result.sampling.logit_bias == ((7, 1.0), (CALL, -math.inf))
    assert (await admitted(talk(sampling=sampling))).sampling.logit_bias == (
        (7, 1.0),
        (CALL, 100.0),
    )
    admission = door(None, ControlTokens())
    result = await admission.admit(talk(tool_choice=choice), 1.0, SOMEBODY)
    assert result.sampling.logit_bias == () and result.constraint is None
    admission.close()


REFUSED: dict[str, tuple[pb.GenerateRequest, Reason, str]] = {
    "empty": (talk(regex=""), Reason.BAD_CONSTRAINT, "regex"),
    "refused": (talk(json_schema="no"), Reason.BAD_CONSTRAINT, "json_schema"),
    "past the bytes": (talk(regex="ä" * 32 + "a"), Reason.BAD_CONSTRAINT, "regex"),
    "ends not": (talk(regex="a", ignore_eos=True), Reason.BAD_REQUEST, "ignore_eos"),
    "ends late": (talk(regex="a", min_tokens=1), Reason.BAD_REQUEST, "min_tokens"),
    "both": (
        talk(regex="a", tool_choice=prompt_pb2.ToolChoice(name="f")),
        Reason.BAD_REQUEST, "tool_choice",
    ),
    "no choice": (talk(tool_choice=prompt_pb2.ToolChoice()), Reason.BAD_REQUEST, "tool_choice"),
    "mode 0": (talk(tool_choice=mode(0)), Reason.BAD_REQUEST, "tool_choice"),
    "mode 9": (talk(tool_choice=mode(9)), Reason.BAD_REQUEST, "tool_choice"),
    "no such tool": (
        talk(tool_choice=prompt_pb2.ToolChoice(name="h")), Reason.BAD_REQUEST, "tool_choice.name",
    ),
    "no tools": (
        prompt_of(5, tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_AUTO)),
        Reason.BAD_REQUEST, "tool_choice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_and_by_which_name(name: str) -> None:
    request, reason, field = REFUSED[name]
    with pytest.raises(Refused) as caught:
        await admitted(request)
    assert (caught.value.reason, caught.value.field) == (reason, field)


async def test_as_many_bytes_as_there_may_be() -> None:
    assert (await admitted(talk(regex="ä" * 32))).constraint is not None


async def test_what_this_daemon_or_model_cannot_do_is_unsupported() -> None:
    auto = talk(tool_choice=mode(prompt_pb2.TOOL_CHOICE_MODE_AUTO))
    for admission, request, field in (
        (door(Builder(takes_lark=False)), talk(grammar="start:"), "grammar"),
        (door(Builder(), replace(CONTROL, quote=None)), auto, "tool_choice"),
        (door(None), talk(json_schema="{}"), "json_schema"),
        (door(None), auto, "tool_choice"),
    ):
        with pytest.raises(Refused) as caught:
            await admission.admit(request, 1.0, SOMEBODY)
        assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, field)
        assert field in caught.value.message
        admission.close()


async def test_builds_wait_in_a_bounded_queue_and_hold_up_nobody_else() -> None:
    builder = Builder()
    admission = door(builder)
    builder.gate.clear()
    waiting = [
        asyncio.ensure_future(admission.admit(prompt_of(5, regex="a"), 1.0, SOMEBODY))
        for _ in range(2)
    ]
    await asyncio.sleep(0.05)
    with pytest.raises(Refused, match="too many constraints wait to be built") as caught:
        await admission.admit(prompt_of(5, regex="a"), 1.0, SOMEBODY)
    assert caught.value.reason is Reason.QUEUE_FULL and caught.value.retry_after_s
    assert (await admission.admit(prompt_of(5), 1.0, SOMEBODY)).constraint is None
    builder.gate.set()
    assert all(request.constraint for request in await asyncio.gather(*waiting))
    admission.close()
