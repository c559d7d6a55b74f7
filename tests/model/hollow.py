"""A whole pair of a family in its true shapes, without memory, and the graph of one of its steps.

- Every parameter is a view of one number, and so is all live K/V: nothing is computed, ever. What
  would start the device is taken down instead: it is what the step's graph leads to.
- The graph is Metal's: what Metal has one kernel for, and a CPU computes in several operations, is
  one node (norms, rotation, attention of head size 256).
- A step goes through the real runner. Its peer is mlx-lm's own step of the same model: its forward
  over its own caches, and the argmax.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache
from mlx_lm.models.gemma4_text import Model

from bench.families import (
    DRAFTER_LAYERS,
    FULL_HEAD_SIZE,
    HEAD_SIZE,
    PER_LAYER_SIZE,
    VOCABULARY,
    Family,
)
from sapwood.cache.attention_routes import Kernels
from sapwood.model import products
from sapwood.model.assistant import Assistant
from sapwood.model.checkpoint.config import AssistantConfig, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.pair import Pair
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.runner import Runner
from sapwood.model.sampling.suppression import Suppression
from sapwood.scheduler.plan import Admit, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling, SuppressedTokens
from tests.model.reference import copied, edit, parameters

CONTEXT, DEPTH_MAX = 1000, 7
METAL = Kernels("metal")

# Nodes that compute nothing: another look at an array.
VIEWS = {
    *("AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"),
    *("Squeeze", "StopGradient", "Transpose", "Unflatten"),
}
# Stand-ins for Metal's kernels: primitives that nothing of ours or mlx-lm's uses.
STAND_INS = {"Depends": "ScaledDotProductAttention", "ErfInv": "RMSNorm", "ArcCosh": "RoPE"}


def target_config_of(family: Family, place: Path) -> TargetConfig:
    """Read by the product, from a config.json with the family's numbers."""
    directory = copied("e2b-tiny" if family.mixture is None else "a4b-tiny", place)
    change: dict[str, Any] = _shared(family) | {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": PER_LAYER_SIZE if family.per_layer else 0,
        "hidden_size": family.hidden,
        "intermediate_size": family.intermediate,
        "use_double_wide_mlp": family.double_wide,
        "num_hidden_layers": family.layers,
        "num_kv_shared_layers": family.borrowing,
        "num_attention_heads": family.heads,
        "layer_types": [f"{'full' if full else 'sliding'}_attention" for full in family.kinds],
    }
    if (mixture := family.mixture) is not None:
        change |= {
            "num_experts": mixture.experts,
            "top_k_experts": mixture.top_k,
            "moe_intermediate_size": mixture.width,
        }
    edit(directory, "config.json", {f"text_config.{key}": value for key, value in change.items()})
    return read_target_config(directory)


def drafter_config_of(family: Family, place: Path) -> AssistantConfig:
    """Likewise, of the family's drafter."""
    shape = family.drafter
    base = "e2b-tiny-assistant" if shape.centroids else "12b-tiny-assistant"
    directory = copied(base, place)
    change: dict[str, Any] = _shared(family) | {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": family.heads // 2 if shape.centroids else family.heads,
        "num_hidden_layers": len(DRAFTER_LAYERS),
        "num_kv_shared_layers": len(DRAFTER_LAYERS),
        "layer_types": [f"{'full' if full else 'sliding'}_attention" for full in DRAFTER_LAYERS],
    }
    ours = {f"text_config.{key}": value for key, value in change.items()}
    if shape.centroids:
        ours |= {"num_centroids": shape.centroids, "centroid_intermediate_top_k": shape.clusters}
    edit(directory, "config.json", ours | {"backbone_hidden_size": family.hidden})
    return read_assistant_config(directory)


def _shared(family: Family) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "num_key_value_heads": family.kv_heads,
        "num_global_key_value_heads": family.full_kv_heads if family.k_eq_v else None,
        "attention_k_eq_v": family.k_eq_v,
        "sliding_window": family.window,
        "head_dim": HEAD_SIZE,
        "global_head_dim": FULL_HEAD_SIZE,
    }


def view(shape: Sequence[int], dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    """An array that looks like one of this shape and holds one number."""
    made = mx.broadcast_to(mx.array(0.01).astype(dtype), tuple(shape))
    mx.eval(made)
    return made


def _view_of_all(parts: Sequence[mx.array]) -> mx.array:
    """Stands for the rows of all of these."""
    return view((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].dtype)


def hollow(module: nn.Module) -> int:
    """Make every parameter a view of one number; returns how many numbers it had."""

    def like(parameter: mx.array) -> mx.array:
        return view(parameter.shape, mx.int32 if parameter.dtype == mx.int32 else mx.bfloat16)

    module.update(tree_map(like, module.parameters()))
    return sum(parameter.size for parameter in parameters(module).values())


def hollow_pair(family: Family, place: Path) -> Pair:
    """Target and drafter of a family, as they are released, in bfloat16."""
    config, drafting = target_config_of(family, place), drafter_config_of(family, place)
    target, assistant = Model(config.text.model_args()), Assistant(drafting)
    hollow(target)
    hollow(assistant)
    suppression = Suppression(SuppressedTokens(), VOCABULARY)
    tokenizer = cast("Tokenizer", None)  # nothing here reads a text
    return Pair(
        target, config, assistant, tokenizer, suppression, mx.bfloat16, METAL, "", family.name, ""
    )


@contextmanager
def as_on_metal() -> Iterator[None]:
    """What Metal has one kernel for is one node, with all that the kernel reads behind it."""
    unfused = mx.fast.scaled_dot_product_attention

    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, *, mask: Any = None, **how: Any
    ) -> mx.array:
        if queries.shape[-1] != HEAD_SIZE:
            return unfused(queries, keys, values, mask=mask, **how)
        read = [keys, values, *([mask] if isinstance(mask, mx.array) else [])]
        attended: mx.array = mx.depends([queries], read)[0]
        return attended

    with (
        mx.stream(mx.cpu),  # the same graph on every machine
        mock.patch.object(mx.fast, "rms_norm", lambda x, *rest: mx.erfinv(x)),
        mock.patch.object(mx.fast, "rope", lambda x, *rest, **how: mx.arccosh(x)),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", attention),
    ):
        yield


@contextmanager
def nothing_starts() -> Iterator[list[list[mx.array]]]:
    """Every call that would start the device, in order, with the arrays that it names."""
    calls: list[list[mx.array]] = []

    def start(*arrays: Any) -> None:
        named = cast("list[tuple[str, mx.array]]", tree_flatten(list(arrays)))
        calls.append([array for _, array in named])

    with mock.patch.object(mx, "eval", start), mock.patch.object(mx, "async_eval", start):
        yield calls


def row(depth: int) -> StepPlan:
    """One greedy row with CONTEXT tokens."""
    return rows(1, depth)


def rows(clients: int, depth: int) -> StepPlan:
    """So many of them, with as many drafts each."""
    decodes = (DecodeRow(slot, CONTEXT, 5, depth, 1) for slot in range(clients))
    return StepPlan(2, decodes=tuple(decodes))


def everything() -> StepPlan:
    """Rows of every kind of sampler, drafts of several depths, and two slices of prompts."""
    depths = (0, 1, 3, 2, 3)
    fresh = tuple(range(10, 60))
    return StepPlan(
        2,
        decodes=tuple(DecodeRow(s, CONTEXT, 5, depth, 1) for s, depth in enumerate(depths)),
        prefills=(
            PrefillSlice(5, CONTEXT, fresh, draws=True, capture=True),
            PrefillSlice(6, CONTEXT, fresh, draws=False, capture=True),
        ),
    )


SAMPLERS = (
    Sampling(),
    Sampling(temperature=0.8, top_p=0.9, seeded=True, noise_key=7),
    Sampling(temperature=0.8, top_k=40, min_p=0.05, noise_key=8),
    Sampling(temperature=1.0, noise_key=9, repetition_penalty=1.2, logit_bias=((7, 3.0),)),
    Sampling(presence_penalty=0.5, frequency_penalty=0.1),
    Sampling(temperature=0.8, top_p=0.9, seeded=True, noise_key=10),
    Sampling(),
)


def our_step(
    pair: Pair, plan: StepPlan, samplers: Sequence[Sampling] = (Sampling(),)
) -> list[list[mx.array]]:
    """One submit of a plan: what it starts, call by call. Every slot has CONTEXT tokens."""
    with mock.patch.object(products, "stacked", _view_of_all):
        runner = Runner(pair, len(samplers), DEPTH_MAX)
    room = CONTEXT + 64
    with nothing_starts():
        admits = tuple(
            Admit(slot, 0, (), sampling, room, prompt=(5, 6, 7), top_logprobs=3 * (slot == 1))
            for slot, sampling in enumerate(samplers)
        )
        runner.submit(StepPlan(1, admits=admits))
        for slot in range(len(samplers)):
            runner.caches.reserve(slot, room)
    for decode in plan.decodes:
        runner._samplers[decode.slot].push((decode.token,))
    runner.frontier = view(runner.frontier.shape)
    for store in runner.caches.stores:
        store.offsets = dict.fromkeys(range(len(samplers)), CONTEXT)
        pools = store.pools.by_capacity
        pools.update({size: (view(k.shape), view(v.shape)) for size, (k, v) in pools.items()})
    with nothing_starts() as calls, as_on_metal():
        runner.submit(plan)
    return calls


def their_step(model: Model) -> list[mx.array]:
    """What mlx-lm's step of one row with CONTEXT tokens leads to."""
    caches = model.make_cache()
    owners = [layer.self_attn for layer in model.layers if layer.self_attn.has_kv]
    for cache, attention in zip(caches, owners, strict=True):
        full = isinstance(cache, KVCache)
        length = -(-CONTEXT // cache.step) * cache.step if full else cache.max_size
        shape = (1, attention.n_kv_heads, length, attention.head_dim)
        cache.keys, cache.values, cache.offset = view(shape), view(shape), CONTEXT
        if not full:
            cache._idx = CONTEXT % length
    with as_on_metal():
        logits = model(mx.array([[5]]), cache=caches)
        return [mx.argmax(logits[:, -1], axis=-1)]


def nodes(roots: Sequence[mx.array], place: Path) -> Counter[str]:
    """Primitives behind these arrays, each as often as the graph has it."""
    drawing = place / "graph.dot"
    mx.export_to_dot(str(drawing), *roots)
    labels = re.findall(r'label ="([A-Z]\w+)"', drawing.read_text())
    return Counter(
        "Compiled" if label.startswith("Compiled") else STAND_INS.get(label, label)
        for label in labels
    )


class Node(NamedTuple):
    """One primitive as it is exported: the dtype that it makes, and what it was told."""

    name: str
    dtype: mx.Dtype
    arguments: list[Any]


def exported_events(step: Callable[[], Sequence[Sequence[mx.array]]]) -> list[dict[str, Any]]:
    """All primitives behind what a step starts, as mlx exports them.

    Compiled functions are written out and copies left out: mlx exports neither.
    """
    events: list[dict[str, Any]] = []

    def traced(_: mx.array) -> list[mx.array]:
        return [array for call in step() for array in call]

    mx.disable_compile()
    try:
        with mock.patch.object(mx, "contiguous", lambda a, *rest, **how: mx.stop_gradient(a)):
            mx.export_function(events.append, traced, mx.zeros(()))
    finally:
        mx.enable_compile()
    return [event for event in events if event["type"] == "primitive"]


def exported_nodes(step: Callable[[], Sequence[Sequence[mx.array]]]) -> list[Node]:
    """Likewise, one for each array that is made."""
    return [
        Node(STAND_INS.get(e["name"], e["name"]), output[2], e["arguments"])
        for e in exported_events(step)
        for output in e["outputs"]
    ]
