"""What the check against the newest release compares with, tried on small repositories."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_rooms import ROOT

CONTRACT = """syntax = "proto3";
package x.v1;
message Point {
  int32 x = 1;
  int32 y = 2;
}
"""


class Repository:
    """One with a contract in `folder`."""

    def __init__(self, root: Path, folder: str = "proto") -> None:
        self.root, self.folder = root, folder
        root.mkdir()
        self.git("init", "--quiet")
        self.write(CONTRACT)

    def git(self, *arguments: str) -> None:
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", "-C", self.root, *who, *arguments], check=True, capture_output=True)

    def write(self, contract: str) -> None:
        file = self.root / self.folder / "x" / "v1" / "point.proto"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contract)
        modules = f"version: v2\nmodules:\n  - path: {self.folder}\n"
        (self.root / "buf.yaml").write_text(f"{modules}breaking:\n  use: [FILE]\n")

    def commit(self, tag: str = "") -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "as it is")
        if tag:
            self.git("tag", tag)

    def move(self, folder: str) -> None:
        (self.root / self.folder).rename(self.root / folder)
        self.folder = folder


@pytest.fixture(scope="module")
def breaking() -> ModuleType:
    """proto/breaking.py, a script beside the contract and in no package."""
    path = ROOT / "proto" / "breaking.py"
    spec = importlib.util.spec_from_file_location("breaking", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_repository_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a git hook these name another repository, whatever the working directory is."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def without_y(contract: str) -> str:
    return contract.replace("  int32 y = 2;\n", "")


def test_without_a_tag_there_is_nothing_to_break(
    breaking: ModuleType, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.commit(tag="1.0-not-a-release")
    assert breaking.check(repository.root) == 0
    assert capfd.readouterr().out == "buf breaking: there is no tag v* to compare with\n"


def test_an_archive_is_no_repository_and_passes(
    breaking: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert breaking.check(tmp_path) == 0
    assert capfd.readouterr().out == "buf breaking: there is no tag v* to compare with\n"


def test_a_shallow_clone_has_no_tags_and_passes(
    breaking: ModuleType, repository: Repository, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.commit(tag="v1.0.0")
    repository.write(without_y(CONTRACT))
    repository.commit()
    clone = tmp_path / "clone"
    repository.git("clone", "--quiet", "--depth", "1", f"file://{repository.root}", str(clone))
    assert breaking.check(clone) == 0
    assert "there is no tag" in capfd.readouterr().out


def test_a_tag_without_a_contract_has_nothing_to_break(
    breaking: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    young = Repository(tmp_path / "young")
    shutil.rmtree(young.root / "proto")
    young.commit(tag="v0.1.0")
    young.write(CONTRACT)
    assert breaking.check(young.root) == 0
    assert capfd.readouterr().out == "buf breaking: v0.1.0 has no contract to compare with\n"


def test_the_newest_tag_is_the_highest_version(
    breaking: ModuleType, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.commit(tag="v0.10.0")
    repository.write(without_y(CONTRACT))
    repository.commit(tag="v0.9.0")
    assert breaking.newest_tag(repository.root) == "v0.10.0"
    assert breaking.check(repository.root) != 0
    assert 'field "2" with name "y"' in capfd.readouterr().out


def test_a_new_field_breaks_nobody(breaking: ModuleType, repository: Repository) -> None:
    repository.commit(tag="v1.0.0")
    repository.write(CONTRACT.replace("}", "  int32 z = 3;\n}"))
    assert breaking.check(repository.root) == 0


def test_a_worktree_is_compared_too(
    breaking: ModuleType, repository: Repository, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.commit(tag="v1.0.0")
    tree = tmp_path / "tree"
    repository.git("worktree", "add", "--quiet", str(tree))
    assert (tree / ".git").is_file()
    assert breaking.check(tree) == 0
    (tree / "proto" / "x" / "v1" / "point.proto").write_text(without_y(CONTRACT))
    assert breaking.check(tree) != 0
    assert 'field "2" with name "y"' in capfd.readouterr().out


def test_a_contract_that_moved_is_the_same_contract(
    breaking: ModuleType, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.commit(tag="v1.0.0")
    repository.move("contract")
    repository.write(CONTRACT)
    repository.commit()
    assert breaking.check(repository.root) == 0
    repository.write(without_y(CONTRACT))
    assert breaking.check(repository.root) != 0
    assert 'field "2" with name "y"' in capfd.readouterr().out
