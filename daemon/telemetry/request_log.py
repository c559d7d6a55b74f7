"""One line of the log for each request: whose it was, what it took, how it ended.

- INFO: every Generate, and every RPC of whoever may not call. DEBUG: every other RPC.
- What could not be parsed, or came too early or late to be admitted, has no tokens and no times.
"""

from __future__ import annotations

import logging
from typing import Any

from sapwood.daemon.telemetry.calls import CallRecord, GenerationRecord
from sapwood.scheduler.reasons import Status

_SHUT_OUT = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)

_log = logging.getLogger(__name__)


def log_call(record: CallRecord) -> None:
    """A sink of Telemetry's."""
    shut_out = record.reason is not None and record.reason.status in _SHUT_OUT
    level = logging.INFO if record.generates or shut_out else logging.DEBUG
    if not _log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {"id": record.id, "method": record.method}
    if record.principal:
        fields["principal"] = record.principal
    if shut_out:
        fields["peer"] = record.peer
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    if record.generates:
        fields["outcome"] = record.outcome.value
    fields["code"] = record.code
    if record.reason is not None and record.reason.travels:
        fields["reason"] = record.reason.name
    if record.generation is not None:
        fields |= _taken(record.generation)
    fields["duration_s"] = _rounded(record.duration_s)
    _log.log(level, "request" if record.generates else "rpc", extra={"fields": fields})


def _taken(generation: GenerationRecord) -> dict[str, Any]:
    """Tokens, and the times of what is over."""
    fields: dict[str, Any] = {
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "completion_tokens": generation.completion_tokens,
    }
    if generation.finished is None:
        return fields
    usage = generation.finished.usage
    return fields | {
        "rounds": usage.rounds,
        "draft_tokens": usage.draft_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "queue_s": _rounded(generation.waited_s + usage.queue_seconds),
        "prefill_s": _rounded(usage.prefill_seconds),
        "decode_s": _rounded(usage.decode_seconds),
    }


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
