"""The commands that talk to a running daemon, each over sapwood.Client.

- They print to stdout what was asked for and nothing else; errors go up as SapwoodError.
- None of them imports a model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

from sapwood import (
    CacheStats,
    Client,
    Conversation,
    Delta,
    GenerateOptions,
    Message,
    PermissionDenied,
    Reply,
)
from sapwood.client import address
from sapwood.client.credentials import read_token
from sapwood.daemon.chat.talk import Talk
from sapwood.daemon.errors import UsageError
from sapwood.daemon.sizes import format_bytes

PROMPT_CHARS_MAX = 4 * 1024 * 1024
SCHEMA_CHARS_MAX = 1024 * 1024


def connect(arguments: argparse.Namespace) -> Client:
    """A client of --connect's address, or of the default ones. Raises UsageError."""
    try:
        return Client(
            arguments.connect,
            token=None if arguments.token_file is None else read_token(arguments.token_file),
            tls_ca=arguments.tls_ca,
            tls_client_cert=arguments.tls_client_cert,
            tls_client_key=arguments.tls_client_key,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def address_of(arguments: argparse.Namespace) -> str:
    """Where `connect` looks, which takes it for an address."""
    return str(address.resolve(arguments.connect, os.environ))


def generate(arguments: argparse.Namespace) -> int:
    """Print the continuation of one prompt as it comes, or all of it as JSON."""
    if arguments.raw and (arguments.system or arguments.thinking is not None):
        raise UsageError("--system and --thinking are for a conversation, --raw is none")
    text = arguments.prompt
    if text in (None, "-"):
        text = sys.stdin.read(PROMPT_CHARS_MAX + 1)
    if arguments.top_logprobs and not arguments.json:
        raise UsageError("--top-logprobs needs --json")
    prompt = text if arguments.raw else conversation(arguments, [Message("user", text)])
    options = sampling_options(arguments)
    options["top_logprobs"] = arguments.top_logprobs
    if arguments.schema is not None:
        options["json_schema"] = _schema(arguments.schema)
    options["regex"] = arguments.regex
    with (
        connect(arguments) as client,
        client.generate(prompt, timeout=arguments.timeout, **options) as stream,
    ):
        if arguments.json:
            print(json.dumps(_as_json(stream.collect())))
            return 0
        for event in stream:
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
        print()
    return 0


def _schema(path: str) -> str:
    """Raises UsageError; what the text says is the daemon's to judge."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(SCHEMA_CHARS_MAX)
    except OSError as error:
        raise UsageError(f"--schema {path}: {error.strerror}") from None


def _as_json(reply: Reply) -> dict[str, object]:
    logprobs = {"logprobs": [asdict(token) for token in reply.logprobs]} if reply.logprobs else {}
    return logprobs | {
        "text": reply.text,
        "thinking": reply.thinking,
        "tool_calls": [asdict(call) for call in reply.tool_calls],
        "token_ids": reply.token_ids,
        "finish": str(reply.finish.reason),
        "stop_sequence": reply.finish.stop_sequence,
        "usage": asdict(reply.finish.usage),
    }


def conversation(arguments: argparse.Namespace, messages: list[Message]) -> Conversation:
    """What is said, behind the system message of the flags."""
    system = [Message("system", arguments.system)] if arguments.system else []
    return Conversation([*system, *messages], thinking=arguments.thinking)


def sampling_options(arguments: argparse.Namespace) -> GenerateOptions:
    """Unset flags stay unset: their defaults are the model's, not ours."""
    return GenerateOptions(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        draft_tokens=arguments.draft_tokens,
        stop=arguments.stop or (),
    )


def chat(arguments: argparse.Namespace) -> int:
    """Talk until `/bye` or the end of input."""
    from sapwood.daemon.chat import run  # what draws and edits takes a while to import

    options = {name: it for name, it in sampling_options(arguments).items() if it not in (None, ())}
    talk = Talk(arguments.system or "", arguments.thinking, options=options)
    with connect(arguments) as client:
        return run.hold_chat(client, talk)


def status(arguments: argparse.Namespace) -> int:
    """What is loaded, how full memory is, what the tree did."""
    with connect(arguments) as client:
        serving = client.is_serving()
        print(f"address    {client.address}  {'serving' if serving else 'not serving'}")
        model = client.get_model()
        try:
            cache = client.cache_stats()
        except PermissionDenied:
            cache = None
    print(f"model      {model.name}  {model.family}, {model.quantization or 'not quantised'}")
    print(f"drafter    {model.drafter or 'none'}")
    print(f"context    {model.context_tokens_max} tokens, vocabulary {model.vocabulary_size}")
    print(f"device     {model.device}, numerics {model.numerics}")
    if cache is None:
        print("memory     is for operators to see")
    else:
        _print_shared(cache)
    return 0 if serving else 1


def _print_shared(cache: CacheStats) -> None:
    """How full memory is, what the tree did: what operators see."""
    memory = cache.memory
    looked_up = cache.hit_tokens + cache.miss_tokens
    share = cache.hit_tokens / looked_up if looked_up else 0.0
    print(
        f"memory     {format_bytes(memory.budget_bytes)}: "
        f"weights {format_bytes(memory.weights_bytes)}, live {format_bytes(memory.live_bytes)}, "
        f"segments {format_bytes(memory.segments_bytes)}, "
        f"snapshots {format_bytes(memory.snapshots_bytes)}, "
        f"workspace {format_bytes(memory.workspace_bytes)}, "
        f"MLX's cache {format_bytes(memory.mlx_cache_bytes)}, "
        f"other {format_bytes(memory.other_bytes)}, "
        f"free {format_bytes(memory.free_bytes)}"
    )
    print(
        f"tree       {cache.nodes} nodes, {cache.depth_tokens} tokens deep, "
        f"{format_bytes(sum(cache.stored.values()))}, {cache.splits} splits, "
        f"{cache.merges} merges, {cache.evictions} evictions, "
        f"{format_bytes(cache.pinned_bytes)} pinned"
    )
    print(f"prefixes   {cache.hit_tokens} of {looked_up} prompt tokens cached ({share:.0%})")
