"""Per-row samplers: logits to distributions. Lazy: nothing here waits for data.

- A distribution is one row's, after its own bias and penalties (penalties.py) and its own
  filters, in the order temperature, top_k, top_p, min_p, renormalise. A token is
  argmax(log p + noise), so no distribution is ever drawn by cumulation.
- Ties are broken by the lower token id, in top_k, in top_p and in argmax.
- Rows are worked in groups of one reach, each at its own fixed width: whoever else is in the step,
  a row's sums run over the same numbers in the same order.
- No sum over a vocabulary runs in one row of floats: float32 on a CPU is off by 1e-3 at its end.
  What top_p cuts is summed in integers, normalisers in blocks; half precision is left before.
- Only rows with top_p and without top_k sort the vocabulary; greedy rows cost an argmax. Rows
  without bias and penalties never share a group with rows that have some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np
import numpy.ma  # np.unique imports it: not in a step, where no file may be left to open

from sapwood.model.sampling import noise
from sapwood.model.sampling.noise import NoiseStream
from sapwood.model.sampling.penalties import Penalties, Tally
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.sampling import CANDIDATES_FEW, CANDIDATES_MAX, Sampling

# A row's reach: how many candidates its distribution needs. Positive values are ranked candidates.
GREEDY = 0
WHOLE = -1  # the vocabulary in id order
NUCLEUS = -2  # the vocabulary, ranked once to cut it at top_p
RANKED = (CANDIDATES_FEW, CANDIDATES_MAX)

BLOCK_TOKENS = 64
SUMMED_TOKENS = 512
# A row's mass in integers is at most 2**MASS_BITS, shares of it are told in 2**-SHARE_BITS: what
# `_shared` multiplies fits an int64.
MASS_BITS, SHARE_BITS = 62, 31
# What (logit - max) / temperature survives in float32; the ends are greedy and uniform in effect.
TEMPERATURE_MIN, TEMPERATURE_MAX = 1e-20, 1e20


@dataclass(frozen=True, slots=True)
class Distribution:
    """Distributions of n rows over C tokens each.

    ids: int32 [n, C], most probable first, each id at most once in a row; None: C is the
    vocabulary in id order. log_probs: float32 [n, C], -inf where a filter removed the token.
    """

    ids: mx.array | None
    log_probs: mx.array

    @property
    def support(self) -> mx.array:
        """Token ids, int32 [n, C] or [C]."""
        if self.ids is None:
            return mx.arange(self.log_probs.shape[-1], dtype=mx.int32)
        return self.ids


@dataclass(frozen=True, slots=True)
class Filters:
    """The samplers of n rows as columns [n, 1], made safe to compute with."""

    temperature: mx.array  # float32
    top_k: mx.array  # int32; off: above any width
    # int64, 1 - top_p as a share: a token stays while it and all below it hold more; off: below 0
    tail_share: mx.array
    log_min_p: mx.array  # float32; off: -inf

    @classmethod
    def of(cls, table: np.ndarray) -> Filters:
        """From rows of DrawRows.table."""
        types = (np.float32, np.int32, np.int64, np.float32)
        columns = zip(table.T, types, strict=True)
        return cls(*(mx.array(column.astype(kind)[:, None]) for column, kind in columns))


@dataclass(frozen=True)  # no slots: cached_property keeps its value in the instance
class DrawRows:
    """The rows that draw tokens in one step, built on the host once per step.

    Row b has its sampler, its draft depth (0: draws one token, as after a prefill) and the 0-based
    reply index of the first token it draws. Its target logits are the flat rows
    [starts[b], starts[b] + depth[b] + 1). tallies: one for each row with bias or penalties, None
    for the others; () where there are only others. constrained: whether a row has masks, () where
    none has. bounds: of rows whose length has some, None for the others, () where none has.
    forced: how many of a row's drafts nobody drew, the first of them; () where all were drawn.
    """

    samplings: tuple[Sampling, ...]
    depth: tuple[int, ...]
    index: tuple[int, ...]
    tallies: tuple[Tally | None, ...] = ()
    constrained: tuple[bool, ...] = ()
    bounds: tuple[ReplyBounds | None, ...] = ()
    forced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.samplings) == len(self.depth) == len(self.index) > 0
        assert min(self.depth) >= 0
        for b, sampling in enumerate(self.samplings):
            tally = self.tallies[b] if self.tallies else None
            assert (tally is not None) == sampling.adjusted, f"row {b}: {sampling}"
            assert tally is None or tally.reply_tokens == self.index[b], f"row {b} of {self.index}"

    @property
    def depth_max(self) -> int:
        """K: the deepest draft of the step, 0 where nobody drafts."""
        return max(self.depth)

    @cached_property
    def starts(self) -> np.ndarray:
        """[B]: the flat row where each row's logits begin."""
        lengths = np.asarray(self.depth) + 1
        starts: np.ndarray = np.cumsum(lengths) - lengths
        return starts

    @cached_property
    def owners(self) -> np.ndarray:
        """[N]: the row that owns each flat row."""
        return np.repeat(np.arange(len(self.depth)), np.asarray(self.depth) + 1)

    @cached_property
    def offsets(self) -> np.ndarray:
        """[N]: the place of each flat row within its owner, 0 to depth."""
        offsets: np.ndarray = np.arange(len(self.owners)) - self.starts[self.owners]
        return offsets

    @cached_property
    def firsts(self) -> np.ndarray:
        """[N] bool: the flat rows that draw the first token of a reply."""
        firsts: np.ndarray = np.asarray(self.index)[self.owners] + self.offsets == 0
        return firsts

    @cached_property
    def reaches(self) -> np.ndarray:
        """[B]: GREEDY, WHOLE, NUCLEUS or a number of ranked candidates."""
        return np.array([_reach(s) for s in self.samplings])

    @cached_property
    def seeded(self) -> np.ndarray:
        """[B] bool: the rows whose noise the drafter shares."""
        return np.array([s.seeded for s in self.samplings])

    @cached_property
    def adjusted(self) -> np.ndarray:
        """[B] bool: the rows with bias or penalties."""
        return np.array([s.adjusted for s in self.samplings])

    @cached_property
    def held(self) -> np.ndarray:
        """[B] bool: the rows whose logits are masked, where some are."""
        return np.array(self.constrained, np.bool_)

    @cached_property
    def mask_places(self) -> np.ndarray:
        """[N]: which mask a flat row of a constrained row has, masks in the rows' order."""
        places: np.ndarray = np.cumsum(self.held[self.owners]) - 1
        return places

    @cached_property
    def penalties(self) -> Penalties:
        """What changes the logits of the adjusted rows."""
        return Penalties.of(self.tallies)

    @cached_property
    def table(self) -> np.ndarray:
        """float64 [B, 4]: the columns of Filters."""
        return np.array([_filter_values(s) for s in self.samplings], np.float64)

    @cached_property
    def keys(self) -> np.ndarray:
        """uint32 [B, 2]: each row's noise key, low word first."""
        return np.array([noise.key_words(s.noise_key) for s in self.samplings], np.uint32)

    def ruled_out(self, row: int, offset: int) -> frozenset[int]:
        """Tokens that are not drafted at this place of a row: what would end it too early."""
        bounds = self.bounds[row] if self.bounds else None
        if bounds is None or bounds.may_end(self.index[row] + offset):
            return frozenset()
        return bounds.ending_ids

    def gumbel(
        self, owners: np.ndarray, offsets: np.ndarray | int, unseeded: NoiseStream, ids: mx.array
    ) -> mx.array:
        """Gumbel noise, float32 [n, C], for n draws at `offsets` of rows `owners`.

        ids: [n, C] or [C]. Seeded rows use the stream TARGET, others `unseeded`.
        """
        streams = np.where(self.seeded[owners], NoiseStream.TARGET, unseeded)
        counters = noise.counters(np.asarray(self.index)[owners] + offsets, streams)
        return noise.gumbel(mx.array(self.keys[owners]), counters, ids)

    def coins(self, owners: np.ndarray, offsets: np.ndarray) -> mx.array:
        """Uniform noise, float32 [n] in (0, 1), for n acceptances at `offsets` of rows `owners`."""
        counters = noise.counters(np.asarray(self.index)[owners] + offsets, NoiseStream.ACCEPT)
        return noise.uniform(mx.array(self.keys[owners]), counters)


def distribution_of(logits: mx.array, filters: Filters, reach: int) -> Distribution:
    """The distributions of n rows that share one reach (not GREEDY), from logits [n, V]."""
    logits = logits.astype(mx.float32)
    if reach == WHOLE:
        return Distribution(None, _min_p_only(logits, filters))
    width = logits.shape[-1]
    values, ids = ranked(logits, width if reach == NUCLEUS else reach)
    log_probs = filtered(values, filters)
    if reach == NUCLEUS:
        # Back to id order, all places overwritten: matching a ranked vocabulary against drafters'
        # distributions would cost its width times theirs.
        return Distribution(None, mx.put_along_axis(log_probs, ids, log_probs, axis=-1))
    return Distribution(ids, log_probs)


def ranked(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k highest of each row [n, V] in falling order, lower id first among equals.

    Returns values [n, min(k, V)] and ids int32 of that shape. Relies on MLX's argsort and
    argpartition ordering equals by index, as its CPU and GPU merge sorts do; a test pins it.
    """
    width = logits.shape[-1]
    if k >= width:
        ids = mx.argsort(-logits, axis=-1).astype(mx.int32)
        return mx.take_along_axis(logits, ids, axis=-1), ids
    if width % BLOCK_TOKENS == 0 and 2 * k * BLOCK_TOKENS <= width:
        values, block_ids = _best_blocks(logits, k)
        values, places = _best(values, k)
        return values, mx.take_along_axis(block_ids, places, axis=-1)
    return _best(logits, k)


def filtered(values: mx.array, filters: Filters) -> mx.array:
    """Log-probabilities [n, C] of ranked logits [n, C]: all filters, then renormalised."""
    ranks = mx.arange(values.shape[-1])
    # The maximum goes first: dividing by a small temperature must not overflow.
    scaled = (values - values[:, :1]) / filters.temperature
    scaled = mx.where(ranks < filters.top_k, scaled, -mx.inf)
    # Mass from the tail up to here, exact: in floats a long tail would vanish against the head, and
    # a sum of 2**18 addends would drift by more than a token.
    units = 2.0 ** (MASS_BITS - (values.shape[-1] - 1).bit_length())  # of the best token
    masses = (mx.exp(scaled) * units).astype(mx.int64)
    tails = mx.cumsum(masses, axis=-1, reverse=True)
    # The best token stays however little is asked for.
    kept = (tails > _shared(tails[:, :1], filters.tail_share)) | (ranks == 0)
    return _renormalised(mx.where(kept & (scaled >= filters.log_min_p), scaled, -mx.inf))


def log_total(scores: mx.array) -> mx.array:
    """log(sum(exp)) of each row [n, C], [n, 1]."""
    rows, width = scores.shape
    padding = -width % SUMMED_TOKENS if width > SUMMED_TOKENS else 0
    if padding:
        scores = mx.pad(scores, [(0, 0), (0, padding)], constant_values=-mx.inf)
    blocks = scores.reshape(rows, -1, min(width, SUMMED_TOKENS))
    return mx.logsumexp(mx.logsumexp(blocks, axis=-1), axis=-1, keepdims=True)


def best_tokens(scores: mx.array, ids: mx.array | None = None) -> mx.array:
    """The token of the highest score [n, C] in each row, int32 [n]; ids as in Distribution."""
    places = mx.argmax(scores, axis=-1).astype(mx.int32)
    if ids is None:
        return places
    return mx.take_along_axis(ids, places[:, None], axis=-1)[:, 0].astype(mx.int32)


def split_rows(kinds: np.ndarray) -> list[np.ndarray]:
    """The members [.] of each kind among kinds [n], rising."""
    return [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def take_rows(values: mx.array, members: np.ndarray) -> mx.array:
    """The rows `members` (rising, distinct) of values [n, ...]; all of them cost nothing."""
    return values if len(members) == values.shape[0] else values[mx.array(members)]


def join_rows(parts: list[mx.array], members: list[np.ndarray]) -> mx.array:
    """Undo take_rows: the rows of all parts, back in their places."""
    if len(parts) == 1:
        return parts[0]
    return mx.concatenate(parts)[mx.array(np.argsort(np.concatenate(members)))]


def _reach(sampling: Sampling) -> int:
    if sampling.greedy:
        return GREEDY
    if sampling.top_k:
        return next((k for k in RANKED if sampling.top_k <= k), NUCLEUS)
    return NUCLEUS if sampling.top_p < 1 else WHOLE


def _filter_values(sampling: Sampling) -> tuple[float, float, float, float]:
    return (
        min(max(sampling.temperature, TEMPERATURE_MIN), TEMPERATURE_MAX),
        sampling.top_k or 2**30,
        round((1 - sampling.top_p) * 2**SHARE_BITS) if sampling.top_p < 1 else -1,
        math.log(sampling.min_p) if sampling.min_p else -math.inf,
    )


def _min_p_only(logits: mx.array, filters: Filters) -> mx.array:
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / filters.temperature
    return _renormalised(mx.where(scaled >= filters.log_min_p, scaled, -mx.inf))


def _renormalised(scaled: mx.array) -> mx.array:
    return scaled - log_total(scaled)


def _shared(total: mx.array, share: mx.array) -> mx.array:
    """total * share / 2**SHARE_BITS rounded down, all int64."""
    high = total >> SHARE_BITS
    low = total - (high << SHARE_BITS)
    shared: mx.array = high * share + (low * share >> SHARE_BITS)
    return shared


def _best(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k < width highest of each row in falling order, and their places, int32."""
    # In order of place before the stable sort, so that equals stay in it.
    places = mx.sort(mx.argpartition(-values, k - 1, axis=-1)[:, :k], axis=-1).astype(mx.int32)
    values = mx.take_along_axis(values, places, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return (
        mx.take_along_axis(values, order, axis=-1),
        mx.take_along_axis(places, order, axis=-1),
    )


def _best_blocks(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k blocks of each row that hold its k best tokens: values and ids [n, k * BLOCK_TOKENS].

    Exact, ties included: a block left out has k blocks before it by (maximum, index), each with a
    token that comes before all of its own. Sorting a vocabulary becomes a maximum over it.
    """
    rows, width = logits.shape
    blocks = logits.reshape(rows, width // BLOCK_TOKENS, BLOCK_TOKENS)
    best = mx.argpartition(-blocks.max(axis=-1), k - 1, axis=-1)[:, :k]
    best = mx.sort(best, axis=-1)[..., None].astype(mx.int32)
    values = mx.take_along_axis(blocks, best, axis=1)
    ids = best * BLOCK_TOKENS + mx.arange(BLOCK_TOKENS, dtype=mx.int32)
    return values.reshape(rows, -1), ids.reshape(rows, -1)
