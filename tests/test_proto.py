"""The committed stubs are what the contract gives, and the check would notice if they were not."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_stubs_are_those_of_the_contract(tool: ModuleType) -> None:
    assert tool.drifted(ROOT / "proto", ROOT) == []


def test_a_changed_contract_is_noticed(tool: ModuleType, tmp_path: Path) -> None:
    protos = tmp_path / "proto"
    shutil.copytree(ROOT / "proto", protos)
    with (protos / "sapwood" / "v1" / "prompt.proto").open("a") as contract:
        contract.write("// One more.\nmessage Extra {}\n")
    assert tool.drifted(protos, ROOT) == ["prompt_pb2.py", "prompt_pb2.pyi"]
