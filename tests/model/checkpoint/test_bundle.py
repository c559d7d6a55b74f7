"""A bundle is what its manifest says, to the byte, or it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.bundle import (
    MANIFEST,
    FileRecord,
    Manifest,
    Part,
    check_digests,
    digest,
    read_manifest,
)
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import find, locate

FILES = {
    "target/config.json": b"{}",
    "target/model.safetensors": b"weights",
    "assistant/config.json": b"{ }",
}
PARTS = {
    "target": Part("a/b@12", "4-bit affine, group 64", "bfloat16"),
    "assistant": Part("c", "", ""),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of three files that are no model, with a manifest that is right."""
    path = tmp_path / "bundle"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    records = {name: FileRecord(len(c), digest(path / name)) for name, c in FILES.items()}
    (path / MANIFEST).write_text(Manifest("sapwood 1", PARTS, records).text())
    return path


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


def test_a_whole_bundle_is_located_with_its_manifest(bundle: Path) -> None:
    found = find(str(bundle), None)
    assert (found.target, found.drafter) == (
        ModelDirectory(bundle / "target"),
        ModelDirectory(bundle / "assistant"),
    )
    assert found.manifest is not None
    assert (found.manifest.tool, found.manifest.parts) == ("sapwood 1", PARTS)
    read: list[int] = []
    check_digests(bundle, found.manifest, read.append)
    assert sum(read) == found.manifest.bytes == sum(map(len, FILES.values()))


def test_a_bundle_in_the_hubs_cache_is_taken_whole(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are links to blobs two folders further up than a plain model's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--a--b"
    snapshot = home / "snapshots" / ("0" * 40)
    (home / "refs").mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    for index, path in enumerate(p for p in bundle.rglob("*") if p.is_file()):
        blob = path.rename(home / "blobs" / str(index))
        link = snapshot / path.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    found = find("a/b", None)
    assert found.target == ModelDirectory(snapshot / "target") and found.manifest is not None
    check_digests(found.path, found.manifest, lambda count: None)
    (snapshot / "target" / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match=r"target/model\.safetensors: no such file"):
        find("a/b", None)


def test_a_bundle_laid_out_by_hand_has_no_manifest(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    assert read_manifest(bundle) is None
    assert locate(str(bundle), "none") == (ModelDirectory(bundle / "target"), None)


@pytest.mark.parametrize("draft", [None, "none"])
def test_an_incomplete_bundle_is_refused_with_the_file(draft: str | None, bundle: Path) -> None:
    with (bundle / "target/model.safetensors").open("r+b") as file:
        file.truncate(3)
    message = r"target/model\.safetensors: expected are 7 bytes, found are 3: .* not complete"
    with pytest.raises(ModelRefused, match=message):
        locate(str(bundle), draft)
    (bundle / "target/model.safetensors").unlink()
    with pytest.raises(ModelRefused, match=r"target/model\.safetensors: no such file"):
        locate(str(bundle), draft)


@pytest.mark.parametrize(
    "name",
    [
        *("target/chat_template.jinja", "assistant/model.safetensors"),
        *("target/additional_chat_templates/tool_use.jinja", "assistant/additional_chat_templates"),
    ],
)
def test_a_file_that_the_manifest_does_not_name_is_refused(name: str, bundle: Path) -> None:
    (bundle / "target" / ".DS_Store").touch()
    (bundle / "README.md").touch()
    locate(str(bundle), None)
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    with pytest.raises(ModelRefused, match=f"{name}: is not in the bundle's manifest"):
        locate(str(bundle), None)


def test_a_changed_byte_shows_in_the_digest_alone(bundle: Path) -> None:
    (bundle / "target/model.safetensors").write_bytes(b"weightz")
    found = find(str(bundle), None)
    assert found.manifest is not None
    message = r"target/model\.safetensors: expected is sha256 \w{16}…, found \w{16}…: .* damaged"
    with pytest.raises(ModelRefused, match=message):
        check_digests(bundle, found.manifest, lambda count: None)


def _moved(name: str) -> Callable[[dict[str, Any]], object]:
    record = {"bytes": 2, "sha256": "0"}
    return lambda d: d["files"].update({name: record})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "of format 2, this version reads up to 1"),
        (lambda d: d.update(format="1"), "format is '1', not a number"),
        (lambda d: d.pop("format"), "format is None"),
        (lambda d: d.pop("files"), "is not a bundle's manifest of format 1"),
        (lambda d: d["files"].clear(), "is not a bundle's manifest"),
        (lambda d: d["parts"].pop("target"), "is not a bundle's manifest"),
        (lambda d: d.update(parts=[]), "is not a bundle's manifest"),
        (lambda d: d["files"].update(x=1), "is not a bundle's manifest"),
        (lambda d: d["files"]["target/config.json"].update(bytes="2"), "not a bundle's manifest"),
        (lambda d: d["parts"]["target"].update(source=7), "is not a bundle's manifest"),
        (_moved("../secret"), "is not a bundle's manifest"),
        (_moved("target/../../secret"), r"'../../secret' is not a plain file name"),
        (_moved("target/additional_chat_templates/../../secret"), r"'../../secret' is not a plain"),
        (_moved("target//etc/passwd"), r"'/etc/passwd' is not a plain file name"),
    ],
)
def test_a_manifest_that_leads_elsewhere_or_is_none_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, bundle: Path
) -> None:
    (bundle.parent / "secret").write_text("{}")
    _edit(bundle, change)
    with pytest.raises(ModelRefused, match=message):
        locate(str(bundle), None)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(FILES["target/model.safetensors"])
    (bundle / "target/model.safetensors").unlink()
    (bundle / "target/model.safetensors").symlink_to(bundle.parent / "secret")
    with pytest.raises(ModelRefused, match="leads out of its directory"):
        locate(str(bundle), None)
