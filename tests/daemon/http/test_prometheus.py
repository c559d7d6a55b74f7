"""A real Prometheus at a live daemon: it scrapes, and every expression of ours finds series.

Alerts, dashboard and the page of metrics are held to what the daemon serves: an expression that
names what is not there answers nothing, and says nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import Running, collect, error_of, prompt_of, running
from tests.daemon.fakes import FakeDevice
from tests.daemon.http.test_metrics import COUNTERS, GAUGES, HISTOGRAMS, UNTYPED
from tests.outside import program
from tests.test_rooms import ROOT

MONITORING = ROOT / "docs/monitoring"
METRICS_PAGE = ROOT / "docs/metrics.md"
RATE = "30s"
STARTING_S_MAX = 60
SCRAPED_S_MAX = 60
COMMANDS = ("check rules alerts.yml", "test rules alerts_test.yml", "check config prometheus.yml")

pytestmark = pytest.mark.anyio


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def expressions_of_the_dashboard() -> dict[str, str]:
    """As Grafana sends them for all instances, each with its legend."""
    targets = [target for p in dashboard()["panels"] for target in p.get("targets", ())]
    return {
        target["expr"].replace("$__rate_interval", RATE).replace("$instance", ".*"): target[
            "legendFormat"
        ]
        for target in targets
    }


def variables_of_the_dashboard() -> list[tuple[str, str]]:
    """Metric and label, of which Grafana asks for all values."""
    queries = [v["query"]["query"] for v in dashboard()["templating"]["list"] if "definition" in v]
    matches = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in queries]
    return [(match[1], match[2]) for match in matches if match is not None]


def expressions_of_the_page() -> list[str]:
    """The table of questions: what stands there as code, to be pasted."""
    table = METRICS_PAGE.read_text().partition("## Questions")[2].partition("\n## ")[0]
    return re.findall(r"^\| [^|`]+ \| `(.+)` \|$", table, re.MULTILINE)


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:sapwood|process)_[a-z_]+", expression))


def test_the_dashboard_is_whole() -> None:
    all_panels = dashboard()["panels"]
    panels = [panel for panel in all_panels if panel["type"] != "row"]
    assert len(panels) >= 20 and not any(panel.get("panels") for panel in all_panels)
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    assert variables_of_the_dashboard() == [("sapwood_build_info", "instance")]
    assert all(panel["targets"] and panel["title"] for panel in panels)
    assert all("$instance" in t["expr"] for p in panels for t in p["targets"])


@pytest.mark.outside("promtool")
@pytest.mark.parametrize("command", COMMANDS)
def test_promtool_takes_the_files(command: str) -> None:
    done = subprocess.run(
        [program("promtool"), *command.split()],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    rules = (MONITORING / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) >= 9
    assert len(re.findall(r'^ +runbook: ".{40,}"$', rules, re.MULTILINE)) == len(alerts)
    tested = (MONITORING / "alerts_test.yml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', tested)) == set(alerts)


@asynccontextmanager
async def scraping(run: Running, folder: Path) -> AsyncIterator[str]:
    """The address of a Prometheus that scrapes this daemon every second, with our alerts."""
    text = (MONITORING / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:9464", str(run.metrics)).replace("15s", "1s")
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(MONITORING / "alerts.yml", folder)
    command = [
        str(program("prometheus")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    process = await anyio.open_process(command, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    log = BufferedByteReceiveStream(process.stderr)
    try:
        with anyio.fail_after(STARTING_S_MAX):
            address = await address_in(log)
        yield address
    finally:
        process.terminate()
        await process.wait()
        await process.aclose()


async def address_in(log: BufferedByteReceiveStream) -> str:
    """Where it answers, as its log tells; the rest of the log is less than a pipe holds."""
    address, line = "", ""
    while "Server is ready" not in line:
        line = (await log.receive_until(b"\n", 1 << 16)).decode()
        if found := re.search(r'msg="Listening on".*address=(\S+)', line):
            address = found[1]
    assert address
    return address


async def asked(address: str, what: str, **query: str) -> Any:
    """`data` of one answer of its API."""
    url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(query)}"

    def get() -> Any:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())

    told = await anyio.to_thread.run_sync(get)
    assert told["status"] == "success", (url, told)
    return told["data"]


async def samples(address: str, expression: str) -> list[Any]:
    found: list[Any] = (await asked(address, "query", query=expression))["result"]
    return found


async def work(run: Running) -> None:
    """One round of what the page, the dashboard and the alerts tell of."""
    prompt = tuple(range(5, 60))
    replies = [run.generation.Generate(prompt_of(*prompt, max_tokens=20)) for _ in range(4)]
    await asyncio.gather(*(collect(reply) for reply in replies))
    await error_of(run.generation.Generate(pb.GenerateRequest()))


@pytest.mark.outside("prometheus")
async def test_a_prometheus_finds_series_for_every_expression_of_ours(tmp_path: Path) -> None:
    """Series, with what legends show; and where nothing is divided by nothing a number."""
    legends = expressions_of_the_dashboard()
    ours = [*legends, *expressions_of_the_page()]
    ours = [re.sub(r"\[\d+m\]", f"[{RATE}]", expression) for expression in ours]
    async with running(FakeDevice()) as run, scraping(run, tmp_path) as prometheus:
        with anyio.fail_after(SCRAPED_S_MAX):
            while not await samples(prometheus, "sapwood_requests_total > 0"):
                await work(run)
        for _ in range(3):  # a rate needs counts that move between two scrapes
            await work(run)
            await asyncio.sleep(1.2)
        silent = [expression for expression in ours if not await samples(prometheus, expression)]
        unlabelled = [
            (expression, label)
            for expression, legend in legends.items()
            for sample in await samples(prometheus, expression)
            for label in re.findall(r"{{(\w+)}}", legend)
            if not sample["metric"].get(label)
        ]
        for metric, label in variables_of_the_dashboard():
            assert await asked(prometheus, f"label/{label}/values", **{"match[]": metric})
        (target,) = (await asked(prometheus, "targets"))["activeTargets"]
        alerts = (await asked(prometheus, "rules"))["groups"][0]["rules"]
        told = await asked(prometheus, "metadata")
        series = await asked(prometheus, "label/__name__/values")
        newest = await samples(prometheus, "sapwood_generated_tokens_total")
        counted = run.daemon._engine.published
    assert (target["health"], target["lastError"]) == ("up", "")
    assert silent == [] and unlabelled == []
    assert len(alerts) >= 9 and {alert["health"] for alert in alerts} == {"ok"}
    assert all(alert["state"] == "inactive" for alert in alerts), alerts
    assert counted is not None
    assert 0 < float(newest[0]["value"][1]) <= counted.stats.generated_tokens
    rules = (MONITORING / "alerts.yml").read_text()
    named = {name for text in (*ours, rules) for name in metrics_in(text)}
    assert named <= {*series, *told}


def test_the_page_names_every_metric_that_is_served_and_no_other() -> None:
    """The table of names against the contract's test, which holds what is served."""
    page = METRICS_PAGE.read_text().partition("| kind | names")[2].partition("\n\n")[0]
    named = {re.split(r"[{]", name)[0] for name in re.findall(r"`([a-z_]+(?:\{[a-z,]+\})?)`", page)}
    served = HISTOGRAMS | GAUGES | UNTYPED | {f"{name}_total" for name in COUNTERS}
    assert named - {"sapwood_"} == served
