"""--model and --draft name directories, bundles, hub ids in the local cache, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.files import ModelDirectory, ModelRefused
from model.locate import DEMO, locate


def _config(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text("{}")
    return place


def test_nothing_means_the_bundled_pair() -> None:
    pair = (ModelDirectory(DEMO / "target"), ModelDirectory(DEMO / "assistant"))
    assert locate(None, None) == pair
    assert locate(None, "none") == (pair[0], None)


def test_a_model_alone_brings_its_bundles_own_drafter(tmp_path: Path) -> None:
    plain = _config(tmp_path / "plain")
    assert locate(str(plain), None) == (ModelDirectory(plain), None)
    inside = _config(tmp_path / "inside")
    _config(inside / "assistant")
    assert locate(str(inside), None) == (
        ModelDirectory(inside),
        ModelDirectory(inside / "assistant"),
    )
    assert locate(str(inside), "none") == (ModelDirectory(inside), None)
    whole = tmp_path / "whole"
    _config(whole / "target")
    _config(whole / "assistant")
    assert locate(str(whole), None) == (
        ModelDirectory(whole / "target"),
        ModelDirectory(whole / "assistant"),
    )
    assert locate(str(whole), str(plain)) == (
        ModelDirectory(whole / "target"),
        ModelDirectory(plain),
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nowhere",
        "a/b/c",
        "../b",
        "http://a/b",
        "a/b\n",
        "none",
        "a--b/c..d",
        "a\0b",
        "a" * 5000,
    ],
)
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ModelRefused, match="neither a directory nor a hub id"):
        locate(value, None)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelRefused, match="is a file"):
        locate(str(path), None)


def test_a_hub_id_is_looked_up_in_the_local_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("went to the network"))
    with pytest.raises(ModelRefused, match=r"not in the hub's local cache.*hf download a/b"):
        locate("a/b", None)
    revision = "0" * 40
    home = tmp_path / "models--a--b"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    snapshot = _config(home / "snapshots" / revision)
    assert locate("a/b", None) == (ModelDirectory(snapshot), None)
