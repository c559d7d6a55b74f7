"""`sapwood check`: it finds what is wrong, says so in one sentence, and shows the acceptance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sapwood.cache.arrays.batch import Batch
from sapwood.daemon.cli.main import main
from sapwood.daemon.process import self_check
from sapwood.daemon.process.self_check import SelfCheck
from sapwood.model.gemma4 import Forward, PackedGemma4
from sapwood.model.runner import Runner
from sapwood.model.step_values import DeviceFault
from tests.model.convert.bundles import bundle
from tests.model.reference import checkpoint, copied, edit
from tests.quick import few_quick

TARGET = str(checkpoint("e2b-tiny").path)
DRAFTER = str(checkpoint("e2b-tiny-assistant").path)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference pair as a bundle, as it is."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    pair = (checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"))
    bundle(pair, tmp_path / "made", None)
    return tmp_path / "made"


def test_a_good_bundle_passes_and_its_acceptance_is_shown(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = sum(p.is_file() for p in made.rglob("*"))
    assert (found["ok"], found["problem"], found["files"]) == (True, "", files - 1)
    assert found["manifest"]["target"]["source"] == "e2b-tiny"
    checked = found["self_check"]
    assert checked["faults"] == 0 and checked["tokens"] >= 4 * 2
    assert checked["replayed"] > 4 and checked["replay_faults"] == 0
    assert checked["bits_promised"] and checked["replies_equal"] == checked["prompts"] == 4
    drafted, accepted = checked["drafted"], checked["accepted"]
    assert checked["rounds"] == drafted[0] > 0 and len(drafted) == len(accepted) == 4
    assert all(a <= d for a, d in zip(accepted, drafted, strict=True))
    assert accepted == sorted(accepted, reverse=True)


STRICT = ["check", TARGET, "--draft", DRAFTER, "--numerics", "strict"]


@pytest.mark.long
def test_strict_numerics_are_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(STRICT) == 0
    assert "numerics    strict" in capsys.readouterr().out


@pytest.mark.long
def test_a_reply_that_is_another_one_alone_fails_strict_numerics(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that part at a near-tie, too, which is no fault otherwise."""
    alone = self_check._alone
    monkeypatch.setattr(self_check, "_alone", lambda *args: alone(*args)[:-1])
    assert main([*STRICT, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problem"].startswith("4 of 4 replies are others alone without drafts")
    assert found["self_check"]["faults"] == 0 and found["numerics"] == "strict"


def test_what_is_read_by_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TARGET, "--draft", DRAFTER]) == 0
    out = capsys.readouterr().out
    for expected in ("target ", "drafter ", "plain forward's own", "accepted ", "per round"):
        assert expected in out
    assert out.endswith("\nok\n")


@pytest.mark.long
def test_a_target_alone_has_no_acceptance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TARGET]) == 0
    out = capsys.readouterr().out
    assert "drafter     none" in out and "accepted" not in out


@pytest.mark.parametrize("dtype", few_quick(["float32", "bfloat16"], "float32"))
def test_a_runner_that_computes_something_else_fails(
    dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackedGemma4.logits

    def wrong(self: PackedGemma4, hidden: mx.array) -> mx.array:
        return mx.roll(right(self, hidden), 1, -1)

    monkeypatch.setattr(PackedGemma4, "logits", wrong)
    assert main(["check", TARGET, "--dtype", dtype, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["self_check"]["faults"] > 0
    assert "are not what a plain forward gives" in found["problem"]


@pytest.mark.parametrize(
    "fault", [DeviceFault("a token id outside of the vocabulary"), RuntimeError("[METAL] no")]
)
def test_a_device_that_fails_in_it_is_a_sentence(
    fault: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Runner, "wait", failing)
    assert main(["check", TARGET, "--draft", DRAFTER, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["drafter"].startswith("fits the target")
    assert found["problem"].endswith(f"because the device failed: {fault}")


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "code"), [("float32", 1), ("bfloat16", 0)])
def test_one_token_that_is_off_is_counted_where_bits_are_not_promised(
    dtype: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply is another one alone. In float32 on a CPU nothing but a fault can do that."""
    right, calls = PackedGemma4.logits, 0

    def wrong(self: PackedGemma4, hidden: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        logits = right(self, hidden)
        return logits if calls != 3 else mx.concatenate([logits[:-1], mx.roll(logits[-1:], 1, -1)])

    monkeypatch.setattr(PackedGemma4, "logits", wrong)
    flags = ["--draft", "none", "--dtype", dtype]
    assert main(["check", TARGET, *flags, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    checked = found["self_check"]
    assert (checked["faults"], checked["replies_equal"], checked["prompts"]) == (1, 3, 4)
    assert found["ok"] == (not code)
    assert checked["bits_promised"] == (dtype == "float32")


def test_where_bits_are_not_promised_a_twentieth_may_be_rounding() -> None:
    strict, loose = (SelfCheck(4, 0.5, bits_promised) for bits_promised in (True, False))
    assert [strict.too_many(faults, 200) for faults in (0, 1)] == [False, True]
    assert [loose.too_many(faults, 200) for faults in (0, 10, 11)] == [False, False, True]


@pytest.mark.long
def test_what_is_computed_otherwise_alone_is_judged_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackedGemma4.logits

    def wrong(self: PackedGemma4, hidden: mx.array) -> mx.array:
        logits = right(self, hidden)
        return mx.roll(logits, 1, -1) if len(hidden) == 1 else logits

    monkeypatch.setattr(PackedGemma4, "logits", wrong)
    assert main(["check", TARGET, "--draft", "none", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["self_check"]["replies_equal"] == 0


def test_a_round_that_comes_out_otherwise_alone_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only packing does wrong: a forward of several sequences swaps the rows of two."""
    right = PackedGemma4.forward

    def wrong(self: PackedGemma4, tokens: mx.array, batch: Batch, *rest: Any) -> Forward:
        made = right(self, tokens, batch, *rest)
        if len(batch.decodes) < 2:
            return made
        return replace(made, hidden=mx.concatenate([made.hidden[1:], made.hidden[:1]]))

    monkeypatch.setattr(PackedGemma4, "forward", wrong)
    assert main(["check", TARGET, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["self_check"]["replay_faults"] > 0


@pytest.mark.long
def test_sapwood_check_judges_by_what_may_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain forwards and replayed rounds have a banned token as their best now and then."""
    directory = copied("12b-tiny", tmp_path, weights=True)
    banned = {"suppress_tokens": list(range(0, 1024, 3)), "begin_suppress_tokens": [1, 106]}
    edit(directory, "generation_config.json", banned)
    drafter = str(checkpoint("12b-tiny-assistant").path)
    assert main(["check", str(directory.path), "--draft", drafter, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["self_check"]
    assert checked["faults"] == checked["replay_faults"] == 0
    assert checked["replayed"] > 0 and checked["tokens"] > 40


def test_damage_and_a_drafter_that_does_not_fit_are_said(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(checkpoint("a4b-tiny-assistant").path)
    assert main(["check", TARGET, "--draft", other]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "does not fit the target" in out and "\nok" not in out
    path = next((made / "target").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["check", str(made)]) == 1
    out = capsys.readouterr().out
    assert f"{path.name}: expected is sha256" in out and "digests" not in out
    assert main(["check", str(made), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_usage_and_places_that_do_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", TARGET, "--dtype", "int8"]) == 2
    assert capsys.readouterr().err.startswith("sapwood: --dtype: ")
    assert main(["check", str(tmp_path / "nothing")]) == 1
    assert "neither a directory nor a hub id" in capsys.readouterr().out
