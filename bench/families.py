"""The five released shapes of Gemma 4 with their drafters, and what of them a step reads.

- Values are those of the releases' config.json; what they have in common is a constant.
- Counts are of weights, not of bytes: how they are packed is not a shape's business.
- Only matrices count. Norms, scalars and the rows taken from embeddings are a thousandth of them.
- Pure: no device, no file.
"""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY, HEAD_SIZE, FULL_HEAD_SIZE, PER_LAYER_SIZE = 262_144, 256, 512, 256
DRAFTER_LAYERS = (False, False, False, True)  # whether full
KV_ITEM_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class DrafterShape:
    """A drafter. centroids, clusters: of an ordered head and how many it opens; 0: a dense one."""

    hidden: int
    intermediate: int
    centroids: int = 0
    clusters: int = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """Every layer's experts, beside its dense part."""

    experts: int
    top_k: int
    width: int


@dataclass(frozen=True, slots=True)
class Family:
    """One target and its drafter. Each `period`-th layer is a full one."""

    name: str
    layers: int
    period: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    full_kv_heads: int
    window: int
    drafter: DrafterShape
    borrowing: int = 0  # the last so many layers have no K/V of their own; their MLP may be double
    double_wide: bool = False
    per_layer: bool = False
    mixture: Mixture | None = None

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether each layer is full."""
        return tuple((index + 1) % self.period == 0 for index in range(self.layers))

    @property
    def own(self) -> tuple[bool, ...]:
        """Whether each layer has K/V of its own."""
        return tuple(index < self.layers - self.borrowing for index in range(self.layers))

    @property
    def k_eq_v(self) -> bool:
        """Whether full layers project K and V at once: those with K/V heads of their own count."""
        return self.full_kv_heads != self.kv_heads

    def layer_weights(self, index: int) -> int:
        """All that is read of a layer whatever the tokens; experts apart."""
        full = self.kinds[index]
        dim, kv_heads = self._kv(full)
        attention = 2 * self.hidden * self.heads * dim
        if self.own[index]:
            projections = 1 if full and self.k_eq_v else 2
            attention += projections * self.hidden * kv_heads * dim
        wide = 2 if self.double_wide and not self.own[index] else 1
        per_layer = 2 * self.hidden * PER_LAYER_SIZE if self.per_layer else 0
        return attention + 3 * self.hidden * self.intermediate * wide + per_layer

    @property
    def dense_weights(self) -> int:
        """Of a whole step but for experts and their routers: layers and head."""
        every_layer = PER_LAYER_SIZE * self.layers * self.hidden if self.per_layer else 0
        layers = sum(self.layer_weights(index) for index in range(self.layers))
        return layers + every_layer + VOCABULARY * self.hidden

    @property
    def router_weights(self) -> int:
        """Of all layers."""
        return 0 if self.mixture is None else self.layers * self.hidden * self.mixture.experts

    @property
    def expert_weights(self) -> int:
        """Of one expert in every layer."""
        return 0 if self.mixture is None else self.layers * 3 * self.hidden * self.mixture.width

    def kv_read_bytes(self, context: int) -> int:
        """K and V that one client's attention reads in a step, by borrowing layers too."""
        return sum(self._layer_kv_bytes(full, context) for full in self.kinds)

    @property
    def drafter_weights(self) -> int:
        """Read in one iteration of the drafter."""
        shape = self.drafter
        attention = sum(
            2 * shape.hidden * self._drafter_heads * self._kv(full)[0] for full in DRAFTER_LAYERS
        )
        mlp = 3 * shape.hidden * shape.intermediate * len(DRAFTER_LAYERS)
        projections = 3 * self.hidden * shape.hidden  # in 2 x hidden, out one
        return attention + mlp + projections + self._drafter_head_weights

    def drafter_kv_read_bytes(self, context: int) -> int:
        """Of the target's K and V, for one client in one iteration."""
        return sum(self._layer_kv_bytes(full, context) for full in DRAFTER_LAYERS)

    @property
    def _drafter_head_weights(self) -> int:
        shape = self.drafter
        if not shape.centroids:
            return VOCABULARY * shape.hidden
        opened = shape.clusters * (VOCABULARY // shape.centroids)
        return (shape.centroids + opened) * shape.hidden

    @property
    def _drafter_heads(self) -> int:
        """Those of E2B and E4B have half the target's."""
        return self.heads // 2 if self.drafter.centroids else self.heads

    def _kv(self, full: bool) -> tuple[int, int]:
        """(head size, K/V heads) of a kind of layer."""
        return (FULL_HEAD_SIZE, self.full_kv_heads) if full else (HEAD_SIZE, self.kv_heads)

    def _layer_kv_bytes(self, full: bool, context: int) -> int:
        dim, kv_heads = self._kv(full)
        tokens = context if full else min(context, self.window)
        return 2 * kv_heads * dim * KV_ITEM_BYTES * tokens


_ORDERED = DrafterShape(256, 2048, centroids=2048, clusters=32)
_DENSE = DrafterShape(1024, 8192)

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "E2B", layers=35, period=5, hidden=1536, intermediate=6144, heads=8, kv_heads=1,
            full_kv_heads=1, window=512, drafter=_ORDERED, borrowing=20, double_wide=True,
            per_layer=True,
        ),
        Family(
            "E4B", layers=42, period=6, hidden=2560, intermediate=10_240, heads=8, kv_heads=2,
            full_kv_heads=2, window=512, drafter=_ORDERED, borrowing=18, per_layer=True,
        ),
        Family(
            "12B", layers=48, period=6, hidden=3840, intermediate=15_360, heads=16, kv_heads=8,
            full_kv_heads=1, window=1024, drafter=_DENSE,
        ),
        Family(
            "26B-A4B", layers=30, period=6, hidden=2816, intermediate=2112, heads=16, kv_heads=8,
            full_kv_heads=2, window=1024, drafter=_DENSE, mixture=Mixture(128, 8, 704),
        ),
        Family(
            "31B", layers=60, period=6, hidden=5376, intermediate=21_504, heads=32, kv_heads=16,
            full_kv_heads=4, window=1024, drafter=_DENSE,
        ),
    )
}  # fmt: skip
