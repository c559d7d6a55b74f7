"""What is left of a session's last request: enough to tell its reply again, and to go on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Finished, Progress, Request, Resumed, Usage
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.reply.reply import GeneratedReply
from sapwood.scheduler.reply.retell import retell
from sapwood.scheduler.session_events import ResumeReply


@dataclass(frozen=True, slots=True)
class LastReply:
    """request: without its prompt, which `tokens` begin with.

    finished: what was told, of one that is complete. reply: of one that was interrupted after it
    had begun; whoever goes on with it has it.
    """

    request: Request
    tokens: array[int]
    prompt_tokens: int
    usage: Usage
    finished: Finished | None
    reply: GeneratedReply | None

    @classmethod
    def of(cls, sequence: Sequence, now: float, finished: Finished | None) -> LastReply:
        """Of a sequence that has just ended."""
        request = replace(sequence.request, prompt=())
        if finished is not None:
            request = replace(request, constraint=None)  # it may be large, and is needed no more
        return cls(
            request,
            sequence.packed_path(sequence.prompt_tokens + sequence.emitted),
            sequence.prompt_tokens,
            sequence.usage(now),
            finished,
            sequence.reply if sequence.emitted and finished is None else None,
        )

    @property
    def reply_tokens(self) -> array[int]:
        """What was emitted."""
        return self.tokens[self.prompt_tokens :]

    @property
    def tokens_left(self) -> int:
        """How many the reply may still have."""
        if self.finished is not None:
            return 0
        return self.request.max_tokens if self.reply is None else self.reply.remaining

    def whole_request(self) -> Request:
        """As it came."""
        return replace(self.request, prompt=tuple(self.tokens[: self.prompt_tokens]))

    def read(self, id: int) -> Progress:
        """How far the prompt is: nowhere, where the reply has not begun."""
        begun = len(self.tokens) > self.prompt_tokens
        total = self.prompt_tokens
        return Progress(id, self.usage.cached_tokens, total if begun else 0, total)


def resumed(
    order: ResumeReply,
    request: Request,
    reply: Iterable[int],
    read: Progress,
    new_reply: Callable[[Request], GeneratedReply],
) -> Resumed:
    """What whoever resumes is told first. reply: what was emitted. Raises Refused."""
    tokens = tuple(reply)
    held = len(request.prompt) + len(tokens)
    check_length(order.from_token, held, "resume.from_token")
    if request.top_logprobs or request.prompt_logprobs:
        problem = "a reply with log-probabilities is not resumed: they are not kept"
        raise Refused(Reason.UNSUPPORTED, problem, field="resume")
    start = max(0, order.from_token - len(request.prompt))
    deltas = retell(new_reply(request), len(request.prompt), tokens, start, order.id)
    return Resumed(order.id, request, read if read.processed else None, deltas)


def check_length(tokens: int, held: int, field: str) -> None:
    """Raises Refused for more tokens than there are."""
    if tokens > held:
        raise bad(f"there are {held} tokens, not {tokens}", field)


def bad(problem: str, field: str) -> Refused:
    """BAD_REQUEST; made, not raised."""
    return Refused(Reason.BAD_REQUEST, problem, field=field)
