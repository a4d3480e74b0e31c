"""LiteLLM's objects read into the contract's values. Total: odd input gives None or an empty value, never an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ..types import AttemptError, Deployment, Endpoint, ErrorClass, Identity, Usage

#: LiteLLM's call types by endpoint; every other one is ``Endpoint.OTHER``.
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "acompletion": Endpoint.CHAT,
    "completion": Endpoint.CHAT,
    "anthropic_messages": Endpoint.MESSAGES,
    "aresponses": Endpoint.RESPONSES,
    "responses": Endpoint.RESPONSES,
    "aembedding": Endpoint.EMBEDDINGS,
    "embedding": Endpoint.EMBEDDINGS,
    "embeddings": Endpoint.EMBEDDINGS,
}
CREDENTIAL_HEADERS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-litellm-api-key",
        "ocp-apim-subscription-key",
        "cookie",
        "set-cookie",
    }
)
_PROVIDER_PREFIX: Final = "llm_provider-"
_MESSAGE_CHARS: Final = 300
_MOST_TOKENS: Final = 10**15
_MOST_USD: Final = 10**12
#: Errors that are about the traffic, not about what was asked or with which key: their text may be kept.
_TELLING: Final = frozenset({ErrorClass.RATE_LIMIT, ErrorClass.TIMEOUT, ErrorClass.CONNECTION})
#: A provider's word for an error, such as ``insufficient_quota``: no sentence, no key.
_CODE: Final = re.compile(r"[a-z]+(?:_[a-z]+)*", re.ASCII)
_MOST_CODE_CHARS: Final = 64
#: What may be a key or an id within a text: long, with digits.
_LONG_WORD: Final = re.compile(r"(?=[^\s'\"]*\d)[^\s'\"]{16,}")
_QUOTED: Final = re.compile(r"'[^']{8,}'|\"[^\"]{8,}\"|`[^`]{8,}`")
#: Nobody asks to come back later than after the longest quota window, a month.
_MOST_RETRY_AFTER_S: Final = 31 * 86_400.0


def request_headers(
    raw: Iterable[tuple[bytes, bytes]], extra_credentials: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Return ASGI headers as text, lower case, without credentials."""
    headers = {}
    for name_bytes, value in raw:
        name = name_bytes.decode("latin-1").lower()
        if name not in CREDENTIAL_HEADERS and name not in extra_credentials:
            headers[name] = value.decode("latin-1")
    return headers


def identity(key: Any, end_user: str | None, known: Identity | None) -> Identity:
    """Return who calls.

    Args:
        key: LiteLLM's ``UserAPIKeyAuth``. Its metadata is not trusted: whoever may edit a key may write it.
        end_user: Whom the client names in the body.
        known: What a plugin's ``authenticate`` said, or None when LiteLLM itself authenticated the request.
    """
    role = getattr(key, "user_role", None)
    return Identity(
        tenant=known.tenant if known is not None else None,
        key_hash=getattr(key, "api_key", None) or getattr(key, "token", None),
        key_alias=getattr(key, "key_alias", None),
        user_id=getattr(key, "user_id", None),
        team_id=getattr(key, "team_id", None),
        org_id=getattr(key, "org_id", None),
        end_user=end_user or getattr(key, "end_user_id", None),
        admin=str(getattr(role, "value", role)) == "proxy_admin",
        claims=known.claims if known is not None else {},
    )


def deployment(entry: Mapping[str, Any]) -> Deployment:
    """Return one entry of LiteLLM's ``model_list`` without its secrets."""
    params = entry.get("litellm_params") or {}
    info = entry.get("model_info") or {}
    model = str(params.get("model") or "")
    provider, slash, rest = model.partition("/")
    provider = str(params.get("custom_llm_provider") or (provider if slash else "openai"))
    weight = params.get("weight")
    return Deployment(
        id=str(info.get("id") or ""),
        group=str(entry.get("model_name") or ""),
        provider=provider,
        model=rest if slash else model,
        api_base=params.get("api_base"),
        weight=float(weight) if isinstance(weight, int | float) else 1.0,
        rpm=_whole(params.get("rpm")),
        tpm=_whole(params.get("tpm")),
        info={str(k): v for k, v in info.items() if isinstance(v, str | int | float | bool)},
    )


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def usage(source: Any) -> Usage | None:
    """Return the tokens of a chat, messages, responses or embeddings usage object, or None when there is none."""
    if source is None:
        return None
    get = source.get if isinstance(source, Mapping) else lambda name, default=None: getattr(source, name, default)
    prompt, completion = get("prompt_tokens"), get("completion_tokens")
    if prompt is None and completion is None:
        return _usage_of_input_output(get)
    prompt_details = _fields(get("prompt_tokens_details"))
    completion_details = _fields(get("completion_tokens_details"))
    return Usage(
        prompt_tokens=_count(prompt),
        completion_tokens=_count(completion),
        cached_tokens=_count(prompt_details.get("cached_tokens")) or _count(get("cache_read_input_tokens")),
        cache_write_tokens=_count(prompt_details.get("cache_creation_tokens"))
        or _count(get("cache_creation_input_tokens")),
        reasoning_tokens=_count(completion_details.get("reasoning_tokens")),
        audio_prompt_tokens=_count(prompt_details.get("audio_tokens")),
        audio_completion_tokens=_count(completion_details.get("audio_tokens")),
    )


def _usage_of_input_output(get: Any) -> Usage | None:
    """Anthropic counts cached tokens beside ``input_tokens``, OpenAI's responses within it."""
    inside, outside = get("input_tokens"), get("output_tokens")
    if inside is None and outside is None:
        return None
    read, written = _count(get("cache_read_input_tokens")), _count(get("cache_creation_input_tokens"))
    input_details, output_details = _fields(get("input_tokens_details")), _fields(get("output_tokens_details"))
    return Usage(
        prompt_tokens=_count(inside) + read + written,
        completion_tokens=_count(outside),
        cached_tokens=read or _count(input_details.get("cached_tokens")),
        cache_write_tokens=written,
        reasoning_tokens=_count(output_details.get("reasoning_tokens")),
    )


def _fields(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return getattr(value, "__dict__", None) or {}


def _count(value: Any) -> int:
    # What nobody can have used is kept as such, for those who judge it, but not with hundreds of digits.
    return int(min(value, _MOST_TOKENS)) if isinstance(value, int | float) and value > 0 else 0


def response_usage(response: Any) -> Usage | None:
    """Return the usage of a whole answer."""
    return usage(response.get("usage") if isinstance(response, Mapping) else getattr(response, "usage", None))


def without_usage(details: Mapping[str, Any]) -> bool:
    """Say whether the provider's own answer, in OpenAI's form, has no usage: LiteLLM puts zeros there.

    Args:
        details: What LiteLLM's logging object says of the call.
    """
    raw = details.get("original_response")
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            return False
    return isinstance(raw, Mapping) and ("choices" in raw or "data" in raw) and raw.get("usage") is None


def response_model(response: Any) -> str | None:
    """Return the model name in a whole answer."""
    model = response.get("model") if isinstance(response, Mapping) else getattr(response, "model", None)
    return model if isinstance(model, str) else None


def provider_headers(*sources: Any) -> dict[str, str]:
    """Return the provider's response headers, raw names, from the first source that has any.

    LiteLLM keeps them raw on its logging object, and with the prefix ``llm_provider-`` among hidden parameters.
    """
    for source in sources:
        if not source:
            continue
        try:
            pairs = [(str(name).lower(), str(value)) for name, value in dict(source).items()]
        except (TypeError, ValueError):
            continue
        prefixed = {n.removeprefix(_PROVIDER_PREFIX): v for n, v in pairs if n.startswith(_PROVIDER_PREFIX)}
        found = prefixed or {n: v for n, v in pairs if not n.startswith("x-litellm-")}
        if found:
            return {name: value for name, value in found.items() if name not in CREDENTIAL_HEADERS}
    return {}


def hidden_params(response: Any) -> Mapping[str, Any]:
    """Return what LiteLLM hides on a response object."""
    hidden = getattr(response, "_hidden_params", None)
    if isinstance(hidden, Mapping):
        return hidden
    return getattr(hidden, "__dict__", None) or {}


def usd_micros(cost: Any) -> int | None:
    """Return dollars as integer micro-dollars, rounded half to even, or None."""
    return round(cost * 1_000_000) if isinstance(cost, int | float) and 0 <= cost < _MOST_USD else None


_BY_STATUS: Final[Mapping[int, ErrorClass]] = {
    401: ErrorClass.AUTH,
    403: ErrorClass.AUTH,
    404: ErrorClass.NOT_FOUND,
    408: ErrorClass.TIMEOUT,
    429: ErrorClass.RATE_LIMIT,
    504: ErrorClass.TIMEOUT,
}
#: LiteLLM's exception classes whose status alone would mislead.
_BY_NAME: Final[Mapping[str, ErrorClass]] = {
    "Timeout": ErrorClass.TIMEOUT,
    "APIConnectionError": ErrorClass.CONNECTION,
    "ContentPolicyViolationError": ErrorClass.CONTENT_POLICY,
    "ContextWindowExceededError": ErrorClass.CONTEXT_WINDOW,
    "RateLimitError": ErrorClass.RATE_LIMIT,
    "AuthenticationError": ErrorClass.AUTH,
    "PermissionDeniedError": ErrorClass.AUTH,
    "MidStreamFallbackError": ErrorClass.SERVER,
}


def attempt_error(err: BaseException, headers: Mapping[str, str], now: float) -> AttemptError:
    """Return why an attempt failed, told by the exception's type and status."""
    raw = getattr(err, "status_code", None)
    status = raw if isinstance(raw, int) else None
    kind = next((_BY_NAME[c.__name__] for c in type(err).__mro__ if c.__name__ in _BY_NAME), None)
    if kind is None and status is not None:
        kind = _BY_STATUS.get(status) or (ErrorClass.SERVER if status >= 500 else ErrorClass.CLIENT)  # noqa: PLR2004  # HTTP's own limit
    return AttemptError(
        kind=kind or ErrorClass.UNKNOWN,
        status=status,
        message=_error_message(err, kind),
        retry_after_s=retry_after_s(headers, now),
    )


def _error_message(err: BaseException, kind: ErrorClass | None) -> str:
    """Return the error's type and what may be kept of its text: a provider's words may quote the prompt or a key."""
    name, code = type(err).__name__, getattr(err, "code", None)
    if isinstance(code, str) and len(code) <= _MOST_CODE_CHARS and _CODE.fullmatch(code):
        name = f"{name} ({code})"
    if kind not in _TELLING:
        return name
    text = _LONG_WORD.sub("***", _QUOTED.sub("***", str(err).partition("\n")[0]))[:_MESSAGE_CHARS]
    return f"{name}: {text}" if text else name


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return ``retry-after-ms`` or ``retry-after`` (seconds or HTTP date) in seconds from now, or None."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - now
            except (TypeError, ValueError):
                continue
        if seconds <= _MOST_RETRY_AFTER_S:
            return max(0.0, seconds)
    return None
