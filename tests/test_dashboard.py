"""The Grafana dashboard and the alert rules of examples/tracing ask for metrics that exist, and a real Prometheus takes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from panels import draw
from pictures import keep
from prometheus_client.parser import text_string_to_metric_families

from pointsman.host.exposition import prometheus_name
from pointsman.host.metrics import Metrics
from pointsman.testing.ports import free_port
from pointsman.testing.provider.process import UpstreamProcess
from pointsman.testing.proxy import ProxyServer

EXAMPLES = Path(__file__).parent.parent / "examples"
DASHBOARD = EXAMPLES / "tracing" / "dashboard.json"
ALERTS = EXAMPLES / "tracing" / "alerts.yml"
ALL_PLUGINS = EXAMPLES / "all-plugins" / "litellm.yaml"
KEY = "sk-dashboard-0123456789"

#: Shown after any traffic, so an empty answer means a query that asks for something else than what is exported.
PANELS_WITH_TRAFFIC = {
    "Requests", "Duration", "First content", "Attempts", "Attempt duration, p95", "Breakers", "Tokens", "Cost",
    "Exhausted or degraded", "Hedges", "Canary weights", "Limits used", "Bills to deliver", "Time in hooks",
    "Store, p99", "Event loop lag, p99", "Workers", "Requests that run",
}  # fmt: skip


def panels() -> Iterator[tuple[str, str]]:
    """Yield title and expression of everything that the dashboard asks."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def rules() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def asked() -> set[str]:
    """Return every metric that dashboard or alerts name, without the suffixes of histograms and counters."""
    names = set()
    for _, expr in (*panels(), *rules()):
        names |= set(
            re.findall(
                r"\b((?:pointsman|gen_ai_client)_[a-z_]+)(?=[{\[)\s]|$)", re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expr)
            )
        )
    return {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in names}


def test_panels_and_rules_are_complete() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel.get("description") for panel in document["panels"] if panel["type"] != "row")
    assert {title for title, _ in panels()} >= PANELS_WITH_TRAFFIC
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
            assert rule["labels"]["severity"] in {"warning", "critical"}


def buckets(name: str, slow: str) -> dict[str, str]:
    """Return the series of a histogram of which every value lies above 0.1 and at most at 1, or at most at 0.1."""
    return {
        f'{name}_bucket{{le="0.1"}}': slow,
        f'{name}_bucket{{le="1"}}': "0+10x200",
        f'{name}_bucket{{le="+Inf"}}': "0+10x200",
    }


def breakers(*states: str) -> dict[str, str]:
    name = "pointsman_balance_breaker_state"
    return {f'{name}{{pointsman_group="g",pointsman_deployment="d{n}"}}': state for n, state in enumerate(states)}


def exhausted(values: str) -> dict[str, str]:
    return {'pointsman_signals_status{pointsman_deployment="d"}': values}


def requests(failed: str) -> dict[str, str]:
    name = "pointsman_request_duration_seconds_count"
    return {f'{name}{{pointsman_outcome="ok"}}': "0+10x200", f'{name}{{pointsman_outcome="error"}}': failed}


#: Breakers that are half-open for one scrape or several between two open periods, and one that closes.
REOPENED = " ".join(["2 2 2 2 1"] * 40)
MOSTLY_HALF_OPEN = " ".join(["2 1 1 1 1 1 1 1"] * 25)
CLOSED_BETWEEN = " ".join(["2 2 1 0"] * 50)
FAULTS = 'pointsman_plugin_faults_total{pointsman_plugin="p",pointsman_hook="select"}'
UNPRICED = 'pointsman_unpriced_total{pointsman_deployment="d"}'
USED = 'pointsman_quota_used_ratio{pointsman_tenant="acme",pointsman_scope="tenant",pointsman_limit="usd_per_day"}'
#: For each rule, series every 15 s that have to make it fire within 25 minutes, and others that must not.
#: ``_`` is a scrape without the series: what happens seldom has none before its first event.
CASES: list[tuple[str, bool, dict[str, str]]] = [
    ("PointsmanNotScraped", True, {}),
    ("PointsmanNotScraped", False, {"pointsman_workers": "2x200"}),
    ("PointsmanRequestsFail", True, requests("0+1x200")),
    ("PointsmanRequestsFail", False, requests("0x200")),
    ("PointsmanBreakerOpen", True, breakers("0x200", "2x200")),
    ("PointsmanBreakerOpen", True, breakers("0x200", REOPENED)),
    ("PointsmanBreakerOpen", True, breakers(MOSTLY_HALF_OPEN)),
    ("PointsmanBreakerOpen", False, breakers("0x200", "1x200")),
    ("PointsmanBreakerOpen", False, breakers("2x20 1x180")),  # half-open, and no request comes
    ("PointsmanBreakerOpen", False, breakers(CLOSED_BETWEEN)),
    ("PointsmanGroupDown", True, breakers("2x200", "2x200")),
    ("PointsmanGroupDown", True, breakers(REOPENED, f"1 {REOPENED}")),
    ("PointsmanGroupDown", False, breakers("0x200", "2x200")),
    ("PointsmanGroupDown", False, breakers("2x200", "2x20 1x180")),
    ("PointsmanGroupDown", False, breakers(CLOSED_BETWEEN, "2x200")),
    ("PointsmanDeploymentExhausted", True, exhausted("2x200")),
    ("PointsmanDeploymentExhausted", True, exhausted(" ".join(["2 2 2 2 2 2 2 0"] * 25))),
    ("PointsmanDeploymentExhausted", False, exhausted("1x200")),
    ("PointsmanDeploymentExhausted", False, exhausted(" ".join(["2 2 0 0"] * 50))),
    ("PointsmanQuotaNearlyUsed", True, {USED: "0.95x200"}),
    ("PointsmanQuotaNearlyUsed", False, {USED: "0.5x200"}),
    (
        "PointsmanCanaryRolledBack",
        True,
        {'pointsman_canary_phase{pointsman_experiment="e",pointsman_phase="rolled_back"}': "1x200"},
    ),
    (
        "PointsmanCanaryRolledBack",
        False,
        {'pointsman_canary_phase{pointsman_experiment="e",pointsman_phase="running"}': "1x200"},
    ),
    ("PointsmanDeadLetters", True, {'pointsman_billing_dead_letters{pointsman_sink="s"}': "1x200"}),
    ("PointsmanDeadLetters", False, {'pointsman_billing_dead_letters{pointsman_sink="s"}': "0x200"}),
    ("PointsmanSinkFails", True, {'pointsman_billing_sink_tries{pointsman_sink="s"}': "4x200"}),
    ("PointsmanSinkFails", False, {'pointsman_billing_sink_tries{pointsman_sink="s"}': "0x200"}),
    ("PointsmanUnpriced", True, {UNPRICED: "_x60 1x140"}),
    ("PointsmanUnpriced", True, {UNPRICED: "3x70 4x130"}),
    ("PointsmanUnpriced", False, {UNPRICED: "3x200"}),
    ("PointsmanPluginFaults", True, {FAULTS: "_x80 9x120"}),
    ("PointsmanPluginFaults", True, {FAULTS: "3x70 30x130"}),
    ("PointsmanPluginFaults", False, {FAULTS: "30x200"}),
    ("PointsmanPluginFaults", False, {FAULTS: "30x40 _x20 30x140"}),  # nothing was scraped for a while
    ("PointsmanSettlementsWait", True, {'pointsman_settlements_waiting{pointsman_plugin="p"}': "101x200"}),
    ("PointsmanSettlementsWait", False, {'pointsman_settlements_waiting{pointsman_plugin="p"}': "5x200"}),
    ("PointsmanStoreSlow", True, buckets("pointsman_store_duration_seconds", "0x200")),
    ("PointsmanStoreSlow", False, buckets("pointsman_store_duration_seconds", "0+10x200")),
    ("PointsmanLoopLag", True, buckets("pointsman_loop_lag_seconds", "0x200")),
    ("PointsmanLoopLag", False, buckets("pointsman_loop_lag_seconds", "0+10x200")),
]


@pytest.mark.services
def test_every_rule_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    """As Prometheus itself evaluates them."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH; install it, for example with apt-get install prometheus")
    assert {(name, fires) for name, fires, _ in CASES} >= {
        (name, fires) for name, _ in rules() for fires in (True, False)
    }
    tests = [
        {
            "name": f"{name} {'fires' if fires else 'is quiet'}",
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": "25m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for name, fires, series in CASES
    ]
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(  # noqa: S603 - our own words
        [promtool, "test", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    """The example with all plugins, after some traffic."""
    with UpstreamProcess() as provider, contextlib.ExitStack() as running:
        env = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": f"{provider.url}/v1", "LITELLM_MASTER_KEY": KEY}
        directory = tmp_path_factory.mktemp("dashboard")
        server = running.enter_context(ProxyServer(ALL_PLUGINS, directory, env=env))
        send(server)
        yield server


def send(proxy: ProxyServer) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0) as client:
        for number in range(6):
            model = "assistant" if number % 3 else "gpt-4o-mini"
            message: Any = {"role": "user", "content": "Hello"}
            made: Any = client.chat.completions.create(model=model, messages=[message], stream=bool(number % 2))
            if number % 2:
                assert list(made)


def exported(text: str) -> set[str]:
    return {re.sub(r"_total$", "", family.name) for family in text_string_to_metric_families(text)}


@pytest.mark.proxy
def test_every_metric_that_is_asked_for_is_exported(proxy: ProxyServer) -> None:
    declared = {
        prometheus_name(instrument.name, instrument.unit, type(instrument).__name__.lower())
        for instrument in Metrics().instruments
    }
    # Present once there has been something to count.
    seldom = {"pointsman_canary_verdict", "pointsman_quota_used_ratio", "pointsman_signals_remaining_ratio"}
    deadline = time.monotonic() + 60
    while True:
        with proxy.client() as client:
            text = client.get("/pointsman/metrics").raise_for_status().text
        missing = asked() - exported(text) - declared - seldom
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert not missing


@pytest.fixture
def prometheus(proxy: ProxyServer, tmp_path: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes the proxy every second, with the example's rules."""
    binary = os.environ.get("POINTSMAN_PROMETHEUS") or shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not on the PATH; install it, for example with apt-get install prometheus")
    config = yaml.safe_load((EXAMPLES / "tracing" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [proxy.url.removeprefix("http://")]}]
    (tmp_path / "admin-key").write_text(KEY)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ALERTS, tmp_path / "alerts.yml")
    port = free_port()
    command = [
        binary,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own words
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=30) as client:
            wait_for_scrapes(client, process, tmp_path / "prometheus.log")
            yield client
    finally:
        process.terminate()
        process.wait(30)


def wait_for_scrapes(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if ask(client, "count_over_time(pointsman_workers[5m]) >= 3"):
                return
        time.sleep(0.5)
    raise AssertionError(f"nothing was scraped: {client.get('/targets').text}\n{log.read_text()}")


def ask(client: httpx.Client, expr: str) -> list[Any]:
    answer = client.get("/query", params={"query": expr})
    if answer.status_code == 503:  # it is starting
        return []
    body = answer.json()
    assert body["status"] == "success", f"{expr}: {body}"
    return list(body["data"]["result"])


def ask_over_time(client: httpx.Client, expr: str) -> list[Any]:
    """Return an expression's series over the last two minutes, a point every two seconds."""
    now = time.time()
    times = {"start": str(now - 120), "end": str(now), "step": "2"}
    body = client.get("/query_range", params={"query": expr, **times}).raise_for_status().json()
    return list(body["data"]["result"])


@pytest.mark.proxy
@pytest.mark.services
def test_prometheus_answers_every_panel_and_takes_every_rule(
    proxy: ProxyServer, prometheus: httpx.Client, tmp_path: Path
) -> None:
    """And the dashboard can be looked at: POINTSMAN_PICTURES says where to keep its picture."""
    waiting = {title: expr for title, expr in panels() if title in PANELS_WITH_TRAFFIC}
    deadline = time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        send(proxy)
        time.sleep(2)
        waiting = {title: expr for title, expr in waiting.items() if not ask(prometheus, expr)}
    assert not waiting
    for _, expr in panels():
        ask(prometheus, expr)
    loaded = [rule for group in prometheus.get("/rules").json()["data"]["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {name for name, _ in rules()}
    assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}
    firing = {rule["name"] for rule in loaded if rule["state"] == "firing"}
    assert firing <= {"PointsmanUnpriced"}
    picture = draw(json.loads(DASHBOARD.read_text(encoding="utf-8")), lambda expr: ask_over_time(prometheus, expr))
    keep(picture, "dashboard.svg", tmp_path)
    shown = {title for title, _ in panels()}
    assert all(escape(title) in picture for title in shown)
    assert picture.count("no data") <= len(shown - PANELS_WITH_TRAFFIC)
