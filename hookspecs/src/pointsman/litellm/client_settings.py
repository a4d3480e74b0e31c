"""What clients set for their own requests: it may harm their requests, and neither deployments nor other clients. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from litellm.types.router import CredentialLiteLLMParams

from ..types import AttemptError, Denial, ErrorClass, RequestContext

_TIMEOUTS: Final = frozenset({"request_timeout", "stream_timeout", "timeout"})
_TIMEOUT_HEADERS: Final = frozenset({"x-litellm-stream-timeout", "x-litellm-timeout"})
#: They change which account, endpoint or version the provider sees.
_CONNECTION: Final = frozenset(CredentialLiteLLMParams.model_fields) | {
    "base_url",
    "deployment_id",
    "extra_headers",
    "extra_query",
    "headers",
    "organization",
    "user_config",
}
_CONNECTION_OR_TIMEOUTS: Final = _CONNECTION | _TIMEOUTS
#: LiteLLM repeats them in its errors, and an error of 2 MB keeps a worker busy for half a minute.
_REPEATED: Final = _CONNECTION | _TIMEOUTS | {"custom_llm_provider", "response_format"}
#: Longer than any credential.
MOST_SETTING_CHARS: Final = 8_192
#: Headers that LiteLLM takes for numbers, without a look at them: what they have to be.
_NUMBERS: Final[Mapping[bytes, str]] = {
    b"x-litellm-keepalive-seconds": "a number of seconds that is not negative",
    b"x-litellm-num-retries": "a whole number that is not negative",
    b"x-litellm-stream-timeout": "a number of seconds that is not negative",
    b"x-litellm-timeout": "a number of seconds that is not negative",
}
_WHOLE: Final = b"x-litellm-num-retries"
_MOST_NUMBER_CHARS: Final = 32
_RETRIES: Final = "num_retries"
#: Retries within an attempt, by the provider's SDK: plugins do not see them.
_HIDDEN_RETRIES: Final = "max_retries"


#: Fields that are looked at one by one; most requests have none of them.
SETTINGS: Final = _REPEATED | {"api_version", "extra_body", _RETRIES, _HIDDEN_RETRIES}


def _sets(body: Mapping[str, object], names: frozenset[str]) -> bool:
    # Few fields are asked of many names, not the other way round: this runs for each request.
    return not names.isdisjoint(body) and any(body.get(name) is not None for name in names)


def may_fail_alone(ctx: RequestContext) -> bool:
    """Return whether the client's settings can make an attempt fail that would succeed without them."""
    return _sets(ctx.body, _CONNECTION_OR_TIMEOUTS) or not _TIMEOUT_HEADERS.isdisjoint(ctx.headers.keys())


def blamed(error: AttemptError, ctx: RequestContext) -> AttemptError:
    """Return the error, marked when the client's settings may have caused it.

    Args:
        error: Why an attempt failed.
        ctx: The request.
    """
    timed = error.kind is ErrorClass.TIMEOUT and may_fail_alone(ctx)
    return replace(error, client_caused=True) if timed or _sets(ctx.body, _CONNECTION) else error


def too_long(data: Mapping[str, object]) -> str | None:
    """Return the name of a setting that is longer than any; None when there is none.

    Args:
        data: LiteLLM's request.
    """
    for name in sorted(_REPEATED & data.keys()):
        value = data[name]
        if isinstance(value, str):
            if len(value) > MOST_SETTING_CHARS:
                return name
        elif name in _CONNECTION and _is_longer(value, MOST_SETTING_CHARS):
            return name
    return None


def _is_longer(value: object, most: int) -> bool:
    """Return whether a value is longer than a number of characters; each of its parts counts as one more."""
    waiting, chars = [value], 0
    while waiting:
        part = waiting.pop()
        chars += 1 + (len(part) if isinstance(part, str) else 0)
        if isinstance(part, Mapping):
            chars += sum(len(str(name)) for name in part)
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        if chars + len(waiting) > most:
            return True
    return False


def misshapen(data: Mapping[str, object]) -> tuple[str, str] | None:
    """Return a setting over whose shape LiteLLM would fail with an error of the server's, and what it must be; or None.

    Args:
        data: LiteLLM's request.
    """
    for name in ("extra_headers", "headers"):
        found = data.get(name)
        if found is not None and not (
            isinstance(found, Mapping) and all(isinstance(value, str) for value in found.values())
        ):
            return name, "an object of texts"
    for name in ("extra_body", "extra_query"):
        if data.get(name) is not None and not isinstance(data[name], Mapping):
            return name, "an object"
    if isinstance(data.get("response_format"), list | int | float):
        return "response_format", "an object"
    wrong = next(
        (name for name in ("api_version", "organization") if not isinstance(data.get(name, ""), str | None)), None
    )
    return None if wrong is None else (wrong, "a text")


def cap_retries(data: dict[str, object], most: int) -> str | None:
    """Cap the retries that the client asks for; each of them is an attempt.

    Args:
        data: LiteLLM's request; changed.
        most: The most retries.

    Returns:
        The name of a field that is not a number of retries; None when all are.
    """
    for name in (_RETRIES, _HIDDEN_RETRIES):
        asked = data.get(name)
        if asked is None:
            continue
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
            return name
        data[name] = min(asked, most) if name == _RETRIES else 0
    return None


def malformed(headers: Iterable[tuple[bytes, bytes]]) -> Denial | None:
    """Return the denial of a request whose headers LiteLLM would fail over, or None.

    Args:
        headers: Those of the ASGI scope.
    """
    for name, value in headers:
        if name in _NUMBERS and not _is_number(value, whole=name == _WHOLE):
            header = name.decode()
            return Denial(
                status=400,
                code="invalid_header",
                message=f"The header {header} must be {_NUMBERS[name]}.",
                param=header,
            )
    return None


def wrong_timeout(data: Mapping[str, object]) -> str | None:
    """Return the name of a timeout that is not a number of seconds; None when all are.

    Args:
        data: LiteLLM's request.
    """
    if _TIMEOUTS.isdisjoint(data):
        return None
    found = ((name, data.get(name)) for name in sorted(_TIMEOUTS))
    return next((name for name, value in found if value is not None and not _is_number(value)), None)


def _is_number(value: object, *, whole: bool = False) -> bool:
    """Return whether a value, or what is written in it, is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | bytes):
        return False
    if isinstance(value, str | bytes) and len(value) > _MOST_NUMBER_CHARS:
        return False
    try:
        number = int(value) if whole else float(value)
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and number >= 0
