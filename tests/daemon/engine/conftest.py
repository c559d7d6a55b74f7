"""An engine that a test may watch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.engine.house import EngineHouse
from tests.model.device_log import DeviceLog


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineHouse]:
    house = EngineHouse(tmp_path / "record", DeviceLog(monkeypatch))
    yield house
    house.drain()
    assert house.engine.join(10.0)
