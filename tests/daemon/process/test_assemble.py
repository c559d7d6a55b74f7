"""The bundled demo pair behind real sockets, and what stops a daemon from loading."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood import AsyncClient, Message
from sapwood.__main__ import main
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.process import assemble
from sapwood.daemon.process.server import Daemon
from sapwood.model import device
from sapwood.model import runner as runner_module
from sapwood.model.runner import Runner
from sapwood.scheduler.plan import StepPlan
from tests.daemon.conftest import config_for
from tests.model.checkpoint.sound import ONE, sound, write


def loading(**settings: Any) -> Callable[[], Loaded]:
    config = config_for(**settings)
    return lambda: assemble.load(config)


@pytest.mark.long
@pytest.mark.anyio
async def test_the_demo_pair_answers_alike_with_and_without_drafts_cache_and_company() -> None:
    """S1, S5 through the whole daemon, and GetModel's answer."""
    daemon = Daemon(config_for(), loading(memory="1GiB"))
    await daemon.start()
    assert await daemon.wait_loaded()
    async with AsyncClient(str(daemon.grpc_addresses[0])) as client:
        model = await client.get_model()
        assert (model.name, model.drafter != "", model.numerics) == ("sapwood-demo", True, "fast")
        assert await client.tokenize("hello") == await client.tokenize("hello")
        ids = await client.tokenize([Message("user", "What is a tree?")])
        options: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 1, "seed": 7}]
        for sampling in options:
            plain = await client.generate(ids, max_tokens=24, draft_tokens=0, **sampling).collect()
            drafted = await client.generate(
                ids, max_tokens=24, draft_tokens=4, **sampling
            ).collect()
            assert plain.token_ids == drafted.token_ids
            assert drafted.finish.usage.draft_tokens > 0
            assert drafted.finish.usage.cached_tokens == len(ids) - 1
        stats = await client.cache_stats()
        assert stats.memory.budget_bytes == 1 << 30
    assert await daemon.stop() == 0
    assert not daemon.engine_alive


@pytest.mark.anyio
async def test_a_strict_daemon_has_tried_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(
        assemble, "refuse_unless_strict", lambda pair: tried.append(pair.kernels.strict)
    )
    daemon = Daemon(config_for(), loading(memory="1GiB", numerics="strict"))
    await daemon.start()
    assert await daemon.wait_loaded()
    async with AsyncClient(str(daemon.grpc_addresses[0])) as client:
        assert (await client.get_model()).numerics == "strict"
    assert await daemon.stop() == 0
    assert tried == [True]


def test_rows_of_every_kind_have_run_before_a_daemon_serves_and_nobody_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither in the tree, the ledger or the metrics, nor in a slot."""
    plans: list[StepPlan] = []
    submit: Callable[..., Any] = Runner.submit

    def submitted(self: Runner, plan: StepPlan) -> Any:
        plans.append(plan)
        return submit(self, plan)

    monkeypatch.setattr(Runner, "submit", submitted)
    warm = loading(memory="1GiB")()
    assert any(plan.decodes and plan.prefills for plan in plans)
    monkeypatch.setattr(assemble, "warm_up", lambda *_: None)
    cold = loading(memory="1GiB")()
    assert warm.core.stats() == cold.core.stats()
    assert list(warm.describe_tree()) == list(cold.describe_tree())
    for loaded in (warm, cold):
        assert isinstance(loaded.runner, Runner)
        assert loaded.runner.caches.arrays == []
        assert not np.array(loaded.runner.frontier).any()
        loaded.runner.close()


def test_a_device_that_cannot_run_a_step_is_told_before_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def verify(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(runner_module, "verify", verify)
    with pytest.raises(StartError, match=r"does not run in .* on this device: no such kernel"):
        loading(memory="1GiB")()


def test_a_recording_overwrites_nothing(tmp_path: Path) -> None:
    """And is refused before the model is loaded."""
    (tmp_path / "record").write_text("dear")
    for path, says in ((tmp_path / "record", "File exists"), (tmp_path / "no" / "r", "No such")):
        with pytest.raises(StartError, match=f"cannot record to .*: {says}"):
            loading(record=str(path), model="/no/such/model")()
    assert (tmp_path / "record").read_text() == "dear"


def test_a_start_that_fails_leaves_no_recording(tmp_path: Path) -> None:
    """Else the next start would be refused, for a file that holds nothing."""
    record = tmp_path / "record"
    with pytest.raises(StartError, match="/no/such/model"):
        loading(record=str(record), model="/no/such/model")()
    assert not record.exists()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model": "/no/such/model"}, StartError, "neither a directory nor a hub id"),
        ({"memory": "1MiB"}, StartError, "the weights need .* the budget is 1.0 MiB"),
        ({"draft": "none", "draft_depth": 2}, UsageError, "no drafter is loaded"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        loading(**settings)()


def test_a_bad_file_is_the_one_line_that_serve_ends_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict(sound())
    files[f"target/{ONE}"] = b""
    write(files, tmp_path)
    listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    assert main(["serve", "--model", str(tmp_path), *listen]) == 1
    line = f"sapwood: {tmp_path}/target/{ONE}: has 0 bytes, too few for a safetensors header\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.anyio
async def test_the_smallest_budget_that_starts_serves_a_request() -> None:
    """Less would answer OUT_OF_MEMORY to everything, and is told so at the start, in one unit."""
    for budget, unit in (("8", "B"), ("1MiB", "MiB")):
        with pytest.raises(StartError) as small:
            loading(memory=budget)()
        assert set(re.findall(r"[0-9] ([KMGT]?i?B)\b", str(small.value))) == {unit}
    least = re.findall(r"at least ([0-9.]+ MiB) \(--memory\)$", str(small.value))[0]
    with pytest.raises(StartError, match="expected at least"):
        loading(memory=f"{float(least.split()[0]) - 0.2} MiB")()
    daemon = Daemon(config_for(), loading(memory=least))
    await daemon.start()
    assert await daemon.wait_loaded()
    async with AsyncClient(str(daemon.grpc_addresses[0])) as client:
        reply = await client.generate([5], max_tokens=1).collect()
        assert len(reply.token_ids) == 1
    assert await daemon.stop() == 0


@pytest.mark.parametrize("shared", [True, False])
def test_a_derived_budget_holds_what_the_process_takes_where_memory_is_shared(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given one is for arrays alone."""
    monkeypatch.setattr(device, "shares_host_memory", lambda: shared)
    monkeypatch.setattr(device, "memory_budget_bytes", lambda: 4 << 30)
    for settings, other in (({}, shared), ({"memory": "4GiB"}, False)):
        loaded = loading(**settings)()
        stats, memory = loaded.view_account()
        loaded.runner.close()
        assert memory.budget == 4 << 30
        assert memory.budget - stats.memory.budget == memory.other
        assert bool(memory.other) == other


def test_a_derived_budget_that_the_process_alone_exceeds_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "memory_budget_bytes", lambda: 50 << 20)
    with pytest.raises(StartError, match="the budget is 0 B; expected at least"):
        loading()()


@pytest.mark.parametrize("folder", [".", "../e2b-tiny/", "e2b-tiny"])
def test_a_model_is_named_after_its_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is reached: an empty name would be GetModel's answer."""
    bundle = Path(__file__).parents[2] / "fixtures/ckpt"
    monkeypatch.chdir(bundle if folder == "e2b-tiny" else bundle / "e2b-tiny")
    loaded = loading(model=folder, draft=str(bundle / "e2b-tiny-assistant"))()
    assert (loaded.card.name, loaded.card.drafter) == ("e2b-tiny", "e2b-tiny-assistant")
    loaded.runner.close()


def test_a_device_is_bound_by_the_budget_and_follows_what_is_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """M1: MLX may hold no more than the ledger does, nor keep for reuse what nobody reserved."""
    bound: list[tuple[int, int]] = []
    followed: list[tuple[int, int, int]] = []

    def follow(self: device.CacheLimit, workspace_bytes: int, free_bytes: int) -> tuple[int, int]:
        followed.append((workspace_bytes, free_bytes, self._cache_bytes))
        return 4711, 12

    monkeypatch.setattr(device, "bound", lambda *limits: bound.append(limits))
    monkeypatch.setattr(device.CacheLimit, "follow", follow)
    config = config_for(memory="1GiB")
    loaded = assemble.load(config)
    facts, limits = loaded.card.facts, config.limits
    kept = facts.prefill_bytes(limits.prefill_tokens_max, facts.context_tokens_max)
    assert bound == [(1 << 30, kept)]
    assert loaded.follow(12_345, 678) == (4711, 12)
    assert followed == [(12_345, 678, kept)]
    loaded.runner.close()


@pytest.mark.long
def test_memory_is_wired_where_that_is_asked_for_and_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wired: list[int] = []
    monkeypatch.setattr(device, "wire", wired.append)
    loading(memory="1GiB")().runner.close()
    with pytest.raises(UsageError, match="--wire-memory: only Metal's memory can be wired"):
        loading(memory="1GiB", wire_memory=True)()
    assert wired == []
    monkeypatch.setattr(device, "can_wire", lambda: True)
    loading(memory="1GiB", wire_memory=True)().runner.close()
    assert wired == [1 << 30]
