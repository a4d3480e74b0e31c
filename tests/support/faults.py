"""Some hundred ways in which a plugin can be wrong, one for each header value, between two plugins that are sound.

``lenient`` and ``strict`` do what the request's header ``x-fault-lenient`` or ``x-fault-strict`` names and nothing else; one
has ``on_failure: allow``, the other ``deny``. ``owner`` comes first and owns a label, ``witness`` comes last and remembers
which of its hooks each request has reached.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, PluginInfo, Services, hookimpl
from pointsman.errors import UpstreamError
from pointsman.plugin import OnFailure
from pointsman.types import (
    Candidate,
    Chunk,
    Denial,
    Event,
    Execution,
    Refusal,
    Reply,
    RequestContext,
    Reservation,
    Route,
    Status,
    Usage,
)

BLOCK_S: Final = 0.15
TEXT: Final = "the answer, word by word"
#: What the client gets where the plugin's policy is to deny, by the hook that failed; where a hook is not here, its fault
#: changes nothing for the client.
DENIED: Final = {
    "pre_route": 503,
    "select": 429,
    "before_attempt": 503,
    "transform_request": 503,
    "transform_response": 503,
    "transform_stream": 503,
}
ASYNC: Final = (
    "pre_route",
    "before_attempt",
    "transform_request",
    "transform_response",
    "execute",
    "settle",
    "on_event",
)
SYNC: Final = ("select", "first_token", "post_response", "on_error", "answered", "status")


class Panic(BaseException):
    """As PyO3's ``PanicException``: an exception that is not an ``Exception``."""


class UnreadableError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: For header and test.
        hook: Where.
        act: Gets the hook's arguments by name; what it returns is what the hook returns.
        counted: Whether it is a fault; otherwise the host mends it without a word.
        slow: Whether it takes real time.
        blocks: Whether it holds the event loop.
    """

    name: str
    hook: str
    act: Callable[..., Any]
    counted: bool = True
    slow: bool = False
    blocks: bool = False

    @property
    def streams(self) -> bool:
        """Whether only a streamed request reaches it."""
        return self.hook in {"first_token", "transform_stream"} or " gives chunks that " in self.name

    @property
    def plain(self) -> bool:
        """Whether only a plain request reaches the hook."""
        return self.hook == "transform_response"


def streams(fault: Fault, *, other: bool) -> bool:
    """Return whether to ask for a stream: where the hook allows both, the other way in turn."""
    return fault.streams or (other and not fault.plain)


def prescribed(strict: Fault | None, *, stream: bool) -> tuple[set[int], bool]:
    """Return the statuses that a client may get where the strict plugin has this fault, and whether the answer is whole then.

    Args:
        strict: The fault; None: there is none.
        stream: Whether the client asks for a stream.
    """
    denied = DENIED.get(strict.hook) if strict is not None and strict.counted else None
    if strict is None or denied is None or (strict.plain and stream) or (strict.streams and not stream):
        return {200}, True
    if strict.hook == "transform_stream":
        return {200, denied}, False
    return {denied}, True


def _raise(make: Callable[[], BaseException]) -> Callable[..., Any]:
    def act(**_: Any) -> Any:
        raise make()

    return act


def _give(value: Any) -> Callable[..., Any]:
    return lambda **_: value


def _route(**changes: Any) -> Callable[..., Any]:
    return lambda route, **_: replace(route, **changes)


def _holding(one: Reservation) -> Callable[..., Any]:
    return lambda route, **_: route.with_reservation(one)


def _candidates(change: Callable[[Candidate], Any]) -> Callable[..., Any]:
    return lambda candidates, **_: [change(one) for one in candidates]


def _body(**changes: Any) -> Callable[..., Any]:
    return lambda body, **_: {**body, **changes}


def _change(what: str) -> Callable[..., Any]:
    def act(**given: Any) -> None:
        owner, _, name = what.partition(".")
        value = getattr(given[owner], name) if name else given[owner]
        value["x"] = "changed"

    return act


def _block(**_: Any) -> None:
    time.sleep(BLOCK_S)


async def _hang(**_: Any) -> None:
    await asyncio.Event().wait()


async def _hold_on(**_: Any) -> None:
    """Swallow the cancellation at the deadline and go on for a while."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)


async def _wait_for_a_cancelled_task(**_: Any) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


def _cancel_the_caller(**_: Any) -> None:
    task = asyncio.current_task()
    if task is None:
        raise LookupError("no task runs")
    task.cancel()


async def _cancel_the_caller_and_wait(**_: Any) -> None:
    _cancel_the_caller()
    await asyncio.sleep(0)


async def _cancel_after_one(pieces: AsyncIterator[Any], **_: Any) -> AsyncIterator[Any]:
    yield await anext(pieces)
    _cancel_the_caller()
    yield await anext(pieces)


async def _cancelling_chunks() -> AsyncIterator[Chunk]:
    _cancel_the_caller()
    await asyncio.sleep(0)
    yield Chunk(has_content=False)


async def _break_after_one(pieces: AsyncIterator[Any], **_: Any) -> AsyncIterator[Any]:
    yield await anext(pieces)
    await anext(pieces)
    raise RuntimeError("broken")


def _after_one(make: Callable[[], BaseException]) -> Callable[..., Any]:
    async def act(pieces: AsyncIterator[Any], **_: Any) -> AsyncIterator[Any]:
        yield await anext(pieces)
        raise make()

    return act


async def _numbers() -> AsyncIterator[Any]:
    yield 5


async def _chunks(make: Callable[[], BaseException]) -> AsyncIterator[Chunk]:
    await asyncio.sleep(0)
    raise make()
    yield Chunk(has_content=False)


async def _own_chunks() -> AsyncIterator[Chunk]:
    yield Chunk(has_content=True, text="an answer of its own")


async def _foreign_chunks() -> AsyncIterator[Chunk]:
    yield Chunk(has_content=True, text="an answer to another request", raw={"choices": []})


async def _no_chunks() -> AsyncIterator[Chunk]:
    for chunk in ():
        yield chunk


def _streaming(make: Callable[[], AsyncIterator[Any]]) -> Callable[..., Any]:
    """Answer a streamed request with these chunks; leave a plain one to the gateway."""
    return lambda ctx, **_: Execution(chunks=make()) if ctx.stream else None


class Ending(dict[str, Any]):
    """Ends the process where it is read."""

    def items(self) -> Any:
        """Fail."""
        raise SystemExit(1)


class EndingList(list[Any]):
    """As above."""

    def __iter__(self) -> Any:
        """Fail."""
        raise SystemExit(1)


class NotAsynchronous:
    """A stage whose pieces cannot be awaited."""

    def __aiter__(self) -> Any:
        """Return itself."""
        return self

    def __anext__(self) -> Any:
        """Return no awaitable."""
        return 5


class _Failing:
    """A value that fails wherever it is used, once it has been read and compared."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class FailingRoute(_Failing, Route):
    """A route of a class of its own."""

    __slots__ = ()


class FailingCandidate(_Failing, Candidate):
    """As above."""

    __slots__ = ()


class FailingStatus(_Failing, Status):
    """As above."""

    __slots__ = ()


def _as(kind: type[Any]) -> Callable[[Any], Any]:
    """Return what makes a value one of a derived class."""
    return lambda value: kind(**{one.name: getattr(value, one.name) for one in fields(value)})


#: Contains itself.
ENDLESS: Final[dict[str, Any]] = {}
ENDLESS["x"] = ENDLESS


def _yielding(value: Any) -> Callable[..., Any]:
    async def act(pieces: AsyncIterator[Any], **_: Any) -> AsyncIterator[Any]:
        async for _piece in pieces:
            yield value

    return act


RAISED: Final[Mapping[str, Callable[[], BaseException]]] = {
    "exception": lambda: RuntimeError("broken"),
    "panic": lambda: Panic("broken"),
    "exit": lambda: SystemExit(1),
    "cancelled": asyncio.CancelledError,
    "unreadable": UnreadableError,
    "a group": lambda: BaseExceptionGroup("broken", [SystemExit(1), Panic("broken")]),
    "generator exit": GeneratorExit,
    "stop": StopIteration,
}
NAN: Final = math.nan
_MINE: Final = Reservation(plugin="lenient", id="one", expires_at=4e9)


def _table() -> list[Fault]:
    found = [
        Fault(f"{hook} raises {kind}", hook, _raise(make))
        for hook in (*ASYNC, "transform_stream", *SYNC)
        for kind, make in RAISED.items()
    ]
    values: dict[str, dict[str, Any]] = {
        "pre_route": {
            "a number": _give(5),
            "a dict": _give({"target": "chat"}),
            "a label that is no text": _route(labels={"arm": 5}),
            "a label with a line break": _route(labels={"arm\r\nx": "a"}),
            "a forged tenant": _route(labels={"tenant": "somebody else"}),
            "another plugin's label": _route(labels={"owned": "stolen"}),
            "a header with a line break": _route(headers={"x-a": "1\r\nset-cookie: a=b"}),
            "a header that frames the answer": _route(headers={"content-length": "5"}),
            "a header of the host": _route(headers={"x-pointsman-request-id": "forged"}),
            "headers that are no mapping": _route(headers=["x-a"]),
            "an empty target": _route(target=""),
            "a target that is no text": _route(target=5),
            "fallbacks that are a text": _route(fallbacks="spare"),
            "an executor that nobody is": _route(executor="nobody"),
            "an executor without execute": _route(executor="owner"),
            "another plugin's reservation": _holding(replace(_MINE, plugin="owner")),
            "a reservation that is a dict": _route(reservations=({"id": "x"},)),
            "a reservation of half a token": _holding(replace(_MINE, amounts={"tokens": 0.5})),
            "a reservation that never ends": _holding(replace(_MINE, expires_at=NAN)),
            "a reservation that is not JSON": _holding(replace(_MINE, data={"x": object()})),
            "a negative timeout": _route(timeout_s=-1.0),
            "a timeout that is no number": _route(timeout_s=NAN),
            "retries without end": _route(retries=10**9),
            "a header for the provider that is not listed": _route(upstream_headers={"x-secret": "1"}),
            "a denial without a status": lambda **_: Denial(status="403", message="No.", code="no"),
            "a denial that is no success": lambda **_: Denial(status=200, message="No.", code="no"),
            "a denial with half a character": _give(Denial(status=403, message="\ud800", code="no")),
            "a denial with a header of two lines": _give(
                Denial(status=403, message="No.", code="no", headers={"x-a": "1\r\nset-cookie: a=b"})
            ),
            "a reply without a body": _give(Reply()),
            "a reply that is not JSON": _give(Reply(body={"x": NAN}, pieces=({"x": NAN},))),
            "a reply with tokens that are a text": _give(
                Reply(body={}, pieces=({},), usage=Usage(prompt_tokens="many"))  # type: ignore[arg-type]
            ),
            "a reply that earns money": _give(Reply(body={}, pieces=({},), cost_usd_micros=-5)),
            "the class of a route": _give(Route),
            "a route within a generator": lambda route, **_: (one for one in [route]),
            "a header that is not Latin-1": _route(headers={"x-a": "\u6a21"}),
            "a header with unusual white space": _route(headers={"x-a": "a\x85b"}),
            "labels that end the process": _route(labels=Ending({"arm": "a"})),
            "a timeout without end": _route(timeout_s=1e300),
            "a denial with an endless wait": lambda **_: Denial(
                status=429, message="No.", code="no", retry_after_s=1e300
            ),
            "a denial with a code of two lines": _give(Denial(status=403, message="No.", code="no\r\nx-a: 1")),
            "a denial with a type of two lines": _give(Denial(status=403, message="No.", code="no", type="a\nb")),
            "a denial with a header that is not Latin-1": _give(
                Denial(status=403, message="No.", code="no", headers={"x-a": "\u6a21"})
            ),
            "a reply that contains itself": _give(Reply(body=ENDLESS, pieces=(ENDLESS,))),
            "a reply with a key that is no text": _give(Reply(body={5: 5}, pieces=({5: 5},))),  # type: ignore[dict-item]
            "a reply whose pieces are a list": _give(Reply(body={}, pieces=[{}])),  # type: ignore[arg-type]
            "a reply with headers that are a text": _give(Reply(body={}, pieces=({},), headers="x-a: 1")),  # type: ignore[arg-type]
            "the body changed": _change("ctx.body"),
            "the headers changed": _change("ctx.headers"),
            "the labels changed": _change("route.labels"),
        },
        "select": {
            "a text": _give("gpt-1"),
            "numbers": _candidates(lambda _: 5),
            "one twice": lambda candidates, **_: [candidates[0], candidates[0]],
            "a deployment of its own": _candidates(
                lambda one: replace(one, deployment=replace(one.deployment, id="mine"))
            ),
            "a deployment with another model": _candidates(
                lambda one: replace(one, deployment=replace(one.deployment, model="other"))
            ),
            "a score that is no number": _candidates(lambda one: replace(one, score=NAN)),
            "a delay that is a text": _candidates(lambda one: replace(one, delay_s="1")),
            "a negative weight": _candidates(lambda one: replace(one, weight=-1.0)),
            "a generator": lambda candidates, **_: (one for one in candidates),
            "a weight without end": _candidates(lambda one: replace(one, weight=1e300)),
            "a delay without end": _candidates(lambda one: replace(one, delay_s=1e300)),
            "a note as long as a book": _candidates(lambda one: replace(one, notes=("a" * 10**6,))),
            "a list that ends the process": lambda candidates, **_: EndingList(candidates),
            "a note that is no text": _candidates(lambda one: replace(one, notes=(5,))),
        },
        "before_attempt": {
            "a text": _give("no"),
            "a refusal that succeeds": _give(Refusal(reason="no", status=200)),
            "a refusal without a reason": lambda **_: Refusal(reason=None),
            "a refusal with an endless wait": _give(Refusal(reason="no", retry_after_s=1e300)),
            "a refusal with a code of two lines": _give(Refusal(reason="no", code="a\r\nb")),
            "the class of a refusal": _give(Refusal),
            "a refusal in the past": _give(Refusal(reason="no", retry_after_s=-1.0)),
        },
        "transform_request": {
            "a text": _give("body"),
            "another model": _body(model="expensive"),
            "other credentials": _body(api_key="sk-other"),
            "a number that is not JSON": _body(temperature=NAN),
            "bytes": _body(user=b"x"),
            "a body that contains itself": _body(user=ENDLESS),
            "a number of a million digits": _body(seed=10**1_000_000),
            "a body that ends the process": lambda body, **_: Ending(body),
            "a key that is no text": lambda body, **_: {**body, 5: 5},
            "the body changed in place": _change("body"),
        },
        "transform_response": {
            "a list": _give([]),
            "a set in it": lambda answer, **_: {**answer, "x": {1, 2}},
            "an answer that contains itself": lambda answer, **_: {**answer, "x": ENDLESS},
            "an answer that ends the process": lambda answer, **_: Ending(answer),
            "half a character": lambda answer, **_: {**answer, "x": "\ud800"},
            "the answer changed in place": _change("answer"),
        },
        "transform_stream": {
            "a list": _give([]),
            "a break after one piece": _break_after_one,
            "an exit after one piece": _after_one(lambda: SystemExit(1)),
            "a group after one piece": _after_one(lambda: BaseExceptionGroup("broken", [SystemExit(1)])),
            "a generator exit after one piece": _after_one(GeneratorExit),
            "a cancellation after one piece": _after_one(asyncio.CancelledError),
            "a piece and cancels the request": _cancel_after_one,
            "a stage that is not asynchronous": _give(NotAsynchronous()),
            "pieces that contain themselves": _yielding(ENDLESS),
            "numbers": _yielding(5),
            "nothing at all": _yielding(None),
            "pieces that are not JSON": _yielding({"x": NAN}),
        },
        "execute": {
            "a dict": _give({}),
            "an empty execution": _give(Execution()),
            "an error with an endless wait": _raise(lambda: UpstreamError("no", status=429, retry_after_s=1e300)),
            "an error with a status that is a text": _raise(lambda: UpstreamError("no", status="429")),  # type: ignore[arg-type]
            "a list of chunks": _give(Execution(chunks=[])),  # type: ignore[arg-type]
            "chunks that are numbers": _streaming(_numbers),
            "chunks that end the process": _streaming(lambda: _chunks(lambda: SystemExit(1))),
            "chunks that are closed": _streaming(lambda: _chunks(GeneratorExit)),
            "chunks that are cancelled": _streaming(lambda: _chunks(asyncio.CancelledError)),
            "chunks that cancel the request": _streaming(_cancelling_chunks),
            "chunks that the gateway did not make": _streaming(_own_chunks),
            "chunks that are from no attempt": _streaming(_foreign_chunks),
            "chunks that are none": _streaming(_no_chunks),
            "a stream whatever is asked": lambda **_: Execution(chunks=_foreign_chunks()),
        },
        "status": {
            "details that are no mapping": _give(Status(ok=True, summary="", details=[("x", 1)])),  # type: ignore[arg-type]
            "half a character": _give(Status(ok=True, summary="\ud800")),
            "a text": _give("fine"),
            "details that are not JSON": _give(Status(ok=True, summary="", details={"x": object()})),
        },
    }
    found += [Fault(f"{hook} gives {what}", hook, act) for hook, acts in values.items() for what, act in acts.items()]
    found += [
        Fault("pre_route gives a route without labels", "pre_route", _route(labels={}), counted=False),
        Fault("pre_route gives a route without reservations", "pre_route", _route(reservations=()), counted=False),
        Fault("pre_route gives a new route", "pre_route", lambda route, **_: Route(target=route.target), counted=False),
    ]
    found += [
        Fault(
            "pre_route gives a route that fails",
            "pre_route",
            lambda route, **_: _as(FailingRoute)(route),
            counted=False,
        ),
        Fault("select gives candidates that fail", "select", _candidates(_as(FailingCandidate)), counted=False),
        Fault("status gives one that fails", "status", _give(FailingStatus(ok=True, summary="")), counted=False),
    ]
    found += [Fault(f"{hook} cancels the request", hook, _cancel_the_caller) for hook in (*ASYNC, *SYNC)]
    found += [
        Fault(f"{hook} cancels the request and waits", hook, _cancel_the_caller_and_wait)
        for hook in ASYNC
        if hook != "on_event"
    ]
    for hook in ("pre_route", "before_attempt", "transform_request", "transform_response"):
        found += [
            Fault(f"{hook} hangs", hook, _hang, slow=True),
            Fault(f"{hook} waits for a cancelled task", hook, _wait_for_a_cancelled_task),
        ]
    found.append(Fault("pre_route swallows its deadline", "pre_route", _hold_on, slow=True))
    found += [
        Fault(f"{hook} blocks", hook, _block, counted=False, slow=True, blocks=True)
        for hook in ("pre_route", "select", "before_attempt", "post_response", "answered", "settle")
    ]
    return found


FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _table()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Event):
    """Lets ``on_event`` fail.

    Attributes:
        fault: Which fault.
        of: Whose.
    """

    fault: str
    of: str


class Faulty:
    """Does what the request's header names.

    Args:
        name: The plugin's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._status: Fault | None = None

    def _of(self, ctx: RequestContext) -> Fault | None:
        return FAULTS.get(ctx.headers.get(f"x-fault-{self._name}", ""))

    def _act(self, hook: str, ctx: RequestContext, **given: Any) -> Any:
        fault = self._of(ctx)
        return None if fault is None or fault.hook != hook else fault.act(ctx=ctx, **given)

    async def _await(self, hook: str, ctx: RequestContext, **given: Any) -> Any:
        answer = self._act(hook, ctx, **given)
        return await answer if asyncio.iscoroutine(answer) else answer

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Keep the services."""
        self._services = services

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Any:
        """Prepare what other hooks fail at, or fail."""
        fault = self._of(ctx)
        if fault is None:
            return None
        if fault.hook == "execute":
            return replace(route, executor=self._name)
        if fault.hook == "on_event":
            self._services.publish(Alarm(fault=fault.name, of=self._name))
        if fault.hook == "status":
            self._status = fault
        return await self._await("pre_route", ctx, route=route)

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Any:
        """Fail."""
        return self._act("select", ctx, candidates=candidates)

    @hookimpl
    async def before_attempt(self, ctx: RequestContext) -> Any:
        """Fail."""
        return await self._await("before_attempt", ctx)

    @hookimpl
    async def transform_request(self, ctx: RequestContext, body: Mapping[str, Any]) -> Any:
        """Fail."""
        return await self._await("transform_request", ctx, body=body)

    @hookimpl
    async def transform_response(self, ctx: RequestContext, answer: Mapping[str, Any]) -> Any:
        """Fail."""
        return await self._await("transform_response", ctx, answer=answer)

    @hookimpl
    def transform_stream(self, ctx: RequestContext, pieces: AsyncIterator[Mapping[str, Any]]) -> Any:
        """Fail."""
        return self._act("transform_stream", ctx, pieces=pieces)

    @hookimpl
    async def execute(self, ctx: RequestContext) -> Any:
        """Fail."""
        return await self._await("execute", ctx)

    @hookimpl
    def first_token(self, ctx: RequestContext) -> None:
        """Fail."""
        self._act("first_token", ctx)

    @hookimpl
    def post_response(self, ctx: RequestContext) -> None:
        """Fail."""
        self._act("post_response", ctx)

    @hookimpl
    def on_error(self, ctx: RequestContext) -> None:
        """Fail."""
        self._act("on_error", ctx)

    @hookimpl
    def answered(self, ctx: RequestContext) -> None:
        """Fail."""
        self._act("answered", ctx)

    @hookimpl
    async def settle(self, ctx: RequestContext) -> None:
        """Fail once: it is repeated until it succeeds."""
        if ctx.request_id not in self._failed:
            self._failed[ctx.request_id] = None
            while len(self._failed) > 1000:
                self._failed.popitem(last=False)
            await self._await("settle", ctx)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Fail."""
        if isinstance(event, Alarm) and event.of == self._name:
            FAULTS[event.fault].act()

    @hookimpl
    def status(self) -> Any:
        """Fail once."""
        fault, self._status = self._status, None
        return fault.act() if fault is not None else Status(ok=True, summary="running")


class Owner:
    """Owns a label and a reservation of every request."""

    _numbers = itertools.count()

    @hookimpl
    async def pre_route(self, route: Route) -> Route:
        """Set both."""
        mine = Reservation(plugin="owner", id=f"held-{next(self._numbers)}", expires_at=4e9, amounts={"tokens": 7})
        return route.with_labels(owned="mine").with_reservation(mine)


class Witness:
    """Remembers how often each of its hooks has been reached by each of the last requests, and how each was settled."""

    def __init__(self) -> None:
        self.seen: OrderedDict[str, Counter[str]] = OrderedDict()
        self.settled: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def _note(self, ctx: RequestContext, hook: str) -> None:
        self.seen.setdefault(ctx.request_id, Counter())[hook] += 1
        while len(self.seen) > 1000:
            self.seen.popitem(last=False)

    @hookimpl
    async def pre_route(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "pre_route")

    @hookimpl
    def select(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "select")

    @hookimpl
    async def before_attempt(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "before_attempt")

    @hookimpl
    async def transform_request(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "transform_request")

    @hookimpl
    async def transform_response(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "transform_response")

    @hookimpl
    def transform_stream(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "transform_stream")

    @hookimpl
    def first_token(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "first_token")

    @hookimpl
    def post_response(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "post_response")

    @hookimpl
    def on_error(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "on_error")

    @hookimpl
    def answered(self, ctx: RequestContext) -> None:
        """Note it."""
        self._note(ctx, "answered")

    @hookimpl
    async def settle(self, ctx: RequestContext, settlement: Any) -> None:
        """Note it, and what became of the request."""
        self._note(ctx, "settle")
        self.settled[ctx.request_id] = {
            "outcome": str(settlement.outcome),
            "status": settlement.status_code,
            "attempts": [str(attempt.outcome) for attempt in settlement.attempts],
            "labels": dict(settlement.labels),
            "reservations": [one.plugin for one in settlement.reservations],
            "denied_by": settlement.denial.plugin if settlement.denial else None,
        }
        while len(self.settled) > 1000:
            self.settled.popitem(last=False)

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Show it."""
        return [HttpRoute("/{request_id}", self._show)]

    async def _show(self, request: Request) -> JSONResponse:
        wanted = request.path_params["request_id"]
        return JSONResponse({"seen": self.seen.get(wanted, {}), "settled": self.settled.get(wanted)})


class FaultyConfig(PluginConfig):
    """Keeps it on, however often it fails."""

    suspend_after: int | None = None
    deadline_ms: int | None = 200


class StrictConfig(FaultyConfig):
    """Must see every request."""

    on_failure: OnFailure = "deny"


owner = PluginInfo(name="owner", config=PluginConfig, factory=lambda _: Owner(), labels=("owned",))
lenient = PluginInfo(name="lenient", config=FaultyConfig, factory=lambda _: Faulty("lenient"))
strict = PluginInfo(name="strict", config=StrictConfig, factory=lambda _: Faulty("strict"))
witness = PluginInfo(name="witness", config=PluginConfig, factory=lambda _: Witness())
PLUGINS: Final = (owner, lenient, strict, witness)
