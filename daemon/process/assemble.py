"""From a Config to what the engine thread runs: the one place that knows all constructors.

- Imported and called on the engine thread: importing takes seconds in which the daemon listens
  already, and every array is made where it is used.
- Everything that can be wrong with a model or the memory for it is a StartError or UsageError.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.engine.recording import RecordedCore
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.own_files import create_private, identity_of, remove_own
from sapwood.daemon.process.disk import OpenDisk, disk_bytes, open_disk
from sapwood.daemon.process.host_memory import host_bytes, peak_resident_bytes
from sapwood.daemon.settings.config import Config
from sapwood.daemon.sizes import format_in, unit_of
from sapwood.model import device
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.locate import locate
from sapwood.model.constraints.compiler import ConstraintCompiler
from sapwood.model.constraints.vocabulary import Vocabulary
from sapwood.model.pager import Pager
from sapwood.model.pair import LoadReport, Pair, load_pair, model_facts, try_out
from sapwood.model.replay import PlainReplay, tolerance
from sapwood.model.runner import Runner
from sapwood.model.strict_check import refuse_unless_strict
from sapwood.model.warm_up import warm_up
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.core.demand import DEMAND_MIN, slots_bytes
from sapwood.scheduler.model_facts import ModelFacts

_log = logging.getLogger(__name__)

DEMO_NAME = "sapwood-demo"


def load(config: Config, report: LoadReport = lambda done, total: None) -> Loaded:
    """Load the model and put the core together. Raises StartError or UsageError, with a message."""
    try:
        if config.record is None:
            return _load(config, report)
        with _new_record(config.record) as file:
            loaded = _load(config, report)
            core = RecordedCore(loaded.core, loaded.card.facts, config.limits, file)
            return replace(loaded, core=core)
    except ModelRefused as error:
        raise StartError(str(error)) from error


def _load(config: Config, report: LoadReport) -> Loaded:
    disk = open_disk(config)
    try:
        return _load_with(config, disk, report)
    except BaseException:
        if disk is not None:
            disk.close()
        raise


def _load_with(config: Config, disk: OpenDisk | None, report: LoadReport) -> Loaded:
    target_dir, draft_dir = locate(config.model, config.draft)
    process_bytes = peak_resident_bytes()  # while there are no arrays
    strict = config.numerics == "strict"
    pair = load_pair(target_dir, draft_dir, config.dtype, report, strict)
    try_out(pair)
    drafter = "" if draft_dir is None else draft_dir.path.name
    loaded = put_together(config, pair, drafter, process_bytes, disk)
    # Behind the budget, which is known to hold a request by now.
    constraints = loaded.card.constraints
    assert isinstance(constraints, ConstraintCompiler), "the daemon serves constraints"
    warm_up(pair, min(1, config.limits.draft_depth_max), constraints.anything())
    if pair.kernels.strict:
        refuse_unless_strict(pair)
    loaded = replace(loaded, card=replace(loaded.card, folder=target_dir.path))
    return loaded if config.self_check == "off" else _checked(loaded, pair, config)


def _checked(loaded: Loaded, pair: Pair, config: Config) -> Loaded:
    """The same, some of whose rounds are computed once more as they are served."""
    assert isinstance(loaded.core, Core), "not recorded yet"
    loaded.core.check_rounds()
    replays = PlainReplay(pair, tolerance(pair), config.limits.prefill_tokens_max)
    _log.info("rounds are replayed, and logits may differ by %g", replays.tolerance)
    card = replace(loaded.card, self_check=config.self_check)
    return replace(loaded, card=card, replay=replays.run)


@contextmanager
def _new_record(path: Path) -> Iterator[BinaryIO]:
    """Made before the model is loaded, which takes long, and removed where nothing is recorded.

    Nothing is overwritten. Whoever gets the file without an error closes it.
    """
    try:
        file = create_private(path)
    except OSError as error:
        raise StartError(f"cannot record to {path}: {error.strerror}") from None
    ours = identity_of(path)
    try:
        yield file
    except BaseException:
        remove_own(path, ours)
        file.close()  # last: until then its number is given to no other file
        raise


def put_together(
    config: Config,
    pair: Pair,
    drafter: str,
    process_bytes: int = 0,
    disk: OpenDisk | None = None,
) -> Loaded:
    """The core and the runner around a loaded pair. drafter: its directory's name, "" for none.

    process_bytes: what the process took before the pair was loaded.
    """
    limits = config.limits
    facts = model_facts(pair, limits.draft_depth_max)
    if config.draft_depth and not facts.has_drafter:
        raise UsageError("--draft-depth: no drafter is loaded")
    other = 0
    if config.memory_bytes is None and device.shares_host_memory():
        other = process_bytes + host_bytes(limits, facts.vocabulary)
        other += disk_bytes(limits) if disk is not None else 0
    budget = config.memory_bytes or device.memory_budget_bytes()
    ledger = _ledger(max(0, budget - other), config, facts)
    # What a step frees it needs again in the next one: as much as a step's transient, no more.
    kept = facts.prefill_bytes(limits.prefill_tokens_max, facts.context_tokens_max)
    device.bound(ledger.budget_bytes, kept)
    if config.wire_memory:
        _wire(ledger.budget_bytes)
    tree = Tree(facts.window_tokens, limits.nodes_max(ledger.free))
    folder = None
    if disk is not None:
        text = pair.target_config.text
        folder = disk.for_core(facts, pair.dtype.size, (text.head_dim, text.full_head_dim))
    core = Core(facts, limits, tree, ledger, pair.tokenizer.token_bytes, folder=folder)
    runner = Runner(pair, limits.slots_max, limits.draft_depth_max, mask_s_max=limits.mask_s_max)
    card = _card(config, pair, facts, drafter and (config.draft or drafter))
    follow = device.CacheLimit(kept).follow
    loaded = Loaded(
        card,
        core,
        runner,
        tree.describe,
        device.leave_thread,
        follow,
        other,
        sketch_tree=tree.sketch,
        outline_tree=tree.outline,
    )
    if disk is None or folder is None:
        return loaded
    pager = Pager(runner.caches, disk.storage)
    opener = disk.opener(pager, folder.names.block_tokens)
    return replace(loaded, pager=pager, open_store=opener)


def _wire(budget_bytes: int) -> None:
    if not device.can_wire():
        raise UsageError("--wire-memory: only Metal's memory can be wired")
    device.wire(budget_bytes)


def _ledger(budget: int, config: Config, facts: ModelFacts) -> Ledger:
    """Raises StartError for a budget that would answer OUT_OF_MEMORY to everything."""
    weights = facts.weights_bytes
    request = slots_bytes(facts, config.limits, [DEMAND_MIN])
    if budget < weights + request:
        unit = unit_of(min(budget, weights, request))
        need = [format_in(unit, n, math.ceil) for n in (weights, request, weights + request)]
        raise StartError(
            f"the weights need {need[0]} and the smallest request {need[1]}, the budget is "
            f"{format_in(unit, budget, math.floor)}; expected at least {need[2]} (--memory)"
        )
    return Ledger(budget, weights)


def _card(config: Config, pair: Pair, facts: ModelFacts, drafter: str) -> ModelCard:
    return ModelCard(
        name=DEMO_NAME if config.model is None else _last_part(config.model),
        family=pair.family,
        fingerprint=bytes.fromhex(pair.fingerprint),
        facts=facts,
        defaults=pair.tokenizer.defaults,
        tokenizer=pair.tokenizer,
        constraints=_constraints(config, pair),
        drafter=_last_part(drafter) if drafter else "",
        quantization=pair.quantization,
        numerics=config.numerics,
        device=device.name(),
        media_token_ids=pair.target_config.media_token_ids,
    )


def _constraints(config: Config, pair: Pair) -> ConstraintCompiler:
    tokenizer, limits = pair.tokenizer, config.limits
    vocabulary = Vocabulary(
        tokenizer.token_bytes,
        tokenizer.control_ids,
        tokenizer.eos_token_ids,
        tokenizer.control_tokens,
        tokenizer.encode_plain,
    )
    return ConstraintCompiler(
        vocabulary,
        limits.constraint_build_s_max,
        limits.constraint_build_bytes_max,
        limits.mask_s_max,
        takes_lark=config.takes_lark,
    )


def _last_part(value: str) -> str:
    """The name of a directory or hub id; "." and ".." have one too."""
    return os.path.basename(os.path.abspath(value))
