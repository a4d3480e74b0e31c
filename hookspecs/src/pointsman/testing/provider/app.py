"""The upstream itself: takes a request, decides, answers. One state per model; no routes and no server here."""

from __future__ import annotations

import json
import math
import re
import time
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import chat, embeddings, messages, responses, units
from .behaviour import ANY_MODEL, Behaviour
from .content import compose
from .delivery import ClientGone, Connection, deliver
from .failures import failure
from .journal import Journal, redact
from .plan import OK, Plan, make_plan
from .quota import Exceeded, Quota
from .replay import PICK_HEADER
from .wire import JSON_TYPE, SSE_TYPE, Answer, Dialect, Header, Turn, dumps, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from .content import Content
    from .journal import Entry
    from .replay import ReplayIndex

_PATH = re.compile(
    r"(?:/openai(?:/deployments/(?P<deployment>[^/]+))?)?(?:/v1)?/(?P<api>chat/completions|responses|embeddings|messages"
    r"|completions|images/generations|images/edits|audio/speech|audio/transcriptions|moderations|rerank|ocr|videos)"
)
_GEMINI = re.compile(r"(?:/v1beta|/v1)?/models/(?P<deployment>[^/:]+):(?P<api>generateContent|streamGenerateContent)")
_WRITERS = {
    "chat/completions": (chat.plain, chat.stream),
    "responses": (responses.plain, responses.stream),
    "messages": (messages.plain, messages.stream),
}
_REQUIRED = {
    "chat/completions": ("model", "messages"),
    "responses": ("model", "input"),
    "embeddings": ("model", "input"),
    "messages": ("model", "max_tokens", "messages"),
    **units.REQUIRED,
}
_MAY_RETRY = (429, 503, 529)


class _Call(NamedTuple):
    """One request, taken apart."""

    path: str
    api: str | None
    dialect: Dialect
    model: str
    body: dict[str, Any] | None
    request_id: str
    now: float


class _Model:
    """What the upstream remembers of one model."""

    def __init__(self, name: str, behaviour: Behaviour, now: float) -> None:
        self.behaviour = behaviour
        self.quota = Quota(behaviour.limits, now)
        self._name = name
        self._since = now
        self._count = 0

    def next_plan(self, now: float) -> Plan:
        number = self._count
        self._count += 1
        return make_plan(self.behaviour, self._name, number, now - self._since)


class Upstream:
    """Answers like providers do. An ASGI application for every path that a provider has.

    Args:
        behaviours: How models behave, by name; ``*`` is for all others.
        replay: Recorded exchanges to serve instead of answers of its own; behaviours still decide about delays,
            failures and faults.
        now: The wall clock in Unix seconds: for rate limits, brown-outs and dates. Waits are always real.
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        replay: ReplayIndex | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.journal = Journal()
        self.replay = replay
        self.stopping = False
        self._initial = dict(behaviours or {})
        self._behaviours = dict(self._initial)
        self._models: dict[str, _Model] = {}
        self._now = now

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """The behaviours that were set, by model."""
        return dict(self._behaviours)

    def behave(self, model: str, behaviour: Behaviour) -> None:
        """Set a model's behaviour, or that of all models without one for ``*``; their counts and limits start anew."""
        self._behaviours[model] = behaviour
        for name in list(self._models):
            if name == model or (model == ANY_MODEL and name not in self._behaviours):
                self._models.pop(name, None)

    def reset(self) -> None:
        """Forget all requests, counts and limits, and every behaviour set since the start."""
        self._behaviours = dict(self._initial)
        self._models.clear()
        self.journal.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        call = self._read_call(scope, await _read(receive))
        model = self._model(call)
        plan = model.next_plan(call.now)
        entry = self.journal.open(
            path=call.path,
            model=call.model,
            stream=bool((call.body or {}).get("stream")),
            headers=redact(scope["headers"]),
            body=call.body or {},
            received_at=call.now,
        )
        entry.note(fault=plan.fault)
        with Connection(scope, receive, send) as connection:
            try:
                answer = self._replayed(call, scope) if self.replay is not None and plan.status == OK else None
                await deliver(connection, answer or _answer(call, model, plan, entry), plan, entry)
            except ClientGone:
                entry.note(closed_early=not self.stopping)
            finally:
                entry.write(ended_ms=entry.elapsed_ms())

    def _read_call(self, scope: Scope, raw: bytes) -> _Call:
        path = scope["path"]
        found = _PATH.fullmatch(path) or _GEMINI.fullmatch(path)
        api = found["api"] if found else None
        deployment = found["deployment"] if found else None
        try:
            body = _form(raw) if raw.startswith(b"--") else json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            body = None
        dialect: Dialect = (
            "anthropic" if path.endswith("/messages") else "azure" if deployment and "/openai/" in path else "openai"
        )
        named = deployment or (body or {}).get("model")
        prefix = "req_" if dialect != "azure" else ""
        return _Call(path, api, dialect, named if isinstance(named, str) else "", body, new_id(prefix), self._now())

    def _model(self, call: _Call) -> _Model:
        model = self._models.get(call.model)
        if model is None:
            behaviour = self._behaviours.get(call.model) or self._behaviours.get(ANY_MODEL) or Behaviour()
            model = self._models[call.model] = _Model(call.model, behaviour, call.now)
        return model

    def _replayed(self, call: _Call, scope: Scope) -> Answer:
        pick = redact(scope["headers"]).get(PICK_HEADER)
        found = self.replay.find(call.path, call.body or {}, pick) if self.replay else None
        if found is not None:
            return found.answer()
        text = f"No recorded exchange for POST {call.path}; the recording has {len(self.replay or ())} exchanges."
        return _failed(call, 404, _headers(call, Plan()), message=text)


async def _read(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _form(raw: bytes) -> dict[str, Any]:
    """Return the text fields of a multipart form."""
    fields = re.findall(rb'name="([^"]+)"\r\n\r\n(.*?)\r\n--', raw, re.DOTALL)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in fields}


def _answer(call: _Call, model: _Model, plan: Plan, entry: Entry) -> Answer:
    """Write the answer that the plan and the limits allow."""
    if call.body is None:
        text = "We could not parse the JSON body of your request."
        return _failed(call, 400, _headers(call, plan), message=text)
    if call.api is None:
        return _failed(call, 404, _headers(call, plan), message=f"Invalid URL (POST {call.path})")
    problem = _problem(call, call.body)
    if problem is not None:
        param, text = problem
        return _failed(call, 400, _headers(call, plan), message=text, param=param)
    behaviour = model.behaviour
    if plan.status != OK:
        headers = _headers(call, plan) + model.quota.headers(call.dialect, call.now)
        return _failed(call, plan.status, headers + _retry(plan.status, behaviour), reason=behaviour.bad_request)
    content, prompt, output = _content(call, call.body, behaviour)
    exceeded = model.quota.charge(prompt, output, call.now)
    headers = _headers(call, plan, output) + model.quota.headers(call.dialect, call.now)
    if exceeded is not None:
        return _failed(call, 429, headers + _wait(call.dialect, exceeded), exceeded=exceeded.limit)
    entry.note(prompt_tokens=prompt, output_tokens=output)
    return _written(call, call.body, content, behaviour, headers)


def _content(call: _Call, body: dict[str, Any], behaviour: Behaviour) -> tuple[Content | None, int, int]:
    """Return the text to answer with, if it is one, and the tokens of the prompt and the answer."""
    if call.api == "embeddings":
        return None, embeddings.count_inputs(body), 0
    if call.api in units.REQUIRED and call.api not in units.TEXTS:
        return None, 0, 0
    content = compose(call.model, units.text_of(body) if call.api in units.TEXTS else body, behaviour)
    return content, content.prompt_tokens, content.output_tokens


def _written(
    call: _Call, body: dict[str, Any], content: Content | None, behaviour: Behaviour, headers: list[Header]
) -> Answer:
    api = call.api or ""
    if content is None:
        written, kind = (
            (embeddings.embeddings(call.model, body, behaviour.dimensions), JSON_TYPE)
            if api == "embeddings"
            else units.answer(api, {**body, "model": call.model}, call.now)
        )
        return Answer(headers=[*headers, (b"content-type", kind)], body=written)
    turn = Turn(
        body=body,
        content=content,
        created_at=int(call.now),
        dialect=call.dialect,
        empty_role_chunk=behaviour.empty_role_chunk,
    )
    write_plain, write_stream = (
        (partial(units.plain, api), partial(units.stream, api)) if api in units.TEXTS else _WRITERS[api]
    )
    if body.get("stream") or api == "streamGenerateContent":
        return Answer(headers=[*headers, (b"content-type", SSE_TYPE)], stream=write_stream(turn))
    return Answer(
        headers=[*headers, (b"content-type", JSON_TYPE)], body=write_plain(turn), tokens=content.output_tokens
    )


def _problem(call: _Call, body: dict[str, Any]) -> tuple[str, str] | None:
    """Return the field at fault and the provider's complaint, or None for a request in order."""
    for name in _REQUIRED[call.api or ""]:
        if not body.get(name) and not (name == "model" and call.model):
            required = f"{name}: Field required"
            return name, required if call.dialect == "anthropic" else f"Missing required parameter: '{name}'."
    if call.api not in units.REQUIRED and body.get("n") not in (None, 1):
        return "n", "Invalid 'n': this upstream answers with one choice."
    return None


def _failed(call: _Call, status: int, headers: list[Header], **details: Any) -> Answer:
    body = failure(call.dialect, status, model=call.model, request_id=call.request_id, **details)
    return Answer(status=status, headers=[*headers, (b"content-type", JSON_TYPE)], body=dumps(body))


def _headers(call: _Call, plan: Plan, tokens: int = 0) -> list[Header]:
    """Return the headers that every answer of the provider has."""
    request_id = call.request_id.encode()
    found = [(b"date", formatdate(call.now, usegmt=True).encode())]
    if call.dialect == "anthropic":
        return [*found, (b"request-id", request_id), (b"anthropic-organization-id", b"org-bundled")]
    found.append((b"x-request-id", request_id))
    if call.dialect == "azure":
        deployment = (b"x-ms-deployment-name", call.model.encode("latin-1", "replace"))
        return [*found, (b"apim-request-id", request_id), (b"x-ms-region", b"Bundled"), deployment]
    streamed = call.body is not None and call.body.get("stream")
    spent_s = plan.latency_s if streamed else plan.plain_s(tokens)
    return [*found, (b"openai-processing-ms", b"%d" % (spent_s * 1000)), (b"openai-version", b"2020-10-01")]


def _retry(status: int, behaviour: Behaviour) -> list[Header]:
    if status not in _MAY_RETRY:
        return []
    given = ((b"retry-after", behaviour.retry_after_s), (b"retry-after-ms", behaviour.retry_after_ms))
    return [(name, b"%d" % value) for name, value in given if value is not None]


def _wait(dialect: Dialect, exceeded: Exceeded) -> list[Header]:
    seconds = (b"retry-after", b"%d" % math.ceil(exceeded.wait_s))
    if dialect == "anthropic":
        return [seconds]
    return [seconds, (b"retry-after-ms", b"%d" % math.ceil(exceeded.wait_s * 1000))]
