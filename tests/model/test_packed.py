"""The packed forward over shared caches says what mlx-lm's own forward says: C2, C3, C4, C5, C6."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from sapwood.cache.arrays.ranges import EdgePayload
from tests.cache.arrays.poison import poison
from tests.model.packed import BOTH, ROUND_MAX, TOLERANCE, Feed, Sequences, largest, plain, story
from tests.model.reference import FAMILIES, GAP_MIN, PROMPTS, VARIANTS, Array, golden, target

VOCABULARY = 1024
NOISE_TOKENS = 50


class Walk:
    """All reference stories driven through one packed forward in random steps, row by row checked.

    Slices and rounds are of random length, rounds carry wrong drafts after the right ones and keep
    fewer tokens than they could, sequences rewind, are parked in payloads and come back elsewhere.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.rng, self.sequences = name, np.random.default_rng(seed), Sequences(name)
        self.slots = dict(zip(PROMPTS, self.rng.permutation(9).tolist(), strict=False))
        self.parked: dict[int, list[EdgePayload]] = {}
        self.worst, self.compared = 0.0, 0
        for slot in self.slots.values():
            self.sequences.admit(slot)

    def offset(self, prompt: int) -> int:
        return self.sequences.caches.offset(self.slots[prompt])

    def feed(self, prompt: int) -> tuple[Feed, Array]:
        """The next tokens and the rows of logits that they should give."""
        at, tokens = self.offset(prompt), story(self.name, prompt)
        left, rows = len(tokens) - at, plain(self.name, prompt)
        if at == 0 or self.rng.random() < 0.15:
            count = min(left, int(self.rng.integers(1, 40)))
            draws = bool(self.rng.random() < 0.5)
            return Feed(tokens[at : at + count].tolist(), None, draws), rows[at + count - 1 :][:1]
        right = min(left, int(self.rng.integers(1, ROUND_MAX + 1)))
        wrong = self.rng.integers(0, VOCABULARY, int(self.rng.integers(0, ROUND_MAX - right + 1)))
        fed = [*tokens[at : at + right].tolist(), *wrong.tolist()]
        return Feed(fed, int(self.rng.integers(1, right + 1))), rows[at : at + right]

    def step(self) -> None:
        going = [p for p in PROMPTS if self.offset(p) < len(story(self.name, p))]
        chosen = [p for p in going if self.rng.random() < 0.7] or going
        fed = {p: self.feed(p) for p in chosen}
        logits = self.sequences.step({self.slots[p]: feed for p, (feed, _) in fed.items()})
        for prompt, (feed, expected) in fed.items():
            if feed.kept is None and not feed.draws:
                assert self.slots[prompt] not in logits
                continue
            found = logits[self.slots[prompt]][: len(expected)]
            self.worst = max(self.worst, largest(found, expected))
            self.compared += len(expected)

    def disturb(self) -> None:
        """Rewind somebody a little, and move somebody to another slot through payloads."""
        prompt = int(self.rng.choice(list(PROMPTS)))
        slot, offset = self.slots[prompt], self.offset(prompt)
        back = max(0, offset - int(self.rng.integers(0, 4)))
        if all(s.can_restore(slot, None, back) for s in self.sequences.caches.stores):
            assert all(s.restore(slot, None, back) for s in self.sequences.caches.stores)
            offset = back
        if self.rng.random() < 0.5 and offset:
            cut = int(self.rng.integers(0, offset))
            captures = [(0, cut), (cut, offset)]
            path = [p for a, b in captures if (p := self.sequences.caches.capture(slot, a, b))]
            self.sequences.release(slot)
            free = sorted(set(range(9)) - set(self.slots.values()) | {slot})
            self.slots[prompt] = int(self.rng.choice(free))
            self.sequences.admit(self.slots[prompt], path, offset)


@BOTH
def test_packed_logits_equal_mlx_lms_for_random_mixes_of_rows(name: str) -> None:
    walk = Walk(name, seed=1)
    while any(walk.offset(p) < len(story(name, p)) for p in PROMPTS):
        walk.step()
        if walk.rng.random() < 0.3:
            walk.disturb()
    assert walk.compared > 250
    assert walk.worst <= TOLERANCE


@BOTH
def test_s1_greedy_continuations_equal_the_references_whatever_is_drafted(name: str) -> None:
    """Rounds of depth 0 to 8 with drafts right up to a random place, all prompts in one batch."""
    rng, sequences, arrays = np.random.default_rng(3), Sequences(name), golden(name)
    logits: dict[int, Array] = {}
    for prompt in PROMPTS:
        sequences.admit(prompt)
        logits |= sequences.step({prompt: Feed(arrays[f"p{prompt}_ids"].tolist())})
    emitted = {p: [int(logits[p][-1].argmax())] for p in PROMPTS}
    while going := [p for p in PROMPTS if len(emitted[p]) < 64]:
        feeds = {}
        for prompt in going:
            ahead = arrays[f"p{prompt}_greedy"][len(emitted[prompt]) :][: rng.integers(0, 9)]
            wrong = rng.random(ahead.size) < 0.2
            drafts = np.where(wrong, rng.integers(0, VOCABULARY, ahead.size), ahead)
            feeds[prompt] = [emitted[prompt][-1], *drafts.tolist()]
        rows = _verified(sequences, feeds)
        for prompt, tokens in rows.items():
            emitted[prompt] += tokens
    for prompt in PROMPTS:
        assert emitted[prompt][:64] == arrays[f"p{prompt}_greedy"].tolist()


def _verified(sequences: Sequences, feeds: dict[int, list[int]]) -> dict[int, list[int]]:
    """One round of every slot: the accepted drafts and the next token of each."""
    caches = sequences.caches
    before = {slot: caches.offset(slot) for slot in feeds}
    logits = sequences.step({slot: Feed(tokens, kept=0) for slot, tokens in feeds.items()})
    accepted = {}
    for slot, tokens in feeds.items():
        own = logits[slot].argmax(-1).tolist()
        count = next((i for i, t in enumerate(tokens[1:]) if t != own[i]), len(tokens) - 1)
        accepted[slot] = own[: count + 1]
        caches.commit(slot, before[slot] + count + 1)
    return accepted


def plain_run(name: str, tokens: Array, chunks: list[int]) -> tuple[Array, list[Array]]:
    """mlx-lm's last logits and full-attention K/V after `tokens` in chunks, over its own caches."""
    model, at = target(name), 0
    caches: list[Any] = make_prompt_cache(model)
    for count in chunks:
        logits = model(mx.array(tokens[at : at + count])[None], cache=caches)
        at += count
    assert at == len(tokens)
    full = [c for c in caches if type(c).__name__ == "KVCache"]
    return np.array(logits[0, -1]), [np.array(a) for c in full for a in c.state[:2]]


@cache
def plain_noise(name: str) -> tuple[float, float]:
    """4 x how far (logits, K/V) mlx-lm is from itself, between one chunk and single tokens."""
    tokens = story(name, 3)[:NOISE_TOKENS]
    whole = plain_run(name, tokens, [len(tokens)])
    single = plain_run(name, tokens, [1] * len(tokens))
    kv = max(largest(a, b) for a, b in zip(whole[1], single[1], strict=True))
    return 4 * largest(whole[0], single[0]), 4 * kv


def close(found: list[Array], expected: list[Array], tolerance: float) -> None:
    assert max(largest(a, b) for a, b in zip(found, expected, strict=True)) <= tolerance


@BOTH
def test_c2_a_round_and_its_commit_equal_forwarding_what_was_kept(name: str) -> None:
    tokens, rng = story(name, 3), np.random.default_rng(4)
    logits_max, kv_max = plain_noise(name)
    start = NOISE_TOKENS - ROUND_MAX
    for kept in (1, 4, ROUND_MAX):
        speculating, straight = Sequences(name), Sequences(name)
        for sequences in (speculating, straight):
            sequences.admit(0)
            sequences.step({0: Feed(tokens[:start].tolist())})
        wrong = rng.integers(0, VOCABULARY, ROUND_MAX - kept).tolist()
        speculating.step({0: Feed([*tokens[start : start + kept].tolist(), *wrong], kept=kept)})
        straight.step({0: Feed(tokens[start : start + kept].tolist(), kept=kept)})
        close(speculating.content(0), straight.content(0), kv_max)
        following = {0: Feed(tokens[start + kept : start + kept + 1].tolist(), kept=1)}
        difference = largest(speculating.step(following)[0], straight.step(following)[0])
        assert difference <= logits_max


@BOTH
def test_c3_any_chunking_of_a_prefill_gives_the_same_content_and_logits(name: str) -> None:
    tokens, rng = story(name, 3)[:NOISE_TOKENS], np.random.default_rng(5)
    logits_max, kv_max = plain_noise(name)
    results = []
    for cuts in (0, 2, 7, len(tokens) - 1):
        inner = np.sort(rng.choice(np.arange(1, len(tokens)), cuts, replace=False))
        sequences = Sequences(name)
        sequences.admit(0)
        for part in np.split(tokens, inner):
            logits = sequences.step({0: Feed(part.tolist())})[0]
        results.append((logits, sequences.content(0)))
    for logits, content in results[1:]:
        assert largest(logits, results[0][0]) <= logits_max
        close(content, results[0][1], kv_max)
    assert largest(results[0][0][-1], plain_run(name, tokens, [len(tokens)])[0]) <= logits_max


@BOTH
def test_c4_sequences_packed_together_equal_each_alone(name: str) -> None:
    """Joining and leaving at any step, at any depth, among prefills."""
    rng, together = np.random.default_rng(6), Sequences(name)
    alone = {slot: Sequences(name) for slot in range(5)}
    differences = []
    for _ in range(14):
        feeds = {}
        for slot in rng.permutation(5).tolist():
            tokens = story(name, slot)
            if not together.caches.holds(slot):
                if rng.random() < 0.5:
                    together.admit(slot)
                    alone[slot].admit(slot)
                    feeds[slot] = Feed(tokens[: rng.integers(1, 40)].tolist())
            elif rng.random() < 0.15:
                together.release(slot)
                alone[slot].release(slot)
            elif rng.random() < 0.8:
                at = together.caches.offset(slot)
                fed = tokens[at : at + int(rng.integers(1, ROUND_MAX + 1))].tolist()
                if fed:
                    feeds[slot] = Feed(fed, kept=int(rng.integers(1, len(fed) + 1)))
        if feeds:
            found = together.step(feeds)
            for slot, feed in feeds.items():
                differences.append(largest(found[slot], alone[slot].step({slot: feed})[slot]))
    assert len(differences) > 20
    assert max(differences) <= TOLERANCE


@BOTH
def test_c5_poison_changes_no_bit_of_any_logit(name: str) -> None:
    outputs = []
    for poisoned in (False, True):
        sequences, rows = Sequences(name), []
        for slot in (0, 2, 5):
            sequences.admit(slot)
        sequences.step({s: Feed(story(name, s)[: 20 + 9 * s].tolist()) for s in (0, 2, 5)})
        sequences.release(2)
        for feeds in (
            {0: Feed([1, 2, 3], kept=1), 5: Feed([4], kept=1)},
            {5: Feed([5, 6, 7, 8], kept=0)},
            {0: Feed(list(range(30))), 5: Feed([9, 10], kept=2)},
            {0: Feed([11, 12], kept=1)},
        ):
            if poisoned:
                assert poison(sequences.caches, sequences.caches.window + 1) > 0
            rows += list(sequences.step(feeds).values())
        outputs.append([row.tobytes() for row in rows])
    assert outputs[0] == outputs[1]


@BOTH
def test_c6_a_sequence_parked_in_payloads_goes_on_as_if_it_had_stayed(name: str) -> None:
    tokens = story(name, 3)
    stayed, parked = Sequences(name), Sequences(name)
    for sequences in (stayed, parked):
        sequences.admit(1)
        sequences.step({1: Feed(tokens[:50].tolist())})
        sequences.step({1: Feed(tokens[50:54].tolist(), kept=4)})
    path = [held for a, b in ((0, 33), (33, 54)) if (held := parked.caches.capture(1, a, b))]
    parked.release(1)
    parked.admit(0, path, 54)
    for one, two in zip(stayed.content(1), parked.content(0), strict=True):
        assert one.tobytes() == two.tobytes()
    feed = Feed(tokens[54:58].tolist(), kept=3)
    assert largest(stayed.step({1: feed})[1], parked.step({0: feed})[0]) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("variant", "back"), VARIANTS.items())
def test_drafts_over_the_live_caches_equal_the_references(
    name: str, variant: str, back: int
) -> None:
    """Views of W + 1 and of W keys, after prefills, rejected rounds and once rings have wrapped."""
    sequences, arrays, compared = Sequences(name), golden(name), 0
    for prompt in (0, 2, 3):
        sequences.admit(prompt)
        sequences.step({prompt: Feed(arrays[f"p{prompt}_ids"].tolist())})
    for turn in range(12):
        done = {p: sequences.caches.offset(p) - len(arrays[f"p{p}_ids"]) for p in (0, 2, 3)}
        drafts = np.array(sequences.drafts(name, done, depth=4, back=back))
        for row, (prompt, t) in zip(drafts, done.items(), strict=True):
            gaps = arrays[f"p{prompt}_draft_{variant}_gap"][t, :4]
            certain = np.minimum.accumulate(gaps) >= GAP_MIN
            expected = arrays[f"p{prompt}_draft_{variant}"][t, :4]
            np.testing.assert_array_equal(row[certain], expected[certain])
            compared += int(certain.sum())
        feeds = {}
        for prompt, t in done.items():
            ahead = arrays[f"p{prompt}_greedy"][t : t + 1 + turn % 4].tolist()
            feeds[prompt] = Feed([*ahead, 3, 4], kept=len(ahead))
        sequences.step(feeds)
    assert compared > 120
