"""Says what clients of the newest release would notice of a changed contract: buf breaking.

- The newest release is the highest tag `v*`. Where there is none (a shallow clone, an archive, a
  young project), or none with a contract in it, there is nothing to break: it says so and passes.
- buf reads the contract's folder at the tag from the tag's own buf.yaml: it may have moved since.
- The tag is read through git, so that a worktree, whose `.git` is a file, does as well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"


def newest_tag(root: Path) -> str:
    """The highest tag `v*` of the repository at `root`; "" without one, or without a repository."""
    command = ["git", "-C", str(root), "tag", "--list", "v*", "--sort=-version:refname"]
    tags = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return tags.partition("\n")[0]


def has_contract(root: Path, tag: str) -> bool:
    """Whether any .proto file lies in the tag's tree."""
    command = ["git", "-C", str(root), "ls-tree", "-r", "--name-only", tag]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return any(name.endswith(".proto") for name in names.splitlines())


def check(root: Path) -> int:
    """0 where nothing is broken; else what buf answers, after it has named what is."""
    tag = newest_tag(root)
    if not tag:
        print("buf breaking: there is no tag v* to compare with")
        return 0
    if not has_contract(root, tag):
        print(f"buf breaking: {tag} has no contract to compare with")
        return 0
    command = [str(BUF), "breaking", "--against", f".git#tag={tag}"]
    return subprocess.run(command, cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(check(ROOT))
