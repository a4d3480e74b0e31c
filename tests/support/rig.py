"""A bundled upstream, a real proxy with the recorder plugin, and what the recorder has written."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from pointsman.testing.distribution import fake_distribution
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyServer

SUPPORT = Path(__file__).parent


def recorder_library(directory: Path) -> Path:
    """Make the recorder and the denier look installed; return the directory to put on the module path."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recorder.py").write_text((SUPPORT / "recorder.py").read_text(encoding="utf-8"), encoding="utf-8")
    points = {name: f"recorder:{name}" for name in ("contexts", "denier", "meter")} | {"recorder": "recorder:plugin"}
    fake_distribution(directory, "pointsman-recorder", points)
    return directory


def deployment(
    upstream: str, group: str, model: str, *, id_: str, provider: str = "openai", **params: Any
) -> dict[str, Any]:
    """Return one entry of ``model_list`` that points at the bundled upstream."""
    base = upstream if provider == "anthropic" else f"{upstream}/v1"
    return {
        "model_name": group,
        "litellm_params": {"model": f"{provider}/{model}", "api_base": base, "api_key": "upstream-key", **params},
        "model_info": {"id": id_},
    }


class Rig:
    """An upstream and a proxy, running during the ``with`` block.

    Args:
        directory: For configuration, store, log and record.
        models: Makes the ``model_list`` from the upstream's URL.
        plugins: The ``plugins:`` list; the recorder is put first.
        config: More of the LiteLLM configuration, merged one level deep.
        recorder: The recorder's own configuration.
        proxy: More arguments for ``ProxyServer``.
    """

    def __init__(
        self,
        directory: Path,
        models: Callable[[str], list[dict[str, Any]]],
        *,
        plugins: list[Any] | None = None,
        config: Mapping[str, Any] | None = None,
        recorder: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        upstream: UpstreamServer | None = None,
        **proxy: Any,
    ) -> None:
        self.directory = directory
        self.upstream = upstream or UpstreamServer()
        self.record_path = directory / "record.jsonl"
        self._models = models
        self._plugins = plugins or []
        self._config = dict(config or {})
        self._recorder = dict(recorder or {})
        # A machine that stands still for a second is not what these tests are about; a store that is, says so itself.
        self._store = {"timeout_ms": 10_000, **(store or {"backend": "disk", "path": str(directory / "store")})}
        self._proxy = proxy
        self.proxy: ProxyServer

    def __enter__(self) -> Self:
        self.upstream.start()
        try:
            self.proxy = self.new_proxy(self.directory)
            self.proxy.start()
        except BaseException:
            self.upstream.stop()
            raise
        return self

    def new_proxy(self, directory: Path) -> ProxyServer:
        """Return one more proxy of the same configuration, not started."""
        library = recorder_library(self.directory / "lib")
        document: dict[str, Any] = {
            "model_list": self._models(self.upstream.url),
            "pointsman": {
                "store": self._store,
                "plugins": [{"recorder": {"file": str(self.record_path), **self._recorder}}, *self._plugins],
            },
        }
        for key, value in {"litellm_settings": {"callbacks": ["pointsman.litellm.handler"]}, **self._config}.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        document["litellm_settings"].setdefault("callbacks", ["pointsman.litellm.handler"])
        return ProxyServer(document, directory, python_path=(library,), **self._proxy)

    def __exit__(self, *exc: object) -> None:
        self.proxy.stop()
        self.upstream.stop()

    def leave(self, url: str, **sent: Any) -> None:
        """Send a request, with the arguments of ``httpx.Request``, and close the connection once the upstream has got it."""
        request = httpx.Request("POST", url, **sent)
        before = len(self.upstream.requests)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.proxy.port)) as connection:
            connection.request("POST", request.url.raw_path.decode(), request.read(), dict(request.headers))
            self.upstream.wait_for(lambda requests: len(requests) > before, timeout_s=60)

    def rows(self) -> list[dict[str, Any]]:
        """Return everything recorded so far; a row that is being written is left out."""
        if not self.record_path.exists():
            return []
        lines = self.record_path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of_case(self, case: str, *, settled: bool = True, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        """Wait until the request of this case has been settled and return its rows in order.

        Raises:
            TimeoutError: it was not.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            rows = self.rows()
            ids = {row["request"] for row in rows if row.get("case") == case and row["request"]}
            mine = [row for row in rows if row["request"] in ids]
            if mine and (not settled or any(row["hook"] == "settle" for row in mine)):
                return mine
            time.sleep(0.05)
        raise TimeoutError(f"case {case!r} was not settled within {timeout_s:.0f} s; log:\n{self.proxy.log()[-3000:]}")


def counts(rows: list[dict[str, Any]]) -> Counter[str]:
    """Count hooks."""
    return Counter(row["hook"] for row in rows)


def only(rows: list[dict[str, Any]], hook: str) -> dict[str, Any]:
    """Return the one row of a hook."""
    found = [row for row in rows if row["hook"] == hook]
    assert len(found) == 1, f"{hook} fired {len(found)} times"
    return found[0]
