"""The only door: a GenerateRequest becomes a scheduler Request, or is Refused.

- Counts and scalars are checked before anything is allocated or computed in proportion to them.
- Tokenising runs in `tokenise_workers` threads, off the event loop. What cannot fit into the
  context by its length alone is refused before.
- Placeholders of images and sound are refused however they came: only the text part is loaded.
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
from sapwood.daemon.rpc.rules import check_supported, checked_sampling
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
        self._depth = depth
        self._ids = itertools.count(1)
        self._workers = ThreadPoolExecutor(limits.tokenise_workers, "tokenise")

    async def admit(self, request: pb.GenerateRequest, deadline: float) -> Request:
        """`deadline` is in the engine's clock. Raises Refused."""
        check_supported(request)
        self._check_stops(request)
        depth = self._checked_depth(request)
        if request.top_logprobs > self._limits.top_logprobs_max:
            problem = f"top_logprobs is at most {self._limits.top_logprobs_max}"
            raise Refused(Reason.BAD_REQUEST, problem, field="top_logprobs")
        sampling = checked_sampling(
            request.sampling, self._card.defaults, self._card.facts.vocabulary, self._limits
        )
        if request.HasField("max_tokens") and request.max_tokens == 0:
            raise Refused(Reason.BAD_REQUEST, "max_tokens must be at least 1", field="max_tokens")
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
            depth=depth,
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
            self._check_ids(token_ids, "token_ids")
            return self._card.tokenizer.decode(token_ids)

        return await self._in_worker(decode)

    async def _prompt(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        field = request.WhichOneof("prompt")
        if field != "token_ids":
            ids: Sequence[int] = await self._encoded(request, self._prompt_tokens_max)
            self._check_length(len(ids))
            self._check_media(ids, field or "prompt")
            return tuple(ids)
        ids = request.token_ids.ids
        if not ids:
            raise _empty("token_ids")
        self._check_length(len(ids))
        self._check_ids(ids, "token_ids.ids")
        self._check_media(ids, "token_ids.ids")
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
            raise self._too_long(f"at least {error.fewest}") from None

    def _encode_messages(self, messages: prompt_pb2.Messages, tokens_max: int | None) -> list[int]:
        tokenizer = self._card.tokenizer
        said = conversation_of(messages, tokenizer.features, self._limits)
        try:
            return tokenizer.encode_messages(said.messages, said.tools, said.thinking, tokens_max)
        except PromptTooLong:
            raise
        except ValueError as error:
            problem = "the model's template cannot express these turns"
            raise Refused(Reason.BAD_REQUEST, problem, field="messages") from error

    def close(self) -> None:
        # Queued work is not cancelled: its RPCs would see a CancelledError that is not theirs.
        self._workers.shutdown(wait=False)

    async def _in_worker(self, work: Callable[[], _T]) -> _T:
        # Not anyio.to_thread: a cancelled call gives its place back while its thread still works,
        # so cancels would multiply the workers. Here it keeps its worker, or leaves the queue.
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    @property
    def _prompt_tokens_max(self) -> int:
        """A prompt needs room for itself and one token of reply."""
        return self._card.facts.context_tokens_max - 1

    def _check_length(self, tokens: int) -> None:
        if tokens > self._prompt_tokens_max:
            raise self._too_long(str(tokens))

    def _too_long(self, tokens: str) -> Refused:
        context = self._card.facts.context_tokens_max
        return Refused(
            Reason.CONTEXT_TOO_LONG,
            f"the prompt has {tokens} tokens; with one token of reply at most {context} fit",
            field="prompt",
        )

    def _check_media(self, ids: Sequence[int], field: str) -> None:
        if not self._card.media_token_ids.isdisjoint(ids):
            problem = "the prompt holds image, audio or video tokens; only text is loaded"
            raise Refused(Reason.UNSUPPORTED, problem, field=field)

    def _capped_tokens(self, request: pb.GenerateRequest, prompt_tokens: int) -> int:
        asked = (
            request.max_tokens
            if request.HasField("max_tokens")
            else self._limits.max_tokens_default
        )
        return min(asked, self._card.facts.context_tokens_max - prompt_tokens)

    def _check_ids(self, ids: Sequence[int], field: str) -> None:
        vocabulary = self._card.facts.vocabulary
        if ids and max(ids) >= vocabulary:
            problem = f"token ids are below {vocabulary}, the vocabulary's size"
            raise Refused(Reason.BAD_TOKEN_ID, problem, field=field)

    def _check_stops(self, request: pb.GenerateRequest) -> None:
        limits = self._limits
        if len(request.stop) > limits.stop_strings_max:
            problem = f"at most {limits.stop_strings_max} stop strings"
            raise Refused(Reason.BAD_REQUEST, problem, field="stop")
        if any(
            not 1 <= len(stop.encode()) <= limits.stop_string_bytes_max for stop in request.stop
        ):
            problem = f"a stop string has 1 to {limits.stop_string_bytes_max} bytes"
            raise Refused(Reason.BAD_REQUEST, problem, field="stop")
        if len(request.stop_token_ids) > limits.stop_token_ids_max:
            problem = f"at most {limits.stop_token_ids_max} stop token ids"
            raise Refused(Reason.BAD_REQUEST, problem, field="stop_token_ids")
        self._check_ids(request.stop_token_ids, "stop_token_ids")

    def _checked_depth(self, request: pb.GenerateRequest) -> int | None:
        if not request.HasField("draft_tokens"):
            return self._depth
        if request.draft_tokens > self._limits.draft_depth_max:
            problem = f"draft_tokens is at most {self._limits.draft_depth_max}"
            raise Refused(Reason.BAD_SAMPLING, problem, field="draft_tokens")
        if request.draft_tokens > 0 and not self._card.facts.has_drafter:
            raise Refused(Reason.NO_DRAFTER, "no drafter is loaded", field="draft_tokens")
        return request.draft_tokens


def _empty(field: str) -> Refused:
    return Refused(Reason.EMPTY_PROMPT, "the prompt is empty", field=field)
