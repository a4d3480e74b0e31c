"""Start, stop and sudden death of real proxies: no settlement is lost, and what cannot start says why."""

from __future__ import annotations

import concurrent.futures
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from rig import Rig, deployment, recorder_library

from pointsman.host.versions import SUPPORTED
from pointsman.testing.provider import Behaviour, Delay
from pointsman.testing.proxy import ProxyFailed, ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]
ASK = [{"role": "user", "content": "Say something."}]


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [deployment(upstream, "good", "gpt-4o-mini", id_="good-1")]


def ask(url: str, headers: dict[str, str], case: str, *, stream: bool = False, patience_s: float = 60.0) -> str | None:
    """Send one request; return its id when the whole answer arrived in time, else None."""
    body = {"model": "good", "messages": ASK, "stream": stream}
    try:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={**headers, "x-test-case": case}, timeout=patience_s
        )
    except httpx.HTTPError:
        return None
    return answer.headers["x-pointsman-request-id"] if answer.status_code == 200 else None


def settled(rig: Rig) -> Counter[str]:
    return Counter(row["request"] for row in rig.rows() if row["hook"] == "settle")


def test_sigterm_under_load_loses_no_settlement(tmp_path: Path) -> None:
    """Every request, plain, streamed, or one whose client has left, is settled exactly once before the process ends."""
    with Rig(tmp_path, model_list, recorder={"settle_sleep_s": 0.05}, fresh=True) as rig:
        rig.upstream.behave("gpt-4o-mini", Behaviour(latency=Delay(median_ms=30), tokens=20))
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            asked = [
                pool.submit(
                    ask,
                    rig.proxy.url,
                    rig.proxy.headers,
                    f"term-{n}",
                    stream=n % 2 == 0,
                    patience_s=0.1 if n % 5 == 0 else 60.0,
                )
                for n in range(150)
            ]
            while sum(future.done() and future.result() is not None for future in asked) < 60:
                assert not all(future.done() for future in asked)
                time.sleep(0.01)
            rig.proxy.stop(signal.SIGTERM)
            answered = {future.result() for future in asked} - {None}
        assert len(answered) >= 60
        by_request = settled(rig)
        assert answered <= set(by_request)
        assert set(by_request) == {row["request"] for row in rig.rows() if row["hook"] == "pre_route"}
        assert set(by_request.values()) == {1}
        last = rig.rows()[-1]
        assert last["hook"] == "shutdown"
        # What LiteLLM has loaded by then is not walked through by every full garbage collection.
        assert last["frozen"] > 100_000
        # And the young objects are looked through less often than by Python's default.
        assert last["new_objects"] >= 5_000


def test_sigkill_loses_no_settlement_that_the_store_had_accepted(tmp_path: Path) -> None:
    """A killed worker's journal is taken over by the next one, each settlement once."""
    with Rig(tmp_path, model_list, recorder={"settle_sleep_s": 3.0}) as rig:
        answered = {ask(rig.proxy.url, rig.proxy.headers, f"kill-{n}") for n in range(20)}
        assert None not in answered
        time.sleep(0.5)  # ten times the journal's window: the store has accepted them all
        rig.proxy.stop(signal.SIGKILL)
        before = settled(rig)
        assert len(before) < 20, "the plugin must still have been busy for this test to prove anything"
        rig.proxy = rig.new_proxy(tmp_path / "second").start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and set(settled(rig)) < answered:
            time.sleep(0.2)
        assert set(settled(rig)) == answered
        # Settled by the first worker and seen again by the second can only be what was settled as it died.
        again = [request for request, times in settled(rig).items() if times > 1]
        assert set(again) <= set(before)


def test_two_workers_share_the_load_and_settle_each_request_once(tmp_path: Path) -> None:
    with Rig(tmp_path, model_list, workers=2, fresh=True) as rig:
        assert rig.proxy.log().count("Application startup complete") == 2
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, rig.proxy.url, rig.proxy.headers, f"two-{n}") for n in range(120)]
            answered = {future.result() for future in asked}
        assert None not in answered
        rig.proxy.stop(signal.SIGTERM)
        by_request = settled(rig)
        assert set(by_request) == answered
        assert set(by_request.values()) == {1}
        assert len({row["pid"] for row in rig.rows() if row["hook"] == "settle"}) == 2


def start_failure(
    tmp_path: Path, section: Any, callbacks: Sequence[str] = ("pointsman.litellm.handler",), **more: Any
) -> str:
    """Start a proxy that cannot start; return what it printed."""
    library = recorder_library(tmp_path / "lib")
    document = {
        "model_list": model_list("http://127.0.0.1:9"),
        "litellm_settings": {"callbacks": list(callbacks)},
        "pointsman": section,
    }
    proxy = ProxyServer(document, tmp_path / "proxy", python_path=(library,), **more)
    with pytest.raises(ProxyFailed) as failed, proxy:
        pass
    assert "ended with code 3" in str(failed.value)
    return proxy.log()


def test_a_misspelt_key_stops_the_start_with_one_message(tmp_path: Path) -> None:
    """File, key path and the nearest name; no traceback after the message."""
    log = start_failure(tmp_path, {"plugins": [{"recorder": {"file": "x", "settle_sleep": 1}}]})
    message = log[log.index("pointsman: cannot start:") :]
    assert "litellm.yaml: pointsman.plugins[0].recorder.settle_sleep: unknown key" in message
    assert "did you mean 'settle_sleep_s'?" in message
    assert "Traceback" not in message
    assert log.count("cannot start") == 1


def test_a_store_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the directory should be", encoding="utf-8")
    section = {"store": {"backend": "disk", "path": str(tmp_path / "occupied")}, "plugins": []}
    log = start_failure(tmp_path, section)
    message = log[log.index("pointsman: cannot start:") :]
    assert str(tmp_path / "occupied") in message
    assert "Traceback" not in message


#: Another LiteLLM: what the bridge imports is not where it was.
OTHER_LITELLM = """
import importlib, sys
from litellm.integrations.custom_logger import CustomLogger

module, _, name = {missing!r}.partition(":")
if name:
    delattr(importlib.import_module(module), name)
else:
    sys.modules[module] = None
before = CustomLogger()
"""


@pytest.mark.parametrize(
    ("missing", "needed"),
    [
        (
            "litellm.router_utils.fallback_event_handlers:check_non_standard_fallback_format",
            'fallbacks needs it ("Where LiteLLM goes on',
        ),
        ("litellm.caching.llm_caching_handler:LLMClientCache", 'patches.providers needs it ("What the bridge replaces'),
        ("litellm.batches.batch_utils", 'batch_results needs it ("Adds up'),
        ("litellm.router:Router", 'patches.proxy needs it ("What the bridge uses'),
    ],
)
def test_a_litellm_without_what_the_bridge_imports_stops_the_start(tmp_path: Path, missing: str, needed: str) -> None:
    """With what is missing, and what it is for."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "other_litellm.py").write_text(OTHER_LITELLM.format(missing=missing), encoding="utf-8")
    callbacks = ["other_litellm.before", "pointsman.litellm.handler"]
    log = start_failure(tmp_path, {"store": {"backend": "memory"}, "plugins": []}, callbacks=callbacks)
    message = log[log.index("pointsman: cannot start:") :]
    assert missing.replace(":", ".").rpartition(".")[2] in message
    assert f"pointsman.litellm.{needed}" in message
    assert SUPPORTED in message
    assert "Traceback" not in message


def test_a_plugin_whose_start_fails_stops_the_start_unless_it_is_optional(tmp_path: Path) -> None:
    section = {"store": {"backend": "memory"}, "plugins": [{"recorder": {"file": "x", "fail_startup": True}}]}
    log = start_failure(tmp_path, section)
    assert "plugin 'recorder': its start-up failed: RuntimeError: told to fail" in log

    optional = {"file": "x", "fail_startup": True, "optional": True}
    library = recorder_library(tmp_path / "lib")
    document = {
        "model_list": model_list("http://127.0.0.1:9"),
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "pointsman": {"store": {"backend": "memory"}, "plugins": [{"recorder": optional}]},
    }
    with ProxyServer(document, tmp_path / "proxy2", python_path=(library,)) as proxy, proxy.client() as admin:
        (plugin,) = admin.get("/pointsman/status").json()["plugins"]
        assert plugin["ok"] is False
        assert "told to fail" in plugin["summary"]
