"""From what the engine says of one request to a worker's responses.

- Streamed, each delta is a chunk of its own with its own counts, and the end has totals and no ids:
  they were all said. Not streamed, the end has everything.
- Log-probabilities of the prompt come with the first chunk, or with the end of a reply that is not
  streamed: one for each prompt token, of which the first has none.
- Ids are all that were emitted, the one that ended the reply included; text is the gateway's.
- `finish_reason` is stop, length, or abort for one that was given up: what was said until then.
"""

from __future__ import annotations

from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from sapwood.daemon.gateway.requests import logprobs_wanted
from sapwood.scheduler.events import Delta, Finished, Progress
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.result import TokenLogprobs

_FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
}


class WorkerReply:
    """The reply to one request; `said` each event in order, or `aborted` once."""

    def __init__(self, given: Any, index: int = 0) -> None:
        """index: which of a request's replies. Of the prompt's scores the first one tells."""
        self._index = index
        self._streams: bool = given.stream
        self._stop_ids = frozenset(given.sampling_params.stop_token_ids)
        self._alternatives = logprobs_wanted(given)
        self._prompt_alternatives = None if index else logprobs_wanted(given, "prompt_logprobs")
        self._prompt_ids = tuple(given.tokenized.input_ids)
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._ids: list[int] = []
        self.ended = False  # its end may have left
        self._logprobs: list[TokenLogprobs] = []

    def said(self, event: Progress | Delta | Finished) -> Any:
        """The response that tells of it; None where nothing is to be told yet."""
        match event:
            case Progress():
                self._prompt_tokens, self._cached_tokens = event.total, event.cached
                self._prompt_logprobs += event.logprobs
                return None
            case Delta():
                return self._delta(event)
            case Finished():
                return self._finish(event)

    def aborted(self) -> Any:
        """The end of a reply that its client gave up."""
        return vllm.GenerateResponse(complete=self._complete("abort"))

    def _delta(self, delta: Delta) -> Any:
        self._ids += delta.token_ids
        if not self._streams:
            self._logprobs += delta.logprobs
            return None
        if not delta.token_ids:
            return None
        return vllm.GenerateResponse(
            chunk=vllm.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=len(delta.token_ids),
                cached_tokens=self._cached_tokens,
                output_logprobs=self._told(delta.token_ids, delta.logprobs),
                input_logprobs=self._scores(),
                index=self._index,
            )
        )

    def _finish(self, finished: Finished) -> Any:
        usage = finished.usage
        if not self._index:
            self._prompt_tokens, self._cached_tokens = usage.prompt_tokens, usage.cached_tokens
        self.ended = True
        complete = self._complete(_FINISH_REASONS[finished.reason])
        complete.spec_draft_tokens = usage.draft_tokens
        complete.spec_accepted_tokens = usage.accepted_tokens
        if finished.stop_sequence:
            complete.matched_stop_str = finished.stop_sequence
        elif finished.reason is FinishReason.STOP and self._ids[-1] in self._stop_ids:
            complete.matched_token_id = self._ids[-1]
        return vllm.GenerateResponse(complete=complete)

    def _complete(self, finish_reason: str) -> Any:
        told = () if self._streams else self._ids
        return vllm.GenerateComplete(
            output_ids=told,
            finish_reason=finish_reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._ids),
            cached_tokens=self._cached_tokens,
            output_logprobs=self._told(told, self._logprobs),
            input_logprobs=self._scores(),
            index=self._index,
        )

    def _scores(self) -> Any:
        """Of the prompt, once."""
        if self._prompt_alternatives is None:
            return None
        scores, alternatives = self._prompt_logprobs, self._prompt_alternatives
        self._prompt_alternatives = None
        told = vllm.InputLogProbs(token_ids=self._prompt_ids)
        told.token_logprobs.add()
        for each in scores:
            told.token_logprobs.add(value=each.logprob)
        for place in ((), *(each.alternatives for each in scores)) if alternatives else ():
            best = place[:alternatives]
            told.top_logprobs.add(
                token_ids=[id for id, _ in best], values=[value for _, value in best]
            )
        return told

    def _told(self, ids: Any, logprobs: Any) -> Any:
        if self._alternatives is None or not logprobs:
            return None
        told = vllm.OutputLogProbs(
            token_ids=ids, token_logprobs=[each.logprob for each in logprobs]
        )
        for each in logprobs if self._alternatives else ():
            best = each.alternatives[: self._alternatives]
            told.top_logprobs.add(
                token_ids=[id for id, _ in best], values=[value for _, value in best]
            )
        return told
