"""Files that are read again: what changes, and what is kept where they cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.followed import Followed


def replaced(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def reading(path: Path) -> Followed[str]:
    def read() -> str:
        try:
            text = path.read_text()
        except OSError as error:
            raise StartError(f"x: {error.strerror}") from None
        if text == "bad":
            raise StartError("x: it is bad")
        return text

    return Followed([path], read)


def test_what_changed_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    followed = reading(path)
    assert (followed.value, followed.follow()) == ("one", False)
    replaced(path, "two")
    assert (followed.follow(), followed.value, followed.follow()) == (True, "two", False)


def test_what_cannot_be_read_leaves_what_was_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    followed = reading(path)
    with caplog.at_level(logging.WARNING):
        replaced(path, "bad")
        assert not followed.follow() and not followed.follow()
        path.unlink()
        assert not followed.follow() and not followed.follow()
    assert followed.value == "one"
    assert [r.getMessage() for r in caplog.records] == [
        "x: it is bad; what was read before stays",
        "x: No such file or directory; what was read before stays",
    ]
    replaced(path, "three")
    assert followed.follow() and followed.value == "three"


def test_the_first_reading_raises(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        reading(tmp_path / "f")
