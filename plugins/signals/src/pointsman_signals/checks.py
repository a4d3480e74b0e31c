"""Active checks: query a deployment, a file or a command for its state. Never on the request path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pointsman.errors import PointsmanError, UpstreamError
from pointsman.types import AttemptKind, SignalStatus, UpstreamRequest

from .config import CommandCheck, CompletionCheck, FileCheck, HttpCheck, ModelsCheck, NoCheck
from .dialects import NOTHING, Reading
from .quota_document import read_document
from .redaction import scrub

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from pointsman.plugin import Clock, Upstream
    from pointsman.types import Deployment

    from .config import AnyCheck, Document, SignalsConfig

MAX_DOCUMENT_BYTES: Final = 256 * 1024
TRIES: Final = 3

#: LiteLLM's names of servers that are self-hosted and answer GET /v1/models.
LOCAL_PROVIDERS: Final = frozenset(
    {"ollama", "ollama_chat", "hosted_vllm", "vllm", "llamafile", "lm_studio", "docker_model_runner", "xinference"}
)
#: Providers under which OpenAI-compatible servers (llama.cpp, SGLang, TGI, vLLM) are configured, with a local ``api_base``.
_COMPATIBLE: Final = frozenset({"openai", "custom_openai", "text-completion-openai", "openai_like", "huggingface"})
#: The check of a local server that has none configured.
LOCAL_CHECK: Final = ModelsCheck()
_ASKS_FOR_KEY: Final = frozenset({401, 403})


class CheckFailed(PointsmanError):
    """A check could not be made or its answer could not be used; the message is shown to operators."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check.

    Attributes:
        ok: Whether the deployment can serve, as far as the check can tell.
        message: Why not, without secrets.
        reading: The quotas it found.
        exhausted: Whether the quota is used up by its explicit status; None without one.
        at: Unix seconds of the finding; None means now.
    """

    ok: bool
    message: str = ""
    reading: Reading = NOTHING
    exhausted: bool | None = None
    at: float | None = None


class Checks:
    """Selects and runs the check of each deployment.

    Args:
        config: The plugin's configuration.
        client: HTTP client.
        upstream: Makes completions through the gateway.
        clock: The clock.
    """

    def __init__(self, config: SignalsConfig, client: httpx.AsyncClient, upstream: Upstream, clock: Clock) -> None:
        self._config = config
        self._client = client
        self._upstream = upstream
        self._clock = clock

    def check_for(self, deployment: Deployment) -> AnyCheck | None:
        """Return the check of a deployment; None when none is configured and it is not a local server."""
        checks = self._config.checks
        for target in (deployment.id, deployment.group, deployment.provider):
            if target in checks:
                return None if isinstance(checks[target], NoCheck) else checks[target]
        return LOCAL_CHECK if self._config.check_local and is_local(deployment) else None

    async def run(self, check: AnyCheck, deployment: Deployment) -> Finding:
        """Run a check; failures are part of the finding. The caller sets the deadline."""
        try:
            match check:
                case ModelsCheck():
                    return await self._get(models_url(deployment, check.path), check.headers, None)
                case HttpCheck():
                    return await self._get(check.url, check.headers, check.document)
                case FileCheck():
                    return self._stated(check.document, await asyncio.to_thread(_read_file, check.path))
                case CommandCheck():
                    return self._stated(check.document, await _run_command(check.argv))
                case CompletionCheck():
                    return await self._complete(check, deployment)
                case NoCheck():
                    return Finding(ok=True)
        except CheckFailed as err:
            return Finding(ok=False, message=scrub(str(err)))

    async def _get(self, url: str, headers: Mapping[str, SecretStr], document: Document | None) -> Finding:
        sent = {name: secret.get_secret_value() for name, secret in headers.items()}
        where = _origin(url)
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(TRIES),
                wait=wait_random_exponential(multiplier=0.1, max=1.0),
                retry=retry_if_exception_type(httpx.TransportError),
                reraise=True,
            ):
                with attempt:
                    async with self._client.stream("GET", url, headers=sent) as answer:
                        status = answer.status_code
                        body = await _bounded(answer) if document is not None and answer.is_success else b""
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as err:
            raise CheckFailed(f"{where}: {type(err).__name__}: {err}") from err
        if document is None and not sent and status in _ASKS_FOR_KEY:
            # It is reachable and wants a key that this check does not have: traffic shows the rest.
            return Finding(ok=True)
        if not httpx.codes.is_success(status):
            hint = "; correct the check's headers" if status in _ASKS_FOR_KEY else ""
            raise CheckFailed(f"{where} answered {status}{hint}")
        return Finding(ok=True) if document is None else self._stated(document, _parse(body, where))

    def _stated(self, form: Document, data: Any) -> Finding:
        stated = read_document(form, data, self._clock.now(), self._config.ttl_s)
        if stated.problem:
            raise CheckFailed(stated.problem)
        if stated.status is SignalStatus.DEGRADED:
            return Finding(ok=False, message="its quota document says degraded", reading=stated.reading, at=stated.at)
        exhausted = None if stated.status is None else stated.status is SignalStatus.EXHAUSTED
        return Finding(ok=True, reading=stated.reading, exhausted=exhausted, at=stated.at)

    async def _complete(self, check: CompletionCheck, deployment: Deployment) -> Finding:
        request = UpstreamRequest(
            target=deployment.id,
            kind=AttemptKind.PROBE,
            body={"messages": [{"role": "user", "content": check.prompt}], "max_tokens": check.max_tokens},
            timeout_s=self._config.check_deadline_s,
        )
        try:
            await self._upstream.start(request).response()
        except UpstreamError as err:
            raise CheckFailed(f"completion: {err}") from err
        return Finding(ok=True)


def is_local(deployment: Deployment) -> bool:
    """Return whether a deployment is a self-hosted server, which costs nothing to check."""
    return deployment.provider in LOCAL_PROVIDERS or (
        deployment.provider in _COMPATIBLE and deployment.api_base is not None and _is_near(deployment.api_base)
    )


@lru_cache(maxsize=4096)
def _is_near(url: str) -> bool:
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return False
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".localhost", ".internal"))
    return address.is_private or address.is_loopback


def models_url(deployment: Deployment, path: str) -> str:
    """Return the URL to ask, from ``api_base`` with or without ``/v1``.

    Raises:
        CheckFailed: the deployment has no ``api_base`` and its provider no default place.
    """
    base = deployment.api_base or ("http://localhost:11434" if deployment.provider.startswith("ollama") else "")
    if not base.startswith(("http://", "https://")):
        raise CheckFailed(f"deployment {deployment.id!r} has no api_base; configure one, or another check")
    base = base.partition("?")[0].rstrip("/")
    if path.startswith("/v1/") and base.endswith("/v1"):
        base = base.removesuffix("/v1")
    return base + path


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def _bounded(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > MAX_DOCUMENT_BYTES:
            raise CheckFailed(f"the answer is longer than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


def _parse(body: bytes, where: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as err:
        raise CheckFailed(f"{where}: the answer is not JSON") from err


def _read_file(path: str) -> Any:
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            body = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as err:
        raise CheckFailed(f"{file}: {err.strerror or err}") from err
    if len(body) > MAX_DOCUMENT_BYTES:
        raise CheckFailed(f"{file}: is longer than {MAX_DOCUMENT_BYTES} bytes")
    return _parse(body, str(file))


async def _run_command(argv: tuple[str, ...]) -> Any:
    """Run a command and return the JSON it prints; the caller's deadline kills it."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=null, stdout=pipe, stderr=null, start_new_session=True
        )
    except (OSError, ValueError) as err:
        raise CheckFailed(f"{argv[0]}: cannot be run: {err}") from err
    try:
        body = bytearray()
        while process.stdout is not None and (chunk := await process.stdout.read(65_536)):
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise CheckFailed(f"{argv[0]}: printed more than {MAX_DOCUMENT_BYTES} bytes")
        code = await process.wait()
    finally:
        if process.returncode is None:
            # The whole session, so that processes started by the command do not keep its output open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    if code != 0:
        raise CheckFailed(f"{argv[0]}: ended with code {code}")
    return _parse(bytes(body), argv[0])
