"""Meters what passes on a websocket: the connection is one request, and each response on it another.

The connection's request keeps the place among concurrent requests as long as it is open, chooses the deployment, and uses
nothing. A response is admitted before the provider hears of it: when the client asks for it, or, where the provider answers
by itself, when the client sends the first sound after the last response. It is settled when its last event passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ..host.endings import refusal_denial
from ..text import printable
from ..types import AttemptError, Denial, Endpoint, ErrorClass, Outcome
from . import kept_objects, named_objects
from . import socket_events as events
from .kept_objects import Looked
from .socket_events import Conversation, ResponseReader

if TYPE_CHECKING:
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from .closing import Closer

_OK: Final = 200
_SWITCHED: Final = 101
_MOST_NAME_CHARS: Final = 200
_NOT_REACHED: Final = AttemptError(
    kind=ErrorClass.CONNECTION, message="the provider's websocket could not be opened, or was closed at once"
)


@dataclass(slots=True, eq=False)
class _Turn:
    """One response, from its admission on.

    Attributes:
        exchange: Its request.
        reader: What has come of it.
        opened: Its attempt; None before it is asked for or begins.
        asked: Whether the client has asked for it.
        event_id: The client's own id of the event that has asked for it.
        aside: Whether it reads an input of its own in place of the conversation.
        models: The models that the client names for it.
        heard: Whether it was admitted for what is said, and not only for another transcriber.
    """

    exchange: Exchange
    reader: ResponseReader
    opened: OpenAttempt | None = None
    asked: bool = False
    event_id: str = field(default="")
    aside: bool = False
    models: frozenset[str] = frozenset()
    heard: bool = True


class MeteredSocket:
    """One websocket.

    Args:
        host: Opens requests.
        closer: Closes attempts.
    """

    def __init__(self, host: Host, closer: Closer) -> None:
        self._host = host
        self._closer = closer
        self._session: Exchange | None = None
        self._conversation: Conversation
        #: What the client asked for before the connection was admitted: LiteLLM finds the model in it.
        self._early: Mapping[str, Any] | None = None
        self._waiting: list[_Turn] = []
        self._running: dict[str, _Turn] = {}
        self._left = False
        #: Whether the provider has said something: what the gateway does from then on is no attempt of its own.
        self.connected = False

    async def open(self, session: Exchange, data: dict[str, Any]) -> Denial | None:
        """Take up a connection that has been admitted; return why its first response is denied, or None.

        Args:
            session: The connection's request.
            data: LiteLLM's; what the client has asked for already is changed as later events are.
        """
        self._session = session
        self._conversation = Conversation(session.ctx.endpoint)
        early, self._early = self._early, None
        if early is None:
            return None
        looked = await self._look(early)
        if looked.denial is not None:
            return looked.denial
        if "first_message" in data:
            data["first_message"] = self.kept_to_model(early) or data["first_message"]
        self._conversation.transcribe_with(events.transcribers(early))
        return await self._ask(early, looked.carried_tokens)

    @property
    def admitted(self) -> bool:
        """Whether the connection has been admitted: where its first event names the model, it is by that."""
        return self._session is not None

    async def chosen(self) -> Denial | None:
        """Take up that a deployment has been chosen; return why it may not answer what has been asked, or None."""
        denial: Denial | None = None
        for turn in [turn for turn in self._waiting if turn.asked]:
            if turn.opened is not None and turn.opened.attempt.deployment.id != self._deployment_id:
                turn.opened = None
            denial = await self._start(turn) or denial
        return denial

    def kept_to_model(self, event: Mapping[str, Any]) -> str | None:
        """Return what is passed on in place of an event that asks for a response, without a model; None leaves it as it is.

        Where LiteLLM makes HTTP requests of a websocket's responses, it asks whatever model each of them names.

        Args:
            event: The event, which has been taken up.
        """
        session = self._session
        if session is None or session.ctx.endpoint is not Endpoint.RESPONSES or events.kind(event) != events.ASKS:
            return None
        return json.dumps(events.without_model(event))

    def left(self) -> None:
        """Note that the client has closed the connection."""
        self._left = True

    # -- what passes --------------------------------------------------------------------------------------------------

    async def received(self, event: Mapping[str, Any]) -> Denial | None:
        """Take up an event of the client's before it is passed on; return why the connection ends, or None.

        Args:
            event: The event.
        """
        what = events.kind(event)
        session = self._session
        if session is None:
            self._early = event if what == events.ASKS else self._early
            return None
        if what != events.ASKS and (denial := self._other_model(session, events.named_models(event))) is not None:
            return denial
        looked = await self._look(event)
        if looked.denial is not None:
            return looked.denial
        self._conversation.note(event)
        if (denial := await self._transcribe_with(events.transcribers(event))) is not None:
            return denial
        if what == events.ASKS:
            return await self._ask(event, looked.carried_tokens)
        if what in events.HEARD and not self._waiting:
            _, denial = await self._admit({})
            return denial
        return None

    async def sent(self, event: Mapping[str, Any]) -> Denial | None:
        """Take up an event of the provider's before it is passed on; return why the connection ends, or None.

        Args:
            event: The event.
        """
        session = self._session
        if session is None:
            return None
        what = events.kind(event)
        self._conversation.note(event)
        if what != events.ERROR:
            self._connect()
        if what == events.BEGUN:
            return await self._begin(events.response_id(event))
        if what == events.TRANSCRIBED:
            return await self._transcribed(event)
        if what == events.ERROR:
            self._failed(event)
            return None
        denial = None
        if what in events.ENDED and self._turn(event) is None:
            # It has not been announced, but has used something.
            denial = await self._begin(events.response_id(event))
        self._go_on(event)
        if what in events.ENDED and session.ctx.endpoint is Endpoint.RESPONSES:
            ids = [events.response_id(event), *named_objects.in_answer(event)]
            await kept_objects.made(self._host.owners, session.ctx, ids, self._conversation.used)
        return denial

    async def _transcribe_with(self, models: frozenset[str]) -> Denial | None:
        """Take up which models transcribe; return why they must not, or None.

        What follows is admitted with them. What was admitted before is admitted again: it may be said already.
        """
        if not self._conversation.transcribe_with(models) or not (self._waiting or self._running):
            return None
        heard = self._forget()
        turn, denial = await self._admit({})
        if turn is not None:
            turn.heard = heard
        return denial

    def _forget(self, *, unheard: bool = False) -> bool:
        """Close the response that was admitted and not asked for; return whether there was one for what is said.

        Args:
            unheard: Only one that was not admitted for what is said.
        """
        turn = next((turn for turn in self._waiting if not turn.asked), None)
        if turn is None or (unheard and turn.heard):
            return False
        self._waiting.remove(turn)
        turn.exchange.close(0)
        return turn.heard

    async def _look(self, event: Mapping[str, Any]) -> Looked:
        """Look up what a client's event names."""
        session = self._session
        assert session is not None  # noqa: S101  # the callers have looked
        tenant, endpoint = session.ctx.identity.tenant, session.ctx.endpoint
        return await kept_objects.look_at_body(self._host.owners, tenant, endpoint, event)

    def close(self) -> None:
        """End everything: the connection is closed."""
        session = self._session
        if session is None:
            return
        for turn in [*self._running.values(), *self._waiting]:
            if turn.opened is not None and not turn.opened.closed:
                self._closer.end_spoken(turn.opened, turn.reader, turn.exchange.ctx, None, cut=True)
                turn.exchange.disconnected = True
            turn.exchange.close(_OK if turn.asked else 0)
        self._running, self._waiting = {}, []
        connecting = session.current
        if connecting is not None and not connecting.closed:
            error = None if self._left else _NOT_REACHED
            connecting.end(Outcome.ERROR if error else Outcome.DISCONNECTED, error=error)

    def _connect(self) -> None:
        """End the attempt to connect, since the provider answers."""
        session = self._session
        if session is not None and (connecting := session.current) is not None and not connecting.closed:
            connecting.end(Outcome.OK, status_code=_SWITCHED)
        self.connected = True

    # -- responses ----------------------------------------------------------------------------------------------------

    async def _ask(self, event: Mapping[str, Any], known_tokens: int) -> Denial | None:
        """Take up that the client asks for a response; return why it is denied, or None.

        Args:
            event: The client's event.
            known_tokens: Those of what it goes on from, as far as they are noted.
        """
        self._forget(unheard=True)
        turn = next((turn for turn in self._waiting if not turn.asked), None)
        if turn is None:
            turn, denial = await self._admit(event, known_tokens)
            if turn is None:
                return denial
        turn.asked, own = True, event.get("event_id")
        turn.event_id = own if isinstance(own, str) else ""
        turn.aside, turn.models = self._conversation.is_aside(event), events.named_models(event)
        return await self._start(turn)

    async def _admit(self, event: Mapping[str, Any], known_tokens: int = 0) -> tuple[_Turn | None, Denial | None]:
        """Admit the next response."""
        session = self._session
        assert session is not None  # noqa: S101  # the callers have looked
        body, carried = self._conversation.take(event)
        ctx = replace(
            session.ctx,
            request_id=self._host.new_id(),
            call_id=None,
            generates=True,
            body=body,
            carried_tokens=known_tokens or carried,
            within=session.ctx.request_id,
            received_at=self._host.clock.now(),
        )
        # The running span may be the framework's, of this one message: the response goes on when that has ended.
        with self._host.tracing.current(session.span):
            exchange = self._host.open(ctx)
        try:
            denial = await exchange.admit()
        except BaseException:
            exchange.close(0)
            raise
        if denial is not None:
            exchange.close(denial.status)
            return None, denial
        exchange.keep_to(session.route)
        turn = _Turn(exchange, ResponseReader(sampled=self._conversation.sampled))
        self._waiting.append(turn)
        return turn, None

    async def _start(self, turn: _Turn) -> Denial | None:
        """Open a response's attempt; return why it is refused, or None."""
        session = self._session
        chosen = None if session is None else session.current
        if session is None or turn.opened is not None or chosen is None:
            return None
        if (other := self._other_model(session, turn.models)) is not None:
            self._waiting.remove(turn)
            turn.exchange.denial = other
            turn.exchange.close(other.status)
            return other
        refusal, turn.opened = await turn.exchange.begin(chosen.attempt.deployment, gateway=True)
        if refusal is None:
            return None
        self._waiting.remove(turn)
        denial = refusal_denial(refusal)
        turn.exchange.close(denial.status)
        return denial

    async def _begin(self, response_id: str) -> Denial | None:
        """Take up that a response begins; one that nothing was admitted for is admitted now."""
        turn = next((turn for turn in self._waiting if turn.asked), next(iter(self._waiting), None))
        if turn is None:
            turn, denial = await self._admit({})
            if turn is None:
                return denial
        if (denial := await self._start(turn)) is not None:
            return denial
        self._waiting.remove(turn)
        if (same := self._running.get(response_id)) is not None:
            self._end(same)
        self._running[response_id] = turn
        return None

    @staticmethod
    def _other_model(session: Exchange, models: Iterable[str]) -> Denial | None:
        """Return the denial of an event that names another model than that of its connection, or None."""
        chosen = None if session.current is None else session.current.attempt.deployment
        own = {session.ctx.model, session.ctx.alias, session.route.target}
        if chosen is not None:
            own |= {chosen.group, chosen.model, f"{chosen.provider}/{chosen.model}"}
        other = next((model for model in sorted(models) if model not in own), None)
        if other is None:
            return None
        return Denial(
            status=403,
            code="model_not_allowed",
            type="permission_error",
            message=f"This connection is for model {printable(session.ctx.model, _MOST_NAME_CHARS)!r}; open another one for "
            f"{printable(other, _MOST_NAME_CHARS)!r}.",
            param="model",
        )

    def _turn(self, event: Mapping[str, Any]) -> _Turn | None:
        """Return the response that an event belongs to."""
        if not events.kind(event).startswith("response."):
            return None
        found = self._running.get(events.response_id(event))
        # Events of the responses protocol do not name it: there is one at a time.
        return next(iter(self._running.values())) if found is None and len(self._running) == 1 else found

    def _go_on(self, event: Mapping[str, Any]) -> None:
        turn = self._turn(event)
        if turn is None or turn.opened is None:
            return
        if turn.reader.add(event):
            turn.opened.first_token()
        if events.kind(event) in events.ENDED:
            self._end(turn)

    def _end(self, turn: _Turn) -> None:
        self._running = {name: other for name, other in self._running.items() if other is not turn}
        assert turn.opened is not None  # noqa: S101  # it has begun
        failure = turn.reader.failure
        usage = self._closer.end_spoken(turn.opened, turn.reader, turn.exchange.ctx, failure, cut=False)
        self._conversation.answered(usage, turn.reader.id, aside=turn.aside)
        turn.exchange.answered()
        turn.exchange.close(_OK)

    def _failed(self, event: Mapping[str, Any]) -> None:
        """Take up an error: it ends what it is about, if that has not begun."""
        about = events.concerns(event)
        asked = [turn for turn in self._waiting if turn.asked]
        turn = next((turn for turn in asked if about and turn.event_id == about), None)
        if turn is None and asked and not about and not self._running:
            turn = asked[0]
        if turn is None or turn.opened is None:
            return
        self._waiting.remove(turn)
        # What went wrong is one failure, not two.
        self._connect()
        error = events.reported_error(event)
        turn.opened.end(Outcome.ERROR, error=error, status_code=error.status)
        turn.exchange.answered()
        turn.exchange.close(error.status or 400)

    async def _transcribed(self, event: Mapping[str, Any]) -> Denial | None:
        """Account for an utterance that another model has transcribed."""
        usage = self._conversation.utterance(event)
        if usage is None:
            return None
        turn = next((turn for turn in self._waiting if not turn.asked), None)
        if turn is None:
            turn, denial = await self._admit({})
            if turn is None:
                return denial
        if (denial := await self._start(turn)) is not None:
            return denial
        self._waiting.remove(turn)
        assert turn.opened is not None  # noqa: S101  # it has begun
        self._closer.end_transcription(turn.opened, usage)
        turn.exchange.answered()
        turn.exchange.close(_OK)
        return None

    @property
    def _deployment_id(self) -> str:
        session = self._session
        return "" if session is None or session.current is None else session.current.attempt.deployment.id
