"""`sapwood convert`: a bundle that `serve` takes whole, or one sentence for what went wrong."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sapwood.daemon.cli.main import main
from sapwood.daemon.errors import StartError
from sapwood.daemon.process import assemble
from sapwood.model.checkpoint.bundle import MANIFEST
from tests.daemon.conftest import config_for
from tests.model.reference import checkpoint, copied

TARGET = str(checkpoint("e2b-tiny").path)
DRAFTER = str(checkpoint("e2b-tiny-assistant").path)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def convert(place: Path, *flags: str) -> int:
    return main(["convert", TARGET, str(place), "--draft", DRAFTER, *flags])


def test_a_bundle_is_made_told_of_and_served_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    flags = ["--quantize", "8bit", "--group-size", "32", "--quantize-draft", "mxfp8"]
    assert convert(made, *flags, "--shard-size", "500KB") == 0
    out, err = capsys.readouterr()
    assert "target     e2b-tiny: 8-bit affine, group 32" in out
    assert "assistant  e2b-tiny-assistant: 8-bit mxfp8, group 32" in out
    said = re.findall(r"^ +packing changed its weights by (\S+) %, most (\S+): (\S+) %$", out, re.M)
    assert len(said) == 2 and all(0 < float(all) <= float(most) < 5 for all, _, most in said)
    assert said[0][1].startswith("language_model.model.") and "zero" not in out
    names = [line.split(":")[0] for line in err.splitlines()]
    assert names[0].startswith("target/model-00001-of-0")
    assert names[-1] == "all files" and len(set(names)) == len(names) > 3
    assert str(tmp_path) not in (made / MANIFEST).read_text()
    loaded = assemble.load(config_for(model=str(made)))
    assert (loaded.card.name, loaded.card.drafter) == ("made", "assistant")
    target, drafter = loaded.card.quantization.split("; drafter ")
    assert target.startswith("8-bit affine, group 32")
    assert drafter.startswith("8-bit mxfp8, group 32")
    loaded.runner.close()
    (made / "assistant" / "tokenizer.json").unlink()
    with pytest.raises(StartError, match=r"assistant/tokenizer\.json: no such file"):
        assemble.load(config_for(model=str(made)))


def test_weights_that_became_zero_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row far below what its matrix' scale reaches."""
    source = copied("e2b-tiny", tmp_path, weights=True)
    path = str(source.path / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name][3] *= 1e-9
    mx.save_safetensors(path, tensors, {"format": "pt"})
    assert main(["convert", str(source.path), str(tmp_path / "made"), "--quantize", "nvfp4"]) == 0
    count = tensors[name].shape[1]
    assert re.search(
        rf"^ +{count} small weights became zero, {count} of them in language_model.*mlp\.up_proj",
        capsys.readouterr().out,
        re.M,
    )


@pytest.mark.parametrize(
    ("target", "flags", "advised"),
    [
        ("a4b-tiny", ["--draft", str(checkpoint("a4b-tiny-assistant").path)], True),
        (
            "a4b-tiny",
            ["--draft", str(checkpoint("a4b-tiny-assistant").path), "--quantize-draft", "mxfp8"],
            False,
        ),
        ("a4b-tiny", [], False),
        ("e2b-tiny", ["--draft", DRAFTER], False),
    ],
)
def test_a_packed_drafter_is_recommended_beside_experts(
    target: str,
    flags: list[str],
    advised: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not where there is none, where it is packed, or where its head is not read whole."""
    made = tmp_path / "made"
    assert main(["convert", str(checkpoint(target).path), str(made), *flags]) == 0
    assert ("recommended here: --quantize-draft 4bit" in capsys.readouterr().out) is advised


def test_a_terminal_sees_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert convert(tmp_path / "made") == 0
    assert "━━━" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--quantize", "7bit"], "--quantize: '7bit' is none of 2bit, 3bit"),
        (["--quantize-draft", "awq"], "--quantize-draft: 'awq' is none of"),
        (["--quantize", "4bit", "--group-size", "16"], "takes groups of 32, 64, 128, not of 16"),
        (["--quantize", "mxfp4", "--group-size", "64"], "--group-size: nothing is quantised"),
        (["--quantize-draft", "4bit", "--draft", "none"], "--quantize-draft: there is no drafter"),
        (["--dtype", "int8"], "--dtype: 'int8' is not one of auto, float32"),
        (["--shard-size", "0"], "--shard-size: a size must be more than 0"),
    ],
)
def test_flags_that_cannot_be_used_are_2(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path / "made", *flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("sapwood: ") and says in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_is_1_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for source, place, says in (
        (TARGET, tmp_path, "exists already"),
        (TARGET, tmp_path / "no" / "made", "made.partial: No such file or directory"),
        (TARGET, tmp_path / "file" / "made", "made"),
        ("nobody/nothing@v1", tmp_path / "made", "not in the hub's local cache"),
        (DRAFTER, tmp_path / "made", "model_type is 'gemma4_assistant'"),
    ):
        assert main(["convert", source, str(place)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("sapwood: ") and says in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "made: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where it stopped"),
    ],
)
def test_what_happens_to_a_conversion_from_outside_is_one_line(
    error: BaseException,
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("sapwood.daemon.cli.convert.convert", fail)
    assert convert(tmp_path / "made") == code
    err = capsys.readouterr().err
    assert err.startswith("sapwood: ") and says in err and err.count("\n") == 1
