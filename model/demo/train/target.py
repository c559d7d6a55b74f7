"""The target as a torch module, for training only: rows are packed, nothing is cached.

Gemma 4's text model as transformers 5.22.2 computes it. Parameters have Hugging Face's names below
`model.`, so that the state is the checkpoint. One key/value head serves all query heads, which
turns the heads of a query into rows of one matrix product. Documents of a row do not see each
other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.model.demo.train.shape import ROPE, TARGET, WINDOW

EPS = 1e-6
FORBIDDEN = -1e9
SLICE = 256


class Norm(nn.Module):
    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return (rms(x) * self.weight).to(x.dtype)


def rms(x: Tensor) -> Tensor:
    """x over its root mean square, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def linear(wide_in: int, wide_out: int) -> nn.Linear:
    layer = nn.Linear(wide_in, wide_out, bias=False)
    nn.init.normal_(layer.weight, std=wide_in**-0.5)
    return layer


def angles(kind: str, dims: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of [..., dims]; the proportional kind turns only the first pairs."""
    rope = ROPE[kind]
    turning = int(rope.get("partial_rotary_factor", 1.0) * dims // 2)
    exponents = torch.arange(turning, device=positions.device) * 2 / dims
    speeds = F.pad(rope["rope_theta"] ** -exponents, (0, dims // 2 - turning))
    turned = positions.float()[..., None] * torch.cat([speeds, speeds])
    return turned.cos(), turned.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, wide)
        self.up_proj = linear(hidden, wide)
        self.down_proj = linear(wide, hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = F.gelu(self.gate_proj(x), approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class Attention(nn.Module):
    """Queries of one layer; keys and values too where the layer owns them."""

    def __init__(self, hidden: int, heads: int, dims: int, owns: bool) -> None:
        super().__init__()
        self.heads, self.dims, self.owns = heads, dims, owns
        # The scale of the scores is 1: the norms begin where it would be 1/sqrt(dims).
        start = dims**-0.25
        self.q_proj = linear(hidden, heads * dims)
        self.q_norm = Norm(dims, start)
        self.o_proj = linear(heads * dims, hidden)
        if owns:
            self.k_proj = linear(hidden, dims)
            self.v_proj = linear(hidden, dims)
            self.k_norm = Norm(dims, start)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[rows, tokens, heads, dims]"""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.dims)))
        return rotate(q, cos[..., None, :], sin[..., None, :])

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [rows, tokens, dims]."""
        value = self.v_proj(x)
        return rotate(self.k_norm(self.k_proj(x)), cos, sin), rms(value).to(value.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [n, tokens, heads, d], k and v [n, keys, d], mask [n, tokens, keys] to add."""
    n, tokens, heads, d = q.shape
    flat = q.transpose(1, 2).reshape(n, heads * tokens, d)
    scores = torch.bmm(flat, k.transpose(1, 2)).view(n, heads, tokens, -1)
    chances = torch.softmax(scores.float() + mask[:, None], -1).to(v.dtype)
    mixed = torch.bmm(chances.view(n, heads * tokens, -1), v)
    return mixed.view(n, heads, tokens, d).transpose(1, 2)


def blocks(x: Tensor) -> Tensor:
    """[rows, tokens, ...] cut to [rows * blocks, WINDOW, ...]."""
    return x.unflatten(1, (-1, WINDOW)).flatten(0, 1)


def with_block_before(x: Tensor) -> Tensor:
    """Blocks, each with the block before it: [rows * blocks, 2 * WINDOW, d]."""
    cut = x.unflatten(1, (-1, WINDOW))
    before = F.pad(cut[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat([before, cut], 2).flatten(0, 1)


def attend_near(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [rows, tokens, heads, d] over its own block and the one before it.

    Returns [rows, tokens, heads * d].
    """
    near = attend(blocks(q), with_block_before(k), with_block_before(v), mask)
    return near.reshape(*q.shape[:2], -1)


def attend_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """As attend_near, over all tokens before; in slices, for what lies behind one is masked."""
    parts = []
    for end in range(SLICE, q.shape[1] + 1, SLICE):
        at = slice(end - SLICE, end)
        parts.append(attend(q[:, at], k[:, :end], v[:, :end], mask[:, at, :end]))
    return torch.cat(parts, 1).flatten(2)


class Masks:
    """What each query may see, as numbers to add to the scores; documents: [rows, tokens]."""

    def __init__(self, documents: Tensor) -> None:
        tokens = documents.shape[1]
        at = torch.arange(tokens, device=documents.device)
        full = (at[:, None] >= at) & (documents[:, :, None] == documents[:, None])
        keys = with_block_before(documents[..., None] + 1)[..., 0] - 1  # -1: before the row
        query = torch.arange(WINDOW, device=documents.device)[:, None] + WINDOW
        key = torch.arange(2 * WINDOW, device=documents.device)
        near = (key <= query) & (key > query - WINDOW)
        sliding = near & (blocks(documents)[:, :, None] == keys[:, None])
        self.full = torch.zeros(full.shape).masked_fill_(~full, FORBIDDEN)
        self.sliding = torch.zeros(sliding.shape).masked_fill_(~sliding, FORBIDDEN)


class DecoderLayer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        hidden, ple = TARGET["hidden_size"], TARGET["hidden_size_per_layer_input"]
        self.sliding = TARGET["layer_types"][index] == "sliding_attention"
        owns = index < TARGET["num_hidden_layers"] - TARGET["num_kv_shared_layers"]
        dims = TARGET["head_dim" if self.sliding else "global_head_dim"]
        self.self_attn = Attention(hidden, TARGET["num_attention_heads"], dims, owns)
        self.mlp = Mlp(hidden, TARGET["intermediate_size"] * (1 if owns else 2))
        self.input_layernorm = Norm(hidden)
        self.post_attention_layernorm = Norm(hidden, 0.4)
        self.pre_feedforward_layernorm = Norm(hidden)
        self.post_feedforward_layernorm = Norm(hidden, 0.4)
        self.per_layer_input_gate = linear(hidden, ple)
        self.per_layer_projection = linear(ple, hidden)
        self.post_per_layer_input_norm = Norm(hidden, 0.4)
        self.layer_scalar = nn.Parameter(torch.ones(1))

    def forward(
        self,
        h: Tensor,
        ple: Tensor,
        turn: tuple[Tensor, Tensor],
        kv: tuple[Tensor, Tensor] | None,
        mask: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The new hidden state and the keys and values that were read."""
        x = self.input_layernorm(h)
        if kv is None:
            kv = self.self_attn.keys(x, *turn)
        attention = attend_near if self.sliding else attend_all
        mixed = self.self_attn.o_proj(attention(self.self_attn.queries(x, *turn), *kv, mask))
        h = h + self.post_attention_layernorm(mixed)
        h = h + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))
        gated = F.gelu(self.per_layer_input_gate(h), approximate="tanh") * ple
        h = h + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return h * self.layer_scalar, kv


class TargetNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden, layers = TARGET["hidden_size"], TARGET["num_hidden_layers"]
        self.ple = TARGET["hidden_size_per_layer_input"]
        self.embed_tokens = nn.Embedding(TARGET["vocab_size"], hidden)
        self.embed_tokens_per_layer = nn.Embedding(TARGET["vocab_size"], layers * self.ple)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        nn.init.normal_(self.embed_tokens_per_layer.weight, std=self.ple**-0.5)
        self.per_layer_model_projection = linear(hidden, layers * self.ple)
        self.per_layer_projection_norm = Norm(self.ple)
        self.layers = nn.ModuleList(DecoderLayer(index) for index in range(layers))
        self.norm = Norm(hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embed_tokens(tokens) * self.embed_tokens.embedding_dim**0.5

    def per_layer(self, tokens: Tensor, x: Tensor) -> Tensor:
        """[rows, tokens, layers, ple]"""
        shape = (len(self.layers), self.ple)
        projected = self.per_layer_model_projection(x) * x.shape[-1] ** -0.5
        own = self.embed_tokens_per_layer(tokens) * self.ple**0.5
        normed = self.per_layer_projection_norm(projected.unflatten(-1, shape))
        return (normed + own.unflatten(-1, shape)) * 2**-0.5

    def forward(
        self, tokens: Tensor, documents: Tensor
    ) -> tuple[Tensor, dict[bool, tuple[Tensor, Tensor]]]:
        """States after the last norm, [rows, tokens, hidden], and by kind (sliding or not) the keys
        and values that borrowing layers and the drafter read."""
        masks = Masks(documents)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        turns = {
            True: angles("sliding_attention", TARGET["head_dim"], positions),
            False: angles("full_attention", TARGET["global_head_dim"], positions),
        }
        h = self.embed(tokens)
        ple = self.per_layer(tokens, h)
        kept: dict[bool, tuple[Tensor, Tensor]] = {}
        for index, layer in enumerate(self.layers):
            kind = layer.sliding
            mask = masks.sliding if kind else masks.full
            kv = None if layer.self_attn.owns else kept[kind]
            h, kept[kind] = layer(h, ple[:, :, index], turns[kind], kv, mask)
        return self.norm(h), kept

    def logits(self, states: Tensor) -> Tensor:
        cap = TARGET["final_logit_softcapping"]
        return torch.tanh(states @ self.embed_tokens.weight.T / cap).float() * cap
