"""What plugins return, checked when they return it: the contents too, not only the type.

A wrong value would otherwise be found in another plugin, in the journal or in the answer, where its author is not known.
Only what a plugin has changed is looked at, so that a check costs a microsecond or two. Each function returns the value
that the host goes on with, or raises a ``TypeError`` or a ``ValueError`` that says which field is wrong: for the host, this
is a fault of the plugin like an exception. What is returned is of the contract's own classes and plain texts, also where the
plugin has derived classes of its own from them (an enumeration of texts is one): their code must not run in the host.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any, Final

from ..frozen import FrozenDict, FrozenList, replace
from ..types import (
    FIXED_FIELDS,
    Attempt,
    Candidate,
    Chunk,
    Denial,
    Execution,
    Identity,
    Refusal,
    Reply,
    RequestContext,
    Reservation,
    Route,
    Status,
    UpstreamResponse,
    Usage,
)
from .field_checks import (
    MOST_INTEGER,
    added_headers,
    are_simple,
    as_exact_class,
    check_amount,
    check_count,
    check_duration,
    check_encodable,
    check_encoded,
    check_length,
    check_mapping,
    check_name,
    check_text,
    check_tuple,
    int_or_none,
    is_number,
    plain,
    plain_texts,
    reject,
    target_headers,
)

#: The label that says which tenant pays. Only the plugin that declares it may set it.
TENANT: Final = "tenant"

_MOST_RETRIES: Final = 100
_MOST_RESERVATIONS: Final = 1_000
_MOST_DEPTH: Final = 200
#: Those of Python first: whether a value is an abstract sequence takes longer to tell.
_SEQUENCES: Final = (list, tuple, Sequence)
#: What the data of a reservation may be besides numbers.
_WORDS: Final = (str, bool, type(None))
#: Python refuses to write larger ones in decimal digits.
_MOST_BITS: Final = 14_000
#: The fields of a ``Usage`` by what they hold; a count that is known is never None.
_COUNTS: Final = tuple(one.name for one in fields(Usage) if str(one.type).startswith("int"))
_KNOWN_COUNTS: Final = frozenset(one.name for one in fields(Usage) if str(one.type) == "int")
_FLAGS: Final = tuple(one.name for one in fields(Usage) if str(one.type) == "bool")
_TEXTS: Final = tuple(one.name for one in fields(Usage) if str(one.type).startswith("str"))


def route(
    plugin: str,
    before: Route,
    after: object,
    owners: dict[str, str],
    *,
    executors: Mapping[str, object],
    replaced: Collection[str] = (),
    upstream_headers: frozenset[str] = frozenset(),
) -> Route:
    """Return the route that a plugin's ``pre_route`` has made, completed with what was in it before.

    What is empty in the plugin's route keeps its value: a ``Route`` that a plugin builds itself loses nothing.

    Args:
        plugin: The plugin.
        before: The route as the plugin got it.
        after: What it returned.
        owners: Which plugin has set, or alone may set, a label; new labels are added to it.
        executors: The plugins that have ``execute``.
        replaced: Labels of others that this plugin may replace.
        upstream_headers: Headers for the provider that the configuration allows.

    Raises:
        TypeError, ValueError: a field has a value that is not allowed.
    """
    if not isinstance(after, Route):
        raise TypeError(f"pre_route returned {type(after).__name__}, not Route, Denial, Reply or None")
    if after is before:
        return before
    after = as_exact_class(Route, after)
    target, fallbacks, executor = before.target, before.fallbacks, before.executor
    if after.target != target:
        check_name("target", after.target)
        target = plain(after.target)
    if after.fallbacks != fallbacks:
        check_tuple("fallbacks", after.fallbacks)
        check_length("fallbacks", after.fallbacks)
        for group in after.fallbacks:
            check_name("fallbacks", group)
        fallbacks = plain_texts(after.fallbacks) or fallbacks
    if after.executor is not None and after.executor is not executor:
        if after.executor not in executors:
            reject("executor", f"{after.executor!r:.100} is not a loaded plugin that has the hook execute")
        executor = plain(after.executor)
    if type(after.executes_fallbacks) is not bool:
        reject("executes_fallbacks", f"must be a bool, not {type(after.executes_fallbacks).__name__}")
    if after.fallback is not before.fallback:
        reject("fallback", "is set by the host")
    _limits(before, after, upstream_headers)
    return Route(
        target=target,
        timeout_s=before.timeout_s if after.timeout_s is None else after.timeout_s,
        retries=before.retries if after.retries is None else after.retries,
        # Clients of providers send nothing but ASCII.
        upstream_headers=added_headers("upstream_headers", before.upstream_headers, after.upstream_headers, "ascii"),
        labels=_labels(plugin, before.labels, after.labels, owners, replaced),
        fallbacks=fallbacks,
        executor=executor,
        executes_fallbacks=after.executes_fallbacks or before.executes_fallbacks,
        fallback=before.fallback,
        headers=added_headers("headers", before.headers, after.headers),
        target_headers=target_headers(before.target_headers, after.target_headers),
        reservations=_reservations(plugin, before.reservations, after.reservations),
    )


def _limits(before: Route, after: Route, upstream_headers: frozenset[str]) -> None:
    if after.timeout_s is not before.timeout_s and after.timeout_s is not None:
        check_duration("timeout_s", after.timeout_s)
    retries: object = after.retries
    if retries is not None and (type(retries) is not int or not 0 <= retries <= _MOST_RETRIES):
        reject("retries", f"must be an int from 0 to {_MOST_RETRIES}, not {retries!r:.100}")
    if after.upstream_headers is not before.upstream_headers:
        check_mapping("upstream_headers", after.upstream_headers)
        for name in after.upstream_headers:
            if name not in upstream_headers:
                reject("upstream_headers", f"{name!r:.100} is not in the configuration's pointsman.upstream_headers")


def _labels(
    plugin: str,
    before: Mapping[str, str],
    after: Mapping[str, str],
    owners: dict[str, str],
    replaced: Collection[str],
) -> Mapping[str, str]:
    if after is before:
        return before
    check_mapping("labels", after)
    new = {name: value for name, value in after.items() if not (before.get(name) == value and name in before)}
    if not new:
        return before
    if not are_simple((*new, *new.values())) or "" in new:
        for name, value in new.items():
            check_name("labels", name)
            check_text(f"labels[{name!r}]", value)
        new = {plain(name): plain(value) for name, value in new.items()}
    for name in new:
        if (owner := owners.get(name, plugin)) != plugin and name not in replaced:
            reject("labels", f"{name!r} is the label of the plugin {owner!r}, which alone may set it")
        if name == TENANT and name not in owners:
            reject(
                "labels",
                f"{TENANT!r} says who pays; a plugin that sets it declares so: PluginInfo(..., labels=({TENANT!r},))",
            )
    check_length("labels", merged := {**before, **new})
    owners.update(dict.fromkeys(new, plugin))
    return FrozenDict(merged)


def _reservations(
    plugin: str, before: tuple[Reservation, ...], after: tuple[Reservation, ...]
) -> tuple[Reservation, ...]:
    if after is before:
        return before
    check_tuple("reservations", after)
    # Usually the new ones follow those that were there.
    held = len(before)
    added = after[held:] if after[:held] == before else tuple(one for one in after if one not in before)
    if not added:
        return before
    if held + len(added) > _MOST_RESERVATIONS:
        reject("reservations", f"there are more than {_MOST_RESERVATIONS}")
    return (*before, *(_reservation(plugin, one) for one in added))


def _reservation(plugin: str, one: object) -> Reservation:
    if not isinstance(one, Reservation):
        reject("reservations", f"must contain Reservation, not {type(one).__name__}")
    one = as_exact_class(Reservation, one)
    if one.plugin != plugin:
        reject(
            "reservations", f"a reservation names the plugin {one.plugin!r:.100}; it must name the one that makes it"
        )
    check_amount("reservations.expires_at", one.expires_at)
    check_mapping("reservations.amounts", one.amounts)
    check_mapping("reservations.data", one.data)
    amounts, data = dict(one.amounts), dict(one.data)
    check_length("reservations.amounts", amounts)
    check_length("reservations.data", data)
    names = (one.id, *amounts, *data)
    if not are_simple((*names, *(value for value in data.values() if isinstance(value, str)))) or "" in names:
        amounts = {plain(name): amount for name, amount in amounts.items()}
        data = {plain(name): plain(value) for name, value in data.items()}
        _check_texts(one.id, amounts, data)
    for name, amount in amounts.items():
        if type(amount) is not int or abs(amount) > MOST_INTEGER:
            reject(f"reservations.amounts[{name!r}]", f"must be an int of 64 bits, not {amount!r:.100}")
    for name, value in data.items():
        if not (isinstance(value, _WORDS) or is_number(value)):
            what = f"must be a text, a finite number, a bool or None, not {type(value).__name__}"
            reject(f"reservations.data[{name!r}]", what)
    return replace(one, plugin=plugin, id=plain(one.id), amounts=FrozenDict(amounts), data=FrozenDict(data))


def _check_texts(reservation_id: str, amounts: Mapping[str, object], data: Mapping[str, object]) -> None:
    check_name("reservations.id", reservation_id)
    for name in amounts:
        check_name("reservations.amounts", name)
    for name, value in data.items():
        check_name("reservations.data", name)
        if isinstance(value, str):
            check_encodable(f"reservations.data[{name!r}]", value)


def denial(plugin: str, value: Denial) -> Denial:
    """Return a plugin's denial under the plugin's name, its headers frozen.

    Raises:
        TypeError, ValueError: a field has a value that is not allowed.
    """
    value = as_exact_class(Denial, value)
    status = int_or_none(value.status)
    if status is None:
        reject("status", f"must be an int, not {type(value.status).__name__}")
    check_encodable("message", value.message)
    check_name("code", value.code)
    check_name("type", value.type)
    if value.param is not None:
        check_text("param", value.param)
    if value.retry_after_s is not None:
        check_duration("retry_after_s", value.retry_after_s)
    return replace(
        value,
        status=status,
        message=plain(value.message),
        code=plain(value.code),
        type=plain(value.type),
        param=plain(value.param),
        plugin=plugin,
        headers=added_headers("headers", {}, value.headers),
    )


def refusal(plugin: str, value: object) -> Refusal:
    """Return a plugin's refusal under the plugin's name.

    Raises:
        TypeError, ValueError: it is not a refusal, or a field has a value that is not allowed.
    """
    if not isinstance(value, Refusal):
        raise TypeError(f"before_attempt returned {type(value).__name__}, not Refusal or None")
    value = as_exact_class(Refusal, value)
    check_text("reason", value.reason)
    if value.retry_after_s is not None:
        check_duration("retry_after_s", value.retry_after_s)
    status = int_or_none(value.status)
    if value.status is not None and (status is None or not 400 <= status <= 599):  # noqa: PLR2004  # HTTP's error statuses
        reject("status", f"must be an int from 400 to 599 or None, not {value.status!r:.100}")
    check_name("code", value.code)
    if type(value.retryable) is not bool:
        reject("retryable", f"must be a bool, not {type(value.retryable).__name__}")
    return replace(value, reason=plain(value.reason), status=status, code=plain(value.code), plugin=plugin)


def reply(plugin: str, value: Reply, *, stream: bool) -> Reply:
    """Return a plugin's own answer under the plugin's name, frozen.

    Args:
        plugin: The plugin.
        value: What it returned.
        stream: Whether the request wants a stream.

    Raises:
        TypeError, ValueError: a field has a value that is not allowed, or it does not fit the request.
    """
    value = as_exact_class(Reply, value)
    check_tuple("pieces", value.pieces)
    if stream and not value.pieces:
        reject("pieces", "must not be empty: the request wants a stream")
    if not stream and value.body is None:
        reject("body", "must be set: the request does not want a stream")
    usage, cost = value.usage, value.cost_usd_micros
    if usage is not None:
        usage = _usage("usage", usage)
    if type(cost) is not int or not 0 <= cost <= MOST_INTEGER:
        reject("cost_usd_micros", f"must be an int that is not negative, not {cost!r:.100}")
    return replace(
        value,
        plugin=plugin,
        usage=usage or Usage(),
        body=None if stream else json_object("body", value.body),
        pieces=tuple(json_object("pieces", piece) for piece in value.pieces) if stream else (),
        headers=added_headers("headers", {}, value.headers),
    )


def body(before: Mapping[str, Any], after: object) -> Mapping[str, Any]:
    """Return the request's body that a plugin's ``transform_request`` has made.

    Args:
        before: The body as the plugin got it.
        after: What it returned.

    Raises:
        TypeError, ValueError: it is not JSON, or changes a field that it must not.
    """
    made = json_object("body", after)
    for name in FIXED_FIELDS & (made.keys() | before.keys()):
        if made.get(name) != before.get(name):
            reject("body", f"{name!r} cannot be changed: configuration and route decide about it")
    for name, value in made.items():
        if name in before and _kind(value) != _kind(before[name]):
            reject("body", f"{name!r} was a {_kind(before[name])} and is a {_kind(value)}")
    return made


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "mapping"
    return "list" if isinstance(value, list) else type(value).__name__


def json_object(field: str, value: object) -> FrozenDict[str, Any]:
    """Return a JSON object, frozen.

    Raises:
        TypeError, ValueError: it is not one.
    """
    if not isinstance(value, Mapping):
        reject(field, f"must be a mapping, not {type(value).__name__}")
    found: FrozenDict[str, Any] = _json(field, value, 0)
    return found


def _json(field: str, value: Any, depth: int) -> Any:
    if isinstance(value, str):
        value = plain(value)
        if not value.isascii():
            check_encoded(field, value)
    elif isinstance(value, Mapping | list | tuple):
        if depth > _MOST_DEPTH:
            reject(field, f"is nested more than {_MOST_DEPTH} levels deep")
        if not isinstance(value, Mapping):
            return FrozenList([_json(field, item, depth + 1) for item in value])
        if not all(isinstance(key, str) for key in value):
            reject(field, "contains a key that is not a text")
        return FrozenDict({plain(key): _json(field, item, depth + 1) for key, item in value.items()})
    elif isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            reject(field, f"contains an int of {value.bit_length()} bits, which cannot be written as JSON")
    elif value is not None and not is_number(value):
        reject(
            field,
            f"contains {value!r:.50}, which is not JSON"
            if isinstance(value, float)
            else f"contains a {type(value).__name__}, which is not JSON",
        )
    return value


def authenticated(plugin: str, value: object) -> Identity | Denial:
    """Return what a plugin's ``authenticate`` answers with.

    Raises:
        TypeError, ValueError: it is neither an identity nor a denial, or a field has a value that is not allowed.
    """
    if isinstance(value, Denial):
        return denial(plugin, value)
    if isinstance(value, Identity):
        return _identity(as_exact_class(Identity, value))
    raise TypeError(f"authenticate returned {type(value).__name__}, not Identity, Denial or None")


def _identity(value: Identity) -> Identity:
    texts: dict[str, Any] = {}
    for field in ("tenant", "key_alias", "user_id", "team_id", "org_id", "end_user"):
        if (text := getattr(value, field)) is not None:
            check_encodable(field, text)
            texts[field] = plain(text)
    check_mapping("claims", value.claims)
    claims = {plain(name): plain(claim) for name, claim in value.claims.items()}
    check_length("claims", claims)
    for name, claim in claims.items():
        check_encodable("claims", name)
        check_encodable(f"claims[{name!r}]", claim)
    if value.models is not None:
        check_tuple("models", value.models)
        for pattern in value.models:
            check_encodable("models", pattern)
    models = None if value.models is None else plain_texts(value.models)
    return replace(value, models=models, claims=FrozenDict(claims), **texts)


def candidates(
    plugin: str,  # noqa: ARG001  # as all checks of answers
    value: object,
    given: Sequence[Candidate],
) -> tuple[Candidate, ...]:
    """Return the candidates that a plugin's ``select`` has left of those that it was given.

    Raises:
        TypeError, ValueError: they are not among those that were given, or a field has a value that is not allowed.
    """
    if not isinstance(value, _SEQUENCES) or isinstance(value, str | bytes):
        raise TypeError(f"select returned {type(value).__name__}, not a sequence of Candidate, or None")
    by_id = {one.deployment.id: one for one in given}
    kept = []
    for made in value:
        if not isinstance(made, Candidate):
            raise TypeError(f"select returned a sequence with {type(made).__name__}, not with Candidate")
        one = made if type(made) is Candidate else as_exact_class(Candidate, made)
        # Each may come back once, so that a deployment that comes twice is as wrong as one that was not given.
        known = by_id.pop(one.deployment.id, None)
        if known is None:
            reject("candidates", f"the deployment {one.deployment.id!r:.100} was not given, or was returned twice")
        kept.append(one if known is one else _candidate(known, one))
    return tuple(kept)


def _candidate(known: Candidate, one: Candidate) -> Candidate:
    if one.deployment is not known.deployment and one.deployment != known.deployment:
        reject("candidates", f"the deployment {one.deployment.id!r:.100} is not as it was given")
    if one.weight is not known.weight:
        check_amount("weight", one.weight)
    if one.delay_s is not known.delay_s:
        check_duration("delay_s", one.delay_s)
    if type(one.has_fallback) is not bool:
        reject("has_fallback", f"must be a bool, not {type(one.has_fallback).__name__}")
    if one.score is not None and not is_number(one.score):
        reject("score", f"must be a finite number or None, not {one.score!r:.100}")
    if one.notes is not known.notes:
        check_tuple("notes", one.notes)
        check_length("notes", one.notes)
        for note in one.notes:
            check_encodable("notes", note)
    if type(one.dropped) is not bool:
        reject("dropped", f"must be a bool, not {type(one.dropped).__name__}")
    if one.deployment is known.deployment and all(type(note) is str for note in one.notes):
        return one
    return replace(one, deployment=known.deployment, notes=plain_texts(one.notes))


def execution(ctx: RequestContext, value: object) -> Execution:
    """Return what a plugin's ``execute`` answers with.

    Args:
        ctx: The request.
        value: What it returned.

    Raises:
        TypeError, ValueError: it is no execution, or a field has a value that is not allowed.
    """
    if not isinstance(value, Execution) or (value.response is None) == (value.chunks is None):
        raise TypeError("execute must return None or an Execution with either a response or chunks")
    value = as_exact_class(Execution, value)
    if (value.chunks is not None) is not ctx.stream:
        reject("response" if ctx.stream else "chunks", f"the request wants {'a stream' if ctx.stream else 'no stream'}")
    if value.response is not None:
        if not isinstance(value.response, UpstreamResponse):
            reject("response", f"must be an UpstreamResponse, not {type(value.response).__name__}")
        if not isinstance(value.response.attempt, Attempt):
            reject("response.attempt", f"must be an Attempt, not {type(value.response.attempt).__name__}")
        response = as_exact_class(UpstreamResponse, value.response)
        if response.attempt.request_id != ctx.request_id:
            reject("response", "is not from an attempt of this request; for an answer of its own a plugin has Reply")
        check_mapping("response.body", response.body)
        _gateways("response.raw", response.raw)
        if response is not value.response:
            value = replace(value, response=response)
    if value.chunks is not None and not isinstance(value.chunks, AsyncIterator):
        reject("chunks", f"must be an AsyncIterator, not {type(value.chunks).__name__}")
    return replace(value, headers=added_headers("headers", {}, value.headers)) if value.headers else value


def chunk(value: object) -> Chunk:
    """Return a piece of an execution's stream.

    Raises:
        TypeError, ValueError: it is not one, or not the gateway's.
    """
    if not isinstance(value, Chunk):
        raise TypeError(f"the chunks of an Execution contain {type(value).__name__}, not Chunk")
    value = as_exact_class(Chunk, value)
    if value.raw is None:
        _gateways("raw", value.raw)
    return value


def _gateways(field: str, raw: object) -> None:
    """Check that there is the gateway's own object, which is what the client gets."""
    if raw is None:
        reject(field, "is None; hand on what a call of the given upstream has answered, untouched")


def status(plugin: str, value: object) -> Status:  # noqa: ARG001  # as all checks of answers
    """Return what a plugin's ``status`` answers with: details that JSON cannot hold would break the page of all plugins.

    Raises:
        TypeError, ValueError: it is not a status, or a field has a value that is not allowed.
    """
    if not isinstance(value, Status):
        raise TypeError(f"status returned {type(value).__name__}, not Status or None")
    value = as_exact_class(Status, value)
    if type(value.ok) is not bool:
        reject("ok", f"must be a bool, not {type(value.ok).__name__}")
    check_encodable("summary", value.summary)
    check_mapping("details", value.details)
    details = json.dumps(dict(value.details), allow_nan=False, ensure_ascii=False)
    details.encode()
    return replace(value, summary=plain(value.summary), details=json.loads(details))


# -- parts --------------------------------------------------------------------------------------------------------------


def _usage(field: str, value: object) -> Usage:
    """Return what an answer has used, which quotas and bills are computed from."""
    if not isinstance(value, Usage):
        reject(field, f"must be a Usage or None, not {type(value).__name__}")
    value = as_exact_class(Usage, value)
    for name in _COUNTS:
        check_count(f"{field}.{name}", getattr(value, name), known=name in _KNOWN_COUNTS)
    for name in _TEXTS:
        if (text := getattr(value, name)) is not None:
            check_encodable(f"{field}.{name}", text)
    for name in _FLAGS:
        if type(getattr(value, name)) is not bool:
            reject(f"{field}.{name}", f"must be a bool, not {type(getattr(value, name)).__name__}")
    cost: object = value.provider_cost_usd
    if cost is not None and not (isinstance(cost, Decimal) and cost.is_finite() and cost >= 0):
        reject(f"{field}.provider_cost_usd", f"must be a finite Decimal that is not negative, not {cost!r:.100}")
    check_tuple(f"{field}.parts", value.parts)
    parts = tuple(_usage(f"{field}.parts[{number}]", part) for number, part in enumerate(value.parts))
    return replace(value, parts=parts, **{name: plain(getattr(value, name)) for name in _TEXTS})
