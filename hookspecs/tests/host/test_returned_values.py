"""Values are checked where a plugin returns them: a wrong one is a fault of this plugin, and its policy applies."""

# ruff: noqa: ARG005  # the functions of one table take the same arguments
from __future__ import annotations

import asyncio
import enum
import json
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pointsman import PluginConfig, hookimpl
from pointsman.errors import PluginLoadError, UpstreamError
from pointsman.host import field_checks, returned_values
from pointsman.testing import deployment, ok
from pointsman.types import (
    AttemptKind,
    Candidate,
    Chunk,
    Denial,
    Execution,
    Identity,
    Outcome,
    Refusal,
    Reply,
    Reservation,
    Route,
    Status,
    UpstreamRequest,
    UpstreamResponse,
    Usage,
)

pytestmark = pytest.mark.usefixtures("leak_check")


class Denying(PluginConfig):
    on_failure: str = "deny"


class Name(str, enum.Enum):  # noqa: UP042  # as in older code
    """What an author may use for texts."""

    GOLD = "gold"
    CHAT = "chat"

    def __str__(self):
        raise RuntimeError("no text")


def derived(value, reads=1):
    """Return a value as one of a class of its own, whose fields and comparisons fail once they have been read."""
    kind = type(value)
    left = dict.fromkeys((one.name for one in fields(kind)), reads)

    class Derived(kind):
        __slots__ = ()

        def __getattribute__(self, name):
            if name in left and "ready" in left:
                left[name] -= 1
                if left[name] < 0:
                    raise RuntimeError("read again")
            return object.__getattribute__(self, name)

        def __bool__(self):
            raise RuntimeError("no truth")

        __eq__ = __hash__ = __repr__ = __bool__

    made = Derived(**{one.name: getattr(value, one.name) for one in fields(kind)})
    left["ready"] = 1
    return made


def plain(value):
    """Return whether a value and all that is in it are of the contract's classes and of Python's own."""
    if is_dataclass(value):
        own = type(value).__module__.startswith("pointsman.")
        return own and all(plain(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in {str, int, float, bool, Decimal}


BEFORE = Route(target="other")
DERIVED = {
    "route": lambda: returned_values.route(
        "wrong",
        BEFORE,
        derived(
            Route(
                target=Name.CHAT,
                labels={Name.GOLD: Name.GOLD},
                headers={"x-tier": Name.GOLD},
                target_headers={Name.CHAT: {"x-tier": Name.GOLD}},
                fallbacks=(Name.GOLD,),
                executor=Name.GOLD,
                reservations=(
                    derived(reservation(id=Name.GOLD, amounts={Name.GOLD: 1}, data={Name.GOLD: Name.GOLD}), 2),
                ),
            ),
            2,
        ),
        {},
        executors={"gold": None},
    ),
    "denial": lambda: returned_values.denial(
        "wrong", derived(Denial(status=HTTPStatus.FORBIDDEN, message=Name.GOLD, code=Name.GOLD, type=Name.GOLD))
    ),
    "refusal": lambda: returned_values.refusal(
        "wrong", derived(Refusal(reason=Name.GOLD, code=Name.GOLD, status=HTTPStatus.FORBIDDEN))
    ),
    "reply": lambda: returned_values.reply(
        "wrong", derived(Reply(body={Name.GOLD: [Name.GOLD]}, usage=derived(Usage(image_size=Name.GOLD)))), stream=False
    ),
    "identity": lambda: returned_values.authenticated(
        "wrong", derived(Identity(tenant=Name.GOLD, claims={Name.GOLD: Name.GOLD}, models=(Name.GOLD,)))
    ),
    "status": lambda: returned_values.status(
        "wrong", derived(Status(ok=True, summary=Name.GOLD, details={"tier": [Name.GOLD]}))
    ),
}


@pytest.mark.parametrize("kind", DERIVED)
def test_what_an_author_has_derived_is_accepted_as_what_it_is_derived_from(kind):
    """Enumerations of texts and of numbers too: none of the author's code is left in the host."""
    assert plain(DERIVED[kind]())


def test_candidates_of_a_class_of_its_own_are_the_contracts():
    candidate = Candidate(deployment=deployment("one"))
    given = (candidate,)
    (kept,) = returned_values.candidates(
        "balance", [derived(replace(candidate, weight=2.0, notes=(Name.GOLD,)))], given
    )
    assert kept == replace(candidate, weight=2.0, notes=("gold",))
    assert plain(kept.notes)


@pytest.mark.parametrize("ends", ["pre_route", "before_attempt"])
async def test_a_status_of_the_standard_library_ends_a_request(harness, plugin, ends):
    """The settlement has it as a number."""

    class Ends:
        @hookimpl
        async def pre_route(self):
            if ends == "pre_route":
                return derived(Denial(status=HTTPStatus.FORBIDDEN, message="No.", code=Name.GOLD))
            return None

        @hookimpl
        async def before_attempt(self):
            return derived(Refusal(reason="no", status=HTTPStatus.FORBIDDEN, code=Name.GOLD))

    async with harness([plugin(Ends)]) as h:
        result = await h.request()
        await h.settled()
        assert (result.status, h.faults) == (403, {})
        assert h.settlements[0].status_code == 403


def reservation(**changes):
    return Reservation(**{"plugin": "wrong", "id": "r", "expires_at": 2e9, **changes})


WRONG_ROUTES = {
    "no target": lambda r: r.to(""),
    "target is not a text": lambda r: r.to(None),
    "target with a line break": lambda r: r.to("a\nb"),
    "long target": lambda r: r.to("a" * 1000),
    "label value is not a text": lambda r: r.with_labels(arm=1),
    "label value is None": lambda r: r.with_labels(arm=None),
    "label name is not a text": lambda r: Route(target=r.target, labels={1: "a"}),
    "label with a line break": lambda r: r.with_labels(arm="a\r\nx-evil: 1"),
    "label with a surrogate": lambda r: r.with_labels(arm="\ud800"),
    "long label": lambda r: r.with_labels(arm="a" * 20_000),
    "many labels": lambda r: r.with_labels(**{f"l{n}": "a" for n in range(300)}),
    "labels are not a mapping": lambda r: Route(target=r.target, labels=[("a", "b")]),
    "label of another plugin": lambda r: r.with_labels(first="forged"),
    "the tenant": lambda r: r.with_labels(tenant="forged"),
    "many fallbacks": lambda r: replace(r, fallbacks=tuple(f"f{n}" for n in range(300))),
    "many headers": lambda r: r.with_headers({f"x-{n}": "a" for n in range(40)}),
    "long headers": lambda r: r.with_headers({"x-a": "a" * 3000, "x-b": "b" * 3000}),
    "many target headers": lambda r: replace(r, target_headers={f"t{n}": {"x-a": "a"} for n in range(300)}),
    "reservation of many amounts": lambda r: r.with_reservation(reservation(amounts={f"a{n}": 1 for n in range(300)})),
    "reservation with much data": lambda r: r.with_reservation(reservation(data={f"a{n}": 1 for n in range(300)})),
    "denial with many headers": lambda r: Denial(
        status=429, code="c", message="m", headers={f"x-{n}": "a" for n in range(40)}
    ),
    "fallbacks are a text": lambda r: Route(target=r.target, fallbacks="backup"),
    "fallbacks are a list": lambda r: Route(target=r.target, fallbacks=["backup"]),
    "fallback is not a text": lambda r: Route(target=r.target, fallbacks=(None,)),
    "unknown executor": lambda r: Route(target=r.target, executor="nothing"),
    "executor is not a text": lambda r: Route(target=r.target, executor=("first",)),
    "executes_fallbacks is a text": lambda r: Route(target=r.target, executes_fallbacks="yes"),
    "fallback is the host's": lambda r: Route(target=r.target, fallback=True),
    "header with a line break": lambda r: r.with_headers({"x-a": "1\r\nset-cookie: a=b"}),
    "header name with a line break": lambda r: r.with_headers({"x-a\r\nx-b": "1"}),
    "header is a number": lambda r: r.with_headers({"x-a": 1}),
    "header that frames": lambda r: r.with_headers({"Content-Length": "0"}),
    "header of the host": lambda r: r.with_headers({"x-pointsman-request-id": "forged"}),
    "cookie": lambda r: r.with_headers({"set-cookie": "a=b"}),
    "target header with a line break": lambda r: r.with_target_headers("chat", {"x-a": "1\n"}),
    "target headers are a text": lambda r: Route(target=r.target, target_headers={"chat": "x"}),
    "reservation of another plugin": lambda r: r.with_reservation(reservation(plugin="first")),
    "reservation without an id": lambda r: r.with_reservation(reservation(id="")),
    "reservation that never expires": lambda r: r.with_reservation(reservation(expires_at=float("nan"))),
    "reserved amount is a fraction": lambda r: r.with_reservation(reservation(amounts={"tokens": 1.5})),
    "reserved amount is a bool": lambda r: r.with_reservation(reservation(amounts={"tokens": True})),
    "reserved amount is too large": lambda r: r.with_reservation(reservation(amounts={"tokens": 10**30})),
    "reservation with an object": lambda r: r.with_reservation(reservation(data={"a": object()})),
    "reservation with a list": lambda r: r.with_reservation(reservation(data={"a": []})),
    "reservation with an infinity": lambda r: r.with_reservation(reservation(data={"a": float("inf")})),
    "reservation is a dict": lambda r: Route(target=r.target, reservations=({"id": "r"},)),
    "reservations are a list": lambda r: Route(target=r.target, reservations=[reservation()]),
    "a dict": lambda r: {"target": "chat"},
    "a text": lambda r: "chat",
    "denial with a text as status": lambda r: Denial(status=True + 400, code=5, message="no"),
    "denial with an object as message": lambda r: Denial(status=429, code="c", message=object()),
    "denial with a line break in a header": lambda r: Denial(status=429, code="c", message="m", headers={"a": "\r\n"}),
    "denial with a header of the host": lambda r: Denial(
        status=429, code="c", message="m", headers={"X-Pointsman-Request-Id": "a"}
    ),
    "denial with a header that is not Latin-1": lambda r: Denial(
        status=429, code="c", message="m", headers={"a": "模"}
    ),
    "denial with a code of two lines": lambda r: Denial(status=429, code="a\r\nb", message="m"),
    "denial without a code": lambda r: Denial(status=429, code="", message="m"),
    "denial with a type of two lines": lambda r: Denial(status=429, code="c", type="a\nb", message="m"),
    "denial with an endless wait": lambda r: Denial(status=429, code="c", message="m", retry_after_s=1e300),
    "denial with a wait that is not a number": lambda r: Denial(
        status=429, code="c", message="m", retry_after_s=float("nan")
    ),
    "denial with a wait in the past": lambda r: Denial(status=429, code="c", message="m", retry_after_s=-1.0),
    "header that is not Latin-1": lambda r: r.with_headers({"x-a": "模"}),
    "timeout without end": lambda r: Route(target=r.target, timeout_s=1e300),
    "denial with a surrogate": lambda r: Denial(status=429, code="c", message="\ud800"),
    "reply with a number that JSON cannot hold": lambda r: Reply(body={"a": 10**5000}),
    "reply whose usage is a dict": lambda r: Reply(body={}, usage={"prompt_tokens": 1}),
    "reply with tokens that are a text": lambda r: Reply(body={}, usage=Usage(prompt_tokens="many")),
    "reply with half a token": lambda r: Reply(body={}, usage=Usage(completion_tokens=0.5)),
    "reply with tokens below 0": lambda r: Reply(body={}, usage=Usage(cached_tokens=-1)),
    "reply with unknown tokens": lambda r: Reply(body={}, usage=Usage(prompt_tokens=None)),
    "reply with an infinite cost": lambda r: Reply(body={}, usage=Usage(provider_cost_usd=Decimal("inf"))),
    "reply with an account that is no text": lambda r: Reply(body={}, usage=Usage(raw={"a": object()})),
    "reply with parts that are numbers": lambda r: Reply(body={}, usage=Usage(parts=(5,))),
    "reply with a flag that is a text": lambda r: Reply(body={}, usage=Usage(estimated="no")),
}


class First:
    @hookimpl
    async def pre_route(self, route):
        held = reservation(plugin="first", amounts={"tokens": 5})
        return route.with_labels(first="mine").with_headers({"x-first": "1"}).with_reservation(held)


class Last:
    def __init__(self):
        self.settled = []
        self.routed = []

    @hookimpl
    async def pre_route(self, route):
        self.routed.append(route)

    @hookimpl
    async def settle(self, settlement):
        self.settled.append(settlement)


@pytest.mark.parametrize("name", WRONG_ROUTES)
async def test_a_wrong_route_is_the_plugins_fault(harness, plugin, name):
    """With ``allow`` the request goes on without it, with ``deny`` it is refused; both are settled, and nothing is lost."""
    make = WRONG_ROUTES[name]

    class Wrong:
        @hookimpl
        async def pre_route(self, route):
            return make(route)

    last = Last()
    for config, status in ((PluginConfig, 200), (Denying, 503)):
        ends = plugin(type("End", (), {"__new__": lambda cls: last}), name="last")
        async with harness([plugin(First), plugin(Wrong, config=config), ends]) as h:
            result = await h.request(script=ok("text"))
            await h.settled()
            assert (result.status, h.faults) == (status, {"wrong.pre_route": 1})
            settlement = last.settled.pop()
            assert settlement.labels == {"first": "mine"}
            assert [r.amounts for r in settlement.reservations] == [{"tokens": 5}]
            assert result.headers["x-first"] == "1"
            assert h.host.describe()["journal"]["unjournaled"] == 0
    assert [route.labels for route in last.routed] == [{"first": "mine"}]


async def test_a_route_built_anew_loses_nothing(harness, plugin):
    """Labels, headers, fallbacks, executor and reservations of earlier plugins stay in a ``Route`` that names a target only."""

    class Early(First):
        @hookimpl
        async def pre_route(self, route):
            made = await First.pre_route(self, route)
            return Route(
                target="chat",
                labels=made.labels,
                headers=made.headers,
                target_headers={"backup": {"x-answered": "backup"}},
                fallbacks=("backup",),
                executor="runs",
                executes_fallbacks=True,
                reservations=made.reservations,
            )

    class Anew:
        @hookimpl
        async def pre_route(self, route):
            return Route(target="backup", labels={"second": "s"}, reservations=(reservation(plugin="anew"),))

    class Runs:
        @hookimpl
        async def execute(self):
            return None

    async with harness([plugin(Early, name="first"), plugin(Anew), plugin(Runs)]) as h:
        route = (await h.request(script=ok("text"))).route
        assert h.faults == {}
    assert (route.target, route.fallbacks, route.executor, route.executes_fallbacks) == (
        "backup",
        ("backup",),
        "runs",
        True,
    )
    assert route.labels == {"first": "mine", "second": "s"}
    assert route.headers == {"x-first": "1"}
    assert route.target_headers == {"backup": {"x-answered": "backup"}}
    assert [r.plugin for r in route.reservations] == ["first", "anew"]


def test_no_field_of_a_route_is_lost():
    before = Route(target="b", fallback=True)
    after = Route(
        target="a",
        labels={"arm": "canary"},
        fallbacks=("c",),
        executor="race",
        executes_fallbacks=True,
        fallback=True,
        headers={"x-a": "1"},
        target_headers={"a": {"x-b": "2"}},
        reservations=(reservation(plugin="p"),),
        timeout_s=1.0,
        retries=2,
        upstream_headers={"x-c": "3"},
    )
    assert all(getattr(after, one.name) != getattr(Route(target=""), one.name) for one in fields(Route))
    checked = returned_values.route("p", before, after, {}, executors={"race"}, upstream_headers={"x-c"})
    assert checked == after


async def test_shared_values_cannot_be_changed(harness, plugin):
    """A plugin that changes labels, headers, claims or the body in place fails; those after it see what was there."""
    changes = [
        lambda ctx, route: route.labels.update(tenant="forged"),
        lambda ctx, route: route.labels.__setitem__("first", "forged"),
        lambda ctx, route: route.headers.clear(),
        lambda ctx, route: route.reservations[0].amounts.update(tokens=0),
        lambda ctx, route: route.target_headers.update(chat={}),
        lambda ctx, route: ctx.headers.clear(),
        lambda ctx, route: ctx.identity.claims.update(role="admin"),
        lambda ctx, route: ctx.body["messages"].append({}),
        lambda ctx, route: ctx.body["messages"][0].update(content="changed"),
        lambda ctx, route: ctx.body.update(model="other"),
    ]
    left = list(changes)

    class Changing:
        @hookimpl
        async def pre_route(self, ctx, route):
            left.pop()(ctx, route)

    seen = []

    class After:
        @hookimpl
        async def pre_route(self, ctx, route):
            seen.append((dict(route.labels), ctx.body["messages"][0]["content"], ctx.headers.get("x-a")))

    async with harness([plugin(First), plugin(Changing), plugin(After)]) as h:
        for _ in changes:
            await h.request(script=ok("text"), headers={"x-a": "b"})
        assert h.faults == {"changing.pre_route": len(changes)}
    assert seen == [({"first": "mine"}, "Hello there", "b")] * len(changes)


async def test_the_tenant_belongs_to_who_declares_it(harness, plugin):
    """A plugin that declares ``tenant`` sets it, later plugins see it in the identity, and none of them can change it."""
    seen = []

    class Tenants:
        @hookimpl
        async def pre_route(self, ctx, route):
            return route.with_labels(tenant="acme")

    class Forging:
        @hookimpl
        async def pre_route(self, ctx, route):
            seen.append(ctx.identity.tenant)
            return route.with_labels(tenant="other")

    async with harness([replace(plugin(Tenants), labels=("tenant",)), plugin(Forging)]) as h:
        result = await h.request(script=ok("text"), identity=Identity())
        assert h.faults == {"forging.pre_route": 1}
        assert (result.route.labels["tenant"], result.settlement.identity.tenant) == ("acme", "acme")
    assert seen == ["acme"]


async def test_two_plugins_cannot_declare_one_label(harness, plugin):
    """The start fails, and names both plugins and the label."""
    both = [replace(plugin(First, name=name), labels=("tenant",)) for name in ("one", "two")]
    with pytest.raises(PluginLoadError, match=r"'two'.*'tenant'.*'one'"):
        async with harness(both):
            pass


WRONG_SELECTIONS = {
    "a candidate": lambda cs: cs[0],
    "a text": lambda cs: "chat",
    "a generator": lambda cs: (c for c in cs),
    "deployments": lambda cs: [c.deployment for c in cs],
    "ids": lambda cs: [c.deployment.id for c in cs],
    "one twice": lambda cs: [cs[0], cs[0]],
    "another deployment": lambda cs: [Candidate(deployment=_other(cs[0].deployment))],
    "another key of a deployment": lambda cs: [_replaced(cs[0], deployment=_same_id(cs[0].deployment))],
    "a weight that is not a number": lambda cs: [_replaced(cs[0], weight=float("nan"))],
    "a negative weight": lambda cs: [_replaced(cs[0], weight=-1.0)],
    "many notes": lambda cs: [_replaced(cs[0], notes=("a",) * 300)],
    "a score that is a text": lambda cs: [cs[0].scored("high")],
    "an infinite score": lambda cs: [cs[0].scored(float("inf"))],
    "a reason that is not a text": lambda cs: [c.drop(5) for c in cs],
    "a delay that is a text": lambda cs: [_replaced(c, delay_s="1") for c in cs],
    "a delay that is not a number": lambda cs: [c.delayed(float("nan")) for c in cs],
    "a delay below 0": lambda cs: [c.delayed(-1.0) for c in cs],
    "a fallback that is a text": lambda cs: [_replaced(c, has_fallback="no") for c in cs],
    "dropped that is a text": lambda cs: [_replaced(c, dropped="no") for c in cs],
}


def _replaced(value, **changes):
    return replace(value, **changes)


def _other(deployment):
    return _replaced(deployment, id="elsewhere")


def _same_id(deployment):
    return _replaced(deployment, api_base="https://elsewhere.example")


@pytest.mark.parametrize("name", WRONG_SELECTIONS)
async def test_a_wrong_selection_is_the_plugins_fault(harness, plugin, name):
    """With ``allow`` the plugin is skipped, with ``deny`` nothing is left; the plugins after it have their hook or need none."""
    make = WRONG_SELECTIONS[name]
    asked = []

    class Wrong:
        @hookimpl
        def select(self, candidates):
            return make(candidates)

    class After:
        @hookimpl
        def select(self, candidates):
            asked.append(len(candidates))

    for config, status in ((PluginConfig, 200), (Denying, 429)):
        async with harness([plugin(Wrong, config=config), plugin(After)]) as h:
            result = await h.request(script=ok("text"))
            assert (result.status, h.faults) == (status, {"wrong.select": 1})
    assert asked == [2]


@pytest.mark.parametrize(
    "value",
    [
        "no",
        True,
        Denial(status=429, code="c", message="m"),
        Refusal(reason=5),
        Refusal(reason="a\nb"),
        Refusal(reason="a", retry_after_s="soon"),
        Refusal(reason="a", retry_after_s=float("nan")),
        Refusal(reason="a", retry_after_s=1e300),
        Refusal(reason="a", code="a\nb"),
    ],
)
async def test_a_wrong_refusal_is_the_plugins_fault(harness, plugin, value):
    """With ``allow`` the attempt is made, with ``deny`` it is refused."""

    class Wrong:
        @hookimpl
        async def before_attempt(self):
            return value

    for config, outcome in ((PluginConfig, Outcome.OK), (Denying, Outcome.ERROR)):
        async with harness([plugin(Wrong, config=config)]) as h:
            result = await h.request(script=ok("text"), retries=0)
            assert (result.attempts[0].outcome, h.faults) == (outcome, {"wrong.before_attempt": 1})


@pytest.mark.parametrize(
    "value",
    [
        Execution(),
        Execution(response={"choices": []}),
        Execution(chunks=[1]),
        Execution(response=UpstreamResponse(attempt=None, body={})),
        {"response": None},
    ],
)
async def test_a_wrong_execution_becomes_a_plain_call(harness, plugin, value):
    """The client has its answer from the gateway's own attempt."""

    class Wrong:
        @hookimpl
        async def pre_route(self, route):
            return Route(target=route.target, executor="wrong")

        @hookimpl
        async def execute(self):
            return value

    async with harness([plugin(Wrong)]) as h:
        result = await h.request(script=ok("plain"))
        assert (result.text, h.faults) == ("plain", {"wrong.execute": 1})


class Panic(BaseException):
    """Not an ``Exception``."""


OWN = Chunk(has_content=True, text="own", raw={"choices": [{"delta": {"content": "own"}}]})


async def _broken(err, *, before):
    for _ in range(before):
        yield OWN
    raise err


async def _numbers(*, before):
    for _ in range(before):
        yield OWN
    yield 5


async def _without_the_gateways_object(*, before):
    for _ in range(before):
        yield OWN
    yield Chunk(has_content=True, text="secret")


async def _cancelling(*, before):
    for _ in range(before):
        yield OWN
    asyncio.current_task().cancel()
    await asyncio.sleep(0)
    yield OWN


async def attempted(ctx, route, upstream):
    """Make an attempt that the chunks could be from."""
    request = UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body=ctx.body, stream=True)
    await anext(upstream.start(request).chunks())


CHUNKS = {
    "an error": lambda before: _broken(RuntimeError("secret"), before=before),
    "a panic": lambda before: _broken(Panic("secret"), before=before),
    "an exit": lambda before: _broken(SystemExit(1), before=before),
    "a closed generator": lambda before: _broken(GeneratorExit(), before=before),
    "a cancelled task": lambda before: _broken(asyncio.CancelledError(), before=before),
    "a cancelled request": lambda before: _cancelling(before=before),
    "numbers": lambda before: _numbers(before=before),
    "nothing of the gateway's": lambda before: _without_the_gateways_object(before=before),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("before", [0, 1])
async def test_the_chunks_of_an_execution_are_isolated_as_the_hook_is(harness, plugin, name, before):
    """Before the first one the attempt becomes a plain call, later the attempt fails; both are the plugin's fault."""

    class Wrong:
        @hookimpl
        async def pre_route(self, route):
            return Route(target=route.target, executor="wrong")

        @hookimpl
        async def execute(self, ctx, route, upstream):
            await attempted(ctx, route, upstream)
            return Execution(chunks=CHUNKS[name](before))

    async with harness([plugin(Wrong)]) as h:
        result = await h.request(script=ok("plain"), stream=True, retries=0)
        assert h.faults == {"wrong.execute": 1}
        if before == 0:
            assert (result.text, result.outcome) == ("plain", Outcome.OK)
        else:
            assert (result.text, result.error.status) == ("own", 500)
            assert "secret" not in result.error.message


@pytest.mark.parametrize("changes", [{"retry_after_s": 1e300}, {"retry_after_s": float("nan")}, {"status": "429"}])
def test_an_error_of_which_no_answer_can_be_made_is_not_raised(changes):
    with pytest.raises((TypeError, ValueError), match="an UpstreamError's"):
        UpstreamError("no", **changes)


class UnreadableUpstreamError(UpstreamError):
    def __str__(self):
        raise RuntimeError("no text")


class Executor:
    """Answers as a test says. ``kept`` is the answer to an earlier request."""

    kept = None

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def pre_route(self, route):
        return Route(target=route.target, executor="executor")

    @hookimpl
    async def execute(self, ctx, route, upstream):
        return await self.answer(ctx, route, upstream)

    async def asked(self, ctx, route, upstream, kind=AttemptKind.PRIMARY):
        call = upstream.start(UpstreamRequest(target=route.target, kind=kind, body=ctx.body, stream=ctx.stream))
        if ctx.stream:
            return Execution(chunks=call.chunks())
        return Execution(response=await call.response())

    async def the_other_kind(self, ctx, route, upstream):
        call = upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body=ctx.body))
        if not ctx.stream:
            return Execution(chunks=call.chunks())
        assert [chunk async for chunk in call.chunks()]
        return Execution(response=UpstreamResponse(attempt=call.attempt, body={}, raw={}))

    async def an_earlier_answer(self, ctx, route, upstream):
        if Executor.kept is None:
            made = await self.asked(ctx, route, upstream)
            Executor.kept = [chunk async for chunk in made.chunks] if ctx.stream else made.response
            return Execution(chunks=_given(Executor.kept)) if ctx.stream else made
        if ctx.stream:
            return Execution(chunks=_given(Executor.kept))
        return Execution(response=Executor.kept)

    async def a_call_of_its_own(self, ctx, route, upstream):
        return await self.asked(ctx, route, upstream, AttemptKind.PROBE)

    async def nothing(self, ctx, route, upstream):
        return Execution(chunks=_given([])) if ctx.stream else Execution()

    async def an_unreadable_error(self, ctx, route, upstream):
        raise UnreadableUpstreamError("no", status=418)


async def _given(chunks):
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "answer", ["the_other_kind", "an_earlier_answer", "a_call_of_its_own", "nothing", "an_unreadable_error"]
)
async def test_an_execution_that_cannot_answer_the_request_becomes_a_plain_call(
    harness, plugin, monkeypatch, answer, stream
):
    """Nothing that no attempt of the request has answered reaches the client: it would be neither limited nor billed."""
    monkeypatch.setattr(Executor, "answer", getattr(Executor, answer), raising=False)
    monkeypatch.setattr(Executor, "kept", None)
    async with harness([plugin(Executor)]) as h:
        if answer == "an_earlier_answer":
            await h.request(script=ok("earlier"), stream=stream)
            assert h.faults == {}
        result = await h.request(script=ok("plain"), stream=stream, retries=0)
        await h.settled()
        assert (result.text, result.outcome, h.faults) == ("plain", Outcome.OK, {"executor.execute": 1})
        settlement = h.settlements[-1]
        assert settlement.answered_by == settlement.attempts[-1].id
        assert settlement.usage.completion_tokens


@pytest.mark.parametrize(
    "value",
    [
        "fine",
        Status(ok="yes", summary="fine"),
        Status(ok=True, summary=None),
        Status(ok=True, summary="\ud800"),
        Status(ok=True, summary="", details=[("a", 1)]),
        Status(ok=True, summary="", details={"a": "\ud800"}),
        Status(ok=True, summary="", details={"a": float("nan")}),
    ],
)
async def test_a_wrong_status_breaks_its_own_line_only(harness, plugin, value):
    """The status page is there, says that this plugin is broken, and shows the others."""

    class Wrong:
        @hookimpl
        def status(self):
            return value

        @hookimpl
        def post_response(self):
            raise RuntimeError("a fault is added to the details")

    async with harness([plugin(Wrong), plugin(First)]) as h:
        await h.request(script=ok("text"))
        answer = await h.admin.get("/status")
        assert answer.status_code == 200
        rows = {row["name"]: row for row in answer.json()["plugins"]}
        assert (rows["wrong"]["ok"], rows["first"]["ok"]) == (False, True)
        assert rows["wrong"]["summary"].startswith("broken")


async def test_deployments_and_headers_of_attempts_cannot_be_changed(harness, plugin):
    """They are shared by all plugins, a deployment by all requests too."""

    class Changing:
        @hookimpl
        def select(self, candidates):
            candidates[0].deployment.info["capacity"] = 5

        @hookimpl
        def post_response(self, attempt):
            attempt.headers["x-a"] = "changed"

    seen = []

    class After:
        @hookimpl
        def post_response(self, attempt):
            seen.append((dict(attempt.headers), dict(attempt.deployment.info)))

    async with harness([plugin(Changing), plugin(After)]) as h:
        await h.request(script=ok("text", headers={"x-a": "b"}))
        assert h.faults == {"changing.select": 1, "changing.post_response": 1}
    assert seen == [({"x-a": "b"}, {})]


@pytest.mark.parametrize(
    "value",
    [
        Identity(tenant=5),
        Identity(claims=["a"]),
        Identity(claims={"a": 1}),
        Identity(models=["a"]),
        Identity(claims={f"c{n}": "a" for n in range(300)}),
        "someone",
    ],
)
async def test_a_wrong_identity_denies(harness, plugin, value):
    """What does not say who calls lets no request in."""

    class Wrong:
        @hookimpl
        async def authenticate(self):
            return value

    async with harness([plugin(Wrong)]) as h:
        assert (await h.authenticate("key")).status == 503
        assert h.faults == {"wrong.authenticate": 1}


texts = st.text(max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3) | st.tuples(x),
    max_leaves=5,
)


@given(
    st.builds(
        Route,
        target=anything,
        labels=anything,
        fallbacks=anything,
        executor=anything,
        executes_fallbacks=anything,
        headers=anything,
        target_headers=anything,
        reservations=anything | st.tuples(st.builds(Reservation, plugin=texts, id=anything, expires_at=anything)),
    )
)
def test_whatever_a_route_holds_it_is_fit_for_the_journal_or_refused(value):
    """What passes can be written and read back; everything else is a ``TypeError`` or a ``ValueError`` of the check."""
    try:
        route = returned_values.route("p", Route(target="chat"), value, {}, executors={})
    except (TypeError, ValueError):
        return
    adapter = TypeAdapter(Route)
    text = json.dumps(adapter.dump_python(route, mode="json", warnings="error"), allow_nan=False)
    text.encode()
    assert adapter.validate_python(json.loads(text)) == route


def test_names_of_headers_that_are_too_long_are_not_remembered():
    """A plugin may pass on those of a client."""
    field_checks._header_name.cache_clear()
    with pytest.raises(ValueError, match="100000 characters"):
        field_checks.added_headers("headers", {}, {"x" * 100_000: "1"})
    assert field_checks._header_name.cache_info().currsize == 0
