"""The golden transcripts are what the core does today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scheduler.scenario import files, replay


@pytest.mark.parametrize("file", files(), ids=lambda file: file.stem)
def test_transcript(file: Path) -> None:
    """If this fails: python -m tests.scheduler.scenario --rewrite, and read the difference."""
    text = file.read_text()
    assert replay(text) == text
