"""What clients give and get: frozen values, no protobuf.

- Events of one stream come as: Prefill at least once, Deltas, one Finish.
- Concatenated deltas are the reply: text and token ids are each complete and in order.
- Ranges of tokens are half-open. Sizes are bytes, times seconds.
- Meanings are those of proto/sapwood/v1, which documents every field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, SupportsIndex, TypedDict


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model called, with JSON values as arguments."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""  # the daemon's, for the result that answers it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. role: "system" (or "developer"), "user", "assistant" or "tool"."""

    role: str
    content: str
    thinking: str = ""  # of an assistant: what it thought before
    tool_calls: Sequence[ToolCall] = ()  # of an assistant
    tool_name: str = ""  # of a tool, whose result the content is
    tool_call_id: str = ""  # of a tool: which call it answers, where two have one name
    name: str = ""  # who of several speakers of a role this is


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: a JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


Messages = Sequence[Message | Mapping[str, Any]]  # mappings have a Message's fields as keys


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with more to say about them than their contents."""

    messages: Messages
    tools: Sequence[Tool] = ()
    thinking: bool | None = None  # None: as the model's template does by default


# A list, a tuple, a range, an array of NumPy's: whatever gives integers one after another.
TokenIds = Iterable[SupportsIndex]

# Text, token ids, or a conversation. Of bytes, which type checkers take for ids, none.
Prompt = str | TokenIds | Messages | Conversation


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a request may take from and leave in the prefix tree."""

    bypass: bool = False  # neither reads nor writes the tree
    store_reply: bool = True  # keeps the reply for a next turn
    mark: bool = False  # keeps a snapshot exactly at the prompt's end, as every prompt leaves one


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation that the daemon keeps by name. Times are UTC's, ttl is in seconds.

    parked: the next turn has to compute some of it again. expire_time: None while it is busy.
    token_ids: where they were asked for.
    """

    name: str
    tokens: int
    busy: bool
    parked: bool
    create_time: datetime
    expire_time: datetime | None
    ttl: float
    token_ids: tuple[int, ...] = ()


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate`. What is absent or None is the daemon's or the model's default."""

    max_tokens: int | None
    candidates: int | None  # replies to the one prompt, each of its own; `collect_all` has them all
    temperature: float | None  # 0 is greedy
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None  # the same tokens at any depth and in any company, near-ties aside
    repetition_penalty: float | None  # divides the score of tokens in prompt and reply
    presence_penalty: float | None  # off the score of tokens in the reply
    frequency_penalty: float | None  # off the score of tokens in the reply, for each occurrence
    logit_bias: Mapping[int, float] | None  # added to the scores of these token ids
    top_logprobs: int | None  # alternatives to report for each token; 0 is no logprobs
    prompt_logprobs: int | None  # likewise for each prompt token; it is read whole for that
    stop: str | Sequence[str] | None
    stop_token_ids: TokenIds | None
    ignore_eos: bool | None
    min_tokens: int | None  # before anything but max_tokens ends the reply
    thinking_tokens_max: int | None  # of all that it thinks; there its channel is closed
    draft_tokens: int | None  # pins the depth of speculation; 0 turns it off
    # What the reply must belong to, one of these.
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None  # Lark, where the daemon takes it
    # "auto", "none" or "required", or the one tool that the reply calls.
    tool_choice: str | Tool | None
    cache: CacheOptions | None
    priority: str | None  # "interactive", "normal" or "batch", beside what else one asks for
    # A session of the daemon that the prompt goes on, and its stream: that is resumed where the
    # connection breaks. resumable: so is a stream without one, by a session made for it.
    session: str | Session | None
    resumable: bool | None
    deadline_policy: str | None  # "early": refuse at once what cannot begin in time; or "try"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been emitted, and its natural log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The model's own natural log probability of a token and of the most probable ones.

    Before bias, penalties, temperature and filters; alternatives best first.
    """

    logprob: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """How far the prompt is. `processed_tokens` includes the cached ones.

    logprobs: where `prompt_logprobs` asked; of all events together one for each prompt token but
    the first.
    """

    cached_tokens: int
    processed_tokens: int
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step committed. Text may lag behind the ids; any of them may be empty.

    logprobs: one for each id where `top_logprobs` asked for them, else none.
    """

    text: str
    token_ids: tuple[int, ...]
    thinking: str = ""  # what the model thinks before it speaks, apart from `text`
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    candidate: int = 0  # which reply, from 0


class FinishReason(StrEnum):
    """Why a reply is complete: an end of turn or stop id, `max_tokens`, or a stop string."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    UNKNOWN = ""  # one that only a newer daemon gives


@dataclass(frozen=True, slots=True)
class Usage:
    """What one reply took. Speculation accepted `accepted_tokens` of `draft_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    decode_steps: int
    rounds: int
    draft_tokens: int
    accepted_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    thinking_tokens: int = 0  # of completion_tokens


@dataclass(frozen=True, slots=True)
class Finish:
    """The reply is complete. `stop_sequence` is the string that ended it, or empty."""

    reason: FinishReason
    stop_sequence: str
    usage: Usage
    candidate: int = 0  # which reply, from 0


Event = Prefill | Delta | Finish


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: its deltas joined, the last Prefill and the Finish."""

    text: str
    token_ids: tuple[int, ...]
    prefill: Prefill
    finish: Finish
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of all prompt tokens but the first

    def message(self) -> Message:
        """The turn as the next prompt takes it."""
        return Message("assistant", self.text, self.thinking, self.tool_calls)


@dataclass(frozen=True, slots=True)
class Model:
    """What the daemon has loaded. `drafter` and `quantization` are empty where there is none."""

    name: str
    family: str
    fingerprint: str
    context_tokens_max: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    drafter: str
    quantization: str
    numerics: str  # "fast" or "strict"
    device: str
    self_check: str = "off"  # or "count" or "stop": some rounds are computed once more


class Tier(StrEnum):
    """Where K/V is stored."""

    DEVICE = "device"
    DISK = "disk"


class LayerKind(StrEnum):
    """What attention K/V belongs to: to everything before a token, or to a window."""

    FULL = "full"
    SLIDING = "sliding"


# Pairs that hold nothing may be missing.
StoredBytes = Mapping[tuple[Tier, LayerKind], int]


@dataclass(frozen=True, slots=True)
class Memory:
    """The one budget; the other parts add up to it."""

    budget_bytes: int
    weights_bytes: int
    live_bytes: int
    snapshots_bytes: int
    workspace_bytes: int
    free_bytes: int
    segments_bytes: int
    mlx_cache_bytes: int
    other_bytes: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the tree holds now, and what it did since the daemon started."""

    nodes: int
    depth_tokens: int
    stored: StoredBytes
    leased_bytes: int
    splits: int
    merges: int
    evictions: int
    hit_tokens: int
    miss_tokens: int
    memory: Memory
    pinned_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One edge of the tree, tokens [start, end). `token_ids` and `text` only where asked for."""

    id: int
    parent_id: int | None  # None: it begins at token 0
    start: int
    end: int
    stored: StoredBytes
    leases: int
    age_steps: int
    pinned: bool
    hit_count: int
    token_ids: tuple[int, ...]
    text: str | None
    readers: int = 0  # requests that read it where it lies, instead of a copy of their own


@dataclass(frozen=True, slots=True)
class Pin:
    """A prefix that is kept. bytes: what several pins keep is in each of them.

    public: an operator's, which serves every tenant whose prompt begins with it.
    """

    id: str
    tokens: int
    bytes: int
    expire_time: datetime | None  # in UTC; None: it stays until it is unpinned
    public: bool = False


@dataclass(frozen=True, slots=True)
class Freed:
    """What an eviction took. held_bytes: what running requests hold, which goes when they end."""

    nodes: int
    freed_bytes: int
    held_bytes: int
