"""GenerationService and CacheService: one coroutine per RPC that is built.

- Errors are raised as Refused; the boundary turns them into statuses.
- Whatever ends a handler (reply complete, cancel, disconnect, deadline, a blocked write) passes its
  `finally`, which closes the mailbox and tells the core unless the core ended the session itself.
- grpc.aio raises different things for a client that goes; nothing here depends on which.
"""

from __future__ import annotations

import asyncio
import time

import anyio

from daemon.boundary import Behaviour, Context
from daemon.errors import slow_reader
from daemon.front import Front
from daemon.mailbox import Event, Mailbox
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from scheduler.errors import Refused
from scheduler.events import Cancel, Delta, Finished, Progress, Request, Submit, Usage
from scheduler.plan import TokenLogprobs

_FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "stop_sequence": pb.FINISH_REASON_STOP_SEQUENCE,
}


class GenerationService:
    """Text and tokens of the one loaded model."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def behaviours(self) -> dict[str, Behaviour]:
        return {
            "Generate": self._generate,
            "Tokenize": self._tokenize,
            "Detokenize": self._detokenize,
            "GetModel": self._get_model,
        }

    async def _generate(self, request: pb.GenerateRequest, context: Context) -> None:
        deadline = self._deadline(context)
        admitted = await self._admit(request, deadline)
        mailbox = self._front.mailboxes.open(admitted.id)
        self._front.engine.send(Submit(admitted))

        async def write(event: Event) -> None:
            await context.write(_response(event))

        failed = False
        try:
            await mailbox.pump(write)
        except Refused:
            failed = True
            raise
        finally:
            self._leave(mailbox, "failed" if failed else self._why_gone(deadline))

    async def _admit(self, request: pb.GenerateRequest, deadline: float) -> Request:
        try:
            self._front.enter()
            admitted = await self._front.admission.admit(request, deadline)
            self._front.enter()  # again: a drain may have begun while the prompt was tokenised
        except Refused:
            self._front.turned_away["rejected"] += 1
            raise
        except asyncio.CancelledError:
            self._front.turned_away[self._why_gone(deadline)] += 1
            raise
        return admitted

    def _leave(self, mailbox: Mailbox, reason: str) -> None:
        self._front.mailboxes.close(mailbox)
        if not mailbox.settled:
            self._front.engine.send(Cancel(mailbox.id, reason))

    async def _tokenize(
        self, request: pb.TokenizeRequest, _context: Context
    ) -> pb.TokenizeResponse:
        self._front.enter()
        return pb.TokenizeResponse(token_ids=await self._front.admission.tokenize(request))

    async def _detokenize(
        self, request: pb.DetokenizeRequest, _context: Context
    ) -> pb.DetokenizeResponse:
        self._front.enter()
        return pb.DetokenizeResponse(text=await self._front.admission.detokenize(request.token_ids))

    async def _get_model(
        self, _request: pb.GetModelRequest, _context: Context
    ) -> pb.GetModelResponse:
        self._front.enter()
        card = self._front.card
        return pb.GetModelResponse(
            name=card.name,
            family=card.family,
            fingerprint=card.fingerprint.hex(),
            context_tokens_max=card.facts.context_tokens_max,
            vocabulary_size=card.facts.vocabulary,
            eos_token_ids=sorted(card.facts.eos_token_ids),
            drafter=card.drafter,
            quantization=card.quantization,
            numerics=pb.NUMERICS_FAST,
            device=card.device,
        )

    def _deadline(self, context: Context) -> float:
        """In the engine's clock; a client without a deadline gets `request_s_max`."""
        remaining = context.time_remaining()
        most = self._front.limits.request_s_max
        return time.monotonic() + (most if remaining is None else min(remaining, most))

    def _why_gone(self, deadline: float) -> str:
        """A client whose deadline passes cancels at about that time, by its own clock."""
        late = time.monotonic() >= deadline - self._front.limits.deadline_slack_s
        return "deadline" if late else "cancelled"


async def write_in_time(context: Context, message: object, write_s_max: float) -> None:
    """One message of a stream without a mailbox; raises SLOW_READER if it is not taken in time."""
    with anyio.move_on_after(write_s_max) as scope:
        await context.write(message)
    if scope.cancelled_caught:
        raise slow_reader()


def _response(event: Event) -> pb.GenerateResponse:
    match event:
        case Progress():
            return pb.GenerateResponse(
                prefill=pb.Prefill(
                    cached_tokens=event.cached,
                    processed_tokens=event.processed,
                    prompt_tokens=event.total,
                )
            )
        case Delta():
            return pb.GenerateResponse(delta=_delta(event))
        case Finished():
            return pb.GenerateResponse(
                finish=pb.Finish(
                    reason=_FINISH_REASONS[event.reason],
                    stop_sequence=event.stop_sequence,
                    usage=_usage(event.usage),
                )
            )


def _delta(delta: Delta) -> pb.Delta:
    return pb.Delta(
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[_logprobs(token) for token in delta.logprobs],
        thinking=delta.thinking,
        tool_calls=[
            prompt_pb2.ToolCall(name=call.name, arguments=call.arguments)
            for call in delta.tool_calls
        ],
    )


def _logprobs(token: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=token.logprob,
        alternatives=[
            pb.TokenLogprobs.Alternative(token_id=id, logprob=logprob)
            for id, logprob in token.alternatives
        ],
    )


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        decode_steps=usage.decode_steps,
        rounds=usage.rounds,
        draft_tokens=usage.draft_tokens,
        accepted_tokens=usage.accepted_tokens,
        queue_seconds=usage.queue_seconds,
        prefill_seconds=usage.prefill_seconds,
        decode_seconds=usage.decode_seconds,
    )
