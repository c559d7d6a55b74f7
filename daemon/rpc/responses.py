"""From what the engine says of a request to the messages of GenerationService.

Pure, but for the ids of calls outside of sessions, which are drawn here.
"""

from __future__ import annotations

import secrets

from sapwood.daemon.rpc.mailbox import SentEvent
from sapwood.scheduler.events import Delta, Finished, Progress, Usage
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.result import TokenLogprobs
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
}


def response_of(event: SentEvent, candidate: int = 0, waited_s: float = 0.0) -> pb.GenerateResponse:
    """One event, one message. waited_s: before the scheduler had the request."""
    match event:
        case Progress():
            return pb.GenerateResponse(
                prefill=pb.Prefill(
                    cached_tokens=event.cached,
                    processed_tokens=event.processed,
                    prompt_tokens=event.total,
                    logprobs=[_logprobs(token) for token in event.logprobs],
                )
            )
        case Delta():
            return pb.GenerateResponse(delta=_delta(event, candidate))
        case Finished():
            return pb.GenerateResponse(
                finish=pb.Finish(
                    candidate=candidate,
                    reason=_FINISH_REASONS[event.reason],
                    stop_sequence=event.stop_sequence,
                    usage=_usage(event.usage, waited_s),
                )
            )


def _delta(delta: Delta, candidate: int) -> pb.Delta:
    return pb.Delta(
        candidate=candidate,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[_logprobs(token) for token in delta.logprobs],
        thinking=delta.thinking,
        tool_calls=[
            prompt_pb2.ToolCall(name=call.name, arguments=call.arguments, id=call.id or _call_id())
            for call in delta.tool_calls
        ],
    )


def _call_id() -> str:
    """Of one call among all of a conversation, whichever daemons it went through."""
    return f"call_{secrets.token_hex(12)}"


def _logprobs(token: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        logprob=token.logprob,
        alternatives=[
            pb.TokenLogprobs.Alternative(token_id=id, logprob=logprob)
            for id, logprob in token.alternatives
        ],
    )


def _usage(usage: Usage, waited_s: float) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        thinking_tokens=usage.thinking_tokens,
        decode_steps=usage.decode_steps,
        rounds=usage.rounds,
        draft_tokens=usage.draft_tokens,
        accepted_tokens=usage.accepted_tokens,
        queue_seconds=waited_s + usage.queue_seconds,
        prefill_seconds=usage.prefill_seconds,
        decode_seconds=usage.decode_seconds,
    )
