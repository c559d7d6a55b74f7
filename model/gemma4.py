"""Gemma 4 text models over packed tokens: mlx-lm's modules, our attention.

- One forward serves every sequence of a step: linear layers, MLPs and experts see one [T, hidden]
  matrix and read each weight once; only attention knows who owns which row.
- The modules are mlx-lm's, untouched: DecoderLayer is spelled out because attention sits in its
  middle.
- Past the last layer that owns K/V only kept rows continue (arrays/batch), which is exact and saves
  most of a prompt's cost on E2B and E4B.
- Placeholders of images and sound are computed as the pad token (checkpoint/config).
- Nothing is evaluated here: the caller owns the step's one host sync, and is told of every layer
  as it is built, so that the device need not wait for the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gemma4_text import Attention, DecoderLayer, Gemma4TextModel, Model, logit_softcap

from sapwood.cache.arrays.attention import History, Layers
from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.pools import KeysValues
from sapwood.model.checkpoint.config import Placeholders


@dataclass(frozen=True, slots=True)
class Forward:
    """Lazy results of one packed forward.

    hidden: [kept rows, hidden] after the final norm, in packed order. written: K/V [T, kv_heads, D]
    of every layer that owns some, in model order.
    """

    hidden: mx.array
    written: tuple[KeysValues, ...]


class PackedGemma4:
    """A loaded mlx-lm Gemma 4 with packed attention over `caches`' stores."""

    def __init__(self, model: Model, placeholders: Placeholders) -> None:
        self.model = model
        self.text: Gemma4TextModel = model.model
        self.owners = [i for i, layer in enumerate(self.text.layers) if layer.self_attn.has_kv]
        #: kind -> index among the owners of the last layer of it, whose K/V the drafter reads
        self.donors = {
            "sliding" if self.text.layers[i].self_attn.is_sliding else "full": index
            for index, i in enumerate(self.owners)
        }
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
        return self.text.embed_tokens(tokens) * self.text.embed_scale

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
        positions, trimmed = batch.positions, False
        written: list[KeysValues] = []
        histories: dict[int, History] = {}
        for index, layer in enumerate(self.text.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            if attention.has_kv:
                keys_values = _keys_values(attention, normed, positions)
                histories[index] = caches.stores[len(written)].update(batch, *keys_values)
                written.append(keys_values)
                if len(written) == len(self.owners) and batch.kept is not None:
                    if not batch.kept.size:
                        return Forward(hidden[:0], tuple(written))
                    hidden, normed = hidden[batch.kept], normed[batch.kept]
                    per_layer = None if per_layer is None else per_layer[batch.kept]
                    positions, trimmed = batch.kept_positions, True
            history = histories[self.text.previous_kvs[index]]
            mixed = attention.o_proj(_attend(attention, normed, positions, history, trimmed))
            inputs = None if per_layer is None else per_layer[:, index]
            hidden = _rest_of_layer(layer, hidden, mixed, inputs)
            built(index, hidden)
        return Forward(self.text.norm(hidden), tuple(written))

    def logits(self, hidden: mx.array) -> mx.array:
        """[n, hidden] -> [n, vocabulary], soft-capped."""
        model = self.model
        head = self.text.embed_tokens.as_linear if model.tie_word_embeddings else model.lm_head
        out = head(hidden)
        cap = model.final_logit_softcapping
        return out if cap is None else logit_softcap(cap, out)

    def _fed(self, tokens: mx.array) -> mx.array:
        """[T] ids with the pad token in the place of placeholders."""
        if self._placeholders is None:
            return tokens
        return mx.where((tokens[:, None] == self._placeholders).any(axis=1), self._pad, tokens)

    def _per_layer_inputs(self, tokens: mx.array, embedded: mx.array) -> mx.array | None:
        """[T, layers, per-layer size] for E2B and E4B, else None."""
        if not self.text.hidden_size_per_layer_input:
            return None
        looked_up = self.text._get_per_layer_inputs(tokens)
        return self.text._project_per_layer_inputs(embedded, looked_up)


def _rope(attention: Attention, rows: mx.array, positions: mx.array) -> mx.array:
    """Rotate [T, heads, D], every row at its own position."""
    return attention.rope(rows[:, :, None], offset=positions)[:, :, 0]


def _keys_values(attention: Attention, normed: mx.array, positions: mx.array) -> KeysValues:
    """[T, hidden] -> K and V [T, kv_heads, D] as they are cached."""
    shape = (-1, attention.n_kv_heads, attention.head_dim)
    keys = attention.k_proj(normed).reshape(shape)
    values = keys if attention.use_k_eq_v else attention.v_proj(normed).reshape(shape)
    return _rope(attention, attention.k_norm(keys), positions), attention.v_norm(values)


def _attend(
    attention: Attention, normed: mx.array, positions: mx.array, history: History, trimmed: bool
) -> mx.array:
    queries = attention.q_proj(normed).reshape(-1, attention.n_heads, attention.head_dim)
    queries = _rope(attention, attention.q_norm(queries), positions)
    return history.attend(queries, trimmed).reshape(queries.shape[0], -1)


def _rest_of_layer(
    layer: DecoderLayer, residual: mx.array, mixed: mx.array, per_layer_input: mx.array | None
) -> mx.array:
    """What mlx-lm's DecoderLayer does after its attention."""
    hidden = residual + layer.post_attention_layernorm(mixed)
    hidden = hidden + layer.post_feedforward_layernorm(_feed_forward(layer, hidden))
    if per_layer_input is not None:
        gate = nn.gelu_approx(layer.per_layer_input_gate(hidden)) * per_layer_input
        hidden = hidden + layer.post_per_layer_input_norm(layer.per_layer_projection(gate))
    return hidden * layer.layer_scalar


def _feed_forward(layer: DecoderLayer, hidden: mx.array) -> mx.array:
    dense = layer.mlp(layer.pre_feedforward_layernorm(hidden))
    if not layer.enable_moe:
        return dense
    experts, weights = layer.router(hidden)
    sparse = layer.experts(layer.pre_feedforward_layernorm_2(hidden), experts, weights)
    return layer.post_feedforward_layernorm_1(dense) + layer.post_feedforward_layernorm_2(sparse)
