"""The TypeScript client, generated, built and run under Node as its page says.

It needs a package index for Node's packages. Each test is one program over the built client.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import sapwood
from sapwood.daemon import blas
from tests.examples.test_examples import address
from tests.outside import program
from tests.test_rooms import ROOT

__all__ = ["address"]  # a fixture

pytestmark = [pytest.mark.outside("node"), pytest.mark.timeout(600)]
HERE = ROOT / "examples" / "typescript"
Says = Callable[..., str]
QUESTION = "What is a river?"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client in a copy of the repository's shape, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("node") / "examples" / "typescript"
    left_out = shutil.ignore_patterns("node_modules", "dist", "generated")
    shutil.copytree(HERE, place, ignore=left_out)
    shutil.copytree(ROOT / "proto" / "sapwood", place.parents[1] / "proto" / "sapwood")
    node(place, "npm", "ci", "--no-audit", "--no-fund")
    return place


def node(place: Path, *command: str, **environment: str) -> str:
    path = f"{program('node').parent}{os.pathsep}{os.environ['PATH']}"
    env = blas.environment(os.environ) | {"PATH": path} | environment
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def says(built: Path, address: str) -> Says:
    """Runs lines of a module that have a client, and gives what they print."""

    def said(*lines: str) -> str:
        head = 'import { SapwoodClient, SapwoodError } from "./dist/client.js";'
        client = f'const client = new SapwoodClient("{address}");'
        (built / "said.mjs").write_text("\n".join([head, client, *lines, "client.close();"]))
        return node(built, "node", "said.mjs")

    return said


def test_the_example_says_what_the_python_client_says(built: Path, address: str) -> None:
    told = node(built, "npm", "run", "--silent", "ask", "--", QUESTION, SAPWOOD_ADDRESS=address)
    with sapwood.Client(address) as client:
        message = sapwood.Message("user", QUESTION)
        reply = client.generate([message], temperature=0, max_tokens=200).collect()
    text, _, took = told.rstrip("\n").rpartition("\n")
    assert text == reply.text
    assert took.startswith(f"{reply.finish.usage.completion_tokens} tokens")


def test_a_refusal_has_its_reason_and_its_field(says: Says) -> None:
    told = says(
        "try {",
        '  await client.reply({ prompt: { $case: "text", value: "a" }, maxTokens: 0 });',
        "} catch (error) {",
        "  console.log(error instanceof SapwoodError, error.code, error.reason, ...error.fields);",
        "}",
    )
    assert told == "true INVALID_ARGUMENT BAD_REQUEST max_tokens\n"


def test_leaving_the_loop_cancels_the_reply_and_the_client_goes_on(says: Says) -> None:
    told = says(
        'const prompt = { $case: "text", value: "a" };',
        "const endless = { prompt, maxTokens: 4000, ignoreEos: true };",
        "for await (const event of client.generate(endless)) {",
        '  if (event.$case === "delta") break;',
        "}",
        "const stop = new AbortController();",
        "try {",
        "  for await (const _ of client.generate(endless, { signal: stop.signal })) stop.abort();",
        "} catch (error) { console.log(error.code); }",
        "const reply = await client.reply({ prompt, maxTokens: 3, ignoreEos: true, seed: 7n });",
        "console.log(reply.tokenIds.length, reply.finish.usage.completionTokens);",
        "console.log((await client.getModel()).vocabularySize > 0);",
    )
    assert told == "CANCELLED\n3 3\ntrue\n"
