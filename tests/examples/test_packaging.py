"""The container file and the formula, which nobody here could build, name what is there."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

import pytest

from sapwood import __version__
from sapwood.daemon.extras import SERVE_PACKAGES
from sapwood.daemon.settings.config import load_config
from tests.outside import program
from tests.test_rooms import ROOT

DOCKERFILE = (ROOT / "examples/container/Dockerfile").read_text().replace("\\\n", " ")
FORMULA = ROOT / "examples/homebrew/sapwood.rb"


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)
    return str(found)


def test_the_container_serves_by_its_settings() -> None:
    environ = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    config = load_config({}, environ)
    assert [str(each) for each in config.listen] == ["unix:/run/sapwood/sapwood.sock"]
    assert f"http://{config.metrics}/readyz" in instruction("HEALTHCHECK .*?CMD")
    assert (*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))) == (
        "sapwood",
        "serve",
    )
    stops = re.search(r"--stop-timeout (\d+)", DOCKERFILE)
    assert stops is not None and int(stops[1]) > config.limits.drain_s_max + 5


def test_both_install_what_the_daemon_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "serve" in extras["optional-dependencies"] and SERVE_PACKAGES
    assert "[serve]" in DOCKERFILE and "[serve]" in FORMULA.read_text()


def test_the_formula_is_of_this_version() -> None:
    assert f"dist/sapwood-{__version__}.tar.gz" in FORMULA.read_text()


@pytest.mark.outside("ruby")
def test_ruby_reads_the_formula() -> None:
    read = subprocess.run(
        [program("ruby"), "-c", FORMULA], capture_output=True, text=True, check=False
    )
    assert (read.returncode, read.stdout) == (0, "Syntax OK\n"), read.stderr
