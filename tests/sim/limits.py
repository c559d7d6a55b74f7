"""The bounds of a scenario's daemon, and what its requests ask for."""

from __future__ import annotations

from sapwood.scheduler.events import Priority
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.sim.story import Ask, Config

CHECK_S_MAX = 5.0  # a step takes up to half a second here


def limits_of(config: Config) -> Limits:
    return Limits(
        slots_max=config.slots_max,
        queued_max=config.queued_max,
        queue_s_max=config.queue_s_max,
        request_s_max=config.request_s_max,
        draft_depth_max=config.draft_depth_max,
        deep_rows_max=config.deep_rows_max,
        prefill_tokens_max=config.prefill_tokens_max,
        prefill_slices_max=config.prefill_slices_max,
        share_tokens_min=config.share_tokens_min,
        referred_reads_min=config.share_tokens_min,
        referred_edge_tokens_min=config.share_tokens_min,
        overtaken_max=config.overtaken_max,
        passed_max=config.passed_max,
        yield_steps_min=config.yield_steps_min,
        parks_max=config.parks_max,
        reply_tokens_guess=config.reply_tokens_guess,
        tree_nodes_max=config.tree_nodes_max,
        pins_max=config.pins_max,
        pins_share_max=config.pins_share_max,
        sessions_max=config.sessions_max,
        check_share=config.check_share,
        check_idle_s_max=CHECK_S_MAX,
    )


def options_of(ask: Ask, has_drafter: bool, now: float) -> dict[str, object]:
    sampling = Sampling(
        temperature=ask.temperature,
        seeded=ask.seed is not None,
        noise_key=ask.name if ask.seed is None else ask.seed,
        presence_penalty=0.5 if ask.penalised else 0.0,
    )
    return {
        "root": b"root %d" % ask.root,
        "sampling": sampling,
        "stop": ask.stop,
        "stop_token_ids": frozenset(ask.stop_token_ids),
        "ignore_eos": ask.ignore_eos,
        "depth": ask.depth if has_drafter else None,
        "top_logprobs": ask.top_logprobs,
        "cache_bypass": ask.bypass,
        "store_reply": ask.store_reply,
        "deadline": None if ask.deadline_s is None else now + ask.deadline_s,
        "principal": f"principal {ask.principal}",
        "weight": ask.weight,
        "priority": Priority(ask.priority),
        "early": ask.early,
        "forks": ask.candidates - 1,
        "min_tokens": ask.min_tokens,
        "prompt_logprobs": ask.prompt_logprobs,
        "constraint": "held" if ask.held else None,
    }
