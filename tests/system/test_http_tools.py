"""Over HTTP to the bundled pair: documents by schema, and the tools that docs/openai.md names.

Only what is a Python package can be tried here; the others of that page are programs with windows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.system.over_http import needs_gateway, openai_at, ready_of

pytestmark = [needs_gateway, pytest.mark.timeout(240)]

MODEL = "sapwood-demo"
QUESTION: list[Any] = [{"role": "user", "content": "What is a river?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["water", "stone"]},
        "length": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "length"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tools")
    anywhere = "127.0.0.1:0"
    flags = ["--http", anywhere, "--listen", anywhere, "--metrics", anywhere]
    command = [sys.executable, "-m", "sapwood", "serve", *flags]
    with ready_of([*command, "--ready-file", str(folder / "ready.json")], folder) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_is_a_document_of_its_schema(ready: Any, stream: bool) -> None:
    from openai import OpenAI

    wanted: Any = {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}
    with OpenAI(**openai_at(ready), max_retries=0, timeout=60) as client:
        reply: Any = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=200, temperature=1.0, seed=4,
            response_format=wanted, stream=stream,
        )  # fmt: skip
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
        else:
            assert reply.choices[0].finish_reason == "stop"
            text = reply.choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.long
@pytest.mark.outside("litellm")
def test_litellm(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # else it asks GitHub for prices
    import litellm

    at = openai_at(ready)
    asked: dict[str, Any] = {
        "model": f"openai/{MODEL}", "api_base": at["base_url"], "api_key": at["api_key"],
        "messages": QUESTION, "max_tokens": 20,
    }  # fmt: skip
    reply: Any = litellm.completion(**asked)
    text = reply.choices[0].message.content
    assert text and reply.usage.completion_tokens <= 20
    chunks: Any = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


@pytest.mark.long
@pytest.mark.outside("langchain")
def test_langchain(ready: Any) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, **openai_at(ready), max_tokens=200, temperature=0)
    text = model.invoke("What is a river?").content
    assert (
        text and "".join(str(chunk.content) for chunk in model.stream("What is a river?")) == text
    )
    held = model.with_structured_output({"title": "river", **SCHEMA}, method="json_schema")
    jsonschema.validate(held.invoke("What is a river?"), SCHEMA)
