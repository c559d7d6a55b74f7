"""Two locks, one for each backend of mlx on Linux: never both backends, else the same versions."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.test_rooms import ROOT

LOCKS = {"serve": "requirements.lock", "cuda": "requirements-cuda.lock"}
# Each has a mlx/lib/libmlx.so of its own.
BACKENDS = {"serve": {"mlx-cpu", "mlx-metal"}, "cuda": {"mlx-cuda-12", "mlx-metal"}}


def pins(extra: str) -> dict[str, set[str]]:
    """Versions by name; a package may have one for each Python."""
    found: dict[str, set[str]] = {}
    text = (ROOT / LOCKS[extra]).read_text()
    for name, version in re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("extra", LOCKS)
def test_a_lock_has_one_backend_for_each_system(extra: str) -> None:
    names = {name for name in pins(extra) if re.match(r"mlx-(cpu|cuda|metal)", name)}
    assert names == BACKENDS[extra]


def test_both_locks_have_the_same_versions_of_what_both_have() -> None:
    plain, cuda = pins("serve"), pins("cuda")
    common = plain.keys() & cuda.keys()
    assert len(common) > 60
    assert {name for name in common if plain[name] != cuda[name]} == set()
    more = {name for name in cuda.keys() - plain.keys() if not name.startswith("nvidia-")}
    assert more == {"mlx-cuda-12"} and plain.keys() - cuda.keys() == {"mlx-cpu"}


def made(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("extra", "place"), [("serve", ".venv"), ("cuda", ".venv-cuda")])
def test_make_has_an_environment_for_each(extra: str, place: str) -> None:
    whole = made(f"EXTRA={extra}", "device-report", "-W", "pyproject.toml").stdout
    assert f"--require-hashes -r {LOCKS[extra]} " in whole
    assert f"{place}/bin/python -m bench.device_report" in whole
    others = set(re.findall(r"\.venv[\w-]*", whole)) - {place}
    assert not others, "it would touch another environment"


def test_make_knows_no_other_extra() -> None:
    asked = made("EXTRA=cudo", "check")
    assert asked.returncode and 'EXTRA is "cudo", expected serve or cuda' in asked.stderr
