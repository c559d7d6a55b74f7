"""What one step asks of the device: kernels, bytes and arithmetic, and what is made of the time.

- A step: `clients` rows that decode greedily, `depth` drafts each, no prompt beside them.
- Kernels and nodes are those of the step's own exported graph (bench/step_graphs.py), or of
  mlx-lm's: what others published was built by an engine more like that one than like ours.
- Bytes are weights and K/V; activations stay in caches. Arithmetic is that of linear layers;
  attention's is under a tenth of it at the contexts shown. Both come from the shapes of the config,
  and a test holds the weights against the graph's.
- The host builds the graph node by node and starts it in parts, each while the device computes the
  one before: what nothing hides is the first part, or the device's last where the host is slower.
- Time is a range, from the quick end of every constant to the slow one: what is not known is not
  averaged away. bench/reports.py says where the constants come from.
- Pure: no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from bench.families import FAMILIES, Family
from bench.step_graphs import GraphCount, graph_count, peer_graph_count

#: bits of a weight with the scales (and biases) of its group
BITS = {"bf16": 16.0, "8-bit": 8.5, "mxfp8": 8.25, "4-bit": 4.5, "mxfp4": 4.25, "nvfp4": 4.5}
ROUTER_BITS = 8.5  # of all packed mixtures; a plain one's are as plain

# From so many rows on packed linear layers are products of matrices, in tiles of so many rows.
MATRIX_ROWS_MIN, TILE_ROWS = 13, 32

BANDWIDTH_SHARE, ARITHMETIC_SHARE = 0.8, 0.6
# Peak of memory and tokens per second of E2B in 4 bits, published; bench/reports.py says where. The
# second's run took so many seconds for so many tokens, of which its prompts took what is taken off.
_RUN_S, _OUT_TOKENS, _PROMPTS_S = 142.11, 12_750, (172.12 - 89.72) * 142.11 / 656.52
CALIBRATING = ((614e9, 161.5), (400e9, _OUT_TOKENS / (_RUN_S - _PROMPTS_S)))
# Building a step was counted on a slow server's cores: 4.4 to 7.7 ms for 1,640 nodes, 7 to 9 for
# 3,390. So much for a node, at the least and the most. Apple's are quicker, nobody knows how much.
NODE_S = (2.1e-6, 4.7e-6)


@dataclass(frozen=True, slots=True)
class Chip:
    """bytes_s: peak of memory. flops_s: peak in float32; None: unknown, and then no bound."""

    name: str
    bytes_s: float
    flops_s: float | None


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step of `clients` rows. context: tokens that each has. bits: by name, see BITS.

    peer: as mlx-lm builds it; of one client without drafts only.
    """

    family: Family
    clients: int = 1
    depth: int = 0
    packing: str = "4-bit"
    draft_packing: str = "4-bit"
    context: int = 1000
    peer: bool = False

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
    def graph(self) -> GraphCount:
        """What is built and started."""
        if self.peer:
            assert (self.clients, self.depth) == (1, 0)
            return peer_graph_count(self.family.name)
        return graph_count(self.family.name, self.clients, self.depth)

    def moved_s(self, chip: Chip) -> float:
        """For the bytes alone."""
        return self.bytes / (BANDWIDTH_SHARE * chip.bytes_s)

    def done_s(self, chip: Chip) -> float:
        """For the arithmetic alone; 0 where the chip's is not known."""
        return self.flops / (ARITHMETIC_SHARE * chip.flops_s) if chip.flops_s else 0.0

    def device_s(self, chip: Chip) -> tuple[float, float]:
        """As if the graph cost nothing to build; quick end and slow one."""
        work = max(self.moved_s(chip), self.done_s(chip))
        quick, slow = (work + self.graph.kernels * launch for launch in launch_s())
        return quick, slow

    @property
    def host_s(self) -> tuple[float, float]:
        """Of building the graph, hidden or not."""
        return self.graph.nodes * NODE_S[0], self.graph.nodes * NODE_S[1]

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """From the quick end of what is not known to the slow one."""
        if self.peer:  # builds the next step meanwhile
            quick, slow = map(max, self.device_s(chip), self.host_s)
            return quick, slow
        parts = self.graph.starts
        quick, slow = (
            max(device + host / parts, host + device / parts)
            for device, host in zip(self.device_s(chip), self.host_s, strict=True)
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


@cache
def launch_s() -> tuple[float, float]:
    """What a kernel costs, by the figures that calibrate: the rest of their steps, shared out."""
    step = StepWork(FAMILIES["E2B"], peer=True)
    rests = (1 / speed - step.bytes / (BANDWIDTH_SHARE * peak) for peak, speed in CALIBRATING)
    quick, slow = sorted(round(rest / step.graph.kernels, 7) for rest in rests)
    return quick, slow


def round_tokens(depth: int, acceptance: float) -> float:
    """Expected of a round, where each draft is accepted with the same probability."""
    return sum(acceptance**count for count in range(depth + 1))


def _tiled(rows: int) -> int:
    return rows if rows < MATRIX_ROWS_MIN else -(-rows // TILE_ROWS) * TILE_ROWS
