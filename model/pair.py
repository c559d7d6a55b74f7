"""A target and its drafter, loaded together and proven to fit each other.

- `load_pair` runs on the thread that will use the arrays, and returns with all of them evaluated.
- A drafter that does not fit is refused with every number that differs, and the files of both are
  checked against their configs, before any weight is read.
- The fingerprint names what the K/V depend on: config, weights, dtype and numerics. Two pairs with
  different K/V never share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from sapwood.cache.attention_routes import Kernels
from sapwood.cache.geometry import ARRAY_ELEMENTS_MAX, buffer_bytes, ring_tokens, tail_tokens
from sapwood.model import device
from sapwood.model.assistant import Assistant, fill_assistant, fit_assistant
from sapwood.model.checkpoint.config import AssistantConfig, AttentionKind, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.mlx_lm_modules import Model
from sapwood.model.checkpoint.packing import packing_of
from sapwood.model.checkpoint.safetensors import WeightFile, weight_files
from sapwood.model.checkpoint.weights import Fitted, arrays, fit_target, resolve_dtype
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from sapwood.model.sampling.suppression import Suppression, masked_bytes
from sapwood.scheduler.model_facts import ModelFacts

# What a draw takes for each token of the vocabulary: with changed logits or a thousand candidates,
# and where it weighs all of them (sorted, scaled, filtered, with two words of noise). Measured;
# tests/model/sampling/test_draw_bytes.py holds both.
WIDE_DRAW_BYTES, WHOLE_DRAW_BYTES = 16, 72
# And beside it where a row is held to a constraint: its masked logits in float32, and the bits.
MASKED_DRAW_BYTES = 8
# What a GPU's sort takes for each token beside what it is given: values and indices, twice.
SORT_BYTES = 16
# Bytes of weights read so far, and of all: called as they are read, on the thread that loads.
LoadReport = Callable[[int, int], None]
_HASHED_WHOLE_BYTES_MAX = 256 << 20
_SAMPLE_BYTES = 4096
_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """What the daemon serves. `dtype` is that of activations and K/V.

    kernels: of the device that it was loaded on; attention and what is reserved for it go by them.
    """

    target: Model
    target_config: TargetConfig
    assistant: Assistant | None
    tokenizer: Tokenizer
    suppression: Suppression
    dtype: mx.Dtype
    kernels: Kernels
    fingerprint: str
    family: str
    quantization: str  # "" where all weights are plain

    @property
    def dtype_name(self) -> str:
        """Such as bfloat16."""
        return str(self.dtype).removeprefix("mlx.core.")


def load_pair(
    model_dir: ModelDirectory,
    draft_dir: ModelDirectory | None,
    dtype: str = "auto",
    report: LoadReport = lambda done, total: None,
    strict: bool = False,
) -> Pair:
    """Load, check and evaluate a pair; draft_dir None: no drafter. Raises ModelRefused.

    strict: it computes with strict numerics.
    """
    float_dtype = resolve_dtype(dtype)
    config = read_target_config(model_dir)
    files = weight_files(model_dir)
    draft_config = fitted_draft = None
    if draft_dir is not None:
        draft_config = read_assistant_config(draft_dir)
        check_fit(config, draft_config, f"{draft_dir.path / 'config.json'}: ")
        fitted_draft = fit_assistant(weight_files(draft_dir), draft_config)
    fitted = fit_target(files, config)
    tokenizer = load_tokenizer(
        model_dir,
        config.text.vocabulary,
        config.eos_token_ids,
        config.bos_token_ids,
        config.media_token_ids,
    )
    read = _counted(report, [each for each in (fitted, fitted_draft) if each is not None])
    target = fitted.load(float_dtype, read)
    used = target.model.norm.weight.dtype
    # The drafter reads the target's K/V, so it works in the target's dtype.
    assistant = None if fitted_draft is None else fill_assistant(fitted_draft, used, read)
    kernels = device.attention_kernels(used)
    if strict:
        kernels = kernels.strictly()
    # Laid out here, once, so that facts and budget know of all that comes of it.
    PackedGemma4(target, config.placeholders, kernels)
    if assistant is not None:
        assistant.prepare(kernels)
    return Pair(
        target=target,
        target_config=config,
        assistant=assistant,
        tokenizer=tokenizer,
        suppression=Suppression(tokenizer.suppressed, config.text.vocabulary),
        dtype=used,
        kernels=kernels,
        fingerprint=_fingerprint(model_dir, files, f"{used}{' strict' if strict else ''}"),
        family=config.family,
        quantization=_quantization_name(target, assistant),
    )


def _counted(report: LoadReport, parts: Sequence[Fitted[Any]]) -> Callable[[int], None]:
    """What the parts call with the bytes of each tensor."""
    total, done = sum(part.file_bytes for part in parts), 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return read


def try_out(pair: Pair) -> None:
    """One token through target and drafter, each alone: a refusal names it. Raises ModelRefused.

    What the device has no kernel for is MLX's affair (experts on a CPU: float32 only), and what
    overflows the numbers' own. All kinds of rows together are warm_up's.
    """
    packed = f", {pair.quantization}," if pair.quantization else ""
    for what, first_logits in _first_steps(pair):
        try:
            finite = mx.all(mx.isfinite(first_logits())).item()
        except (RuntimeError, ValueError) as error:
            raise ModelRefused(
                f"the {what}{packed} does not run in {pair.dtype_name} on this device: {error}"
            ) from None
        if not finite:
            raise ModelRefused(
                f"the {what}'s logits are not finite in {pair.dtype_name}, expected numbers"
            )


def _first_steps(pair: Pair) -> Iterator[tuple[str, Callable[[], mx.array]]]:
    yield "target", lambda: pair.target(mx.array([[0]]))
    if (assistant := pair.assistant) is not None:
        yield "drafter", lambda: _first_draft(pair, assistant)


def _first_draft(pair: Pair, assistant: Assistant) -> mx.array:
    row = mx.ones((1, pair.target.args.hidden_size), pair.dtype)
    turns = assistant.turns(mx.array([1], mx.int32), pair.kernels)
    # Its own queries stand for what it would attend to.
    return assistant.step(row, row, turns, lambda _, q: q)[0].logits


def check_fit(target: TargetConfig, draft: AssistantConfig, where: str = "") -> None:
    """Raise ModelRefused with the numbers that keep a drafter from this target."""
    wrong = [
        f"{what} {theirs} in the drafter, {ours} in the target"
        for what, theirs, ours in _compared(target, draft)
        if theirs != ours
    ]
    if wrong:
        raise ModelRefused(f"{where}the drafter does not fit the target: {'; '.join(wrong)}")


def _compared(target: TargetConfig, draft: AssistantConfig) -> Iterator[tuple[str, object, object]]:
    ours, theirs = target.text, draft.text
    yield "backbone hidden size", draft.backbone_hidden_size, ours.hidden_size
    yield "vocabulary", theirs.vocabulary, ours.vocabulary
    for kind in sorted(set(theirs.kinds)):
        if ours.last_own(kind) is None:
            yield f"{kind} layers", theirs.kinds.count(kind), 0
            continue
        (their_heads, their_size), (our_heads, our_size) = theirs.shape(kind), ours.shape(kind)
        yield f"K/V heads of {kind} layers", their_heads, our_heads
        yield f"head size of {kind} layers", their_size, our_size
        yield f"rotary parameters of {kind} layers", theirs.ropes[kind], ours.ropes[kind]
    if "sliding" in theirs.kinds:
        yield "sliding window", theirs.window, ours.window


def model_facts(pair: Pair, depth_max: int) -> ModelFacts:
    """The model as the core sees it, in bytes of the real shapes and dtype.

    depth_max: most drafts of a round, which then verifies one row more.
    """
    config, text, item_bytes = pair.target_config, pair.target_config.text, pair.dtype.size
    modules = [module for module in (pair.target, pair.assistant) if module is not None]
    weights = [array for module in modules for array in arrays(module)]
    kernels, page_bytes, late = pair.kernels, device.page_bytes(), device.late_operations()
    reuse_bytes = device.reuse_bytes()
    # Each may hold a row of float32; nearly all that draws but for the greedy sorts.
    late_draw = late and late * 4 + SORT_BYTES
    per_token = _workspace_bytes_per_token(pair, depth_max)
    return ModelFacts(
        window_tokens=text.window_tokens,
        context_tokens_max=text.context_tokens_max,
        vocabulary=text.vocabulary,
        eos_token_ids=pair.tokenizer.eos_token_ids,
        has_drafter=pair.assistant is not None,
        weights_bytes=sum(buffer_bytes(a.nbytes, page_bytes) + reuse_bytes for a in weights),
        full_bytes_per_token=config.kv_bytes_per_token("full", item_bytes),
        sliding_bytes_per_token=config.kv_bytes_per_token("sliding", item_bytes),
        ring_bytes=_sliding_bytes(pair, _ring_tokens(pair, depth_max)),
        tail_bytes=_sliding_bytes(pair, tail_tokens(text.window_tokens)),
        workspace_bytes_per_token=per_token,
        # The head's logits, their softcap, a float32 copy for the sampler, what masking takes.
        logits_bytes_per_row=text.vocabulary
        * (2 * item_bytes + 4 + masked_bytes(pair.tokenizer.suppressed, item_bytes)),
        drawn_bytes_per_row=text.vocabulary * late_draw,
        wide_bytes_per_row=text.vocabulary * (WIDE_DRAW_BYTES + late_draw),
        whole_bytes_per_row=text.vocabulary * (WHOLE_DRAW_BYTES + late_draw),
        masked_bytes_per_row=text.vocabulary * (MASKED_DRAW_BYTES + late * 4),
        # Scores and their softmax, one layer at a time.
        score_bytes_per_key=text.heads * _score_bytes(pair, item_bytes),
        slice_score_bytes=kernels.slice_scores_max * _score_bytes(pair, item_bytes),
        row_tokens_min=kernels.row_tokens_min,
        referred_tokens_step=kernels.tile_tokens,
        control_tokens=pair.tokenizer.control_tokens,
        page_bytes=page_bytes,
        # The other half is for what a step makes and drops, and what MLX keeps of that.
        buffers_max=device.buffers_max() // 2,
        weights_buffers=len(weights),
        reuse_bytes=reuse_bytes,
        # Keys and values of a pool in every layer, and of what is kept aside of those that slide.
        live_buffers=2 * config.kv_layers("full") + 4 * config.kv_layers("sliding"),
        edge_tokens_max=ARRAY_ELEMENTS_MAX // max(1, config.kv_bytes_per_token("full", 1)),
        full_layers=config.kv_layers("full"),
        sliding_layers=config.kv_layers("sliding"),
        made_bytes_per_token=per_token * len(text.kinds),
        late_bytes_max=late * device.COMMAND_BUFFER_BYTES,
    )


def _sliding_bytes(pair: Pair, tokens: int) -> int:
    """So many tokens of one slot in all sliding layers, each with keys and values of its own."""
    layers = pair.target_config.kv_layers("sliding")
    if not layers:
        return 0
    per_token = pair.target_config.kv_bytes_per_token("sliding", pair.dtype.size)
    each = tokens * per_token // (2 * layers)
    return 2 * layers * buffer_bytes(each, device.page_bytes())


def _ring_tokens(pair: Pair, depth_max: int) -> int:
    window = pair.target_config.text.window_tokens
    return ring_tokens(window, depth_max + 1, pair.kernels.tile_tokens)


def _score_bytes(pair: Pair, item_bytes: int) -> int:
    """What a score of attention takes: its softmax with it, and what is made of it."""
    text, kernels = pair.target_config.text, pair.kernels
    head_size = max(text.head_dim, text.full_head_dim)
    return kernels.score_arrays * item_bytes + kernels.partial_bytes(head_size)


def _workspace_bytes_per_token(pair: Pair, depth_max: int) -> int:
    """The transient of one packed row, from above: the widest layer's activations.

    Or, once they are gone, the K/V of all layers, which is copied to be stored.
    """
    text, item_bytes = pair.target_config.text, pair.dtype.size
    wide = text.intermediate_size * (2 if text.double_wide_mlp else 1)
    routed = 3 * text.experts.top_k * text.experts.width if text.experts else 0
    heads = text.heads * max(text.head_dim, text.full_head_dim)
    # Where something is held by reference its parts and their joins beside, in float32.
    attention, parts = 4 * heads, 4 * heads * 4
    per_layer = 3 * len(text.kinds) * text.ple_size
    activations = (
        8 * text.hidden_size + pair.kernels.wide_arrays * wide + routed + attention + per_layer
    )
    scores = text.heads * _ring_tokens(pair, depth_max)
    kinds: tuple[AttentionKind, ...] = ("full", "sliding")
    stored = sum(pair.target_config.kv_bytes_per_token(kind, item_bytes) for kind in kinds)
    scored = scores * _score_bytes(pair, 4)
    return max(activations * item_bytes + parts + scored, stored)


def _quantization_name(target: Model, assistant: Assistant | None) -> str:
    """What is packed in either, read off the loaded modules."""
    packings = [packing_of(target), None if assistant is None else packing_of(assistant)]
    names = ["not quantised" if packing is None else str(packing) for packing in packings]
    if packings == [None, None]:
        return ""
    return names[0] if assistant is None else f"{names[0]}; drafter {names[1]}"


def _fingerprint(directory: ModelDirectory, files: Sequence[WeightFile], numbers: str) -> str:
    """Hex digest of config, weights and how it is computed with them: dtype and numerics.

    Small weights count whole. Of large ones the headers, the sizes and evenly spaced samples do:
    two fine-tunes of one model differ in nearly every row.
    """
    digest = hashlib.sha256(numbers.encode())
    digest.update(directory.text("config.json").encode())
    whole = sum(file.size for file in files) <= _HASHED_WHOLE_BYTES_MAX
    for file in files:
        digest.update(f"{file.name}:{file.size}".encode())
        digest.update(file.header)
        stride = _SAMPLE_BYTES if whole else max(_SAMPLE_BYTES, file.size // _SAMPLES)
        with file.path.open("rb") as data:
            for start in range(0, file.size, stride):
                data.seek(start)
                digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()
