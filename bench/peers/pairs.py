"""The pairs that all contestants load: the bundled one in float32, and the same one made dearer.

- Widening by zeros: an MLP gets `widening` times as many inner columns, the new ones zero in all
  three matrices. What they add is exactly zero, so the function, the text and the acceptance are
  the bundled pair's; the cost is that of the new shape.
- Spoiling: seeded noise on the drafter's head alone, which proposes other tokens then. The target
  is untouched, so the greedy text is too.
- Everything is float32, on disk as well: a peer computes in what it finds, and a CPU's bfloat16 is
  no contest.
- A directory is written once, tensor by tensor, and kept under a name that says how it was made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from sapwood.model.checkpoint.locate import DEMO

HEAVY_WIDENING = 128
DRAFTER_SHARE = 1 / 30  # of the target's cost, for the balanced pair
TENSORS = "model.safetensors"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_HEAD = "model.embed_tokens.weight"
_GATES, _DOWN = (".mlp.gate_proj.weight", ".mlp.up_proj.weight"), ".mlp.down_proj.weight"
# Tables of which a forward reads a row; the tied head is read whole.
_LOOKED_UP = "embed_tokens_per_layer.weight"

# The smallest tower that mlx-vlm builds; nobody looks through it. 0: the target's hidden size.
_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 0, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
    "global_head_dim": 16, "patch_size": 4, "position_embedding_size": 4,
}  # fmt: skip
_TOWER = {
    "vision_tower.patch_embedder.input_proj.weight": (16, 48),
    "vision_tower.patch_embedder.position_embedding_table": (2, 4, 16),
    "embed_vision.embedding_projection.weight": (0, 16),
}

Shape = tuple[int, ...]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class PairPlan:
    """How a pair is made of the bundled one. widening, drafter_widening: of the MLPs; 1 is as is.

    noise: on the drafter's head, in standard deviations of its weights.
    """

    name: str
    title: str
    widening: int = 1
    drafter_widening: int = 1
    noise: float = 0.0

    def write(self, folder: Path) -> WrittenPair:
        """Writes below `folder` what is not there; pairs share a directory that they both hold."""
        return WrittenPair(
            self,
            _written("target", folder, self.widening, 0.0),
            _written("assistant", folder, self.drafter_widening, self.noise),
        )


@dataclass(frozen=True, slots=True)
class WrittenPair:
    """A pair on disk."""

    plan: PairPlan
    target: Path
    drafter: Path

    @property
    def facts(self) -> dict[str, float]:
        """What a step of one row costs: weights that it reads, and the drafter's share of them."""
        target, drafter = read_weights(shapes(self.target)), read_weights(shapes(self.drafter))
        return {
            "target_weights": target,
            "drafter_weights": drafter,
            "drafter_share": drafter / target,
        }


def pair_plans() -> dict[str, PairPlan]:
    """By name. The noises were found by `python -m bench.peers.spoil`, which measures them."""
    heavy = HEAVY_WIDENING
    plans = (
        PairPlan("bundled", "Bundled pair"),
        PairPlan("heavy", "Heavy pair", heavy),
        PairPlan("balanced", "Balanced pair", heavy, balanced_widening(heavy)),
        PairPlan("heavy-60", "Heavy pair, drafter spoilt to 0.6", heavy, noise=1.4),
        PairPlan("heavy-30", "Heavy pair, drafter spoilt to 0.3", heavy, noise=2.2),
    )
    return {plan.name: plan for plan in plans}


def balanced_widening(target_widening: int, share: float = DRAFTER_SHARE) -> int:
    """The drafter's widening whose pass reads `share` of what the target's reads, rounded."""
    target, drafter = shapes(DEMO / "target"), shapes(DEMO / "assistant")
    wanted = share * read_weights(widened_shapes(target, target_widening))
    mlp = read_weights({name: shape for name, shape in drafter.items() if ".mlp." in name})
    return max(1, round((wanted - (read_weights(drafter) - mlp)) / mlp))


def read_weights(found: Mapping[str, Shape]) -> int:
    """Weights that one token's forward reads: all matrices, tables of rows aside."""
    matrices = (s for name, s in found.items() if len(s) == 2 and _is_read(name))
    return sum(prod(shape) for shape in matrices)


def _is_read(name: str) -> bool:
    return not name.endswith(_LOOKED_UP) and "vision" not in name


def shapes(directory: Path) -> dict[str, Shape]:
    """Of every tensor, from the header alone."""
    with (directory / TENSORS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {n: tuple(t["shape"]) for n, t in header.items() if n != "__metadata__"}


def widened_shapes(found: Mapping[str, Shape], widening: int) -> dict[str, Shape]:
    return {name: widened_shape(name, shape, widening) for name, shape in found.items()}


def widened_shape(name: str, shape: Shape, widening: int) -> Shape:
    if name.endswith(_GATES):
        return (shape[0] * widening, shape[1])
    if name.endswith(_DOWN):
        return (shape[0], shape[1] * widening)
    return shape


def _written(part: str, folder: Path, widening: int, noise: float) -> Path:
    """The directory of that content, which its name says; it is there whole or not at all."""
    place = folder / (f"{part}-x{widening}" + (f"-noise-{noise:g}" if noise else ""))
    if not place.exists():
        staged = place.with_name(f"{place.name}.part")
        shutil.rmtree(staged, ignore_errors=True)
        write_widened(DEMO / part, staged, widening, noise)
        staged.rename(place)
    return place


def write_widened(source: Path, place: Path, widening: int, noise: float = 0.0) -> None:
    """One of a pair's two directories, in float32."""
    place.mkdir(parents=True)
    for name in COPIED:
        shutil.copy(source / name, place / name)
    config = json.loads((source / "config.json").read_text())
    flat = "text_config" not in config
    text = config if flat else config["text_config"]
    text["intermediate_size"] *= widening
    config["dtype"] = text["dtype"] = "float32"
    (place / "config.json").write_text(json.dumps(_nested(config) if flat else config, indent=1))
    _stream(source, place / TENSORS, _layout(source, widening, flat), noise)


def _nested(text: dict[str, object]) -> dict[str, object]:
    """A target's config as Gemma 4 is released, with towers: mlx-vlm drafts for no other."""
    copied = ("vocab_size", "hidden_size", "pad_token_id", "eos_token_id", "bos_token_id", "dtype")
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": {name: value for name, value in text.items() if name != "architectures"},
        "vision_config": _VISION,
        "audio_config": None,
        "tie_word_embeddings": True,
        **{name: text[name] for name in copied},
    }


def _layout(source: Path, widening: int, flat: bool) -> list[tuple[str, str, Shape]]:
    """For each tensor its name in `source`, "" where that has none, its new name and shape."""
    found = widened_shapes(shapes(source), widening)
    if not flat:
        return [(name, name, shape) for name, shape in found.items()]
    hidden = found[_HEAD][1]
    tower = {name: tuple(n or hidden for n in shape) for name, shape in _TOWER.items()}
    text = [
        (name, name.replace("model.", "model.language_model.", 1), shape)
        for name, shape in found.items()
    ]
    return [*text, *(("", f"model.{name}", shape) for name, shape in tower.items())]


def _stream(
    source: Path, file: Path, layout: Sequence[tuple[str, str, Shape]], noise: float
) -> None:
    """Header first, then one tensor after another: never more than one of them in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for _, name, shape in layout:
        end = offset + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    loaded = mx.load(str(source / TENSORS))
    assert isinstance(loaded, dict)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, _, shape in layout:
            wide = np.zeros(shape, np.float32)
            if name:
                array = _spoilt(np.array(loaded[name].astype(mx.float32)), noise * (name == _HEAD))
                wide[tuple(slice(n) for n in array.shape)] = array
            out.write(wide.tobytes())


def _spoilt(array: Floats, noise: float) -> Floats:
    """With noise from one fixed seed; unchanged without."""
    if not noise:
        return array
    drawn = np.random.default_rng(0).standard_normal(array.shape, np.float32)
    return array + np.float32(noise * array.std()) * drawn
