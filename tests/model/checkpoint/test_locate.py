"""--model and --draft name directories, bundles, hub ids in the local cache, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import DEMO, locate, source_name
from tests.model.checkpoint.hub import REVISION, WHOLE, hub_snapshot


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
        *("", "nowhere", "a/b/c", "../b", "http://a/b", "a/b\n", "none", "a--b/c..d"),
        *("a/b@", "a/b@../c", "a/b@c/../d", "a\0b", "a" * 5000),
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


def test_a_hub_id_is_looked_up_in_the_local_cache_only(hub: Path) -> None:
    with pytest.raises(ModelRefused, match=r"not in the hub's local cache.*`sapwood pull a/b`"):
        locate("a/b", None)
    snapshot = hub_snapshot(hub, files=WHOLE)
    (hub / "models--a--b" / "refs" / "main").write_text(REVISION)
    assert locate("a/b", None) == (ModelDirectory(snapshot), None)
    assert locate("a/b", "a/b") == (ModelDirectory(snapshot), ModelDirectory(snapshot))


def test_a_hub_ids_revision_is_a_branch_a_tag_or_a_commit(hub: Path) -> None:
    main, other = hub_snapshot(hub, files=WHOLE), hub_snapshot(hub, "1" * 40, WHOLE)
    refs = hub / "models--a--b" / "refs"
    (refs / "main").write_text(REVISION)
    (refs / "v2").write_text("1" * 40)
    for value, snapshot in (("a/b@main", main), ("a/b@v2", other), (f"a/b@{'1' * 40}", other)):
        assert locate(value, None)[0] == ModelDirectory(snapshot)
        assert source_name(value, locate(value, None)[0]) == f"a/b@{snapshot.name}"
    with pytest.raises(ModelRefused, match=r"a/b@v3: not in .*pull a/b@v3`"):
        locate("a/b@v3", None)


def test_the_hubs_own_environment_says_where_its_cache_lies(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path / "home" / "hub", files=WHOLE)
    (snapshot.parents[1] / "refs" / "main").write_text(REVISION)
    ask = "from sapwood.model.checkpoint.locate import locate;print(locate('a/b', None)[0].path)"
    places = [{"HF_HOME": str(tmp_path / "home")}, {"HF_HUB_CACHE": str(tmp_path / "home" / "hub")}]
    for place in places:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | place
        said = subprocess.run(
            [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == str(snapshot)


def test_a_source_is_named_without_its_folders(tmp_path: Path) -> None:
    plain = _config(tmp_path / "secret" / "plain")
    assert source_name(str(plain), ModelDirectory(plain)) == "plain"
    assert source_name(None, ModelDirectory(DEMO / "target")) == "sapwood-demo"
