"""`sapwood show` and `list`, of what lies on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.daemon.cli.main import main
from tests.model.reference import checkpoint


def test_the_bundled_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    assert "8192 tokens" in out and "drafter       not quantised" in out


def test_what_a_context_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(checkpoint("e2b-tiny").path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    float32, bfloat16 = told["full_bytes_per_token"].values()
    assert float32 == 2 * bfloat16 > 0
    weights = sum(f.stat().st_size for f in checkpoint("e2b-tiny").path.glob("*.safetensors"))
    assert 0.9 * weights < told["weights_bytes"] <= weights
    assert told["draft_weights_bytes"] is None


def test_what_is_no_model_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_an_empty_cache_says_how_to_fill_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["list"]) == 0
    assert "`sapwood pull ID` fetches one" in capsys.readouterr().out
