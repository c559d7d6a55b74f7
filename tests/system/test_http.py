"""The whole way over HTTP: `openai`'s and `anthropic`'s own clients, real SMG, the daemon.

The model is scripted (tests/daemon/gateway/serve_scripted.py), so that what a parser makes of a
thought or a call is known to the letter. Where one of the packages is missing these tests are left
out, and say what installs it.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from sapwood.daemon.demo.scrape import scrape, total
from tests.daemon.process.processes import wait_for
from tests.system.over_http import needs_gateway, openai_at, ready_of

pytestmark = needs_gateway

MODEL = "scripted"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


class Served(NamedTuple):
    """A daemon with SMG beside it."""

    ready: Any
    openai: Any

    @property
    def root(self) -> str:
        return f"http://{self.ready['http']}"

    def say(self, what: str, **options: Any) -> Any:
        return self.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"say {what}"}], **options
        )

    def counted(self, name: str, label: str | None = None) -> float:
        return total(scrape(self.ready["metrics"]), name, label)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from openai import OpenAI

    folder = tmp_path_factory.mktemp("http")
    (folder / "c.toml").write_text('http = "127.0.0.1:0"\n')
    command = [sys.executable, "-m", "tests.daemon.gateway.serve_scripted", str(folder)]
    with (
        ready_of(command, folder) as ready,
        OpenAI(**openai_at(ready), max_retries=0, timeout=30) as client,
    ):
        yield Served(ready, client)


def test_a_chat_completion(served: Served) -> None:
    reply = served.say("hello")
    (choice,) = reply.choices
    assert choice.message.content == "Hello there."
    assert (choice.finish_reason, reply.model) == ("stop", MODEL)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens > 1


def test_a_stream_is_the_same_text_and_ends_with_usage(served: Served) -> None:
    whole = served.say("count")
    chunks = list(served.say("count", stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content == "one two three four five"
    assert len([text for text in texts if text]) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_stop_ends_a_reply_before_the_string(served: Served, stream: bool) -> None:
    reply = served.say("count", stop=["three"], stream=stream)
    if stream:
        chunks = [chunk for chunk in reply if chunk.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert (text, reason) == ("one two ", "stop")


def test_max_tokens_is_a_length(served: Served) -> None:
    reply = served.say("forever", max_tokens=7)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 7


def test_a_second_turn_finds_the_first_in_the_cache(served: Served) -> None:
    first = "Please remember these words well, " * 4 + "and say count"
    messages = [{"role": "user", "content": first}]
    create = served.openai.chat.completions.create
    reply = create(model=MODEL, messages=messages)
    messages += [{"role": "assistant", "content": reply.choices[0].message.content}]
    messages += [{"role": "user", "content": "say hello"}]
    again = create(model=MODEL, messages=messages)
    assert again.usage.prompt_tokens_details.cached_tokens >= reply.usage.prompt_tokens


def test_what_speculation_did_is_in_the_usage(served: Served) -> None:
    details = served.say("count").usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0


def test_log_probabilities(served: Served) -> None:
    reply = served.say("hello", logprobs=True, top_logprobs=2)
    told = reply.choices[0].logprobs.content
    assert "".join(one.token for one in told).startswith("Hello")
    assert all(len(one.top_logprobs) == 2 for one in told)


def test_32_clients_at_once(served: Served) -> None:
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(served.say, ["count", "hello"] * 16))
    texts = [reply.choices[0].message.content for reply in replies]
    assert texts == ["one two three four five", "Hello there."] * 16


def test_who_hangs_up_is_not_generated_for(served: Served) -> None:
    before = served.counted("requests_total", "cancelled")
    stream = served.say("forever", max_tokens=3900, stream=True)
    next(iter(stream))
    left = time.monotonic()
    stream.close()
    wait_for(lambda: served.counted("requests_total", "cancelled") > before)
    assert time.monotonic() - left < 20.0, "and not when SMG lets go of the stream, 30 s later"
    assert served.counted("requests_running") == 0


def test_models_and_an_unknown_one(served: Served) -> None:
    from openai import NotFoundError

    assert [model.id for model in served.openai.models.list()] == [MODEL]
    with pytest.raises(NotFoundError):
        served.openai.chat.completions.create(
            model="another", messages=[{"role": "user", "content": "say hello"}]
        )


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 7}, {"n": 2}, {"max_tokens": 0}, {"stop": ["x" * 65]}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_parameter_is_a_bad_request(served: Served, wrong: dict[str, Any]) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError):
        served.say("hello", **wrong)
    assert served.say("hello").choices[0].message.content == "Hello there."


def test_a_prompt_that_is_too_long_is_a_bad_request(served: Served) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError):
        served.say("hello " * 5000)


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_comes_apart_from_the_answer(served: Served, stream: bool) -> None:
    reply = served.say("think", stream=stream)
    said = (
        [chunk.choices[0].delta for chunk in reply if chunk.choices]
        if stream
        else [reply.choices[0].message]
    )
    thought = "".join(getattr(part, "reasoning_content", None) or "" for part in said)
    assert thought == "hmm, well\n", "with the line break at its end, which our own parser drops"
    assert "".join(part.content or "" for part in said) == "So it is."
    if not stream:
        assert reply.usage.completion_tokens_details.reasoning_tokens > 0


def test_tools_over_several_turns(served: Served) -> None:
    create = served.openai.chat.completions.create
    messages: list[Any] = [{"role": "user", "content": "say thoughtful"}]
    reply = create(model=MODEL, messages=messages, tools=[WEATHER])
    (choice,) = reply.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.reasoning_content == "I must ask.\n"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris", "days": 2}
    messages += [choice.message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Rain; now say twice"}]
    (choice,) = create(model=MODEL, messages=messages, tools=[WEATHER]).choices
    cities = [json.loads(one.function.arguments)["city"] for one in choice.message.tool_calls]
    assert cities == ["Paris", "Rome"]
    assert len({one.id for one in choice.message.tool_calls}) == 2
    messages += [choice.message.model_dump(exclude_none=True)]
    messages += [
        {"role": "tool", "tool_call_id": one.id, "content": "Sun; say hello"}
        for one in choice.message.tool_calls
    ]
    (choice,) = create(model=MODEL, messages=messages, tools=[WEATHER]).choices
    assert (choice.message.content, choice.finish_reason) == ("Hello there.", "stop")


def test_calls_in_a_stream(served: Served) -> None:
    chunks = [chunk for chunk in served.say("twice", tools=[WEATHER], stream=True) if chunk.choices]
    calls: dict[int, str] = {}
    for part in (part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()):
        calls[part.index] = calls.get(part.index, "") + (part.function.arguments or "")
    assert [json.loads(text)["city"] for text in calls.values()] == ["Paris", "Rome"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks), "no markup in the text"


def test_several_choices_need_a_temperature(served: Served) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="need a temperature above 0"):
        served.say("hello", n=2)
    reply = served.say("hello", n=2, temperature=0.01)
    assert sorted(choice.index for choice in reply.choices) == [0, 1]
    assert {choice.message.content for choice in reply.choices} == {"Hello there."}


def test_the_control_plane_is_closed(served: Served) -> None:
    for method, path in (
        *(("GET", "/workers"), ("POST", "/workers"), ("POST", "/flush_cache")),
        *(("POST", "/add_worker?url=grpc://127.0.0.1:1"), ("GET", "/get_loads")),
    ):
        request = urllib.request.Request(f"{served.root}{path}", method=method, data=b"{}")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as refused:
            assert refused.code in (401, 403, 404, 405), path


def test_anthropics_messages(served: Served) -> None:
    from anthropic import Anthropic

    with Anthropic(base_url=served.root, api_key="none", max_retries=0) as client:
        said: Any = [{"role": "user", "content": "say hello"}]
        reply: Any = client.messages.create(model=MODEL, max_tokens=50, messages=said)
        assert [block.text for block in reply.content] == ["Hello there."]
        assert reply.stop_reason == "end_turn"
        with client.messages.stream(model=MODEL, max_tokens=50, messages=said) as stream:
            assert "".join(stream.text_stream) == "Hello there."
