"""Two and four real daemons behind one real SMG: who gets a prompt, what an end costs."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sapwood import Client, Delta
from tests.daemon.process.processes import wait_for
from tests.system.fleet import MODEL, Fleet, Worker, fleet_of, prompt_of

pytestmark = [pytest.mark.outside("smg"), pytest.mark.timeout(300)]

PREFIXES = 8  # for each worker
REPEATS_FOUND_MIN = 0.95
LONG, SHORTER = 1500, 300  # tokens, which take seconds; the shorter ones as long as a drain waits
SETTLE_S = 0.5  # what a tree gained is told after a tenth of a second


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers and a gateway; whoever ends one starts it again."""
    with fleet_of(tmp_path_factory.mktemp("pair"), 2) as fleet:
        fleet.start_gateway()
        yield fleet


def homes_of(fleet: Fleet, seeds: Sequence[int]) -> list[int]:
    """Who got each of these prompts, which nobody has seen."""
    homes = []
    for seed in seeds:
        home, _ = fleet.served_by(lambda: fleet.gateway.complete(prompt_of(seed)))  # noqa: B023
        homes.append(home)
    time.sleep(SETTLE_S)
    return homes


def share_found(fleet: Fleet, seeds: Sequence[int], homes: Sequence[int]) -> float:
    """Of repeats, each with another ending, that came to whoever has their prefix."""
    found = 0
    for turn in range(2):
        for seed, home in zip(seeds, homes, strict=True):
            prompt = f"{prompt_of(seed)} and then {turn}"
            at, usage = fleet.served_by(lambda: fleet.gateway.complete(prompt))  # noqa: B023
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert at != home or cached > usage["prompt_tokens"] / 2, usage
            found += at == home
    return found / (2 * len(seeds))


@pytest.mark.parametrize("workers", [2, 4])
def test_a_prompt_goes_where_its_prefix_lies(workers: int, tmp_path: Path) -> None:
    seeds = range(PREFIXES * workers)
    with fleet_of(tmp_path, workers) as fleet:
        fleet.start_gateway()
        homes = homes_of(fleet, seeds)
        assert set(homes) == set(range(workers)), "new prompts are for everybody"
        assert share_found(fleet, seeds, homes) >= REPEATS_FOUND_MIN
        fleet.gateway.kill()
        fleet.start_gateway()  # that is how it learns the trees anew
        time.sleep(SETTLE_S)
        assert share_found(fleet, seeds, homes) >= REPEATS_FOUND_MIN
        fleet.gateway.kill()
        fleet.start_gateway("--policy", "round_robin")
        assert share_found(fleet, seeds, homes) < REPEATS_FOUND_MIN, "without knowing the trees"


class Reader(threading.Thread):
    """One client in the middle of a long reply."""

    def __init__(self, fleet: Fleet, seed: int, tokens: int) -> None:
        super().__init__()
        self._fleet, self._seed, self._tokens = fleet, seed, tokens
        self.chunks = 0
        self.reason = ""
        self.error: Exception | None = None
        self.start()
        wait_for(lambda: self.chunks > 2 or not self.is_alive())

    def run(self) -> None:
        from openai import APIError, OpenAI

        url = f"{self._fleet.gateway.root}/v1"
        extra: Any = {"ignore_eos": True}
        try:
            with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
                for chunk in client.completions.create(
                    model=MODEL, prompt=prompt_of(self._seed), max_tokens=self._tokens, stream=True,
                    extra_body=extra,
                ):  # fmt: skip
                    self.chunks += 1
                    self.reason = chunk.choices[0].finish_reason or self.reason
        except APIError as error:
            self.error = error


def running(worker: Worker) -> float:
    return worker.counted("requests_running")


def all_busy(fleet: Fleet, tokens: int) -> list[Reader]:
    """Readers at every worker."""
    readers = [Reader(fleet, 1000, tokens)]
    while not all(running(worker) for worker in fleet.workers):
        assert len(readers) < 8
        readers.append(Reader(fleet, 1000 + len(readers), tokens))
    return readers


def back_in_use(fleet: Fleet, worker: Worker) -> None:
    """Started again, at its old address, and asked again."""
    worker.start()
    worker.wait_serving()
    at, seed = fleet.workers.index(worker), iter(range(10**6, 2 * 10**6))
    wait_for(lambda: fleet.gateway.workers() == len(fleet.workers))
    wait_for(lambda: homes_of(fleet, [next(seed)]) == [at])


def test_a_worker_that_dies_takes_its_own_clients_along_and_nobody_else(pair: Fleet) -> None:
    victim, other = pair.workers
    readers = all_busy(pair, LONG)
    lost, kept = running(victim), running(other)
    assert victim.end(signal.SIGKILL) == -signal.SIGKILL
    asked = [pair.gateway.complete(prompt_of(2000 + number)) for number in range(6)]
    assert len(asked) == 6, "what comes next goes elsewhere, without an error"
    for reader in readers:
        reader.join()
    ends = [reader.reason for reader in readers]
    assert ends.count("length") == kept
    assert sum(reader.error is not None for reader in readers) == lost, ends
    back_in_use(pair, victim)


def test_a_worker_that_drains_fails_nobody(pair: Fleet) -> None:
    leaving = pair.workers[0]
    readers = all_busy(pair, SHORTER)
    over = threading.Event()
    failed: list[str] = []
    served: list[int] = []

    def ask(client: int) -> None:
        while not over.is_set():
            try:
                pair.gateway.complete(prompt_of(3000 + client), max_tokens=8)
                served.append(client)
            except urllib.error.HTTPError as error:
                failed.append(json.dumps([error.code, error.read().decode()]))

    with ThreadPoolExecutor(6) as clients:
        done = [clients.submit(ask, client) for client in range(6)]
        wait_for(lambda: len(served) > 12)
        assert leaving.end(signal.SIGTERM) == 0
        seen = len(served)
        wait_for(lambda: len(served) > seen + 24)
        over.set()
        for each in done:
            each.result()
    for reader in readers:
        reader.join()
    assert failed == []
    assert {(reader.error, reader.reason) for reader in readers} == {(None, "length")}
    back_in_use(pair, leaving)


def test_the_gateways_end_is_nothing_to_a_workers_own_clients(pair: Fleet) -> None:
    with Client(pair.workers[1].address) as client:
        stream = client.generate([5, 6, 7], max_tokens=LONG, draft_tokens=0, ignore_eos=True)
        got = 0
        for event in stream:
            got += len(event.token_ids) if isinstance(event, Delta) else 0
            if got and pair.gateway.process is not None:
                pair.gateway.kill()
                pair.gateway.process = None
    assert got == LONG
    pair.start_gateway()
    assert pair.gateway.complete(prompt_of(1))["completion_tokens"] == 2
