"""Reads the events of OpenAI's websocket protocols, realtime and responses, on their way. Pure, and total as ``request_values`` is.

LiteLLM translates other providers' protocols into these, so what passes between client and gateway is always one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..types import AttemptError, Endpoint, ErrorClass, Usage
from .answers import finish_reason, finish_reasons
from .usage import Account
from .usage_blocks import Reading

ASKS: Final = "response.create"
BEGUN: Final = "response.created"
ENDED: Final = frozenset({"response.done", "response.completed", "response.incomplete", "response.failed"})
TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
ERROR: Final = "error"
#: What makes a realtime provider answer by itself, once it hears that the speaker has ended.
HEARD: Final = frozenset({"input_audio_buffer.append", "input_audio_buffer.commit"})
_SETTINGS: Final = frozenset(
    {
        f"{session}.{what}"
        for session in ("session", "transcription_session")
        for what in ("created", "updated", "update")
    }
)
#: What a client may name a model in.
_NAMING: Final = frozenset({ASKS, "session.update", "transcription_session.update"})

#: Fields of a session that every response of it begins with, by the field of a request that says the same.
_INHERITED: Final[Mapping[str, str]] = {
    "instructions": "instructions",
    "tools": "tools",
    "max_output_tokens": "max_output_tokens",
    "max_response_output_tokens": "max_output_tokens",
    "output_modalities": "output_modalities",
    "modalities": "output_modalities",
}
#: Lists, objects and their entries in one event; each takes some microseconds, also of those that LiteLLM reads again.
MOST_PARTS: Final = 250_000
#: Longer conversations are counted by their length.
_MOST_KEPT_CHARS: Final = 1_000_000
_CHARS_A_TOKEN: Final = 2
#: Of input, ten tokens a second at OpenAI; of output, twenty. Samples of 16 bits at 24 kHz, or of 8 bits at 8 kHz.
_INPUT_BYTES_A_TOKEN: Final = {True: 4_800, False: 800}
_OUTPUT_BYTES_A_TOKEN: Final = {True: 2_400, False: 400}
_BYTES_A_S: Final = {True: 48_000, False: 8_000}
#: The field of a response's request with the models that transcribe.
_TRANSCRIPTION: Final = "input_audio_transcription"
_SAMPLED: Final = frozenset({"audio/pcm", "pcm16"})
_MOST_CARRIED: Final = 10**9


def parse(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the event in a message of a websocket, as ASGI has it; None when it is JSON of another kind.

    Raises:
        ValueError: the message is not JSON in a text frame, or has more parts than can be read while others wait.
    """
    text = message.get("text")
    if text is None:
        raise ValueError("a frame of bytes")
    if len(text) > MOST_PARTS and sum(map(text.count, ",[{")) > MOST_PARTS:
        raise ValueError("too many parts")
    try:
        event = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return event if isinstance(event, dict) else None


def kind(event: Mapping[str, Any]) -> str:
    """Return an event's type; empty when it has none."""
    found = event.get("type")
    return found if isinstance(found, str) else ""


def named_models(event: Mapping[str, Any]) -> frozenset[str]:
    """Return the models that a client's event names, in whichever form."""
    return frozenset(str(model) for place in _settings(event) if (model := place.get("model")) is not None)


def transcribers(event: Mapping[str, Any]) -> frozenset[str]:
    """Return the models that a client's event names to transcribe what is said, in whichever form."""
    found = (part.get("model") for place in _settings(event) for part in _transcription(place))
    return frozenset(str(model) for model in found if model is not None)


def _settings(event: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the places of a client's event in which providers look for settings."""
    if kind(event) not in _NAMING:
        return ()
    return event, _object(event.get("response")), _object(event.get("session"))


def _transcription(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    heard = _object(_object(settings.get("audio")).get("input"))
    return _object(heard.get("transcription")), _object(settings.get("input_audio_transcription"))


def without_model(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's ``response.create`` without a model: the gateway puts in that of the connection."""
    found = {name: value for name, value in event.items() if name != "model"}
    if isinstance(nested := found.get("response"), Mapping):
        found["response"] = {name: value for name, value in nested.items() if name != "model"}
    return found


def response_id(event: Mapping[str, Any]) -> str:
    """Return the id of the response that an event belongs to; empty when it does not say it."""
    found = _object(event.get("response")).get("id") or event.get("response_id")
    return found if isinstance(found, str) else ""


class Conversation:
    """What a provider reads when it answers next on a websocket.

    Args:
        endpoint: ``realtime`` or ``responses``.

    Attributes:
        transcriber: The model that transcribes what is said; None while none does.
        sampled: Whether what is spoken comes as samples of 16 bits.
    """

    __slots__ = (
        "_chars",
        "_endpoint",
        "_heard",
        "_items",
        "_last",
        "_settings",
        "_sound",
        "_taken",
        "_used",
        "sampled",
        "transcriber",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._settings: dict[str, Any] = {}
        self._items: list[Any] = []
        self._chars = 0
        self._sound = 0
        #: Bytes of sound since an utterance was transcribed.
        self._heard = 0
        #: Tokens of what was added before responses that have been admitted and have not ended.
        self._taken = 0
        #: Tokens that earlier responses have read and written, and the last of these.
        self._used = 0
        self._last: str | None = None
        self.transcriber: str | None = None
        self.sampled = True

    def note(self, event: Mapping[str, Any]) -> None:
        """Take up an event, of the client or of the provider."""
        what = kind(event)
        if what in _SETTINGS:
            self._configure(_object(event.get("session")))
        elif what == "conversation.item.create":
            self._chars += len(str(event.get("item")))
            if self._chars <= _MOST_KEPT_CHARS:
                self._items.append(event.get("item"))
        elif what == "input_audio_buffer.append" and isinstance(sound := event.get("audio"), str):
            self._sound += len(sound) * 3 // 4
            self._heard += len(sound) * 3 // 4

    def transcribe_with(self, models: frozenset[str]) -> bool:
        """Note the models that a client names to transcribe what is said, if it does; return whether they are others now."""
        if not models:
            return False
        named = [{"model": model} for model in sorted(models)]
        changed: bool = named != self._settings.get(_TRANSCRIPTION)
        self._settings[_TRANSCRIPTION] = named
        return changed

    def utterance(self, event: Mapping[str, Any]) -> Usage | None:
        """Return what the transcription of an utterance used; where it is not said, the sound since the one before.

        Args:
            event: The provider's event; None is returned where nothing was heard either.
        """
        heard, self._heard = self._heard, 0
        if (said := transcription_usage(event, self.transcriber)) is not None or not heard:
            return said
        return Usage(audio_ms=heard * 1000 // _BYTES_A_S[self.sampled], model=self.transcriber, estimated=True)

    def _configure(self, session: Mapping[str, Any]) -> None:
        for theirs, ours in _INHERITED.items():
            if (value := session.get(theirs)) is not None:
                self._settings[ours] = value
        for transcription in _transcription(session):
            if isinstance(model := transcription.get("model"), str):
                self.transcriber = model
                break
        spoken = _object(_object(_object(session.get("audio")).get("output")).get("format")).get("type")
        if isinstance(form := spoken or session.get("output_audio_format"), str):
            self.sampled = form in _SAMPLED

    def take(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Return body and carried tokens of the request that the next response answers; what was added counts once as text.

        Args:
            event: The client's ``response.create``; empty where the provider answers by itself.
        """
        found = self.request(event), self.carried(event)
        if self.is_aside(event):
            return found
        # However often a client asks before it has its answer: a long text is not counted again each time.
        self._taken += self._chars // _CHARS_A_TOKEN + self._sound // _INPUT_BYTES_A_TOKEN[True]
        self._items, self._chars, self._sound = [], 0, 0
        return found

    def request(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of the request that the next response answers.

        Args:
            event: The client's ``response.create``; empty where the provider answers by itself.
        """
        own = _asked(event)
        if self._endpoint is Endpoint.RESPONSES:
            return own
        body = {**self._settings, "input": list(self._items), **own}
        if "item_reference" in str(own.get("input")):
            body["input"] = [*self._items, own["input"]]
        limit = body.get("max_output_tokens")
        if not isinstance(limit, int):  # "inf"
            body.pop("max_output_tokens", None)
        return body

    def carried(self, event: Mapping[str, Any]) -> int:
        """Return about how many tokens the provider reads in addition to the request's body: what it has kept.

        Args:
            event: As for ``request``.
        """
        if self._endpoint is Endpoint.RESPONSES:
            named = self.request(event).get("previous_response_id")
            return self._used if named and named == self._last else 0
        unkept = max(0, self._chars - _MOST_KEPT_CHARS) // _CHARS_A_TOKEN
        heard = self._sound // _INPUT_BYTES_A_TOKEN[True]
        return min(_MOST_CARRIED, self._used + self._taken + unkept + heard)

    def is_aside(self, event: Mapping[str, Any]) -> bool:
        """Return whether a response reads an input of its own in place of the conversation, which stays as it is.

        Args:
            event: As for ``request``.
        """
        return self._endpoint is Endpoint.REALTIME and _asked(event).get("input") is not None

    @property
    def used(self) -> int:
        """Tokens that earlier responses have read and written: what the provider reads again."""
        return self._used

    def answered(self, usage: Usage, response_id: str = "", *, aside: bool = False) -> None:
        """Note that a response has ended: all that came before is part of what it has read.

        Args:
            usage: What it has used.
            response_id: What the provider calls it.
            aside: It has read an input of its own, and the conversation is longer by its answer at most.
        """
        if aside:
            self._used = min(_MOST_CARRIED, self._used + max(0, usage.completion_tokens))
            return
        self._last = response_id
        self._used, self._taken = max(0, min(_MOST_CARRIED, usage.total_tokens)), 0


class ResponseReader:
    """What one response consists of, as far as it has come.

    Attributes:
        id: What the provider calls it; empty before it says it.
        begun: Whether there was content.
    """

    __slots__ = ("_account", "_final", "_sampled", "_sound", "_text", "begun", "id")

    def __init__(self, *, sampled: bool = True) -> None:
        """Begin.

        Args:
            sampled: Whether its sound is samples of 16 bits.
        """
        self._sampled = sampled
        self._account = Account()
        self._final: Mapping[str, Any] = {}
        self._text: list[str] = []
        self._sound = 0
        self.id = ""
        self.begun = False

    def add(self, event: Mapping[str, Any]) -> bool:
        """Take up an event and return whether it is the first with content."""
        what = kind(event)
        self.id = self.id or response_id(event)
        if what in ENDED:
            self._final = _object(event.get("response"))
            self._account.add({"response": self._final})
        if not what.endswith(".delta"):
            return False
        delta, first = event.get("delta"), not self.begun
        if not isinstance(delta, str) or not delta:
            return False
        self.begun = True
        if what in {"response.audio.delta", "response.output_audio.delta"}:
            self._sound += len(delta) * 3 // 4
        else:
            self._text.append(delta)
        return first

    def reading(self) -> Reading | None:
        """Return what the provider has said that was used; None before it says it."""
        return self._account.reading() if self._final else None

    @property
    def generated(self) -> str:
        """The text so far, a transcript of what is spoken included."""
        return "".join(self._text)

    @property
    def sound_tokens(self) -> int:
        """About how many tokens the sound so far is."""
        return -(-self._sound // _OUTPUT_BYTES_A_TOKEN[self._sampled])

    @property
    def model(self) -> str | None:
        """The model that has answered, where it is said."""
        return self._account.model

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why it ended, as OpenAI's chat API names it; empty when the provider does not say it."""
        reason = finish_reason(_object(self._final.get("status_details")).get("reason"))
        return finish_reasons(self._final) if reason is None else (reason,)

    @property
    def failure(self) -> AttemptError | None:
        """Why the provider says that the response failed; None when it did not."""
        if self._final.get("status") != "failed":
            return None
        details = _object(_object(self._final.get("status_details")).get("error")) or _object(self._final.get("error"))
        return _error(details)


def reported_error(event: Mapping[str, Any]) -> AttemptError:
    """Return the error that an ``error`` event reports."""
    details = _object(event.get("error")) or event
    found = _error(details)
    status = event.get("status")
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:  # noqa: PLR2004  # HTTP
        return replace(found, kind=ErrorClass.of_status(status), status=status)
    return found


def transcription_usage(event: Mapping[str, Any], model: str | None) -> Usage | None:
    """Return what the transcription of one utterance used, tokens or seconds; None where it is not said."""
    account = Account()
    account.add_block(_object(event.get("usage")))
    reading = account.reading()
    return None if reading is None else replace(reading.usage, model=model)


def concerns(event: Mapping[str, Any]) -> str:
    """Return the client's own id of the event that an ``error`` answers; empty when it names none."""
    found = _object(event.get("error")).get("event_id")
    return found if isinstance(found, str) else ""


#: Errors of providers that are about the request; all others are theirs.
_CLIENTS: Final = frozenset({"invalid_request_error", "invalid_request"})
_RATES: Final = frozenset({"insufficient_quota", "rate_limit_error", "rate_limit_exceeded"})


def _error(details: Mapping[str, Any]) -> AttemptError:
    said = {value for name in ("code", "type") if isinstance(value := details.get(name), str)}
    if said & _RATES:
        found = ErrorClass.RATE_LIMIT
    elif said & _CLIENTS:
        found = ErrorClass.CLIENT
    else:
        found = ErrorClass.SERVER
    return AttemptError(kind=found, message="the provider reports that the response failed")


def _asked(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ``response.create``, beside its type or within its ``response``.

    Providers differ in which of the two they read, so that of a field in both places the texts count together, and the
    larger number.
    """
    flat = {name: value for name, value in event.items() if name not in {"type", "event_id"}}
    nested = flat.get("response")
    if not isinstance(nested, Mapping):
        return flat
    del flat["response"]
    found = {**flat, **nested}
    for name in flat.keys() & nested.keys():
        one, other = flat[name], nested[name]
        if one == other:
            continue
        if isinstance(one, int) and isinstance(other, int):
            found[name] = max(one, other)
        elif isinstance(one, str | list | dict) and isinstance(other, str | list | dict):
            found[name] = [one, other]
    return found


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
