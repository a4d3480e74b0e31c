"""Denials and rate-limit headers. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from pointsman.text import duration
from pointsman.types import Denial

from .ledger import PICOS
from .limits import LimitName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .limits import Breach, Left
    from .scopes import Scope

#: SDKs wait up to a minute; for longer waits the response tells them not to retry.
_LONGEST_RETRY_S: Final = 60
_MICROS: Final = 1_000_000
_MARK_HEADER: Final = "x-pointsman-quota"

_UNITS: Final = {
    LimitName.REQUESTS_PER_MINUTE: "requests at once",
    LimitName.TOKENS_PER_MINUTE: "tokens at once",
    LimitName.CONCURRENT_REQUESTS: "requests in flight",
    LimitName.TOKENS_PER_DAY: "tokens a day",
    LimitName.TOKENS_PER_MONTH: "tokens a month",
    LimitName.USD_PER_DAY: "US dollars a day",
    LimitName.USD_PER_MONTH: "US dollars a month",
}
_MONEY: Final = frozenset({LimitName.USD_PER_DAY, LimitName.USD_PER_MONTH})


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request does not fit, and when to come back.

    Attributes:
        scope: Whose limit.
        breach: The limit that takes longest.
        retry_after_ms: When to come back; None if the request alone is larger than the limit.
    """

    scope: Scope
    breach: Breach
    retry_after_ms: int | None

    @property
    def mark(self) -> str:
        """Scope and limit, for headers, labels and traces."""
        return f"{self.scope.kind}/{self.breach.limit}"


def refused(breaches: Sequence[Breach], scopes: Sequence[Scope], typical_ms: int) -> Refused:
    """Choose the limit to name and the time to wait.

    Where only time decides, the wait is exact. Where requests in flight must end first, the wait is their usual duration:
    at least what time alone demands and at most their leases.

    Args:
        breaches: The limits that refuse, at least one.
        scopes: The request's scopes.
        typical_ms: Usual duration of the tenant's requests, in milliseconds.
    """

    def wait_ms(breach: Breach) -> float:
        if breach.wait_ms is None or breach.idle_wait_ms is None:
            return math.inf
        return min(breach.wait_ms, max(breach.idle_wait_ms, typical_ms))

    worst = max(breaches, key=wait_ms)
    wait = wait_ms(worst)
    return Refused(scopes[worst.scope], worst, None if wait == math.inf else int(wait))


def over_limit(why: Refused, headers: Mapping[str, str], asked: tuple[int, int]) -> Denial:
    """Return the denial of a request that does not fit.

    Args:
        why: The limit.
        headers: Rate-limit headers.
        asked: Tokens and picodollars that were to be reserved.
    """
    limit = why.breach.limit
    cap = _dollars(why.breach.cap * PICOS) if limit in _MONEY else str(why.breach.cap)
    rule = f"{limit} of {why.scope} allows {cap} {_UNITS[limit]}"
    headers = {**headers, _MARK_HEADER: f"refused; limit={why.mark}"}
    if why.retry_after_ms is None:
        wanted = f"{_dollars(asked[1])} US dollars" if limit in _MONEY else f"{asked[0]} tokens"
        return Denial(
            status=413,
            code="request_too_large",
            message=f"The request may use {wanted}, but {rule}. Lower max_tokens or shorten the prompt.",
            param="max_tokens",
            headers=headers,
        )
    retry_after_s = max(1, math.ceil(why.retry_after_ms / 1000))
    headers["retry-after-ms"] = str(max(1, why.retry_after_ms))
    if retry_after_s > _LONGEST_RETRY_S:
        headers["x-should-retry"] = "false"
    return Denial(
        status=429,
        code=f"{limit}_exceeded",
        type="rate_limit_error",
        message=f"Over the limit: {rule}. Try again in {retry_after_s} s.",
        retry_after_s=retry_after_s,
        headers=headers,
    )


def _dollars(picos: int) -> str:
    """Return picodollars as dollars, without an exponent."""
    return f"{(Decimal(picos) / PICOS / _MICROS).normalize():f}"


def limit_headers(requests: Left | None, tokens: Left | None) -> dict[str, str]:
    """Return the ``x-ratelimit-*`` headers in OpenAI's form."""
    headers = {}
    for name, axis in (("requests", requests), ("tokens", tokens)):
        if axis is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(axis.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(axis.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(axis.reset_ms / 1000)
    return headers


def would_refuse(mark: str) -> dict[str, str]:
    """Return the header that marks a request that passed only because of dry-run."""
    return {_MARK_HEADER: f"would-refuse; limit={mark}"}


def unknown_caller() -> Denial:
    """Return the denial of a caller who is not a tenant."""
    return Denial(
        status=401,
        code="unknown_tenant",
        type="authentication_error",
        message="The caller is not a tenant of this gateway. Check the API key, or ask the operator for access.",
    )


def model_not_allowed(names: Sequence[str]) -> Denial:
    """Return the denial of a model that is not on the tenant's list."""
    named = ", ".join(repr(name[:100]) for name in names[:5]) if any(names) else "a request without a model"
    return Denial(
        status=403,
        code="model_not_allowed",
        type="permission_error",
        message=f"Not allowed for this tenant: {named}. GET /v1/models lists the gateway's models; ask the operator.",
        param="model",
    )


def unpriced(model: str, service_tier: str | None = None, *, tools: bool = False) -> Denial:
    """Return the denial of a model whose price is unknown where money is limited.

    Args:
        model: The model.
        service_tier: The tier asked for, where the price may be unknown in it alone.
        tools: Whether the price is unknown of a provider's tool that the request allows, and not that of the model.
    """
    asked = "" if service_tier is None else f" in the service tier {service_tier[:40]!r}"
    if tools:
        return Denial(
            status=403,
            code="model_unpriced",
            type="permission_error",
            message=f"With model {model[:100]!r}, the price of a provider's tool that the request allows is unknown, so the "
            "request cannot be limited by money. Leave out `tools` such as web search, or let the operator set "
            "the price (`search_context_cost_per_query`, ...) or `unpriced: allow`.",
            param="tools",
        )
    return Denial(
        status=403,
        code="model_unpriced",
        type="permission_error",
        message=f"The price of model {model[:100]!r}{asked} is unknown, so its requests cannot be limited by money. The operator "
        "can set its prices (`input_cost_per_token`, ...) or `unpriced: allow`.",
        param="model",
    )


def invalid_request(message: str, param: str) -> Denial:
    """Return the denial of a request with an invalid field."""
    return Denial(status=400, code="invalid_value", message=message, param=param)
