"""Rounds that may be taken back, through the model: committed, dropped, replayed in isolation."""

from __future__ import annotations

import pytest

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.speculation import begin_isolated_speculation, begin_speculation
from tests.model.packed import BOTH, TOLERANCE, Feed, Sequences, largest, story


@BOTH
def test_a_round_replayed_through_an_isolated_speculation_gives_the_same_logits(name: str) -> None:
    """The online self-check: begun before the round, run plainly after others have gone on."""
    sequences = Sequences(name)
    for slot in (0, 3):
        sequences.admit(slot)
    sequences.step({s: Feed(story(name, s)[:60].tolist()) for s in (0, 3)})
    fed = story(name, 3)[60:65].tolist()
    copies = begin_isolated_speculation(sequences.caches, 3, 60, len(fed))
    live = sequences.step({3: Feed(fed, kept=2), 0: Feed(story(name, 0)[60:61].tolist(), kept=1)})
    sequences.step({3: Feed([7, 8, 9], kept=1)})
    before = sequences.content(3)
    batch = Batch([Span(3, 60, len(fed))])
    replayed = sequences.logits(batch, {3: Feed(fed, kept=0)}, copies)
    assert largest(replayed[3], live[3]) <= TOLERANCE
    for one, two in zip(before, sequences.content(3), strict=True):
        assert one.tobytes() == two.tobytes()


@BOTH
@pytest.mark.parametrize("kept", [1, 3, 5])
def test_a_committed_round_replays_from_before_it(name: str, kept: int) -> None:
    """The self-check after the fact: rings still hold the window that the round began with."""
    sequences = Sequences(name)
    sequences.admit(3)
    sequences.step({3: Feed(story(name, 3)[:60].tolist())})
    fed = story(name, 3)[60:65].tolist()
    live = sequences.step({3: Feed(fed, kept=kept)})
    copies = begin_isolated_speculation(sequences.caches, 3, 60, kept)
    replayed = sequences.logits(Batch([Span(3, 60, kept)]), {3: Feed(fed[:kept], kept=0)}, copies)
    assert largest(replayed[3], live[3][:kept]) <= TOLERANCE


@BOTH
def test_a_round_through_a_speculation_commits_like_one_through_the_caches(name: str) -> None:
    tokens, results = story(name, 3), []
    for wrapped in (False, True):
        sequences = Sequences(name)
        sequences.admit(2)
        sequences.step({2: Feed(tokens[:60].tolist())})
        feed = Feed([*tokens[60:63].tolist(), 1, 2], kept=3)
        if wrapped:
            batch = sequences.batch({2: feed})
            sequences.caches.prepare(batch)
            layers, transaction = begin_speculation(sequences.caches, batch)
            rows = [sequences.logits(batch, {2: feed}, layers)[2]]
            transaction.commit(2, 3)
        else:
            rows = [sequences.step({2: feed})[2]]
        assert sequences.caches.offset(2) == 63
        rows.append(sequences.step({2: Feed(tokens[63:64].tolist(), kept=1)})[2])
        results.append([r.tobytes() for r in rows] + [a.tobytes() for a in sequences.content(2)])
    assert results[0] == results[1]
