"""From a Config to what the engine thread runs: the one place that knows all constructors.

- Imported and called on the engine thread: importing takes seconds in which the daemon listens
  already, and every array is made where it is used.
- Everything that can be wrong with a model or the memory for it is a StartError or UsageError.
"""

from __future__ import annotations

import os

from cache.ledger import Ledger
from cache.tree import Tree
from daemon.card import ModelCard
from daemon.config import Config
from daemon.draw import format_bytes
from daemon.engine import Loaded
from daemon.errors import StartError, UsageError
from model import device
from model.files import ModelRefused
from model.locate import locate
from model.pair import Pair, facts, load_pair, try_out
from model.runner import Runner
from scheduler.core import Core
from scheduler.memory import DEMAND_MIN, alone_bytes
from scheduler.plan import ModelFacts

DEMO_NAME = "sapwood-demo"


def load(config: Config) -> Loaded:
    """Load the model and put the core together. Raises StartError or UsageError, with a message."""
    try:
        return _load(config)
    except ModelRefused as error:
        raise StartError(str(error)) from error


def _load(config: Config) -> Loaded:
    target_dir, draft_dir = locate(config.model, config.draft)
    pair = load_pair(target_dir, draft_dir, config.dtype)
    try_out(pair)
    return put_together(config, pair, "" if draft_dir is None else draft_dir.path.name)


def put_together(config: Config, pair: Pair, drafter: str) -> Loaded:
    """The core and the runner around a loaded pair. drafter: its directory's name, "" for none."""
    limits = config.limits
    model_facts = facts(pair, limits.draft_depth_max)
    if config.draft_depth and not model_facts.has_drafter:
        raise UsageError("--draft-depth: no drafter is loaded")
    ledger = _ledger(config, model_facts)
    # What a step frees it needs again in the next one: as much as a step's transient, no more.
    context = model_facts.context_tokens_max
    device.bound_cache(model_facts.prefill_bytes(limits.prefill_tokens_max, context))
    tree = Tree(model_facts.window_tokens, limits.tree_nodes_max)
    core = Core(model_facts, limits, tree, ledger, pair.tokenizer.token_bytes)
    runner = Runner(pair, limits.slots_max, limits.draft_depth_max)
    card = _card(config, pair, model_facts, drafter and (config.draft or drafter))
    return Loaded(card, core, runner, tree.describe, device.leave_thread)


def _ledger(config: Config, model_facts: ModelFacts) -> Ledger:
    """Raises StartError for a budget that would answer OUT_OF_MEMORY to everything."""
    budget = config.memory_bytes or device.memory_budget_bytes()
    weights = model_facts.weights_bytes
    request = alone_bytes(model_facts, config.limits, DEMAND_MIN)
    if budget < weights + request:
        raise StartError(
            f"the weights need {format_bytes(weights)} and the smallest request "
            f"{format_bytes(request)}, the budget is {format_bytes(budget)} (--memory); "
            f"expected at least {weights + request} bytes"
        )
    return Ledger(budget, weights)


def _card(config: Config, pair: Pair, model_facts: ModelFacts, drafter: str) -> ModelCard:
    return ModelCard(
        name=DEMO_NAME if config.model is None else _last_part(config.model),
        family=pair.family,
        fingerprint=bytes.fromhex(pair.fingerprint),
        facts=model_facts,
        defaults=pair.tokenizer.defaults,
        tokenizer=pair.tokenizer,
        drafter=_last_part(drafter) if drafter else "",
        quantization=pair.quantization,
        device=device.name(),
        media_token_ids=pair.target_config.media_token_ids,
    )


def _last_part(value: str) -> str:
    """The name of a directory or hub id; "." and ".." have one too."""
    return os.path.basename(os.path.abspath(value))
