"""The commands that talk to a running daemon, each over sapwood.Client.

- They print to stdout what was asked for and nothing else; errors go up as SapwoodError.
- Ctrl-C in `chat` cancels the reply, not the conversation.
- None of them imports a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console

from sapwood import Client, Conversation, Delta, Finish, GenerateOptions, Message, Prompt, Reply
from sapwood.daemon.errors import UsageError
from sapwood.daemon.render import draw_tree
from sapwood.daemon.sizes import format_bytes

PROMPT_CHARS_MAX = 4 * 1024 * 1024
SCHEMA_CHARS_MAX = 1024 * 1024


def connect(arguments: argparse.Namespace) -> Client:
    """A client of --connect's address, or of the default ones. Raises UsageError."""
    try:
        return Client(arguments.connect)
    except ValueError as error:
        raise UsageError(str(error)) from None


def generate(arguments: argparse.Namespace) -> int:
    """Print the continuation of one prompt as it comes, or all of it as JSON."""
    if arguments.raw and (arguments.system or arguments.thinking is not None):
        raise UsageError("--system and --thinking are for a conversation, --raw is none")
    text = arguments.prompt
    if text in (None, "-"):
        text = sys.stdin.read(PROMPT_CHARS_MAX + 1)
    if arguments.top_logprobs and not arguments.json:
        raise UsageError("--top-logprobs needs --json")
    prompt = text if arguments.raw else _conversation(arguments, [Message("user", text)])
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


def _conversation(arguments: argparse.Namespace, messages: list[Message]) -> Conversation:
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
    """Talk until /quit or the end of input; the whole conversation goes along each time."""
    console = Console(highlight=False)
    history: list[Message] = []
    options = sampling_options(arguments)
    with connect(arguments) as client:
        model = client.get_model()
        console.print(f"{model.name}. /quit leaves, Ctrl-C stops a reply.", style="dim")
        for line in _lines(console):
            history.append(Message("user", line))
            prompt = _conversation(arguments, history)
            history.append(Message("assistant", _reply(client, prompt, options, console)))
    return 0


def _lines(console: Console) -> Iterator[str]:
    while True:
        try:
            line = console.input("[bold cyan]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        if line:
            yield line


def _reply(client: Client, prompt: Prompt, options: GenerateOptions, console: Console) -> str:
    """Stream one reply; what was said of a cancelled one stays in the conversation.

    What the model thinks is shown dim and not kept: a template drops it from past turns.
    """
    shown: list[str] = []
    thinks = False
    with client.generate(prompt, **options) as stream:
        try:
            for event in stream:
                if isinstance(event, Delta):
                    if event.thinking:
                        thinks = True
                        console.out(event.thinking, end="", highlight=False, style="dim")
                    if event.text and thinks:
                        thinks = False
                        console.out()
                    shown.append(event.text)
                    console.out(event.text, end="", highlight=False)
                elif isinstance(event, Finish):
                    usage = event.usage
                    note = f"{usage.completion_tokens} tokens, {usage.cached_tokens} cached"
                    console.print(f"\n[dim]{note}[/]")
        except KeyboardInterrupt:
            stream.cancel()
            console.print("\n[dim]cancelled[/]")
    return "".join(shown)


def status(arguments: argparse.Namespace) -> int:
    """What is loaded, how full memory is, what the tree did."""
    with connect(arguments) as client:
        serving = client.is_serving()
        print(f"address    {client.address}  {'serving' if serving else 'not serving'}")
        model, cache = client.get_model(), client.cache_stats()
    memory = cache.memory
    looked_up = cache.hit_tokens + cache.miss_tokens
    share = cache.hit_tokens / looked_up if looked_up else 0.0
    print(f"model      {model.name}  {model.family}, {model.quantization or 'not quantised'}")
    print(f"drafter    {model.drafter or 'none'}")
    print(f"context    {model.context_tokens_max} tokens, vocabulary {model.vocabulary_size}")
    print(f"device     {model.device}, numerics {model.numerics}")
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
        f"{cache.merges} merges, {cache.evictions} evictions"
    )
    print(f"prefixes   {cache.hit_tokens} of {looked_up} prompt tokens cached ({share:.0%})")
    return 0 if serving else 1


def tree(arguments: argparse.Namespace) -> int:
    """Draw the prefix tree."""
    with connect(arguments) as client:
        nodes = list(client.describe_tree())
    Console().print(draw_tree(nodes))
    return 0
