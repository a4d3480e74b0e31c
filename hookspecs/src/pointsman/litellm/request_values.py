"""LiteLLM's objects read into the contract's values. Total: malformed input gives None or an empty value, never an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from ..frozen import FrozenDict, replace
from ..types import (
    Deployment,
    Identity,
    Usage,
    is_credential_header,
    without_credentials,
)
from .usage_blocks import read as read_usage

#: How the names begin of headers of the provider's among hidden parameters, and of LiteLLM's own.
_PREFIX: Final = "llm_provider-"
_LITELLMS: Final = "x-litellm-"
_MOST_USD: Final = 10**12
#: Headers of HTTP itself, of proxies in front and of OpenAI's client, in none of which a key is usually sent.
_ORDINARY: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "host",
        "traceparent",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "x-stainless-arch",
        "x-stainless-async",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-raw-response",
        "x-stainless-read-timeout",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-runtime-version",
    }
)
#: For requests with such headers alone the settings are asked again after this time.
_FRESH_S: Final = 10.0


class KeyHeaders:
    """The headers in which LiteLLM's settings let clients send their key to the proxy.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._asked: tuple[Mapping[str, Any] | None, float, tuple[str, ...]] = (None, 0.0, ())

    def remove(self, headers: dict[str, str], general_settings: Mapping[str, Any]) -> None:
        """Remove them from headers, whose names are lower case.

        LiteLLM resolves each setting when it is asked for, which costs as much as all the rest.
        """
        settings, at, names = self._asked
        now = self._clock()
        if settings is not general_settings or now - at >= _FRESH_S or not headers.keys() <= _ORDINARY:
            names = tuple(_key_headers(general_settings))
            self._asked = (general_settings, now, names)
        for name in names:
            headers.pop(name, None)


_KEY_HEADERS: Final = KeyHeaders()


def client_headers(raw: Iterable[tuple[bytes, bytes]], general_settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Return ASGI headers as text, lower case, without credentials.

    Args:
        raw: The headers.
        general_settings: LiteLLM's, which may name headers in which clients send their key to the proxy.
    """
    headers = request_headers(raw)
    if general_settings is not None:
        _KEY_HEADERS.remove(headers, general_settings)
    return headers


def _key_headers(general_settings: Mapping[str, Any]) -> Iterator[str]:
    named = [general_settings.get("litellm_key_header_name")]
    named += [
        (entry.get("headers") or {}).get("litellm_user_api_key")
        for entry in general_settings.get("pass_through_endpoints") or ()
        if isinstance(entry, Mapping)
    ]
    return (str(name).lower() for name in named if name)


def request_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return ASGI headers as text, lower case, without those that carry credentials by their name."""
    headers = {}
    for name_bytes, value in raw:
        name = name_bytes.decode("latin-1").lower()
        if not is_credential_header(name):
            headers[name] = value.decode("latin-1")
    return headers


def identity(key: Any, end_user: str | None, known: Identity | None) -> Identity:
    """Return the caller.

    Args:
        key: LiteLLM's ``UserAPIKeyAuth``. Its metadata is not trusted: users who may edit a key may write it.
        end_user: The user that the client names in the body.
        known: The identity from a plugin's ``authenticate``; None when LiteLLM itself authenticated the request.
    """
    role = getattr(key, "user_role", None)
    return Identity(
        tenant=known.tenant if known is not None else None,
        key_hash=getattr(key, "api_key", None) or getattr(key, "token", None),
        key_alias=getattr(key, "key_alias", None),
        user_id=known.user_id if known is not None else getattr(key, "user_id", None),
        team_id=getattr(key, "team_id", None),
        org_id=getattr(key, "org_id", None),
        end_user=end_user or getattr(key, "end_user_id", None),
        admin=str(getattr(role, "value", role)) == "proxy_admin",
        claims=known.claims if known is not None else {},
    )


def deployment_id(entry: Mapping[str, Any]) -> str:
    """Return the id of an entry of LiteLLM's ``model_list``; empty when it has none."""
    return str((entry.get("model_info") or {}).get("id") or "")


def deployment(entry: Mapping[str, Any]) -> Deployment:
    """Return one entry of LiteLLM's ``model_list`` without its secrets."""
    params = entry.get("litellm_params") or {}
    info = entry.get("model_info") or {}
    model = str(params.get("model") or "")
    provider, slash, rest = model.partition("/")
    provider = str(params.get("custom_llm_provider") or (provider if slash else "openai"))
    weight = params.get("weight")
    return Deployment(
        id=deployment_id(entry),
        group=str(entry.get("model_name") or ""),
        provider=provider,
        model=rest if slash else model,
        api_base=params.get("api_base"),
        weight=float(weight) if isinstance(weight, int | float) else 1.0,
        rpm=_whole(params.get("rpm")),
        tpm=_whole(params.get("tpm")),
        info=FrozenDict({str(k): v for k, v in info.items() if isinstance(v, str | int | float | bool)}),
    )


def deployments(entries: Sequence[Mapping[str, Any]]) -> list[Deployment]:
    """Return the entries of LiteLLM's ``model_list`` without their secrets.

    As in LiteLLM's choice, a deployment without a weight has 0 where another one of its group has a weight above 0.
    """
    found = [(deployment(entry), (entry.get("litellm_params") or {}).get("weight")) for entry in entries]
    weighted = {one.group for one, weight in found if weight is not None and one.weight > 0}
    return [
        replace(one, weight=0.0) if weight is None and one.group in weighted else one  # drained
        for one, weight in found
    ]


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def usage(source: Any) -> Usage | None:
    """Return what a usage block says, LiteLLM's or a provider's; None when it says nothing."""
    reading = read_usage(source)
    return None if reading is None else reading.usage


def response_usage(response: Any) -> Usage | None:
    """Return the usage of a whole answer."""
    return usage(response_block(response))


def response_block(response: Any) -> Any:
    """Return the usage block of a whole answer as it is; None when it has none."""
    return response.get("usage") if isinstance(response, Mapping) else getattr(response, "usage", None)


def from_cache(logging: Any) -> bool:
    """Return whether LiteLLM's response cache has answered.

    Args:
        logging: LiteLLM's logging object of the call.
    """
    details = getattr(logging, "model_call_details", None)
    found = getattr(logging, "caching_details", None)
    if isinstance(details, dict) and details.get("cache_hit") is True:
        return True
    return isinstance(found, dict) and found.get("cache_hit") is True


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
        prefixed, others = {}, {}
        try:
            for given, value in dict(source).items():
                name = str(given).lower()
                if name.startswith(_PREFIX):
                    prefixed[name.removeprefix(_PREFIX)] = str(value)
                elif not name.startswith(_LITELLMS):
                    others[name] = str(value)
        except (TypeError, ValueError):
            continue
        if found := prefixed or others:
            return without_credentials(found)
    return {}


def hidden_params(response: Any) -> Mapping[str, Any]:
    """Return what LiteLLM hides on a response object."""
    hidden = getattr(response, "_hidden_params", None)
    if type(hidden) is dict or isinstance(hidden, Mapping):
        return hidden
    return getattr(hidden, "__dict__", None) or {}


def usd_micros(cost: Any) -> int | None:
    """Return dollars as integer micro-dollars, rounded half to even, or None."""
    return round(cost * 1_000_000) if isinstance(cost, int | float) and 0 <= cost < _MOST_USD else None
