"""A disk tier as a daemon puts it together: who may come, how K/V lies there, what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sapwood.cache.disk.block_file import file_head
from sapwood.cache.prefix.catalogue import HEAD_BYTES
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.process.disk import OpenDisk, _layout, known_salts, open_disk
from sapwood.daemon.rpc.principals import Directory, root_key
from sapwood.daemon.settings.config import load_config
from sapwood.daemon.settings.principals import PrincipalSettings
from tests.daemon.fakes import FACTS
from tests.daemon.tenants import Tokens


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[OpenDisk]:
    disk = open_disk(load_config({"cache_dir": str(folder), **settings}))
    assert disk is not None
    try:
        yield disk
    finally:
        disk.close()


def test_whoever_may_come_is_known(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.new("alice")
    config = load_config(
        {
            "tokens": str(tokens.path),
            "listen": ["127.0.0.1:0", f"unix:{tmp_path}/s,principal=carol"],
            "principals": {"dave": {"pool": "team"}},
        }
    )
    known = Directory({"dave": PrincipalSettings(pool="team")})
    names = {"alice", "carol", "dave", "local", "gateway"}
    salts = known_salts(config)
    assert salts is not None and salts == frozenset(known.named(name).salt for name in names)
    assert Directory({}).named("bob").salt not in salts


def test_with_certificates_nobody_knows_them_all(tmp_path: Path) -> None:
    files = {name: str(tmp_path / name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
    assert known_salts(load_config(files)) is None


def test_a_tenant_is_one_under_every_model(tmp_path: Path) -> None:
    """So that what another model left of it is known, and of whom it is not is known too."""
    with opened(tmp_path / "c") as disk:
        folder = disk.for_core(FACTS, 4, (64,))
        names, salt = folder.names, Directory({}).named("local").salt
        roots = [root_key(model, salt) for model in (b"m", b"n")]
        assert roots[0] != roots[1] and names.tenant(roots[0]) == names.tenant(roots[1])
        assert folder.tenants is not None and names.tenant(roots[0]) in folder.tenants
        stranger = root_key(b"m", Directory({}).named("bob").salt)
        assert names.tenant(stranger) not in folder.tenants


def test_what_is_stored_in_another_way_has_other_names(tmp_path: Path) -> None:
    """Neither is read for the other."""
    tops = set()
    for storage in ("exact", "8bit"):
        with opened(tmp_path / "c", cache_storage=storage) as disk:
            tops.add(disk.for_core(FACTS, 4, (64,)).names.top)
    assert len(tops) == 2


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_or_read_only_ends_no_start(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is memory alone then, and one line that says so and names no path."""

    def refused(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with opened(tmp_path / "c") as disk:
        folder = disk.for_core(FACTS, 4, (64,))
        assert folder.failed and not folder.loading and folder.budget_bytes == 0
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"prefixes are kept in memory alone: --cache-dir: {os.strerror(code)}"]


def test_a_folder_of_another_user_ends_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StartError, match="c: it is another user's"), opened(tmp_path / "c"):
        pass


def test_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "c", cache_storage="8bit") as disk,
        pytest.raises(StartError, match=r"--cache-storage 8bit: .* multiples of 32"),
    ):
        disk.for_core(FACTS, 4, (64, 16))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cache_storage": "8bit"}, "cache-storage is for --cache-dir, which is not given"),
        ({"cache_dir": "c", "cache_storage": "4bit"}, "'4bit' is not one of exact, 8bit"),
        (
            {"cache_dir": "c", "cache_storage": "8bit", "numerics": "strict"},
            "cache-storage: 8bit changes what is read again, and --numerics strict promises",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        load_config(settings)
    assert load_config({}).cache_storage == "exact"


def test_a_file_in_8_bits_is_safetensors() -> None:
    """Of two tensors, the second behind the first."""
    layout = _layout((4, 8, 64), "F32", "8bit")
    head = file_head((b"\x01" * 20, "full"), layout, bytes(layout.nbytes))
    assert len(head) == HEAD_BYTES
    tensors = json.loads(head[8:])
    assert tensors["kv"] == {"dtype": "I8", "shape": [4, 8, 64], "data_offsets": [0, 2048]}
    scales = {"dtype": "F16", "shape": [4, 8, 2], "data_offsets": [2048, 2176]}
    assert tensors["scales"] == scales
