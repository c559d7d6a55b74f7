"""What is said of a reply when it is over: what it took, and whether and why it was cut."""

from __future__ import annotations

from sapwood import Finish, FinishReason


def figures(finish: Finish) -> str:
    """Tokens a second are those after the first, which the prompt is waited for."""
    usage = finish.usage
    told = [f"{usage.completion_tokens} tokens"]
    if usage.completion_tokens > 1 and usage.decode_seconds > 0:
        told.append(f"{(usage.completion_tokens - 1) / usage.decode_seconds:.1f} tokens/s")
    if usage.draft_tokens:
        told.append(f"{usage.accepted_tokens} of {usage.draft_tokens} drafts accepted")
    told.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
    return ", ".join(told)


def why_cut(finish: Finish, context_tokens_max: int) -> str:
    """Why the reply is not whole, and what to do; nothing where it ended by itself."""
    usage = finish.usage
    match finish.reason:
        case FinishReason.STOP:
            return ""
        case FinishReason.STOP_SEQUENCE:
            return f"ended by the stop string {finish.stop_sequence!r}"
        case FinishReason.LENGTH:
            if usage.prompt_tokens + usage.completion_tokens >= context_tokens_max:
                return f"cut: the context of {context_tokens_max} tokens is full (/clear, /save)"
            return f"cut after {usage.completion_tokens} tokens (/set max_tokens N)"
        case _:
            return "ended for a reason that a newer sapwood knows"
