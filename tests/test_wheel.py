"""What users install: wheel and sdist beside packages and folders that bear our folders' names.

Each is installed into an environment of its own, beside python-daemon (which owns `daemon`) and
PyPI's `scheduler`, and used from a directory that has a `model/` and a `cache/` of its user's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from tests.test_rooms import ROOT

pytestmark = pytest.mark.long

NEIGHBOURS = ("python-daemon==3.1.2", "scheduler==0.8.8")
CLIENT_DISTRIBUTIONS_MAX, CLIENT_BYTES_MAX = 15, 53_000_000  # 18 MB of it are our own
SDIST_BYTES_MAX = 12_000_000  # the bundled pair is 11 MB unpacked, the tests' fixtures 21 MB


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with a built archive in it, and a user's directory to work in."""

    bin: Path
    work: Path
    neighbours: dict[str, str]  # digests of their files before ours came

    def run(
        self, *command: str, input: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.work,
            env=clean_environ() | environ,
            input=input,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def clean_environ() -> dict[str, str]:
    """Nothing of the checkout's: no path to it, no address of a daemon."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SAPWOOD"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True
    )
    return folder


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    place = tmp_path_factory.mktemp("install")
    (archive,) = built.glob(request.param)
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    bin = place / "venv" / "bin"
    pip: list[str | Path] = [
        bin / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        constraints(place),
    ]
    subprocess.run([*pip, *NEIGHBOURS], check=True, env=clean_environ())
    before = digests(site_packages(bin))
    subprocess.run([*pip, f"{archive}[serve]"], check=True, env=clean_environ())
    return Installed(bin, user_directory(place), before)


@pytest.fixture(scope="module")
def client_alone(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without an extra, and nobody else."""
    place = tmp_path_factory.mktemp("client")
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    bin = place / "venv" / "bin"
    install(bin, place, str(wheel))
    return Installed(bin, user_directory(place), {})


def install(bin: Path, place: Path, *what: str) -> None:
    command = [str(bin / "python"), "-m", "pip", "install", "--quiet"]
    command += ["-c", str(constraints(place)), *what]
    subprocess.run(command, check=True, env=clean_environ())


def constraints(place: Path) -> Path:
    """The versions of the lock, without its hashes: pip would ask for everybody's."""
    locked = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([\w.-]+==[^\\\n]+)", locked, re.MULTILINE)
    file = place / "constraints.txt"
    file.write_text("\n".join(pins) + "\n")
    return file


def user_directory(place: Path) -> Path:
    work = place / "work"
    for name in ("model", "cache"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text(f"OWNER = 'the user of {name}'\n")
    return work


def site_packages(bin: Path) -> Path:
    (folder,) = (bin.parent / "lib").glob("python3*/site-packages")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Of the files of `daemon` and `scheduler`, which are not ours."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for name in ("daemon", "scheduler")
        for path in (folder / name).rglob("*.py")
    }


def test_one_import_name_is_installed(installed: Installed) -> None:
    listed = "import importlib.metadata as m; print(*(f for f in m.files('sapwood')), sep='\\n')"
    tops = {name.split("/")[0] for name in installed.python(listed).splitlines()}
    assert {top for top in tops if not top.endswith(".dist-info") and top != ".."} == {"sapwood"}


def test_the_neighbours_keep_their_files(installed: Installed) -> None:
    assert len(installed.neighbours) > 10
    assert digests(site_packages(installed.bin)) == installed.neighbours
    installed.python("from daemon import DaemonContext; from scheduler import Scheduler")


def test_a_users_own_folders_and_ours_do_not_hide_each_other(installed: Installed) -> None:
    code = "import sapwood.cache.prefix.tree, cache, model; print(cache.OWNER, model.OWNER)"
    assert installed.python(code) == "the user of cache the user of model"


def test_version(installed: Installed) -> None:
    version = installed.python("import sapwood; print(sapwood.__version__)")
    assert installed.run("sapwood", "--version").stdout == f"sapwood {version}\n"
    assert installed.run("python", "-m", "sapwood", "--version").stdout == f"sapwood {version}\n"


def test_the_demo_runs(installed: Installed) -> None:
    done = installed.run("sapwood", "demo", "--plain", "--json", "report.json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    report = json.loads((installed.work / "report.json").read_text())
    assert report["metrics_agree"] and len(report["clients"]) >= 8


def test_the_client_alone_is_small(client_alone: Installed) -> None:
    """What pip itself brings does not count."""
    listed = client_alone.run("python", "-m", "pip", "list", "--format", "json").stdout
    tools = {"pip", "setuptools"}
    names = {entry["name"].lower() for entry in json.loads(listed)} - tools
    assert names & {"mlx", "mlx-lm", "transformers", "numpy"} == set()
    assert len(names) <= CLIENT_DISTRIBUTIONS_MAX
    folder = site_packages(client_alone.bin)
    ours = [
        path.lstat().st_size
        for path in folder.rglob("*")
        if not path.relative_to(folder).parts[0].startswith((*tools, "pkg_resources", "_distutils"))
    ]
    assert sum(ours) <= CLIENT_BYTES_MAX


@pytest.mark.parametrize("command", ["serve", "demo", "convert SRC DST", "check"])
def test_without_the_extra_a_command_says_what_to_install(
    client_alone: Installed, command: str
) -> None:
    done = client_alone.run("sapwood", *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    name = command.split()[0]
    assert done.stderr == f'sapwood: {name} needs the daemon: pip install "sapwood[serve]"\n'


@contextmanager
def serving(installed: Installed) -> Iterator[str]:
    """The address of an installed daemon, started from the user's directory."""
    ready = installed.work / "ready.json"
    flags = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen(
        [installed.bin / "sapwood", "serve", *flags], cwd=installed.work, env=clean_environ()
    )
    try:
        for _ in range(600):
            if ready.exists():
                break
            assert process.poll() is None, "the daemon ended before it served"
            time.sleep(0.1)
        yield json.loads(ready.read_text())["grpc"][0]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_client_talks_to_an_installed_daemon(installed: Installed) -> None:
    with serving(installed) as address:
        told = installed.run("sapwood", "generate", "What is a river?", SAPWOOD_ADDRESS=address)
        assert told.returncode == 0 and len(told.stdout) > 20, told.stderr
        code = f"""if True:
            import sapwood, sys
            with sapwood.Client({address!r}) as client:
                print(client.generate([sapwood.Message("user", "Hello")]).collect().text)
            assert not {{"mlx", "mlx_lm", "transformers"}} & sys.modules.keys()"""
        assert installed.python(code)


def test_client_commands_work_with_the_client_alone(
    installed: Installed, client_alone: Installed
) -> None:
    with serving(installed) as address:
        for command, expected in (
            (("generate", "What is a river?"), "river"),
            (("status",), "sapwood-demo"),
            (("tree",), "nodes"),
        ):
            done = client_alone.run("sapwood", *command, SAPWOOD_ADDRESS=address)
            assert done.returncode == 0 and expected in done.stdout, done.stderr
        said = client_alone.run("sapwood", "chat", input="Hello\n", SAPWOOD_ADDRESS=address)
        assert said.returncode == 0 and len(said.stdout) > 5, said.stderr


def test_archives_hold_the_product_alone(built: Path) -> None:
    """No tests, no fixtures, nothing of what trained the bundled pair, and no links."""
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    packed = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        assert not [member for member in archive.getmembers() if member.issym()]
        sources = [name.partition("/")[2] for name in archive.getnames()]
    assert {name.split("/")[0] for name in packed} == {
        "sapwood",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    modules = {name for name in packed if name.startswith("sapwood/")}
    assert {name for name in sources if name.startswith("sapwood/")} == modules
    assert "sapwood/model/demo/target/model.safetensors" in modules
    page = {f"sapwood/{path.relative_to(ROOT)}" for path in ROOT.glob("daemon/page/static/*")}
    assert len(page) > 6 and page <= modules
    assert not [name for name in modules if name.startswith("sapwood/model/demo/train")]
    assert not [name for name in sources if name.startswith("tests")]
    assert sdist.stat().st_size < SDIST_BYTES_MAX
