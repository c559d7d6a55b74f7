"""Types as schemas and functions as tools, through both clients, against a scripted model."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import pytest

import sapwood
from sapwood.v1 import generation_pb2, prompt_pb2
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import (
    FakeDaemon,
    Request,
    Responses,
    Script,
    delta,
    finish,
    prefill,
    serving,
)

pytestmark = pytest.mark.anyio
ASKED = [sapwood.Message("user", "a coat in Paris?")]


@dataclass
class Day:
    name: str
    rain: bool


@dataclass
class Trip:
    city: str
    days: list[Day]
    by: Literal["train", "boat"] = "train"


class Room(pydantic.BaseModel):
    beds: Annotated[int, pydantic.Field(ge=1, le=4)]


def says(text: str, reason: Any = generation_pb2.FINISH_REASON_STOP) -> Script:
    def reply(request: Request, _: Any) -> Responses:
        yield prefill(0, 3, 3)
        yield delta(text, 7)
        yield finish(reason)

    return reply


def calls(*rounds: list[dict[str, str]]) -> Script:
    """A model that calls these, round by round, and then says what it was told last."""
    left = list(rounds)

    def reply(request: Request, _: Any) -> Responses:
        yield prefill(0, 3, 3)
        if left:
            made = [prompt_pb2.ToolCall(**call) for call in left.pop(0)]
            yield generation_pb2.GenerateResponse(delta=generation_pb2.Delta(tool_calls=made))
        else:
            yield delta(request.messages.messages[-1].content, 7)
        yield finish()

    return reply


async def parsed(connect: Connect, script: Script, of: type[Any], **options: Any) -> Any:
    daemon = FakeDaemon(script)
    with serving(daemon, "127.0.0.1:0") as address:
        async with connect(address) as client:
            value: Any = client.parse(ASKED, of, **options)
            value = await value if inspect.isawaitable(value) else value
    return value, json.loads(daemon.requests[0].json_schema)


async def ran(
    connect: Connect, script: Script, functions: list[Callable[..., Any]], **options: Any
) -> tuple[sapwood.ToolRun, list[Request]]:
    daemon = FakeDaemon(script)
    with serving(daemon, "127.0.0.1:0") as address:
        async with connect(address) as client:
            run: Any = client.run_tools(options.pop("prompt", ASKED), functions, **options)
            run = await run if inspect.isawaitable(run) else run
    return run, daemon.requests


async def test_a_reply_becomes_a_value_of_a_dataclass(connect: Connect) -> None:
    text = '{"city":"Rome","days":[{"name":"Monday","rain":false}]}'
    value, schema = await parsed(connect, says(text), Trip)
    assert value == Trip("Rome", [Day("Monday", False)])
    assert schema["required"] == ["city", "days"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Day"]["additionalProperties"] is False


async def test_a_reply_becomes_a_model_of_pydantic(connect: Connect) -> None:
    value, schema = await parsed(connect, says('{"beds":2}'), Room)
    assert value == Room(beds=2)
    assert (schema["properties"]["beds"]["minimum"], schema["properties"]["beds"]["maximum"]) == (
        (1, 4)
    )


async def test_a_type_may_say_that_its_objects_are_open(connect: Connect) -> None:
    value, schema = await parsed(connect, says('{"a":1}'), dict[str, int])
    assert value == {"a": 1}
    assert schema["additionalProperties"] == {"type": "integer"}


async def test_a_reply_that_was_cut_is_no_value_and_not_lost(connect: Connect) -> None:
    with pytest.raises(sapwood.IncompleteReply, match="ended with length") as caught:
        await parsed(connect, says('{"beds":', generation_pb2.FINISH_REASON_LENGTH), Room)
    assert caught.value.reply.text == '{"beds":'


async def test_a_constraint_beside_a_type_is_a_mistake(connect: Connect) -> None:
    with pytest.raises(TypeError, match="takes no regex"):
        await parsed(connect, says(""), Room, regex="a")


def weather(city: str, days: int = 1) -> dict[str, Any]:
    """The weather of a city.

    days: how far to look.
    """
    if city == "Atlantis":
        raise sapwood.ToolError("it has sunk")
    return {"city": city, "days": days}


PARIS = {"name": "weather", "arguments": '{"city":"Paris"}', "id": "c1"}


async def test_a_function_is_told_and_called(connect: Connect) -> None:
    run, (first, second) = await ran(connect, calls([PARIS]), [weather], temperature=0)
    (tool,) = first.messages.tools
    assert (tool.name, tool.description) == ("weather", inspect.getdoc(weather))
    parameters = json.loads(tool.parameters)
    assert parameters["required"] == ["city"]
    assert parameters["properties"]["days"]["type"] == "integer"
    assert parameters["additionalProperties"] is False
    answered = second.messages.messages[-1]
    assert (answered.role, answered.tool_name, answered.tool_call_id) == ("tool", "weather", "c1")
    assert run.reply.text == answered.content == '{"city":"Paris","days":1}'
    assert [m.role for m in run.messages if isinstance(m, sapwood.Message)] == [
        *("user", "assistant", "tool", "assistant")
    ]
    assert first.sampling.temperature == second.sampling.temperature == 0


async def test_calls_of_one_round_are_answered_in_order(connect: Connect) -> None:
    both = [PARIS, {"name": "weather", "arguments": '{"city":"Rome","days":3}', "id": "c2"}]
    _, (_, second) = await ran(connect, calls(both), [weather])
    contents = [(m.tool_call_id, json.loads(m.content)) for m in second.messages.messages[-2:]]
    assert contents == [
        ("c1", {"city": "Paris", "days": 1}),
        ("c2", {"city": "Rome", "days": 3}),
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"name": "other", "arguments": "{}"}, "there is no tool 'other'"),
        ({"name": "weather", "arguments": "{}"}, "city: Field required"),
        ({"name": "weather", "arguments": '{"city":7}'}, "city: Input should be a valid string"),
        ({"name": "weather", "arguments": '{"city":"Rome","x":1}'}, "x: Extra inputs are not"),
        ({"name": "weather", "arguments": '{"city":"Atlantis"}'}, "it has sunk"),
    ],
)
async def test_what_does_not_fit_is_told_to_the_model(
    connect: Connect, call: dict[str, str], words: str
) -> None:
    run, _ = await ran(connect, calls([call]), [weather])
    assert json.loads(run.reply.text)["error"].startswith(words)


async def test_what_a_function_raises_is_the_callers(connect: Connect) -> None:
    def weather(city: str) -> str:
        raise LookupError(city)

    with pytest.raises(LookupError, match="Paris"):
        await ran(connect, calls([PARIS]), [weather])


async def test_rounds_have_a_bound_and_what_was_said_is_kept(connect: Connect) -> None:
    with pytest.raises(sapwood.TooManyRounds, match="after 2 rounds") as caught:
        await ran(connect, calls(*[[PARIS]] * 3), [weather], rounds_max=2)
    assert len(caught.value.messages) == 5


async def test_a_call_that_is_asked_for_is_asked_for_once(connect: Connect) -> None:
    _, (first, second) = await ran(connect, calls([PARIS]), [weather], tool_choice="required")
    assert first.tool_choice.mode == prompt_pb2.TOOL_CHOICE_MODE_REQUIRED
    assert second.tool_choice.mode == prompt_pb2.TOOL_CHOICE_MODE_AUTO


async def test_coroutines_are_the_asynchronous_clients() -> None:
    async def weather(city: str) -> str:
        return f"rain in {city}"

    with serving(FakeDaemon(calls([PARIS])), "127.0.0.1:0") as address:
        async with sapwood.AsyncClient(address) as client:
            run = await client.run_tools(ASKED, [weather])
    assert run.reply.text == "rain in Paris"
    with sapwood.Client(address) as sync, pytest.raises(TypeError, match="AsyncClient"):
        sync.run_tools(ASKED, [weather])


def positional(city: str, /) -> str:
    return city


def variadic(*cities: str) -> str:
    return cities[0]


def bare(city) -> str:  # type: ignore[no-untyped-def]
    return str(city)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([positional], "cannot be given by its name"),
        ([variadic], "cannot be given by its name"),
        ([bare], "has no annotation"),
        ([weather, weather], "two of the functions have one name"),
    ],
)
async def test_functions_that_are_no_tools(
    connect: Connect, functions: list[Callable[..., Any]], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        await ran(connect, calls(), functions)


async def test_tools_beside_functions_are_a_mistake(connect: Connect) -> None:
    talk = sapwood.Conversation(ASKED, [sapwood.Tool("other")])
    with pytest.raises(TypeError, match="tools are the functions"):
        await ran(connect, calls(), [weather], prompt=talk)


async def test_without_pydantic_one_line_says_what_to_install(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImportError, match=r"pip install 'sapwood\[typed\]'"):
        await parsed(connect, says(""), Trip)
