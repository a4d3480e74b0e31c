"""The state of the call that LiteLLM is working on: a client's request, or a call of our own.

LiteLLM's callbacks, its HTTP client and the ASGI layer each learn a part of it. They report to the ``Call`` in
``current_call``, never to metadata, which the client can write; only the methods here change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ..host.attempt import WENT_ON
from ..types import AttemptKind, Endpoint, Outcome
from .client_settings import may_fail_alone
from .endpoints import route_path

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import Scope

    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..types import Denial, Deployment, Identity, Refusal, Reply
    from .sockets import MeteredSocket
    from .stream import StreamReader

#: No client waits for these: their failures must not take a deployment from the clients that do.
_WITHOUT_COOLDOWN: Final = frozenset({AttemptKind.MIRROR, AttemptKind.JUDGE})

#: The providers that this process has been seen to ask: it asks them by the HTTP client that tells so.
_seen_asking: Final[set[str]] = set()
_FAILED: Final = 400


class EndedError(BaseException):
    """Ends a request at once: the middleware sends what the call keeps for its client.

    It is not an ``Exception``: LiteLLM and the providers' SDKs would retry it, fall back, put the deployment into cooldown
    and answer with a server error.
    """


class UnmeteredError(EndedError):
    """Ends a request that is not metered, before it reaches a provider, with the call's denial."""


class Call:
    """What a client's request and a call of our own have in common; an abstract class.

    Not an ``ABC``: the bridge asks at each of its steps which of the two it is, and of an ``ABC`` the answer takes ten times as long.

    Attributes:
        request_id: Ours, not LiteLLM's call id, which the client may choose.
        exchange: The exchange that its attempts belong to; None until LiteLLM has authenticated a client's request.
        told: LiteLLM's metadata of the request that the call belongs to.
        provider_headers: Headers of the provider's latest response, as the HTTP client saw them; None before it.
        failure: Why LiteLLM has logged the running attempt as failed; None when it has not.
        reader: Has read the stream of the running attempt; None before its first piece.
        gone: Whether the client went away before it had the whole answer.
        unsent_headers: Headers of the running attempt that LiteLLM forgets: they are added to what goes to its provider.
    """

    __slots__ = (
        "_made",
        "_selected",
        "exchange",
        "failure",
        "gone",
        "provider_headers",
        "reader",
        "request_id",
        "told",
        "unsent_headers",
    )

    def __init__(self, request_id: str, exchange: Exchange | None, told: Mapping[str, Any]) -> None:
        self.request_id = request_id
        self.exchange = exchange
        self.told = told
        self.provider_headers: Any = None
        self.failure: Exception | None = None
        self.reader: StreamReader | None = None
        self.gone = False
        self.unsent_headers: Mapping[str, str] = {}
        self._selected = False
        self._made: list[OpenAttempt] = []

    @property
    def running(self) -> OpenAttempt | None:
        """The attempt that LiteLLM is making for this call; None when there is none or it is closed."""
        raise NotImplementedError

    @property
    def latest(self) -> OpenAttempt | None:
        """The latest attempt that LiteLLM has made for this call, open or closed; None when there is none."""
        raise NotImplementedError

    @property
    def metadata(self) -> dict[str, Any]:
        """LiteLLM's own facts about the caller, for calls of our own on the caller's behalf.

        It puts them there itself, over whatever the client has sent.
        """
        # Of a copy, which is made in one step: LiteLLM's threads, which log, add to the original.
        return {name: value for name, value in dict(self.told).items() if name.startswith("user_api_key")}

    @property
    def cools_down(self) -> bool:
        """Whether a failure of this call may put its deployment into cooldown."""
        return True

    def select(self) -> None:
        """Note that LiteLLM has asked for candidates: the next attempt is a new one."""
        self._selected = True

    @property
    def selecting(self) -> bool:
        """Whether LiteLLM has asked for candidates of an attempt that has not begun."""
        return self._selected

    def continues(self, deployment_id: str) -> bool:
        """Return whether LiteLLM only calls itself again for the running attempt.

        Args:
            deployment_id: The deployment that LiteLLM names; empty when it names none.
        """
        running = self.running
        return running is not None and not self._selected and deployment_id in {"", running.attempt.deployment.id}

    async def begin(self, deployment: Deployment, *, fallback: bool) -> tuple[Refusal | None, OpenAttempt]:
        """Open the next attempt and run ``before_attempt``.

        Args:
            deployment: Where the attempt goes.
            fallback: LiteLLM makes it in a fallback group.
        """
        self._selected = False
        self.provider_headers = None
        self.failure = self.reader = None
        self.unsent_headers = {}
        refusal, opened = await self._begin(deployment, fallback=fallback)
        self._made.append(opened)
        return refusal, opened

    def failed_on(self, deployment_id: object) -> OpenAttempt | None:
        """Return the attempt on a deployment that LiteLLM has logged as failed; None where this call has none there.

        LiteLLM may log the failure of a stream when it has already gone on to another attempt.
        """
        waiting = [opened for opened in self._made if opened.closed and opened.awaits_cost]
        return next((o for o in (*waiting, self.latest) if o and o.attempt.deployment.id == deployment_id), None)

    async def _begin(self, deployment: Deployment, *, fallback: bool) -> tuple[Refusal | None, OpenAttempt]:
        raise NotImplementedError

    @property
    def passes_through(self) -> bool:
        """Whether the request and its answer are the provider's own, which LiteLLM only passes on."""
        return self.exchange is not None and self.exchange.ctx.endpoint is Endpoint.PASS_THROUGH

    def prepares(self) -> None:
        """Note that a request is about to go to a provider, for those whose requests are not seen on their way."""
        if (running := self.running) is not None and running.attempt.deployment.provider not in _seen_asking:
            running.sent = True

    def asks(self, origin: str = "") -> None:
        """Note that a request goes to a provider: what an earlier one was answered does not matter any more.

        Args:
            origin: Scheme, host and port of its URL.
        """
        if (running := self.running) is not None:
            _seen_asking.add(running.attempt.deployment.provider)
            running.sent = True
            running.provider_status = None
            running.abandoned += running.given_up
            running.given_up = False
            running.calls(origin)

    def gave_up(self) -> None:
        """Note that LiteLLM no longer waits for the answer to what it has sent."""
        if (running := self.running) is not None:
            running.given_up = True

    def responded(self, status: int, headers: Any, listener: object | None = None) -> None:
        """Note a provider's response.

        Args:
            status: Its status.
            headers: Its headers.
            listener: What listens to its body, of an answer or of an error; None when it says nothing of interest.
        """
        self.provider_headers = headers
        if (running := self.running) is None:
            return
        running.provider_status = status
        if listener is None:
            return
        if status < _FAILED:
            running.listeners.append(listener)
        else:
            running.refusals.append(listener)


class ClientCall(Call):
    """A client's request, from its first byte to the last of its answer.

    Attributes:
        scope: The ASGI scope.
        path: Its path below the root that the server is mounted at.
        sent: What ``bodies.noted`` has noted of the request's body; None before it was read.
        span: Its span, begun before it was authenticated; None when it has none.
        trace_id: The id of its trace, for the answer; None when it is not recorded.
        peer: The address of the other end of the connection; None when the server does not tell it.
        identity: The caller, when a plugin has authenticated it.
        caller: Whose it is: the tenant, else LiteLLM's hash of the key; empty until LiteLLM has authenticated the caller.
        admin: Whether LiteLLM has authenticated an administrator; None until it has authenticated the caller.
        denial: Why the request is refused; None while it is not.
        reply: What a plugin has answered by itself; None while none has.
        over: Whether the application is done with the request; what still runs is background work.
        status: The HTTP status sent; 0 before.
        error_type: The type of the error that LiteLLM answers a request with that was not admitted; else empty.
        asked: The model that LiteLLM is asked for; empty before admission.
        brings_fallbacks: Whether the client, or its key or team, has fallbacks of its own.
        fallbacks: What LiteLLM falls back to with this request, in its own form; None leaves the gateway's.
        fallbacks_disabled: Whether the request forbids fallbacks.
        error_headers: Headers to add to the answer if it is an error.
        followed: Whether the answer is complete later than the request, which stays open until then.
        socket: What meters the responses on a websocket; None for other requests, and where its protocol is not known.
        awaits_executor: Whether a plugin is going to answer and has not begun to: its headers are not known yet.
        executed: Whether a plugin has executed the route; it has then closed its attempts itself.
    """

    __slots__ = (
        "_arrived_at",
        "_complete",
        "_executed_first",
        "_executed_id",
        "admin",
        "asked",
        "awaits_executor",
        "brings_fallbacks",
        "caller",
        "denial",
        "error_headers",
        "error_type",
        "executed",
        "fallbacks",
        "fallbacks_disabled",
        "followed",
        "identity",
        "over",
        "path",
        "peer",
        "reply",
        "scope",
        "sent",
        "socket",
        "span",
        "status",
        "trace_id",
    )

    def __init__(self, request_id: str, scope: Scope, peer: str | None = None, span: Span | None = None) -> None:
        super().__init__(request_id, None, {})
        self._arrived_at = monotonic()
        self.scope = scope
        self.path = route_path(scope)
        self.span = span
        self.sent: Mapping[str, Any] | None = None
        self.trace_id: str | None = None
        self.peer = peer
        self.identity: Identity | None = None
        self.caller = ""
        self.admin: bool | None = None
        self.denial: Denial | None = None
        self.reply: Reply | None = None
        self.over = False
        self.status = 0
        self.error_type = ""
        self.asked = ""
        self.brings_fallbacks = False
        self.fallbacks: list[Any] | None = None
        self.fallbacks_disabled = False
        self.error_headers: Mapping[str, str] = {}
        self.followed = False
        self.socket: MeteredSocket | None = None
        self.awaits_executor = False
        self.executed = False
        self._executed_id: str | None = None
        self._executed_first: Call | None = None
        self._complete = False

    @property
    def age_s(self) -> float:
        """Seconds since the request arrived."""
        return monotonic() - self._arrived_at

    @property
    def latest(self) -> OpenAttempt | None:  # noqa: D102  # as in the base class
        return None if self.exchange is None else self.exchange.current

    @property
    def running(self) -> OpenAttempt | None:  # noqa: D102  # as in the base class
        # Written out: the bridge asks at each of its steps.
        current = None if self.exchange is None else self.exchange.current
        return None if current is None or current.attempt.outcome is not None else current

    @property
    def cools_down(self) -> bool:  # noqa: D102  # as in the base class
        return self.exchange is None or not may_fail_alone(self.exchange.ctx)

    async def _begin(self, deployment: Deployment, *, fallback: bool) -> tuple[Refusal | None, OpenAttempt]:
        assert self.exchange is not None  # noqa: S101  # an admitted request has one
        # Also for a first attempt: LiteLLM skips a group whose deployments are all in cooldown.
        kind = AttemptKind.FALLBACK if fallback else None
        return await self.exchange.begin(deployment, kind, gateway=True, key=self)

    # -- admission ----------------------------------------------------------------------------------------------------

    def arrive(self, sent: Mapping[str, Any]) -> None:
        """Note what the client has sent."""
        self.sent = sent

    def authenticated(self, identity: Identity) -> None:
        """Note the caller that a plugin has authenticated."""
        self.identity = identity

    def let_in(self, *, admin: bool, key: str) -> None:
        """Note that LiteLLM has authenticated the caller.

        Args:
            admin: It is a proxy administrator.
            key: LiteLLM's hash of the key; empty without one.
        """
        self.admin = admin
        self.caller = key if self.identity is None else self.identity.tenant or key

    def refuse(self, denial: Denial) -> None:
        """Note that the request is refused: this is its answer, whatever LiteLLM makes of it."""
        self.denial = denial

    def answer(self, reply: Reply) -> None:
        """Note that a plugin has answered by itself."""
        self.reply = reply

    def open(self, exchange: Exchange, told: Mapping[str, Any]) -> None:
        """Note that LiteLLM has authenticated the request.

        Args:
            exchange: The request's exchange.
            told: LiteLLM's metadata of the request.
        """
        self.exchange = exchange
        self.told = told

    def ask(self, model: object, fallbacks: object, *, disable_fallbacks: object) -> None:
        """Note what LiteLLM is asked for, and where it may fall back to."""
        self.asked = model if isinstance(model, str) else ""
        self.fallbacks = fallbacks if isinstance(fallbacks, list) else None
        self.fallbacks_disabled = disable_fallbacks is True

    # -- execution by a plugin ----------------------------------------------------------------------------------------

    def await_executor(self, call_id: str | None) -> None:
        """Note that a plugin is going to execute the route.

        Args:
            call_id: LiteLLM's id of the call that the plugin stands in for.
        """
        self.executor_starts()
        self._executed_id = call_id

    def is_for_executor(self, call_id: object) -> bool:
        """Return whether the call with LiteLLM's id ``call_id`` is the one that a plugin stands in for.

        A guardrail may ask a model on behalf of the same request; its call has another id.
        """
        return self._executed_id is not None and call_id == self._executed_id

    def executes_first(self, call: Call) -> None:
        """Note the first attempt of a plugin that executes the route."""
        self._executed_first = call

    def logged_as(self, call_id: object) -> Call:
        """Return the call that LiteLLM has logged under an id of its own.

        It logs the first attempt of a plugin as the client's call, and its newer versions do so in the client's context.
        """
        return self._executed_first if self._executed_first is not None and self.is_for_executor(call_id) else self

    def is_route(self, group: object) -> bool:
        """Return whether the model that LiteLLM calls is the route's own, not one that it falls back to."""
        return group == self.asked

    def executor_starts(self) -> None:
        """Note that a plugin makes the next attempt."""
        self.awaits_executor, self.executed = True, False

    def executor_answered(self) -> None:
        """Note that the plugin has begun to answer."""
        self.awaits_executor, self.executed = False, True
        self.error_headers = {}

    def gateway_attempts(self) -> None:
        """Note that the gateway makes the next attempt after all."""
        self.awaits_executor = self.executed = False
        self.error_headers = {}

    # -- the answer ---------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Note that the client has gone away; without effect once it has the whole answer."""
        self.gone = not self._complete
        if self.exchange is not None:
            self.exchange.disconnected = self.gone

    def start_answer(self, status: int) -> None:
        """Note that the answer starts with this HTTP status."""
        self.status = status

    def fail_early(self, error_type: str) -> None:
        """Note the type of the error that a request ends with before it was admitted."""
        self.error_type = error_type

    def end(self) -> None:
        """Note that the application is done with the request."""
        self.over = True

    def complete_answer(self) -> None:
        """Note that the server has the whole answer; without effect when the client has gone."""
        self._complete = not self.gone


class OwnCall(Call):
    """A call of our own: one attempt, made for a plugin.

    Attributes:
        kind: The kind of its attempt.
        labels: Labels of the attempt in addition to the route's.
        opened: Its attempt, once LiteLLM has chosen a deployment.
    """

    __slots__ = ("kind", "labels", "opened")

    def __init__(
        self, exchange: Exchange, kind: AttemptKind, *, labels: Mapping[str, str], told: Mapping[str, Any]
    ) -> None:
        super().__init__(exchange.ctx.request_id, exchange, told)
        self.kind = kind
        self.labels = labels
        self.opened: OpenAttempt | None = None

    @property
    def latest(self) -> OpenAttempt | None:  # noqa: D102  # as in the base class
        return self.opened

    @property
    def running(self) -> OpenAttempt | None:  # noqa: D102  # as in the base class
        # Written out, as above.
        return None if self.opened is None or self.opened.attempt.outcome is not None else self.opened

    @property
    def cools_down(self) -> bool:  # noqa: D102  # as in the base class
        return self.kind not in _WITHOUT_COOLDOWN

    async def _begin(self, deployment: Deployment, *, fallback: bool) -> tuple[Refusal | None, OpenAttempt]:  # noqa: ARG002  # its kind is the plugin's choice
        assert self.exchange is not None  # noqa: S101  # given to the constructor
        if self.running is not None:
            self.running.end(Outcome.ERROR, error=WENT_ON)
        refusal, self.opened = await self.exchange.begin(deployment, self.kind, labels=self.labels, key=self)
        return refusal, self.opened


#: The call that the running code works for. Tasks inherit it, so it survives LiteLLM's own task hops.
current_call: Final[ContextVar[Call | None]] = ContextVar("pointsman_call", default=None)


def client_call() -> ClientCall | None:
    """Return the client's request that the running code works for; None in a call of our own and outside of both."""
    call = current_call.get()
    return call if isinstance(call, ClientCall) else None
