"""The commands that talk to a running daemon, each over sapwood.Client.

- They print to stdout what was asked for and nothing else; errors go up as SapwoodError.
- None of them imports a model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from sapwood import (
    CacheStats,
    Client,
    Conversation,
    Event,
    Finish,
    FinishReason,
    GenerateOptions,
    Message,
    Model,
    PermissionDenied,
    SapwoodError,
    StoredBytes,
    Stream,
)
from sapwood.client import address
from sapwood.client.credentials import read_token
from sapwood.daemon.chat.plain_reply import PlainReply
from sapwood.daemon.chat.talk import Talk
from sapwood.daemon.errors import UsageError
from sapwood.daemon.input_files import TEXT_CHARS_MAX, read_text, read_tools
from sapwood.daemon.sizes import format_bytes

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
    """Print the continuation of one prompt as it comes, or its events as lines of JSON."""
    conversational = arguments.system or arguments.tools or arguments.thinking is not None
    if arguments.raw and conversational:
        raise UsageError("--system, --tools and --thinking are for a conversation, --raw is none")
    if (arguments.top_logprobs or arguments.prompt_logprobs) and not arguments.json:
        raise UsageError("--top-logprobs and --prompt-logprobs need --json")
    if (arguments.candidates or 1) > 1 and not arguments.json:
        raise UsageError("--candidates needs --json: its events say whose they are")
    options = sampling_options(arguments)
    options["candidates"] = arguments.candidates
    options["top_logprobs"] = arguments.top_logprobs
    options["prompt_logprobs"] = arguments.prompt_logprobs
    if arguments.schema is not None:
        options["json_schema"] = read_text(arguments.schema, SCHEMA_CHARS_MAX)
    options["regex"] = arguments.regex
    options["session"] = arguments.session
    text = prompt_text(arguments.prompt, arguments.file)
    prompt = text if arguments.raw else conversation(arguments, [Message("user", text)])
    with connect(arguments) as client:
        if arguments.session is not None:
            _make_session(client, arguments.session)
        with client.generate(prompt, timeout=arguments.timeout, **options) as stream:
            _print(stream, arguments.json)
    return 0


def _make_session(client: Client, name: str) -> None:
    """Where there is none."""
    try:
        client.create_session(name)
    except SapwoodError as error:
        if error.reason != "SESSION_EXISTS":
            raise


def _print(stream: Stream, as_json: bool) -> None:
    if as_json:
        for event in stream:
            print(json.dumps(event_json(event)), flush=True)
        return
    last: Event | None = None
    with PlainReply(sys.stdout) as shown:
        for last in stream:
            shown.show(last)
    if isinstance(last, Finish) and last.reason is FinishReason.LENGTH:
        tokens = last.usage.completion_tokens
        told = f"cut after {tokens} tokens: by --max-tokens, the daemon's limit or the context"
        print(f"sapwood: {told}", file=sys.stderr)


def prompt_text(words: Sequence[str], files: Sequence[str]) -> str:
    """Files, then words, a blank line between; standard input where there is neither, or for `-`.

    Raises UsageError.
    """
    if not words and not files:
        words = ["-"]
    named = [_standard_input() if path == "-" else read_text(path) for path in files]
    said = [_standard_input()] if list(words) == ["-"] else [" ".join(words)] if words else []
    return "\n\n".join([*named, *said])


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("the prompt comes from here; Ctrl-D ends it", file=sys.stderr)
    return sys.stdin.read(TEXT_CHARS_MAX + 1)


def event_json(event: Event) -> dict[str, object]:
    """One event with its kind, and what is empty left out."""
    told = {name: it for name, it in asdict(event).items() if it not in ("", (), None)}
    if not told.get("candidate"):
        told.pop("candidate", None)
    return {"event": type(event).__name__.lower()} | told


def conversation(arguments: argparse.Namespace, messages: list[Message]) -> Conversation:
    """What is said, behind the system message of the flags."""
    system = [Message("system", arguments.system)] if arguments.system else []
    tools = read_tools(path) if (path := getattr(arguments, "tools", None)) else ()
    return Conversation([*system, *messages], tools, arguments.thinking)


def sampling_options(arguments: argparse.Namespace) -> GenerateOptions:
    """Unset flags stay unset: their defaults are the model's, not ours."""
    return GenerateOptions(
        max_tokens=arguments.max_tokens,
        min_tokens=arguments.min_tokens,
        thinking_tokens_max=arguments.thinking_tokens_max,
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
        if not arguments.json:
            print(f"address    {client.address}  {'serving' if serving else 'not serving'}")
        model = client.get_model()
        try:
            cache = client.cache_stats()
        except PermissionDenied:
            cache = None
    if arguments.json:
        print(json.dumps(_status_json(client.address, serving, model, cache)))
        return 0 if serving else 1
    print(f"model      {model.name}  {model.family}, {model.quantization or 'not quantised'}")
    print(f"drafter    {model.drafter or 'none'}")
    print(f"context    {model.context_tokens_max} tokens, vocabulary {model.vocabulary_size}")
    print(f"device     {model.device}, numerics {_numerics(model)}")
    if cache is None:
        print("memory     is for operators to see")
    else:
        _print_shared(cache)
    return 0 if serving else 1


def _numerics(model: Model) -> str:
    checked = model.self_check not in ("", "off")
    return f"{model.numerics}, self-check {model.self_check}" if checked else model.numerics


def _status_json(
    address: str, serving: bool, model: Model, cache: CacheStats | None
) -> dict[str, object]:
    """cache: null where it is for operators to see."""
    told = None if cache is None else asdict(cache) | {"stored": stored_json(cache.stored)}
    return {"address": address, "serving": serving, "model": asdict(model), "cache": told}


def stored_json(stored: StoredBytes) -> dict[str, dict[str, int]]:
    """Bytes by tier and layer."""
    by_tier: dict[str, dict[str, int]] = {}
    for (tier, layer), size in stored.items():
        by_tier.setdefault(str(tier), {})[str(layer)] = size
    return by_tier


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
