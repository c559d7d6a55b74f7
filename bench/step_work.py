"""What one step asks of the device: kernels, bytes and arithmetic, and what is made of the time.

- A step: `clients` rows that decode greedily, `depth` drafts each, no prompt beside them.
- Kernels are counted by a rule for each kind of layer, ours and mlx-lm's. A test holds both against
  every family's graphs of one client without drafts; those of drafts follow the same rule.
- Bytes are weights and K/V; activations stay in caches. Arithmetic is that of linear layers;
  attention's is under a tenth of it at the contexts shown.
- Time is a range, from the quick end of every constant to the slow one: what is not known is not
  averaged away. bench/reports.py says where the constants come from.
- Pure: no device, no file.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.families import DRAFTER_LAYERS, HEAD_SIZE, Family
from sapwood.cache.attention_routes import Kernels, queries_max

#: bits of a weight with the scales (and biases) of its group
BITS = {"bf16": 16.0, "8-bit": 8.5, "mxfp8": 8.25, "4-bit": 4.5, "mxfp4": 4.25, "nvfp4": 4.5}
ROUTER_BITS = 8.5  # of all packed mixtures; a plain one's are as plain

# From so many rows on packed linear layers are products of matrices, in tiles of so many rows.
MATRIX_ROWS_MIN, TILE_ROWS = 13, 32
METAL = Kernels("metal")

UNFUSED_KERNELS = 3  # more: scores, mask, softmax, product instead of one
MIXTURE_KERNELS = 21  # router, experts, two norms and a sum
PER_LAYER_STEP_KERNELS = 8
VERIFY_KERNELS = 15
DRAFT_KERNELS, ORDERED_HEAD_KERNELS = 9, 6  # of an iteration, its layers apart

BANDWIDTH_SHARE, ARITHMETIC_SHARE = 0.8, 0.6
LAUNCH_S = (3.6e-6, 5.7e-6)
HOST_S = (0.0, 4.0e-3)  # what of building the graph nothing hides


@dataclass(frozen=True, slots=True)
class Chip:
    """bytes_s: peak of memory. flops_s: peak in float32; None: unknown, and then no bound."""

    name: str
    bytes_s: float
    flops_s: float | None


@dataclass(frozen=True, slots=True)
class KernelRule:
    """Kernels of one who builds a step's graph.

    layer: of each; own_kv, per_layer: more where it has K/V, and an input, of its own. tied: fewer
    where keys are values. step: once.
    """

    layer: int
    own_kv: int
    tied: int
    per_layer: int
    step: int


# layer: norms 4, q 3 (product, norm, rotation), attention 1, out 1; then MLP 4, sums 2. own_kv: a
# weight behind the common norm, two writes. step: embedding, masks, final norm, head, softcap,
# choice, frontier, and the last own K/V apart from its queries.
OUR_KERNELS = KernelRule(layer=15, own_kv=3, tied=0, per_layer=5, step=27)
# layer: MLP 5 (its activation is compiled in two parts), sums and the layer's scalar 3. own_kv:
# k 3, v 2, two writes. step: as ours without masks and frontier.
MLX_LM_KERNELS = KernelRule(layer=17, own_kv=7, tied=1, per_layer=7, step=9)


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step of `clients` rows. context: tokens that each has. rule: who builds it.

    Packings are names of BITS.
    """

    family: Family
    clients: int = 1
    depth: int = 0
    packing: str = "4-bit"
    draft_packing: str = "4-bit"
    context: int = 1000
    rule: KernelRule = OUR_KERNELS

    @property
    def rows(self) -> int:
        """That the target verifies."""
        return self.clients * (self.depth + 1)

    @property
    def bytes(self) -> float:
        """Read from memory."""
        family, bits = self.family, BITS[self.packing]
        router_bits = bits if bits > ROUTER_BITS else ROUTER_BITS
        read = family.dense_weights * bits + family.router_weights * router_bits
        read += self._distinct_experts * family.expert_weights * bits
        kv = self.clients * family.kv_read_bytes(self.context)
        return read / 8 + kv + self.depth * self.draft_bytes

    @property
    def draft_bytes(self) -> float:
        """Read in one iteration of the drafter."""
        weights = self.family.drafter_weights * BITS[self.draft_packing] / 8
        return weights + self.clients * self.family.drafter_kv_read_bytes(self.context)

    @property
    def flops(self) -> float:
        """Done in linear layers, rows that only fill a tile included."""
        family = self.family
        routed = 0 if family.mixture is None else self.rows * family.mixture.top_k
        dense = family.dense_weights + family.router_weights
        target = dense * _tiled(self.rows) + routed * family.expert_weights
        drafts = self.depth * family.drafter_weights * _tiled(self.clients)
        return 2.0 * (target + drafts)

    @property
    def kernels(self) -> int:
        """Started one after the other."""
        family = self.family
        layers = sum(self._layer_kernels(index) for index in range(family.layers))
        fixed = self.rule.step + PER_LAYER_STEP_KERNELS * family.per_layer
        drafted = self.depth * self._draft_kernels + (VERIFY_KERNELS if self.depth else 0)
        return layers + fixed + drafted

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """From the quick end of what is not known to the slow one."""
        moved = self.bytes / (BANDWIDTH_SHARE * chip.bytes_s)
        done = self.flops / (ARITHMETIC_SHARE * chip.flops_s) if chip.flops_s else 0.0
        quick, slow = (
            max(moved, done) + self.kernels * launch + host
            for launch, host in zip(LAUNCH_S, HOST_S, strict=True)
        )
        return quick, slow

    def tokens_s(self, chip: Chip, acceptance: float) -> tuple[float, float]:
        """Of all clients together, from the slow end to the quick one."""
        quick, slow = self.seconds(chip)
        tokens = self.clients * round_tokens(self.depth, acceptance)
        return tokens / slow, tokens / quick

    @property
    def _distinct_experts(self) -> float:
        """Of each layer, where every row chooses its own and all are chosen alike."""
        mixture = self.family.mixture
        if mixture is None:
            return 0.0
        left: float = (1 - mixture.top_k / mixture.experts) ** self.rows
        return mixture.experts * (1 - left)

    @property
    def _cut_kernels(self) -> int:
        """More in a sliding layer whose fused kernel has no room for a whole round."""
        share = self.family.heads // self.family.kv_heads
        most = queries_max(METAL, HEAD_SIZE, share)
        further = 0 if most is None else self.depth // most
        joined = 1 + (self.clients > 1)  # what the calls give, and that in the rows' order
        return further + joined if further else 0

    def _layer_kernels(self, index: int) -> int:
        family = self.family
        full, own = family.kinds[index], family.own[index]
        count = self.rule.layer + self.rule.per_layer * family.per_layer
        count += UNFUSED_KERNELS if full else self._cut_kernels
        if own:
            count += self.rule.own_kv - self.rule.tied * (full and family.k_eq_v)
        return count + (0 if family.mixture is None else MIXTURE_KERNELS)

    @property
    def _draft_kernels(self) -> int:
        layers = sum(self.rule.layer + UNFUSED_KERNELS * full for full in DRAFTER_LAYERS)
        ordered = ORDERED_HEAD_KERNELS if self.family.drafter.centroids else 0
        return layers + DRAFT_KERNELS + ordered


def round_tokens(depth: int, acceptance: float) -> float:
    """Expected of a round, where each draft is accepted with the same probability."""
    return sum(acceptance**count for count in range(depth + 1))


def _tiled(rows: int) -> int:
    return rows if rows < MATRIX_ROWS_MIN else -(-rows // TILE_ROWS) * TILE_ROWS
