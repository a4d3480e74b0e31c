"""What the demo runs on: an upstream, a collector of spans, and a real LiteLLM proxy between them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pointsman.testing.otlp import Collector
from pointsman.testing.ports import free_port
from pointsman.testing.provider import Behaviour, Delay, Limits, UpstreamServer
from pointsman.testing.proxy import ProxyFailed, ProxyServer

from . import Unexpected

CONFIG: Final = Path(__file__).parents[1] / "litellm.yaml"
DEFAULT_PORT: Final = 4000
UPSTREAM_KEY: Final = "bundled-upstream"
"""Sent to the bundled upstream, which asks for none; LiteLLM wants one."""

SMALL: Final = ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
"""The provider's names of the two deployments in the group ``small``."""

_LOG_LINES: Final = 15

_LIMITS: Final = Limits(requests=500, tokens=200_000)
_STEADY: Final = Behaviour(latency=Delay(30), first_token=Delay(60, 0.3), per_token=Delay(6), limits=_LIMITS)
_UNSTEADY: Final = Behaviour(
    latency=Delay(40), first_token=Delay(80, 0.3), per_token=Delay(6), limits=_LIMITS, error_ratios={503: 0.1}
)
_IN_TROUBLE: Final = Behaviour(latency=Delay(30), per_token=Delay(6), limits=_LIMITS, fail_first=1, fail_with=503)
_RETIRED: Final = Behaviour(error_ratios={404: 1.0})
_BEHAVIOURS: Final = {"*": _STEADY, SMALL[1]: _UNSTEADY, "gpt-4.5-preview": _RETIRED}

_OTLP: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, slots=True)
class Provider:
    """Who serves one provider's models.

    Attributes:
        name: For people.
        variable: First part of the names of its environment variables.
        path: What its base URL ends with at the bundled upstream.
    """

    name: str
    variable: str
    path: str = ""

    @property
    def real(self) -> bool:
        """Whether there is a key, so that the provider itself is asked."""
        return bool(os.environ.get(f"{self.variable}_API_KEY"))

    def environment(self, upstream_url: str) -> dict[str, str]:
        """Return the variables that point ``litellm.yaml`` at the bundled upstream; none when there is a key."""
        if self.real:
            return {}
        key, url = f"{self.variable}_API_KEY", f"{self.variable}_BASE_URL"
        return {key: UPSTREAM_KEY, url: f"{upstream_url}{self.path}"}


OPENAI: Final = Provider("OpenAI", "OPENAI", "/v1")
ANTHROPIC: Final = Provider("Anthropic", "ANTHROPIC")
PROVIDERS: Final = (OPENAI, ANTHROPIC)


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that is running.

    Attributes:
        upstream: The bundled upstream.
        collector: Gets the proxy's spans.
        proxy: The proxy.
        own_key: The admin key was made for this run; False when it is the user's ``LITELLM_MASTER_KEY``.
    """

    upstream: UpstreamServer
    collector: Collector
    proxy: ProxyServer
    own_key: bool

    def trouble(self) -> None:
        """Let each OpenAI deployment of the group ``small`` fail once, if the bundled upstream plays it."""
        for model in SMALL:
            self.upstream.behave(model, _IN_TROUBLE)

    def calm(self) -> None:
        """End the trouble."""
        for model in SMALL:
            self.upstream.behave(model, _BEHAVIOURS.get(model, _STEADY))


def choose_port(wanted: int | None) -> int:
    """Return the port to listen on: the wanted one, else 4000, else a free one.

    Raises:
        Unexpected: the wanted one is taken.
    """
    port = DEFAULT_PORT if wanted is None else wanted
    try:
        with socket.create_server(("127.0.0.1", port)):
            return port
    except OSError as err:
        if wanted is None:
            return free_port()
        why = os.strerror(err.errno) if err.errno else str(err)
        raise Unexpected(f"port {wanted} cannot be used ({why}); choose another with --port") from err


def forward_url(env: Mapping[str, str]) -> str | None:
    """Return where the user wants spans: the collector's URL for traces by the standard variables, or None.

    Raises:
        Unexpected: it speaks gRPC, which cannot be passed on.
    """
    traces, base = (env.get(name) for name in _OTLP)
    if not traces and not base:
        return None
    if any(env.get(name) == "grpc" for name in _OTLP_PROTOCOLS):
        raise Unexpected(
            "spans are passed on over HTTP only; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and the HTTP port of "
            "your collector (usually 4318)"
        )
    return traces or f"{str(base).rstrip('/')}/v1/traces"


@contextlib.contextmanager
def stage(port: int, forward: str | None, waiting: Callable[[float], object]) -> Iterator[Stage]:
    """Start everything, and end it. State and log live in a new directory, which stays when something went wrong.

    Args:
        port: Where the proxy listens.
        forward: Another collector that gets the spans too, or None.
        waiting: Called again and again while the proxy starts, with the seconds so far.

    Raises:
        Unexpected: the proxy does not start.
    """
    key = os.environ.get("LITELLM_MASTER_KEY") or f"sk-demo-{secrets.token_hex(12)}"
    directory = Path(tempfile.mkdtemp(prefix="pointsman-demo-"))
    with UpstreamServer(_BEHAVIOURS) as upstream, Collector(forward=forward) as collector:
        env: dict[str, str | None] = {
            **dict.fromkeys((*_OTLP, *_OTLP_PROTOCOLS, "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED")),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "LITELLM_MASTER_KEY": key,
        }
        for provider in PROVIDERS:
            env |= provider.environment(upstream.url)
        proxy = ProxyServer(CONFIG, directory, env=env, port=port, fresh=True)
        keep = False
        try:
            proxy.launch()
            proxy.wait_ready(meanwhile=waiting)
            yield Stage(upstream, collector, proxy, own_key=not os.environ.get("LITELLM_MASTER_KEY"))
        except ProxyFailed as err:
            keep = True
            end = "\n".join(proxy.log().rstrip().splitlines()[-_LOG_LINES:])
            raise Unexpected(f"the proxy did not start; {proxy.log_path} ends with\n{end}") from err
        except Exception:
            keep = True
            raise
        finally:
            # A second Ctrl-C would leave the proxy behind: it is in a session of its own.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            proxy.stop()
            if not keep:
                shutil.rmtree(directory)
