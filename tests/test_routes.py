"""Every route of the running LiteLLM, knocked at by a tenant that may use one model.

The routes are the application's own, websockets included, so that one which a new version adds is knocked at as well.
What reaches a provider was admitted and is settled once, and a forbidden model is not reached, wherever it is named.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from anything import Anything
from doors import BODY, config, environment, knock_at_socket
from rig import Rig

from pointsman_quota.tenants import hash_key

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(900)]

#: May use one model, and any.
NARROW, WIDE = "sk-narrow-0123456789abcdef", "sk-wide-0123456789abcdefgh"
#: What the walk uses, and what its tenant must not: both are groups, and names of models at the provider.
ALLOWED, FORBIDDEN = "chat", "secret"
#: Answers that are not a route's own: what mounts serve, and pages for people.
_NOT_ROUTES: Final = ("/ui", "/_next", "/litellm-asset-prefix", "/swagger", "/docs", "/redoc", "/openapi.json")
_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_READ: Final = frozenset({"GET", "HEAD", "DELETE"})
_FORM_MODEL: Final = re.compile(rb'(?:^|&)model=([^&]*)|name="model"\s+(\S+)')
#: Statuses of a route that may want a form.
_NOT_UNDERSTOOD: Final = frozenset({400, 422, 500})
#: Streams of events that LiteLLM sends do not end by themselves.
_MOST_READ_S: Final = 3.0
_QUIET: Final = httpx.Timeout(30, read=20)
_FEWEST_ANSWERED, _FEWEST_CLOSED = 40, 15


@dataclass(frozen=True, slots=True)
class Knock:
    """One request and what became of it.

    Attributes:
        method: The HTTP method; ``WEBSOCKET`` for a handshake.
        template: The route's path.
        path: The path, as sent.
        status: The status; 0 without an answer.
        code: The code of an error of ours.
        case: Its own mark in what the recorder writes.
        reached: The requests that the provider got meanwhile, with their bodies.
    """

    method: str
    template: str
    path: str
    status: int
    code: str
    case: str
    reached: list[tuple[str, str, bytes]] = field(default_factory=list)

    def __str__(self) -> str:
        """Name the route, for messages."""
        return f"{self.method} {self.path} ({self.status} {self.code})"


@dataclass(frozen=True, slots=True)
class Named:
    """Which model a request names in which place; empty for none."""

    path: str
    query: str
    body: str


EVERYWHERE_ALLOWED, NOWHERE = Named(ALLOWED, ALLOWED, ALLOWED), Named(ALLOWED, "", "")
FORBIDDEN_IN: Final = {
    "every place": Named(FORBIDDEN, FORBIDDEN, FORBIDDEN),
    "the path": Named(FORBIDDEN, ALLOWED, ALLOWED),
    "the query": Named(ALLOWED, FORBIDDEN, ""),
    "the body": Named(ALLOWED, ALLOWED, FORBIDDEN),
}


def filled(template: str, model: str) -> str:
    """Return a path that fits a route's template."""
    known = {"model": model, "model_name": model, "model_id": model, "provider": "openai", "plugin_name": "any"}
    known |= {"endpoint": "v1/chat/completions", "path": "v1/chat/completions", "subpath": "v1/chat/completions"}
    return _PARAMETER.sub(lambda found: known.get(found[1], "id-1"), template)


def body_of(model: str) -> dict[str, Any]:
    """Return one body that most routes take for theirs, with the model in every place where one may stand."""
    body = {**BODY, "file_id": "file-1", "data_source": {"type": "completions"}, "rerank": {}, "ingest_options": {}}
    if not model:
        return {name: value for name, value in body.items() if name not in {"model", "session"}}
    return {name: {**value, "model": model} if isinstance(value, dict) else value for name, value in body.items()} | {
        "model": model
    }


def models(provider: Anything) -> list[dict[str, Any]]:
    params = {"api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    return [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", **params},
            "model_info": {"id": f"{name}-1", "base_model": "gpt-4o-mini"},
        }
        for name in (ALLOWED, FORBIDDEN)
    ]


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    limits = {"requests_per_minute": 1_000_000, "tokens_per_day": 1_000_000_000}
    tenants = [
        {"id": name, "keys": [{"name": "k", "hash": hash_key(key, "0123456789abcdef")}], "limits": limits, **more}
        for name, key, more in (("narrow", NARROW, {"models": [f"{ALLOWED}*"]}), ("wide", WIDE, {}))
    ]
    with Rig(
        tmp_path_factory.mktemp("routes"),
        lambda _: models(provider),
        plugins=[{"quota": {"tenants": tenants}}],
        # Without LiteLLM's own checks of models, which would refuse most of it before us.
        config=config(provider),
        # The table of routes is complete before the first request.
        env={**environment(provider), "LITELLM_DISABLE_LAZY_ROUTES": "True"},
        fresh=True,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def routes(rig: Rig) -> list[tuple[str, str]]:
    """Method and template of each route, once."""
    with rig.proxy.client() as admin:
        found = admin.get("/pointsman/recorder/doors").json()
    listed = [
        (method, route["path"])
        for route in found
        if not route["path"].startswith(_NOT_ROUTES)
        for method in route["methods"] or ("WEBSOCKET",)
        if method not in {"HEAD", "OPTIONS"}
    ]
    return list(dict.fromkeys(listed))


class Walker:
    """Knocks at routes, one after another: what the provider gets meanwhile belongs to the knock.

    Args:
        rig: The proxy.
        provider: Behind it.
        key: The tenant's.
    """

    _numbers = itertools.count()

    def __init__(self, rig: Rig, provider: Anything, key: str) -> None:
        self._rig = rig
        self._key = key
        self._provider = provider
        self._client = httpx.Client(
            base_url=rig.proxy.url,
            headers={"authorization": f"Bearer {key}"},
            params={"call_endpoint": "true", "custom_llm_provider": "openai"},
            timeout=_QUIET,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    def walk(self, routes: Iterable[tuple[str, str]], named: Named) -> list[Knock]:
        """Knock at each route; with a form as well where JSON is not understood."""
        knocks = []
        for method, template in routes:
            if method == "WEBSOCKET":
                knocks.append(self._socket(template, named))
                continue
            body = body_of(named.body)
            knocks.append(self._knock(method, template, named, {} if method in _READ else {"json": body}))
            if method == "POST" and knocks[-1].status in _NOT_UNDERSTOOD and not knocks[-1].reached:
                form = {name: value for name, value in body.items() if isinstance(value, str)}
                files = {name: ("a.wav", b"RIFF" + bytes(60), "audio/wav") for name in ("file", "image")}
                knocks.append(self._knock(method, template, named, {"data": form, "files": files}))
        return knocks

    def _socket(self, template: str, named: Named) -> Knock:
        path, before = filled(template, named.path), len(self._provider.requests)
        case = f"knock-{next(self._numbers)}"
        ended = knock_at_socket(self._rig.proxy, path, self._key, model=named.query, case=case)
        status = ended if isinstance(ended, int) else 0
        return Knock("WEBSOCKET", template, path, status, "", case, self._provider.requests[before:])

    def _knock(self, method: str, template: str, named: Named, content: Mapping[str, Any]) -> Knock:
        path, before = filled(template, named.path), len(self._provider.requests)
        query = {"model": named.query} if named.query else {}
        status, code, case = 0, "", f"knock-{next(self._numbers)}"
        try:
            with self._client.stream(method, path, params=query, headers={"x-test-case": case}, **content) as answer:
                status, code = answer.status_code, _code(_read(answer))
        except httpx.TransportError:
            pass  # silent, or a stream without an end
        return Knock(method, template, path, status, code, case, self._provider.requests[before:])


def _read(answer: httpx.Response) -> bytes:
    """Read an answer for a while, or until it falls silent."""
    ends, read = time.monotonic() + _MOST_READ_S, b""
    answer.request.extensions["timeout"]["read"] = _MOST_READ_S
    with contextlib.suppress(httpx.ReadTimeout):
        for piece in answer.iter_bytes():
            read += piece
            if time.monotonic() > ends:
                break
    return read


def _code(text: bytes) -> str:
    found = re.search(rb'"code":\s*"(unmetered_route|model_not_allowed)"', text[:4000])
    return "" if found is None else found[1].decode()


def settlements(rig: Rig, cases: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Wait until the requests of all these cases are settled; return the settlements of each."""
    ends = time.monotonic() + 60
    while True:
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rig.rows():
            if row["hook"] == "settle" and row["case"] in cases:
                found.setdefault(row["case"], []).append(row["settlement"])
        if cases <= set(found) or time.monotonic() > ends:
            return found
        time.sleep(0.1)


@pytest.fixture(scope="module")
def allowed(rig: Rig, provider: Anything, routes: list[tuple[str, str]]) -> list[Knock]:
    """The walk with the model that the tenant may use."""
    return Walker(rig, provider, NARROW).walk(routes, EVERYWHERE_ALLOWED)


@pytest.fixture(scope="module")
def answering(allowed: list[Knock]) -> list[tuple[str, str]]:
    """The routes that reach a provider, or would without us."""
    return list(dict.fromkeys((knock.method, knock.template) for knock in allowed if knock.reached or knock.code))


def unsettled(rig: Rig, knocks: list[Knock]) -> Iterator[str]:
    """Say which of the knocks that have reached the provider are not settled once, with what the provider has done."""
    reached = [knock for knock in knocks if knock.reached]
    settled = settlements(rig, {knock.case for knock in reached})
    for knock in reached:
        found = settled.get(knock.case, [])
        if knock.method == "WEBSOCKET":
            # The responses on it are requests of their own.
            found = [one for one in found if not one["generates"]]
        if len(found) != 1:
            yield f"{knock}: settled {len(found)} times; the provider got {knock.reached}"
        elif found[0]["generates"] and not any(_names_a_model(found[0], attempt) for attempt in found[0]["attempts"]):
            yield f"{knock}: settled without an attempt that names a model; the provider got {knock.reached}"


def _names_a_model(settlement: Mapping[str, Any], attempt: Mapping[str, Any]) -> bool:
    # A batch names its models in its file.
    return bool(attempt["deployment"]["model"]) or settlement["endpoint"] == "batches"


def test_what_reaches_a_provider_is_admitted_and_settled_once(rig: Rig, allowed: list[Knock]) -> None:
    assert not list(unsettled(rig, allowed))
    # The walk has seen something.
    assert sum(bool(knock.reached) for knock in allowed) >= _FEWEST_ANSWERED
    assert sum(knock.code == "unmetered_route" for knock in allowed) >= _FEWEST_CLOSED


def test_without_a_model_no_request_generates_unmetered(
    rig: Rig, provider: Anything, answering: list[tuple[str, str]]
) -> None:
    """Also for a tenant that may use every model."""
    knocks = Walker(rig, provider, WIDE).walk(answering, NOWHERE)
    assert not list(unsettled(rig, knocks))
    assert any(knock.reached for knock in knocks)


@pytest.mark.parametrize("where", FORBIDDEN_IN)
def test_a_forbidden_model_is_not_reached(
    rig: Rig, provider: Anything, answering: list[tuple[str, str]], where: str
) -> None:
    """By Pointsman alone: LiteLLM's own checks of models are off."""
    knocks = Walker(rig, provider, NARROW).walk(answering, FORBIDDEN_IN[where])
    reached = [
        f"{knock}: the provider got {method} {path} {body[:200]!r}"
        for knock in knocks
        for method, path, body in knock.reached
        if FORBIDDEN in path or _asked_for(body) == FORBIDDEN
    ]
    assert not reached
    if where == "every place":
        assert sum(knock.code == "model_not_allowed" for knock in knocks) >= _FEWEST_CLOSED


def _asked_for(body: bytes) -> object:
    """Return the model that a provider is asked for, in JSON or in a form."""
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        named = _FORM_MODEL.search(body)
        return named and (named[1] or named[2]).decode()
    return found.get("model") if isinstance(found, dict) else ""
