"""The only door: what a client sends becomes a scheduler Request, or is Refused.

- Counts and scalars are checked before anything is allocated or computed in proportion to them.
- Tokenising runs in `tokenise_workers` threads, off the event loop; Tokenize and Detokenize have
  threads and limits of their own, so that whoever counts tokens holds up nobody who generates.
- Constraints are built in threads of their own too, behind the same kind of bounds.
- What is too long is refused before it is tokenised, or where its tokens become too many.
- Messages never give placeholders of images and sound: only the text part is loaded. In text and
  ids they are tokens, which the model computes as its pad token.
- A request that leaves here is servable: ids below the vocabulary, room for at least one token.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.candidates import forks_of, require_several
from sapwood.daemon.rpc.constraints import TOOL_CHOICE, constraint_spec, without_calls
from sapwood.daemon.rpc.conversation import conversation_of
from sapwood.daemon.rpc.principals import Principal, root_key
from sapwood.daemon.rpc.rules import (
    GENERATE_RULES,
    KNOWN,
    NO_MEDIA,
    PIN_RULES,
    PROMPT_RULES,
    TOO_LONG,
    Bounds,
    PromptTokens,
    check,
    sampler_of,
)
from sapwood.daemon.rpc.times import seconds_of
from sapwood.daemon.rpc.turns import first_style, later_turn
from sapwood.daemon.rpc.workers import Workers
from sapwood.model.constraints.spec import ConstraintRefused, ConstraintSpec
from sapwood.model.prompt.errors import GivenUp, PromptTooLong
from sapwood.scheduler.events import Clear, PinTerms, Priority, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import HeldSession, SessionKey, SessionTurn
from sapwood.v1 import cache_pb2, prompt_pb2
from sapwood.v1 import generation_pb2 as pb

_ID_BYTES = 4
_PRIORITIES = {
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.PRIORITY_BATCH: Priority.BATCH,
}

Prefix = cache_pb2.PinPrefixRequest | cache_pb2.EvictPrefixRequest


class Admission:
    """Validates, tokenises and caps requests for one loaded model."""

    def __init__(self, card: ModelCard, limits: Limits, depth: int | None = None) -> None:
        """`depth` is the draft depth of requests that set none; None leaves it to the scheduler."""
        self._card = card
        self._limits = limits
        self._bounds = Bounds(limits, card.facts, card.media_token_ids)
        self._depth = depth
        self._ids = itertools.count(1)
        self._workers = Workers(
            "tokenise",
            limits.tokenise_workers,
            limits.tokenise_calls_max,
            limits.tokenise_bytes_max,
        )
        self._codec = Workers(
            "codec", limits.codec_workers, limits.codec_calls_max, limits.codec_bytes_max
        )
        self._builders = Workers(
            "constraints",
            limits.constraint_workers,
            limits.constraint_calls_max,
            limits.constraint_calls_max * limits.constraint_bytes_max,
            "constraints wait to be built",
        )

    async def admit(
        self,
        request: pb.GenerateRequest,
        deadline: float,
        principal: Principal,
        held: HeldSession | None = None,
    ) -> Request:
        """`deadline` is in the engine's clock. held: the session that it names. Raises Refused."""
        check(request, GENERATE_RULES, self._bounds)
        turn = None
        if held is not None:
            turn = self._turn(request, held, principal)
            request = later_turn(request, held) if held.tokens else request
        sampling = sampler_of(request.sampling, self._card.defaults, self._bounds)
        require_several(request.candidates, sampling)
        sampling = without_calls(request, sampling, self._card.facts.control_tokens)
        spec = self._spec(request)
        prompt = await self._prompt(request, held)
        constraint = None if spec is None else await self._constraint(request, spec)
        return Request(
            id=self.draw_id(),
            root=self.root_of(principal),
            prompt=prompt,
            max_tokens=self._capped_tokens(request, len(prompt)),
            sampling=sampling,
            stop=tuple(request.stop),
            stop_token_ids=frozenset(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            min_tokens=request.min_tokens,
            thinking_tokens_max=_thinking_tokens_max(request),
            top_logprobs=min(request.top_logprobs, self._card.facts.vocabulary),
            prompt_logprobs=min(request.prompt_logprobs, self._card.facts.vocabulary),
            depth=request.draft_tokens if request.HasField("draft_tokens") else self._depth,
            cache_bypass=request.cache.bypass,
            store_reply=request.cache.store_reply or not request.cache.HasField("store_reply"),
            deadline=deadline,
            constraint=constraint,
            principal=principal.name,
            weight=principal.weight,
            priority=_PRIORITIES[request.priority],
            early=request.deadline_policy == pb.DEADLINE_POLICY_EARLY,
            forks=forks_of(request.candidates, sampling, self.draw_id),
            session=turn,
        )

    def _turn(
        self, request: pb.GenerateRequest, held: HeldSession, principal: Principal
    ) -> SessionTurn:
        if held.view.busy:
            problem = "another request runs in the session"
            raise Refused(Reason.SESSION_BUSY, problem, field="session")
        style = held.style if held.tokens else first_style(request, self._limits)
        return SessionTurn(SessionKey(principal.name, request.session), held.revision, style)

    async def admit_pin(
        self, request: cache_pb2.PinPrefixRequest, deadline: float, principal: Principal
    ) -> Request:
        """As `admit`, of a prompt that is kept and not answered.

        It serves whoever has the principal's part of the tree: the principal, and its pool.
        """
        check(request, PIN_RULES, self._bounds)
        ttl_s = seconds_of(request.ttl) if request.HasField("ttl") else None
        return Request(
            id=self.draw_id(),
            root=self.root_of(principal),
            prompt=await self._prompt(request),
            max_tokens=1,
            sampling=Sampling(),
            deadline=deadline,
            pin=PinTerms(
                secrets.token_hex(8),
                ttl_s,
                principal.quotas.pin_bytes_max,
                public=principal.is_operator,
            ),
            principal=principal.name,
            weight=principal.weight,
        )

    async def prefix_to_clear(self, request: cache_pb2.EvictPrefixRequest) -> Clear:
        """Raises Refused, for what Generate would refuse of a prompt too."""
        return Clear(self.draw_id(), await self._prompt(request))

    def root_of(self, principal: Principal) -> bytes:
        """Where its prefixes of the loaded model lie."""
        return root_key(self._card.fingerprint, principal.salt)

    def draw_id(self) -> int:
        """Of a command, which nothing else of this process has."""
        return next(self._ids)

    def _spec(self, request: pb.GenerateRequest) -> ConstraintSpec | None:
        card = self._card
        return constraint_spec(request, card.facts.control_tokens, card.constraints, self._limits)

    async def _constraint(self, request: pb.GenerateRequest, spec: ConstraintSpec) -> object:
        """Builds it. Raises Refused."""
        served, field = self._card.constraints, request.WhichOneof("constraint") or TOOL_CHOICE
        assert served is not None, "a spec without anybody to build it"
        try:
            return await self._builders.run(lambda _: served.compile(spec), spec.chars)
        except ConstraintRefused as error:
            raise Refused(Reason.BAD_CONSTRAINT, str(error), field=field) from None

    async def tokenize(self, request: pb.TokenizeRequest) -> list[int]:
        """The ids that Generate would see, up to `codec_tokens_max` of them. Raises Refused."""
        tokens_max, field = self._limits.codec_tokens_max, request.WhichOneof("prompt") or "prompt"
        try:
            ids = await self._encoded(request, self._codec, tokens_max)
        except PromptTooLong as error:
            problem = f"there are at least {error.fewest} tokens; {_at_most(tokens_max)}"
            raise _bad(problem, field) from None
        check(PromptTokens(field, ids, ""), (NO_MEDIA,), self._bounds)
        return ids

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Raises Refused for an id that the model does not have, and for too many of them."""
        if len(token_ids) > self._limits.codec_tokens_max:
            problem = f"there are {len(token_ids)} ids; {_at_most(self._limits.codec_tokens_max)}"
            raise _bad(problem, "token_ids")

        def decode(given_up: GivenUp) -> str:
            ids = tuple(token_ids)
            check(PromptTokens("token_ids", ids, ""), (KNOWN,), self._bounds)
            return self._card.tokenizer.decode(ids, given_up)

        return await self._codec.run(decode, _ID_BYTES * len(token_ids))

    async def _prompt(
        self, request: pb.GenerateRequest | Prefix, held: HeldSession | None = None
    ) -> tuple[int, ...]:
        """All of it: what the session holds comes first."""
        field: str = request.WhichOneof("prompt") or "prompt"
        before = () if held is None else tuple(held.tokens)
        tokens_max = self._card.facts.context_tokens_max - len(before)
        if field == "token_ids":
            field, given = "token_ids.ids", request.token_ids.ids
            if not given:
                raise _empty("token_ids")
            # As many as show that they are too many: what is copied must not grow with a request.
            ids = (*before, *given[: max(0, tokens_max)])
            told = str(len(before) + len(given))
        else:
            ids = (*before, *await self._encoded_to_generate(request, tokens_max - 1, held))
            told = str(len(ids))
        check(PromptTokens(field, ids, told), PROMPT_RULES, self._bounds)
        return ids

    async def _encoded_to_generate(
        self, request: pb.GenerateRequest | Prefix, tokens_max: int, held: HeldSession | None
    ) -> list[int]:
        try:
            return await self._encoded(request, self._workers, tokens_max, held)
        except PromptTooLong as error:
            fewest = error.fewest + (0 if held is None else len(held.tokens))
            told = PromptTokens("prompt", (), f"at least {fewest}")
            raise TOO_LONG.refusal(told, self._bounds) from None

    async def _encoded(
        self,
        request: pb.GenerateRequest | pb.TokenizeRequest | Prefix,
        workers: Workers,
        tokens_max: int,
        held: HeldSession | None = None,
    ) -> list[int]:
        """Raises PromptTooLong for what is certainly longer, and Refused."""
        match request.WhichOneof("prompt"):
            case "text":

                def work(given_up: GivenUp) -> list[int]:
                    if not (text := request.text):  # made here: a string as long as the request
                        raise _empty("text")
                    bos = held is None or not held.tokens
                    return self._card.tokenizer.encode_text(text, tokens_max, given_up, bos=bos)
            case "messages" if request.messages.messages:
                messages = request.messages

                def work(given_up: GivenUp) -> list[int]:
                    return self._encode_messages(messages, tokens_max, given_up, held)
            case field:
                raise _empty(field or "prompt")
        return await workers.run(work, request.ByteSize())

    def _encode_messages(
        self,
        messages: prompt_pb2.Messages,
        tokens_max: int,
        given_up: GivenUp,
        held: HeldSession | None,
    ) -> list[int]:
        tokenizer = self._card.tokenizer
        features = tokenizer.features(bool(messages.tools))
        called = () if held is None else held.calls
        said = conversation_of(messages, features, self._limits, called)
        turn = said.messages, said.tools, said.thinking
        try:
            if held is None or not held.tokens:
                return tokenizer.encode_messages(*turn, tokens_max, given_up)
            return tokenizer.encode_turn(
                said.messages,
                said.calls,
                said.tools,
                said.thinking,
                held.tokens[-1],
                tokens_max,
                given_up,
            )
        except PromptTooLong:
            raise
        except ValueError as error:
            problem = "the model's template cannot express these turns"
            raise _bad(problem, "messages") from error

    def close(self) -> None:
        """Take no more work; what the workers have is finished, and not waited for."""
        self._workers.close()
        self._codec.close()
        self._builders.close()
        if self._card.constraints is not None:
            self._card.constraints.close()

    def _capped_tokens(self, request: pb.GenerateRequest, prompt_tokens: int) -> int:
        room = self._card.facts.context_tokens_max - prompt_tokens
        if request.HasField("max_tokens"):
            return min(request.max_tokens, room)
        return min(max(self._default_tokens(prompt_tokens), request.min_tokens), room)

    def _default_tokens(self, prompt_tokens: int) -> int:
        """The model's own default; where it has none the daemon's, within the model's total."""
        defaults, tokens = self._card.defaults, self._limits.max_tokens_default
        if defaults.max_tokens is not None:
            return defaults.max_tokens
        if defaults.total_tokens is not None:
            return max(1, min(tokens, defaults.total_tokens - prompt_tokens))
        return tokens


def _thinking_tokens_max(request: pb.GenerateRequest) -> int | None:
    given = request.HasField("thinking_tokens_max")
    return request.thinking_tokens_max if given else None


def _at_most(tokens: int) -> str:
    return f"at most {tokens} are taken at once"


def _bad(problem: str, field: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, problem, field=field)


def _empty(field: str) -> Refused:
    return Refused(Reason.EMPTY_PROMPT, "the prompt is empty", field=field)
