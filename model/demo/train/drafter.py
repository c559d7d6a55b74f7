"""The drafter as a torch module: every position of packed rows drafts at once.

At position P the bonus token is the row's own; the keys are the target's before P. What a query of
P sees is shifted by one, so that it looks like a query's own block again. A row is read at draft
position `bonus` (turned at P, W + 1 sliding keys) or `last` (turned at P - 1, W keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.model.demo.train.shape import DRAFTER, TARGET, WINDOW
from sapwood.model.demo.train.target import (
    FORBIDDEN,
    Attention,
    Mlp,
    Norm,
    angles,
    attend_all,
    attend_near,
    blocks,
    linear,
    with_block_before,
)


@dataclass(frozen=True, slots=True)
class TargetView:
    """What the queries of one kind of layer see: their turn, keys and values, and the mask."""

    turn: tuple[Tensor, Tensor]
    keys: Tensor
    values: Tensor
    mask: Tensor


def shifted(x: Tensor) -> Tensor:
    """[rows, tokens, d]: at P what was at P - 1, zeros at 0."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def views(
    kept: dict[bool, tuple[Tensor, Tensor]], documents: Tensor, bonus: Tensor
) -> dict[bool, TargetView]:
    """By kind, sliding or not. bonus: [rows], 1 where a row is read at `bonus`, 0 at `last`."""
    tokens = documents.shape[1]
    at = torch.arange(tokens)
    positions = at - (1 - bonus[:, None])
    theirs = shifted(documents[..., None] + 1)[..., 0] - 1
    full = (at[:, None] >= at) & (documents[:, :, None] == theirs[:, None])
    keys = with_block_before(theirs[..., None] + 1)[..., 0] - 1
    query = torch.arange(WINDOW)[:, None] + WINDOW
    key = torch.arange(2 * WINDOW)
    reach = (query - WINDOW - bonus[:, None, None]).repeat_interleave(tokens // WINDOW, 0)
    near = (key <= query) & (key > reach) & (blocks(documents)[:, :, None] == keys[:, None])
    found = {}
    for sliding, kind, seen in ((True, "head_dim", near), (False, "global_head_dim", full)):
        name = "sliding_attention" if sliding else "full_attention"
        turn = angles(name, DRAFTER[kind], positions)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, FORBIDDEN)
        k, v = kept[sliding]
        found[sliding] = TargetView(turn, shifted(k), shifted(v), mask)
    return found


class DraftLayer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        hidden = DRAFTER["hidden_size"]
        self.sliding = DRAFTER["layer_types"][index] == "sliding_attention"
        dims = DRAFTER["head_dim" if self.sliding else "global_head_dim"]
        self.self_attn = Attention(hidden, DRAFTER["num_attention_heads"], dims, owns=False)
        self.mlp = Mlp(hidden, DRAFTER["intermediate_size"])
        self.input_layernorm = Norm(hidden)
        self.post_attention_layernorm = Norm(hidden, 0.4)
        self.pre_feedforward_layernorm = Norm(hidden)
        self.post_feedforward_layernorm = Norm(hidden, 0.4)
        self.layer_scalar = nn.Parameter(torch.ones(1))

    def forward(self, h: Tensor, view: TargetView) -> Tensor:
        q = self.self_attn.queries(self.input_layernorm(h), *view.turn)
        attention = attend_near if self.sliding else attend_all
        mixed = self.self_attn.o_proj(attention(q, view.keys, view.values, view.mask))
        h = h + self.post_attention_layernorm(mixed)
        h = h + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))
        return h * self.layer_scalar


class DrafterNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide, hidden = TARGET["hidden_size"], DRAFTER["hidden_size"]
        self.pre_projection = linear(2 * wide, hidden)
        self.post_projection = linear(hidden, wide)
        self.embed_tokens = nn.Embedding(DRAFTER["vocab_size"], hidden)
        nn.init.normal_(self.embed_tokens.weight, std=hidden**-0.5)
        count = DRAFTER["num_hidden_layers"]
        self.layers = nn.ModuleList(DraftLayer(index) for index in range(count))
        self.norm = Norm(hidden)

    def forward(
        self, embedded: Tensor, h: Tensor, seen: dict[bool, TargetView]
    ) -> tuple[Tensor, Tensor]:
        """One draft at every position, [rows, tokens, ...]: states for the head, and the next h."""
        x = self.pre_projection(torch.cat([embedded, h.to(embedded.dtype)], -1))
        for layer in self.layers:
            x = layer(x, seen[layer.sliding])
        y = self.norm(x)
        return y, self.post_projection(y)

    def logits(self, y: Tensor) -> Tensor:
        return (y @ self.embed_tokens.weight.T).float()
