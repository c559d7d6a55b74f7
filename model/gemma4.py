"""Gemma 4 text models over packed tokens: mlx-lm's modules, our attention.

- One forward serves every sequence of a step: linear layers, MLPs and experts see one [T, hidden]
  matrix and read each weight once; only attention knows who owns which row.
- The modules are mlx-lm's, and so are their weights. The forward is spelled out, layer by layer:
  attention sits in the middle of each, and modules cost a small model's step its time (dense).
- Past the last layer that owns K/V only kept rows continue (arrays/batch), which is exact and saves
  most of a prompt's cost on E2B and E4B.
- Placeholders of images and sound are computed as the pad token (checkpoint/config).
- Nothing is evaluated here: the caller owns the step's one host sync, and is told of every layer
  as it is built, so that the device need not wait for the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from sapwood.cache.arrays.attention import History, Layers
from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.pools import KeysValues
from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.model.checkpoint.config import Placeholders
from sapwood.model.checkpoint.mlx_lm_modules import (
    DecoderLayer,
    Gemma4TextModel,
    Model,
    logit_softcap,
)
from sapwood.model.curves import capped_on_cpu
from sapwood.model.dense import Heads, Residual, Rotation
from sapwood.model.norms import RmsNorm, norm_of
from sapwood.model.products import OfRows, in_row_tiles


@dataclass(frozen=True, slots=True)
class Forward:
    """Lazy results of one packed forward.

    hidden: [kept rows, hidden] after the final norm, in packed order. written: K/V [T, kv_heads, D]
    of every layer that owns some, in model order.
    """

    hidden: mx.array
    written: tuple[KeysValues, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of the target. source: the layer whose K/V it attends to.

    owned: its K/V, and its queries with them, except in the last layer that owns some, where fewer
    rows may go on. queries: of a layer that has them apart.
    """

    kind: str
    source: int
    before: RmsNorm
    owned: Heads | None
    queries: Heads | None
    rest: Residual

    @classmethod
    def of(cls, layer: DecoderLayer, source: int, apart: bool, kernels: Kernels) -> _Layer:
        attention, owned, queries = layer.self_attn, None, None
        if attention.has_kv:
            owned = Heads.of(attention, kernels, queries=not apart)
        if apart or owned is None:
            queries = Heads.of(attention, kernels, keys=False)
        before = norm_of(layer.input_layernorm, kernels)
        return cls(layer.layer_type, source, before, owned, queries, Residual.of(layer, kernels))


class PackedGemma4:
    """A loaded mlx-lm Gemma 4 with packed attention over `caches`' stores."""

    def __init__(
        self, model: Model, placeholders: Placeholders, kernels: Kernels = CPU_KERNELS
    ) -> None:
        """kernels: of the device."""
        self.model, self.kernels = model, kernels
        self.text: Gemma4TextModel = model.model
        self.owners = [i for i, layer in enumerate(self.text.layers) if layer.self_attn.has_kv]
        #: kind -> index among the owners of the last layer of it, whose K/V the drafter reads
        self.donors = {
            "sliding" if self.text.layers[i].self_attn.is_sliding else "full": index
            for index, i in enumerate(self.owners)
        }
        last = self.owners[-1] if self.owners else None
        self._layers = [
            _Layer.of(layer, self.text.previous_kvs[i], i == last, kernels)
            for i, layer in enumerate(self.text.layers)
        ]
        self._rotations = {
            layer.layer_type: Rotation(layer.self_attn, kernels) for layer in self.text.layers
        }
        self._norm = norm_of(self.text.norm, kernels)
        self._capped = capped_on_cpu if kernels.backend == "cpu" else logit_softcap
        head = self.text.embed_tokens.as_linear if model.tie_word_embeddings else model.lm_head
        project = self.text._project_per_layer_inputs
        if kernels.strict:
            head, project = in_row_tiles(head), in_row_tiles(project)
        self._head, self._project = head, project
        self._embed, self._scale = self.text.embed_tokens, self.text.embed_scale
        self._placeholders = mx.array(placeholders.ids, mx.int32) if placeholders.ids else None
        self._pad = placeholders.pad

    @property
    def first_donor(self) -> int:
        """The first layer whose K/V the drafter reads."""
        return min(self.owners[index] for index in self.donors.values())

    @property
    def shapes(self) -> list[LayerShape]:
        """The K/V-owning layers, as LiveCaches wants them."""
        attentions = [self.text.layers[i].self_attn for i in self.owners]
        return [LayerShape(a.is_sliding, a.n_kv_heads, a.head_dim) for a in attentions]

    def embed(self, tokens: mx.array) -> mx.array:
        """[n] ids -> [n, hidden], scaled as the model's input.

        The drafter is fed the same, of a placeholder its own row: so it is in transformers.
        """
        return self._embed(tokens) * self._scale

    def forward(
        self,
        tokens: mx.array,
        batch: Batch,
        caches: Layers,
        built: Callable[[int, mx.array], object] = lambda _index, _hidden: None,
    ) -> Forward:
        """One lazy pass of packed tokens [T] over the stores: writes K/V, moves no offset.

        built: told each layer's index and output, which all before it leads up to.
        """
        tokens = self._fed(tokens)
        hidden = self.embed(tokens)
        per_layer = self._per_layer_inputs(tokens, hidden)
        inputs, turns, trimmed = self._inputs(per_layer), self._turns(batch.positions), False
        written: list[KeysValues] = []
        histories: dict[int, History] = {}
        for index, layer in enumerate(self._layers):
            normed, queries = layer.before(hidden), None
            if layer.owned is not None:
                queries, keys_values = layer.owned(normed, turns[layer.kind])
                assert keys_values is not None
                histories[index] = caches.stores[len(written)].update(batch, *keys_values)
                written.append(keys_values)
                if queries is None and (kept := batch.kept) is not None:
                    if not kept.size:
                        return Forward(hidden[:0], tuple(written))
                    hidden, normed, trimmed = hidden[kept], normed[kept], True
                    inputs = self._inputs(None if per_layer is None else per_layer[kept])
                    turns = self._turns(batch.kept_positions)
            if layer.queries is not None:
                queries, _ = layer.queries(normed, turns[layer.kind])
            assert queries is not None
            mixed = histories[layer.source].attend(queries, trimmed)
            hidden = layer.rest(hidden, mx.flatten(mixed, 1), inputs[index])
            built(index, hidden)
        return Forward(self._norm(hidden), tuple(written))

    def logits(self, hidden: mx.array) -> mx.array:
        """[n, hidden] -> [n, vocabulary], soft-capped."""
        out = self._head(hidden)
        cap = self.model.final_logit_softcapping
        return out if cap is None else self._capped(cap, out)

    def _fed(self, tokens: mx.array) -> mx.array:
        """[T] ids with the pad token in the place of placeholders."""
        if self._placeholders is None:
            return tokens
        return mx.where((tokens[:, None] == self._placeholders).any(axis=1), self._pad, tokens)

    def _turns(self, positions: mx.array) -> dict[str, OfRows]:
        """By kind of layer, what rotates heads of rows at these positions."""
        return {kind: rotation.at(positions) for kind, rotation in self._rotations.items()}

    def _inputs(self, per_layer: mx.array | None) -> Sequence[mx.array | None]:
        """Each layer's own input [T, size]."""
        count = len(self._layers)
        if per_layer is None:
            return (None,) * count
        return cast("Sequence[mx.array]", mx.split(mx.flatten(per_layer, 1), count, axis=-1))

    def _per_layer_inputs(self, tokens: mx.array, embedded: mx.array) -> mx.array | None:
        """[T, layers, per-layer size] for E2B and E4B, else None."""
        if not self.text.hidden_size_per_layer_input:
            return None
        looked_up = self.text._get_per_layer_inputs(tokens)
        return self._project(embedded, looked_up)
