"""A seed gives today what it gave, on each backend by itself."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from tests.system import seeds


def test_a_seed_gives_what_it_gave_on_this_backend() -> None:
    """After a change that is meant: `python -m tests.system.seeds --write`."""
    key = seeds.backend()
    replies = seeds.known()
    if key not in replies:
        pytest.skip(
            f"nobody has drawn replies on {key!r} yet: `python -m tests.system.seeds --write` does,"
            " and tests/system/seeds.json keeps them"
        )
    assert seeds.drawn() == replies[key]


def test_seeds_give_different_replies() -> None:
    replies = seeds.known()["cpu float32"]
    assert len({tuple(reply) for reply in replies}) == len(replies) == 3 * len(seeds.SAMPLERS)


@pytest.mark.parametrize("metal", [True, False])
def test_another_backend_has_a_key_of_its_own(metal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until it is written the test says how, and skips."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    assert seeds.backend() == ("metal float32" if metal else "cuda float32")
    with pytest.raises(pytest.skip.Exception, match=r"seeds --write"):
        test_a_seed_gives_what_it_gave_on_this_backend()


def test_writing_leaves_other_backends_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seeds.known()
    monkeypatch.setattr(seeds, "FILE", tmp_path / "seeds.json")
    monkeypatch.setattr(seeds, "backend", lambda: "a float8")
    monkeypatch.setattr(seeds, "drawn", lambda: [[1, 2], [3]])
    monkeypatch.setattr("sys.argv", ["seeds", "--write"])
    seeds.FILE.write_text('{"b": [[4]]}')
    assert seeds.main() == 0
    assert seeds.known() == {"a float8": [[1, 2], [3]], "b": [[4]]}
    assert before.keys() >= {"cpu float32"}
