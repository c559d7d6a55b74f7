"""Principals under quotas (R10), seed by seed; and that with a quota off the simulator says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sapwood.daemon.rpc.quotas import Accounts, Holding
from sapwood.scheduler.core.pins import Pins
from sapwood.scheduler.core.sessions import Sessions
from sapwood.scheduler.reasons import Reason
from tests.sim.tenants import play_tenants

SEEDS, SEEDS_MAX = 6, 40


def test_r10_nobody_has_more_than_its_quotas_or_is_refused_for_anothers() -> None:
    refused = [why for seed in range(SEEDS) for why in play_tenants(seed).refused]
    assert {why.reason for why in refused} == {Reason.CLIENT_QUOTA}
    assert all(why.retry_after_s for why in refused)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_r10_over_many_seeds() -> None:
    for seed in range(SEEDS, 400):
        play_tenants(seed)


def play_many(seeds: int) -> None:
    for seed in range(seeds):
        play_tenants(seed)


def no_bound_of_rows(patch: pytest.MonkeyPatch) -> None:
    def enter(self: Holding, quotas: object, rows: int = 1, **_: object) -> object:
        return right(self, everything, rows)

    from sapwood.daemon.settings.principals import Quotas

    right, everything = Holding.enter, Quotas()
    patch.setattr(Holding, "enter", enter)


def no_bound_of_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holding, "reserve", lambda *_: None)


def no_giving_back(patch: pytest.MonkeyPatch) -> None:
    """What a reply did not use stays reserved."""
    patch.setattr(Holding, "give_back", lambda *_: None)


def no_leaving(patch: pytest.MonkeyPatch) -> None:
    """A place with the scheduler is never free again."""
    patch.setattr(Holding, "leave", lambda *_: None)


def one_account_for_all(patch: pytest.MonkeyPatch) -> None:
    """Whoever is busy takes everybody's places."""
    right = Accounts.stake

    def stake(self: Accounts, principal: Any) -> Any:
        self._holdings = _OfAll(self._holdings)
        return right(self, principal)

    class _OfAll(dict[str, Holding]):
        def get(self, name: str, default: Any = None) -> Any:
            return next(iter(self.values()), default)

    patch.setattr(Accounts, "stake", stake)


def no_bound_of_sessions(patch: pytest.MonkeyPatch) -> None:
    right = Sessions._add

    def add(self: Sessions, key: Any, tokens: Any, ttl_s: float, _most: Any, now: float) -> Any:
        return right(self, key, tokens, ttl_s, None, now)

    patch.setattr(Sessions, "_add", add)


def no_bound_of_own_pins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pins, "_bytes_of", lambda *_: -(10**9))


@pytest.mark.parametrize(
    "off",
    [
        no_bound_of_rows,
        no_bound_of_tokens,
        no_giving_back,
        no_leaving,
        one_account_for_all,
        no_bound_of_sessions,
        no_bound_of_own_pins,
    ],
)
def test_r10_without_a_quota_it_is_noticed(
    off: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    with pytest.raises(AssertionError, match=r"R10|L2"):
        play_many(SEEDS_MAX)
