"""A pair is loaded whole, or refused with the numbers that keep it from working."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.attention_routes import Kernels
from sapwood.cache.geometry import buffer_bytes
from sapwood.model import device
from sapwood.model.checkpoint.config import AssistantConfig, AttentionKind, Rope
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.locate import locate
from sapwood.model.checkpoint.weights import Fitted, arrays
from sapwood.model.pair import Pair, check_fit, load_pair, model_facts, try_out
from sapwood.model.runner import Runner
from sapwood.scheduler.sampling import CANDIDATES_MAX, Sampling
from tests.chat import turns
from tests.model.reference import (
    FAMILIES,
    assistant,
    checkpoint,
    copied,
    edit,
    target_config,
)


@pytest.fixture(scope="module")
def demo() -> Pair:
    return load_pair(*locate(None, None))


def test_the_bundled_pair_loads_and_answers(demo: Pair) -> None:
    """Greedy and plain, through mlx-lm's own forward: NOTE of the recipe's own example."""
    ids = demo.tokenizer.encode_messages(turns(("user", "What is the capital of France?")))
    start = len(ids)
    while ids[-1] not in demo.tokenizer.eos_token_ids and len(ids) < start + 32:
        ids.append(int(mx.argmax(demo.target(mx.array([ids]))[0, -1])))
    assert demo.tokenizer.decode(ids[start:]) == "The capital of France is Paris."
    assert (demo.family, demo.quantization, demo.dtype) == ("gemma-4", "", mx.float32)
    assert demo.assistant is not None
    assert demo.tokenizer.defaults.top_k == 40


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_pairs_fit(name: str) -> None:
    check_fit(target_config(name), assistant(name)[1])


def _text(**change: Any) -> Callable[[AssistantConfig], AssistantConfig]:
    return lambda draft: dataclasses.replace(draft, text=dataclasses.replace(draft.text, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda draft: dataclasses.replace(draft, backbone_hidden_size=256),
            "backbone hidden size 256 in the drafter, 64 in the target",
        ),
        (_text(vocabulary=2048), "vocabulary 2048 in the drafter, 1024 in the target"),
        (_text(window=8), "sliding window 8 in the drafter, 16 in the target"),
        (_text(kv_heads=1), "K/V heads of sliding layers 1 in the drafter, 2 in the target"),
        (_text(full_kv_heads=2), "K/V heads of full layers 2 in the drafter, 1 in the target"),
        (_text(head_dim=64), "head size of sliding layers 64 in the drafter, 32 in the target"),
        (_text(full_head_dim=32), "head size of full layers 32 in the drafter, 64 in the target"),
        (
            _text(ropes={"sliding": Rope(5e5, 1.0, False), "full": Rope(1e6, 0.25, True)}),
            "rotary parameters of sliding layers .*500000.* in the drafter, .*10000",
        ),
    ],
)
def test_a_drafter_that_does_not_fit_is_refused_with_the_numbers(
    change: Callable[[AssistantConfig], AssistantConfig], message: str
) -> None:
    draft = assistant("a4b-tiny")[1]
    with pytest.raises(ModelRefused, match=f"does not fit the target: {message}"):
        check_fit(target_config("a4b-tiny"), change(draft))


def test_all_differences_are_named_at_once() -> None:
    with pytest.raises(ModelRefused) as refused:
        check_fit(target_config("e2b-tiny"), assistant("a4b-tiny")[1])
    assert str(refused.value).count("in the target") == 2
    assert "K/V heads of sliding layers 2" in str(refused.value)
    assert "backbone hidden size 64" in str(refused.value)


def test_a_mismatched_pair_is_refused_before_any_weight_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fitted, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ModelRefused, match="does not fit"):
        load_pair(checkpoint("e2b-tiny"), checkpoint("a4b-tiny-assistant"))


def test_a_drafter_is_no_target_and_a_target_no_drafter() -> None:
    with pytest.raises(ModelRefused, match="model_type is 'gemma4_assistant'"):
        load_pair(checkpoint("e2b-tiny-assistant"), None)
    with pytest.raises(ModelRefused, match="model_type is 'gemma4'"):
        load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny"))


@pytest.mark.parametrize(
    ("name", "full", "sliding", "window"),
    [
        # own full layers, own sliding layers: 2 (K and V) * heads * head size * 4 bytes each
        ("e2b-tiny", 1 * 2 * 1 * 64 * 4, 2 * 2 * 1 * 32 * 4, 16),
        ("e4b-tiny", 2 * 2 * 2 * 64 * 4, 1 * 2 * 2 * 32 * 4, 8),
        ("12b-tiny", 2 * 2 * 1 * 64 * 4, 3 * 2 * 2 * 32 * 4, 8),
        ("a4b-tiny", 2 * 2 * 1 * 64 * 4, 3 * 2 * 2 * 32 * 4, 16),
        ("31b-tiny", 2 * 2 * 2 * 32 * 4, 3 * 2 * 4 * 16 * 4, 12),
    ],
)
def test_facts_count_the_bytes_of_real_shapes(
    name: str, full: int, sliding: int, window: int
) -> None:
    pair = load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    plain = load_pair(checkpoint(name), None, "bfloat16")
    found, half = model_facts(pair, 5), model_facts(plain, 5)
    assert (found.full_bytes_per_token, found.sliding_bytes_per_token) == (full, sliding)
    assert found.ring_bytes == sliding * (window + 5 + 2)
    assert (found.window_tokens, found.vocabulary) == (window, 1024)
    assert found.eos_token_ids == {1, 106}
    assert (found.has_drafter, half.has_drafter) == (True, False)
    assert half.ring_bytes * 2 == found.ring_bytes
    reuse = found.reuse_bytes
    of_half, of_all = (f.weights_bytes - f.weights_buffers * reuse for f in (half, found))
    assert of_half < of_all / 2
    assert found.workspace_bytes_per_token > 1024 * 4


def test_what_a_slice_reserves_follows_the_tiles_of_the_device() -> None:
    pair = load_pair(checkpoint("e2b-tiny"), None, "bfloat16")
    on_cpu = model_facts(pair, 5)
    on_gpu = model_facts(dataclasses.replace(pair, kernels=Kernels("metal")), 5)
    assert on_cpu.slice_score_bytes == 5 * 2 * 2**20
    # A CPU makes softmax and gate in several steps, and that is all that differs.
    assert on_cpu.score_bytes_per_key * 2 == on_gpu.score_bytes_per_key * 5
    assert on_cpu.workspace_bytes_per_token > on_gpu.workspace_bytes_per_token
    assert on_gpu == dataclasses.replace(
        on_cpu,
        slice_score_bytes=2 * 2 * 2**26,
        score_bytes_per_key=on_gpu.score_bytes_per_key,
        workspace_bytes_per_token=on_gpu.workspace_bytes_per_token,
        made_bytes_per_token=on_gpu.made_bytes_per_token,
    )


@pytest.mark.parametrize("name", ["e2b-tiny", "31b-tiny"])
def test_facts_of_a_device_with_pages_count_every_buffer_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: each array by itself, as the device gives it; and half of its buffers are ours."""
    pair = load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    exact = model_facts(pair, 5)
    monkeypatch.setattr(device, "page_bytes", lambda: 16_384)
    monkeypatch.setattr(device, "buffers_max", lambda: 499_000)
    paged, caches = model_facts(pair, 5), Runner(pair, 2, 5).caches
    assert caches.page_bytes == paged.page_bytes == 16_384
    weights = [a for m in (pair.target, pair.assistant) if m is not None for a in arrays(m)]
    assert paged.weights_bytes == len(weights) * paged.reuse_bytes + sum(
        buffer_bytes(a.nbytes, 16_384) for a in weights
    )
    assert paged.weights_buffers == len(weights)
    assert paged.weights_bytes > exact.weights_bytes
    caches.reserve(0, 200)
    caches.settle()
    rings = [a for store in caches.sliding for a in store.arrays]
    assert paged.ring_bytes == sum(buffer_bytes(a.nbytes, 16_384) for a in rings) > exact.ring_bytes
    assert paged.live_buffers == len(caches.arrays) + len(rings)  # a tail for each ring
    assert (exact.buffers_max, paged.buffers_max) == (0, 249_500)


def test_facts_of_a_device_that_frees_late_reserve_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """M2: ten large operations' inputs, and what a GPU's sort takes; a greedy row does not sort."""
    pair = load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "float32")
    exact = model_facts(pair, 5)
    monkeypatch.setattr(device, "late_operations", lambda: 10)
    late = model_facts(pair, 5)
    samplings = (
        Sampling(),
        Sampling(1.0, top_k=8),
        Sampling(1.0, top_k=CANDIDATES_MAX),
        Sampling(1.0),
    )
    more = [late.draw_bytes_per_row(s) - exact.draw_bytes_per_row(s) for s in samplings]
    assert more == [0, *[1024 * (10 * 4 + 16)] * 3]
    assert exact.draw_bytes_per_row(samplings[1]) == exact.late_bytes(10**6) == 0
    assert late.late_bytes(1) == late.workspace_bytes_per_token * len(pair.target_config.text.kinds)
    assert late.late_bytes(10**9) == 10 * (50 << 20)


def test_a_prompts_token_reserves_what_storing_it_copies() -> None:
    """M2: its K/V in all layers exists twice for a moment, once the activations are gone.

    Of the releases only 31B has more of them than of activations: 60 layers of 16 heads.
    """
    tiny = load_pair(checkpoint("31b-tiny"), None, "bfloat16")
    pair = dataclasses.replace(tiny, kernels=Kernels("metal"))
    sliding: AttentionKind = "sliding"
    largest = dataclasses.replace(
        pair.target_config.text,
        hidden_size=5376,
        intermediate_size=21_504,
        heads=32,
        kv_heads=16,
        full_kv_heads=4,
        head_dim=256,
        full_head_dim=512,
        window=1024,
        context_tokens_max=262_144,
        kinds=(*[sliding] * 5, "full") * 10,
    )
    config = dataclasses.replace(pair.target_config, text=largest)
    facts = model_facts(dataclasses.replace(pair, target_config=config), 8)
    assert facts.stored_bytes(1, 1) == 2 * 2 * (10 * 4 * 512 + 50 * 16 * 256)
    assert facts.workspace_bytes_per_token == facts.stored_bytes(1, 1)
    assert facts.edge_tokens_max == (2**31 - 1) // (2 * 10 * 4 * 512) == 52_428
    row = facts.row_bytes(8000)
    assert row == 8192 * facts.full_bytes_per_token
    assert facts.moved_bytes(row, facts.ring_bytes) == row * 3 // 10 + facts.ring_bytes * 13 // 50


def test_the_drafter_works_in_the_targets_dtype() -> None:
    pair = load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "bfloat16")
    assert pair.assistant is not None
    assert pair.assistant.pre_projection.weight.dtype == pair.dtype == mx.bfloat16


def test_a_model_that_the_device_cannot_run_is_refused(demo: Pair) -> None:
    """MLX's kernels end there too late otherwise: with the first request, and the daemon."""

    def target(_ids: mx.array) -> mx.array:
        raise RuntimeError("[GatherMM::eval] Currently only supports float32.")

    try_out(demo)
    with pytest.raises(ModelRefused, match="does not run in float32 on this device"):
        try_out(dataclasses.replace(demo, target=target))  # type: ignore[arg-type]


def test_a_drafter_that_the_device_cannot_run_is_refused(demo: Pair) -> None:
    class Broken:
        def turns(self, *_: object) -> None:
            return None

        def step(self, *_: object) -> None:
            raise ValueError("[gather_qmm] only on the GPU.")

    with pytest.raises(ModelRefused, match="the drafter does not run in float32"):
        try_out(dataclasses.replace(demo, assistant=Broken()))  # type: ignore[arg-type]


def _fingerprint(directory: Any, dtype: str = "float32") -> str:
    return load_pair(directory, None, dtype).fingerprint


def test_the_fingerprint_names_config_weights_and_dtype(tmp_path: Path) -> None:
    """T8: what the K/V depend on separates root keys; where the files lie does not."""
    first = _fingerprint(checkpoint("e2b-tiny"))
    copy = copied("e2b-tiny", tmp_path, weights=True)
    assert _fingerprint(copy) == first
    assert _fingerprint(copy, "bfloat16") != first
    edit(copy, "config.json", {"text_config.rms_norm_eps": 1e-5})
    changed = _fingerprint(copy)
    assert changed != first
    with (copy.path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert _fingerprint(copy) not in (first, changed)


def test_large_weights_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.model.pair._HASHED_WHOLE_BYTES_MAX", 1 << 20)
    copy = copied("e2b-tiny", tmp_path, weights=True)
    first = _fingerprint(copy)
    path = copy.path / "model.safetensors"
    content = np.fromfile(path, np.uint8)
    content[len(content) // 2 :] ^= 1
    content.tofile(path)
    assert _fingerprint(copy) != first
