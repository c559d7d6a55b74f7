"""Sources to convert, on a disk that need not be waited for."""

from __future__ import annotations

import pytest

from tests.model.packs import Directories, plain
from tests.model.reference import NAMES


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return plain(request.param, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return plain("a4b-tiny", tmp_path_factory.mktemp("plain"))
