"""Every bound of a running daemon, in one frozen place.

- A number that limits a queue, list, string, size or time of requests, steps, tree or process lives
  here and nowhere else. What bounds a file's format or a command's own work stands with its reader.
- Units come last in a name. Half-open ranges: a maximum is the largest value that is allowed.
- The daemon may replace a value from its configuration at start; nobody changes one afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of memory for K/V, for each node of the tree. On a GPU two buffers of a node are two pages at
# least, so bytes bind first there; elsewhere what a node is in Python, some 2 KiB, is a sixteenth.
ROOM_BYTES_PER_NODE = 32 << 10
_NODES_LEAST = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests, queues, steps, the tree and the process."""

    # One request, checked at the door before anything is allocated in proportion to it.
    request_bytes_max: int = 4 * 1024 * 1024
    metadata_bytes_max: int = 8 * 1024
    request_fields_max: int = 24 * 1024  # of one message and all inside of it, ids aside
    messages_max: int = 4096
    tools_max: int = 128  # of a conversation, and calls of a message
    call_id_bytes_max: int = 128
    json_items_max: int = 64 * 1024  # of all tools and calls: what a comma or bracket may begin
    codec_tokens_max: int = 256 * 1024  # of Tokenize and Detokenize
    stop_strings_max: int = 8
    stop_string_bytes_max: int = 64
    stop_token_ids_max: int = 64
    max_tokens_default: int = 512
    worker_max_tokens_default: int = 8192  # where a gateway says nothing: its clients expect no end
    draft_depth_max: int = 15  # where few rows decode: with the bonus token a tile of 16
    draft_tokens_max: int = 8  # where more do, and that a request may pin
    deep_rows_max: int = 8  # how many are few
    penalty_max: float = 2.0  # of presence and frequency, either sign
    logit_bias_max: float = 100.0  # either sign
    logit_bias_tokens_max: int = 1024
    candidates_max: int = 8  # replies to one prompt
    top_logprobs_max: int = 20  # of prompts and of replies
    error_detail_chars_max: int = 200

    # Sequences and queues.
    slots_max: int = 32
    queued_max: int = 256
    queue_s_max: float = 60.0
    overtaken_max: int = 8
    passed_max: int = 8  # turns of more urgent lines, until it is a line's own
    yield_steps_min: int = 8  # in decode, before a row goes for a part of somebody's share; twice
    # as many of who has no whole slot
    accounts_max: int = 256  # of principals that have nothing to do now
    parks_max: int = (
        4  # of one sequence, that is in the way of older ones' memory or others' shares
    )
    reply_tokens_guess: int = 128  # of a reply, before any has ended
    pins_max: int = 64
    pins_share_max: float = 0.5  # of the budget beside the weights, of all that pins keep
    pin_s_max: float = 10 * 366 * 86400.0  # of a ttl
    pins_page_default: int = 100
    pins_page_max: int = 1000
    sessions_max: int = 1024
    session_tokens_max: int = 64 * 1024 * 1024  # of all sessions: four bytes of the host's each
    session_name_chars_max: int = 64
    session_s_default: float = 86400.0
    session_s_max: float = 30 * 86400.0
    sessions_page_default: int = 100
    sessions_page_max: int = 1000
    admission_candidates_max: int = 8
    request_s_max: float = 1800.0
    rpcs_max: int = 512
    watches_max: int = 128  # of health and reflection
    transport_rpcs_max: int = 1024  # gRPC's own, also of one connection: above those two together
    connections_max: int = 1024  # in equal parts for the listeners
    descriptors_kept: int = 96  # of what the process may open: no connection gets them
    handshake_s_max: float = 10.0  # until a connection says that it speaks HTTP/2
    mailbox_bytes_max: int = 256 * 1024
    write_s_max: float = 30.0
    tokenise_workers: int = 2
    tokenise_calls_max: int = 512
    tokenise_bytes_max: int = 64 * 1024 * 1024
    codec_workers: int = 1  # Tokenize and Detokenize have their own
    codec_calls_max: int = 32
    codec_bytes_max: int = 32 * 1024 * 1024
    constraint_bytes_max: int = 64 * 1024  # of a schema, expression or grammar, or of all tools
    constraint_workers: int = 2
    constraint_calls_max: int = 64
    constraint_build_s_max: float = 2.0
    constraint_build_bytes_max: int = 64 * 1024 * 1024
    deadline_slack_s: float = 0.1
    reload_s: float = 1.0  # until files of tokens and certificates are looked at again

    # The HTTP endpoint of metrics and health.
    http_head_bytes_max: int = 8192
    http_request_s_max: float = 5.0
    http_connections_max: int = 32

    # The live page.
    page_viewers_max: int = 8
    page_period_s: float = 1.0  # between two looks, of all viewers together
    page_tree_periods: int = 2  # between two looks at the tree
    page_streams_max: int = 64
    page_looks_max: int = 1024  # at nodes of the tree, each time
    page_nodes_max: int = 300  # that are drawn
    page_disk_tokens_max: int = 16 * 1024  # of which it is asked whether they are on disk
    page_history_max: int = 600  # points

    # One step.
    itl_target: float = 1.6  # beside prompts, times what it takes without them
    prefill_tokens_max: int = 512
    prefill_slices_max: int = 8
    scored_tokens_max: int = 128  # of one prompt in one step, whose log-probabilities are asked for
    check_share: float = 0.01  # of the device's time, in which rounds are computed once more
    check_tokens_max: int = 4096  # of such a round, with all before it
    check_s_max: float = (
        0.1  # of one while somebody is served, or a few steps' time if they are slow
    )
    check_idle_s_max: float = 0.5  # and while nobody is
    lost_steps_max: int = 3  # one after another, for want of memory on the device
    mask_s_max: float = 0.25  # for the masks of a step; whoever takes longer by itself ends

    # Tree and engine.
    tree_nodes_max: int | None = None  # None: follows memory, see nodes_max
    share_tokens_min: int = 32
    # What a call over an edge has to save to pay: tokens times those who would read them as well.
    referred_reads_min: int = 2048
    referred_edge_tokens_min: int = 512  # of edges that are referred to for want of memory
    page_ins_max: int = 4  # prompts at once for which the disk is read
    page_in_s_max: float = 10.0  # that a prompt waits for it
    read_bytes_max: int = 8 << 20  # read at once, and stored between two steps; one block at least
    idle_s_max: float = 1.0
    stall_s_max: float = 120.0
    drain_s_max: float = 20.0
    record_bytes_max: int = 1 << 30

    @property
    def usual_depth_max(self) -> int:
        """The deepest round that any company may have."""
        return min(self.draft_tokens_max, self.draft_depth_max)

    def depth_max(self, rows: int) -> int:
        """The deepest round where so many rows decode."""
        return self.draft_depth_max if rows <= self.deep_rows_max else self.usual_depth_max

    def nodes_max(self, room_bytes: int) -> int:
        """How many nodes the tree may have where so many bytes are for all K/V."""
        if self.tree_nodes_max is not None:
            return self.tree_nodes_max
        return max(_NODES_LEAST, room_bytes // ROOM_BYTES_PER_NODE)
