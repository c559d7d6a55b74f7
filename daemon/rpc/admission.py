"""The only door: a GenerateRequest becomes a scheduler Request, or is Refused.

- Counts and scalars are checked before anything is allocated or computed in proportion to them.
- Tokenising runs in `tokenise_workers` threads, off the event loop. What cannot fit into the
  context by its length alone is refused before.
- Messages never give placeholders of images and sound: only the text part is loaded. In text and
  ids they are tokens, which the model computes as its pad token.
- A request that leaves here is servable: ids below the vocabulary, room for at least one token.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.conversation import conversation_of
from sapwood.daemon.rpc.rules import (
    GENERATE_RULES,
    KNOWN,
    PROMPT_RULES,
    TOO_LONG,
    Bounds,
    PromptTokens,
    check,
    sampler_of,
)
from sapwood.model.prompt.errors import PromptTooLong
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2

_T = TypeVar("_T")


class Admission:
    """Validates, tokenises and caps requests for one loaded model."""

    def __init__(self, card: ModelCard, limits: Limits, depth: int | None = None) -> None:
        """`depth` is the draft depth of requests that set none; None leaves it to the scheduler."""
        self._card = card
        self._limits = limits
        self._bounds = Bounds(limits, card.facts, card.media_token_ids)
        self._depth = depth
        self._ids = itertools.count(1)
        self._workers = ThreadPoolExecutor(limits.tokenise_workers, "tokenise")

    async def admit(self, request: pb.GenerateRequest, deadline: float) -> Request:
        """`deadline` is in the engine's clock. Raises Refused."""
        check(request, GENERATE_RULES, self._bounds)
        sampling = sampler_of(request.sampling, self._card.defaults, self._bounds)
        prompt = await self._prompt(request)
        return Request(
            id=next(self._ids),
            root=self._card.fingerprint,
            prompt=prompt,
            max_tokens=self._capped_tokens(request, len(prompt)),
            sampling=sampling,
            stop=tuple(request.stop),
            stop_token_ids=frozenset(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            top_logprobs=min(request.top_logprobs, self._card.facts.vocabulary),
            depth=request.draft_tokens if request.HasField("draft_tokens") else self._depth,
            cache_bypass=request.cache.bypass,
            store_reply=request.cache.store_reply or not request.cache.HasField("store_reply"),
            deadline=deadline,
        )

    async def tokenize(self, request: pb.TokenizeRequest) -> list[int]:
        """The ids that Generate would see, whatever their number. Raises Refused."""
        return await self._encoded(request, None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Raises Refused for an id that the model does not have."""

        def decode() -> str:
            check(PromptTokens("token_ids", token_ids, ""), (KNOWN,), self._bounds)
            return self._card.tokenizer.decode(token_ids)

        return await self._in_worker(decode)

    async def _prompt(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        field: str = request.WhichOneof("prompt") or "prompt"
        ids: Sequence[int]
        if field == "token_ids":
            field, ids = "token_ids.ids", request.token_ids.ids
            if not ids:
                raise _empty("token_ids")
        else:
            ids = await self._encoded(request, self._card.facts.context_tokens_max - 1)
        check(PromptTokens(field, ids, str(len(ids))), PROMPT_RULES, self._bounds)
        return tuple(ids)

    async def _encoded(
        self, request: pb.GenerateRequest | pb.TokenizeRequest, tokens_max: int | None
    ) -> list[int]:
        """tokens_max: refuse what is certainly longer; None encodes any length."""
        tokenizer = self._card.tokenizer
        match request.WhichOneof("prompt"):
            case "text" if request.text:
                work = partial(tokenizer.encode_text, request.text, tokens_max)
            case "messages" if request.messages.messages:
                work = partial(self._encode_messages, request.messages, tokens_max)
            case field:
                raise _empty(field or "prompt")
        try:
            return await self._in_worker(work)
        except PromptTooLong as error:
            told = PromptTokens("prompt", (), f"at least {error.fewest}")
            raise TOO_LONG.refusal(told, self._bounds) from None

    def _encode_messages(self, messages: prompt_pb2.Messages, tokens_max: int | None) -> list[int]:
        tokenizer = self._card.tokenizer
        said = conversation_of(messages, tokenizer.features(bool(messages.tools)), self._limits)
        try:
            return tokenizer.encode_messages(said.messages, said.tools, said.thinking, tokens_max)
        except PromptTooLong:
            raise
        except ValueError as error:
            problem = "the model's template cannot express these turns"
            raise Refused(Reason.BAD_REQUEST, problem, field="messages") from error

    def close(self) -> None:
        """Take no more work; what the workers have is finished, and not waited for."""
        # Queued work is not cancelled: its RPCs would see a CancelledError that is not theirs.
        self._workers.shutdown(wait=False)

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        # Not anyio.to_thread: a cancelled call gives its place back while its thread still works,
        # so cancels would multiply the workers. Here it keeps its worker, or leaves the queue.
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def _capped_tokens(self, request: pb.GenerateRequest, prompt_tokens: int) -> int:
        room = self._card.facts.context_tokens_max - prompt_tokens
        if request.HasField("max_tokens"):
            return min(request.max_tokens, room)
        return min(self._default_tokens(prompt_tokens), room)

    def _default_tokens(self, prompt_tokens: int) -> int:
        """The model's own default; where it has none the daemon's, within the model's total."""
        defaults, tokens = self._card.defaults, self._limits.max_tokens_default
        if defaults.max_tokens is not None:
            return defaults.max_tokens
        if defaults.total_tokens is not None:
            return max(1, min(tokens, defaults.total_tokens - prompt_tokens))
        return tokens


def _empty(field: str) -> Refused:
    return Refused(Reason.EMPTY_PROMPT, "the prompt is empty", field=field)
