"""Clients of the two contestants that speak gRPC: ours, and SMG's servicer over mlx-lm.

- SMG's takes token ids, as its router sends them, and gives token ids back: the prompt is tokenised
  before its clock starts and the reply is decoded after, so that it pays for neither.
- Its messages are read off its own server by reflection: no copy of its contract lies here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
from anyio import to_thread
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from bench.measure import BenchError
from bench.peers.heard import ChatClient, Heard, PeerChat
from bench.peers.prompts import PROMPT_TOKENIZER, as_dicts
from sapwood import AsyncClient, Delta, Finish, SapwoodError
from sapwood.client.values import GenerateOptions, Usage

SMG_SERVICE = "mlx.grpc.engine.MlxEngine"
_clock = time.perf_counter


class OurClient:
    """draft_tokens: None where the daemon decides."""

    def __init__(self, client: AsyncClient, draft_tokens: int | None) -> None:
        self._client, self._draft_tokens = client, draft_tokens

    async def ask(self, chat: PeerChat, tokens_max: int) -> Heard:
        """A greedy reply. Raises BenchError."""
        options = GenerateOptions(
            max_tokens=tokens_max, temperature=0.0, draft_tokens=self._draft_tokens
        )
        asked, messages, texts = _clock(), [], []
        usage: Usage | None = None
        try:
            async with self._client.generate(list(chat), **options) as stream:
                async for event in stream:
                    if isinstance(event, Delta) and event.text:
                        messages.append(_clock())
                        texts.append(event.text)
                    elif isinstance(event, Finish):
                        usage = event.usage
        except SapwoodError as error:
            raise BenchError(f"ours: {error}") from error
        ended = _clock()
        if usage is None or not messages:
            raise BenchError("ours: a reply without text or without an end")
        return Heard(
            asked,
            tuple(messages),
            ended,
            "".join(texts),
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.draft_tokens,
            usage.accepted_tokens,
        )


@asynccontextmanager
async def our_clients(
    address: str, count: int, draft_tokens: int | None
) -> AsyncIterator[list[ChatClient]]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address)) for _ in range(count)]
        for client in clients:
            # Not left to the request: it would be asked again after the second that a daemon names.
            if not await client.is_serving():
                raise BenchError("ours: not serving yet")
        yield [OurClient(client, draft_tokens) for client in clients]


class SmgClient:
    """messages: the classes of its contract, by name."""

    def __init__(self, channel: grpc.aio.Channel, messages: dict[str, Any]) -> None:
        self._messages = messages
        self._generate = channel.unary_stream(
            f"/{SMG_SERVICE}/Generate",
            request_serializer=messages["GenerateRequest"].SerializeToString,
            response_deserializer=messages["GenerateResponse"].FromString,
        )

    async def ask(self, chat: PeerChat, tokens_max: int) -> Heard:
        """A greedy reply. Raises BenchError."""
        request = self._request(PROMPT_TOKENIZER.encode_messages(as_dicts(chat)), tokens_max)
        asked, messages, ids = _clock(), [], []
        complete: Any = None
        try:
            async for response in self._generate(request):
                if response.HasField("complete"):
                    complete = response.complete
                elif response.chunk.token_ids:
                    messages.append(_clock())
                    ids += response.chunk.token_ids
        except grpc.aio.AioRpcError as error:
            raise BenchError(f"smg: {error.code().name}: {error.details()}") from error
        ended = _clock()
        if complete is None or not messages:
            raise BenchError("smg: a reply without tokens or without an end")
        text = PROMPT_TOKENIZER.decode(ids)
        prompt, cached = complete.prompt_tokens, complete.cached_tokens
        return Heard(asked, tuple(messages), ended, text, prompt, cached)

    def _request(self, ids: list[int], tokens_max: int) -> Any:
        make = self._messages
        return make["GenerateRequest"](
            request_id=uuid4().hex,
            tokenized=make["TokenizedInput"](input_ids=ids),
            sampling_params=make["SamplingParams"](
                temperature=0.0,
                max_tokens=tokens_max,
                top_p=1.0,
                stop_token_ids=sorted(PROMPT_TOKENIZER.eos_token_ids),
            ),
            stream=True,
        )


@asynccontextmanager
async def smg_clients(address: str, count: int) -> AsyncIterator[list[ChatClient]]:
    messages = await to_thread.run_sync(smg_messages, address)
    async with AsyncExitStack() as stack:
        clients: list[ChatClient] = []
        for number in range(count):
            # Channels with equal options would share one connection.
            options = [("grpc.use_local_subchannel_pool", 1), ("sapwood.bench", number)]
            channel = grpc.aio.insecure_channel(address, options)
            await stack.enter_async_context(channel)
            await channel.channel_ready()
            clients.append(SmgClient(channel, messages))
        yield clients


def smg_messages(address: str) -> dict[str, Any]:
    """Classes of its messages, read off the running server."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        file = pool.FindServiceByName(SMG_SERVICE).file
        return {
            name: GetMessageClass(message) for name, message in file.message_types_by_name.items()
        }
