"""The table of header dialects: one row for each provider, and the choice of the row for a deployment.

More rows come from installed distributions, by entry point in the group ``pointsman_signals.dialects``; each names a
``Dialect`` or a sequence of them::

    [project.entry-points."pointsman_signals.dialects"]
    acme = "acme_pointsman:DIALECT"
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pointsman.plugin import Extensions, loaded

from ..parsing import parse_number
from .ietf import read_ietf
from .reader import PER_S, Axis, Dialect, Fault, Reader, clock_reset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pointsman.types import Deployment

ENTRY_POINTS: Final = "pointsman_signals.dialects"
FALLBACK: Final = "openai"

_OPENAI: Final = r"x-ratelimit-(?P<part>limit|remaining|reset)-(?P<axis>[a-z][a-z0-9_-]{0,40})"
_WINDOWED: Final = (
    r"x-ratelimit-(?P<part>limit|remaining|reset)-(?P<axis>[a-z_-]{1,30}?)"
    r"-(?:per-)?(?:(?P<count>[1-9]\d{0,5})-)?(?P<unit>second|minute|hour|day|month)"
)
_BETWEEN: Final = 1e3**0.5
_BARE: Final = r"x-ratelimit-(?P<part>limit|remaining|reset)"
_DAY_S: Final = PER_S["day"]
_MINUTE_S: Final = PER_S["minute"]


def azure_reset(text: str, now: float, axis: Axis) -> float | None:
    """Read Azure's reset, a bare number that some of its front ends write in seconds and others in milliseconds.

    The quota refills evenly over the renewal period, so the time until it is full follows from what is used; the unit
    that comes closer to it is the right one.
    """
    value = parse_number(text)
    if value is None or axis.limit is None or axis.remaining is None:
        return clock_reset(text, now, axis)
    if axis.limit <= 0 or value <= 0:
        return now
    expected_s = (axis.window_s or _MINUTE_S) * max(0.0, axis.limit - axis.remaining) / axis.limit
    # The geometric middle between seconds and milliseconds.
    return now + (value if value <= expected_s * _BETWEEN else value / 1e3)


DIALECTS: Final = (
    Dialect(
        name="openai",
        providers=("openai", "text-completion-openai", "custom_openai"),
        hosts=("api.openai.com",),
        headers=(_WINDOWED, _OPENAI, _BARE),
        axes={"": "requests"},
        source="platform.openai.com/docs/guides/rate-limits; durations such as 6m0s and 12ms. "
        "Windows in the name and headers without an axis are there for unknown providers",
    ),
    Dialect(
        name="azure",
        providers=("azure", "azure_text", "azure_ai", "github"),
        hosts=(".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com", "models.github.ai"),
        headers=(r"x-ratelimit-(?P<part>limit|remaining|reset|renewalperiod)-(?P<axis>requests|tokens)",),
        parts={"renewalperiod": "window"},
        windows_s={"requests": _MINUTE_S, "tokens": _MINUTE_S},
        reset=azure_reset,
        notes={"x-ratelimit-abusepenalty-active": "abuse_penalty"},
        source="observed answers; -1 means unknown, renewal period in seconds, a minute without one",
    ),
    Dialect(
        name="anthropic",
        providers=("anthropic", "anthropic_text"),
        hosts=("api.anthropic.com",),
        headers=(
            r"anthropic-ratelimit-(?P<axis>unified-[a-z0-9_]{1,20})-(?P<part>utilization|reset)",
            r"anthropic-ratelimit-(?P<axis>requests|(?:input-|output-)?tokens)-(?P<part>limit|remaining|reset)",
        ),
        parts={"utilization": "used_ratio"},
        windows_s={
            "requests": _MINUTE_S,
            "tokens": _MINUTE_S,
            "input_tokens": _MINUTE_S,
            "output_tokens": _MINUTE_S,
            "unified_5h": 5 * PER_S["hour"],
            "unified_7d": 7 * _DAY_S,
        },
        source="docs.anthropic.com/en/api/rate-limits: per minute, resets in RFC 3339; unified-*: subscriptions",
    ),
    Dialect(
        name="groq",
        providers=("groq",),
        hosts=("api.groq.com",),
        headers=(_OPENAI,),
        windows_s={"requests": _DAY_S, "tokens": _MINUTE_S},
        source="console.groq.com/docs/rate-limits: requests are per day, tokens per minute",
    ),
    Dialect(
        name="openrouter",
        providers=("openrouter",),
        hosts=("openrouter.ai",),
        headers=(_BARE,),
        axes={"": "requests"},
        per_account=True,
        source="openrouter.ai/docs/api-reference/limits: reset in Unix milliseconds",
    ),
    Dialect(
        name="mistral",
        providers=("mistral", "codestral", "text-completion-codestral"),
        hosts=("api.mistral.ai", "codestral.mistral.ai"),
        headers=(_WINDOWED, rf"{_BARE}-(?P<axis>requests|tokens)"),
        axes={"req": "requests"},
        notes={"x-ratelimit-tokens-query-cost": "query_cost_tokens"},
        source="observed answers: x-ratelimit-remaining-req-10-second, -tokens-minute, -tokens-month",
    ),
    Dialect(
        name="together",
        providers=("together_ai",),
        hosts=("api.together.xyz", "api.together.ai"),
        headers=(r"x-(?P<axis>ratelimit|tokenlimit)-(?P<part>limit|remaining|reset)",),
        axes={"ratelimit": "requests", "tokenlimit": "tokens"},
        windows_s={"requests": 1.0, "tokens": 1.0},
        source="docs.together.ai/docs/rate-limits: per second, reset in seconds; the dynamic pair is advice, no quota",
    ),
    Dialect(
        name="cohere",
        providers=("cohere", "cohere_chat"),
        hosts=("api.cohere.com", "api.cohere.ai"),
        headers=(
            r"x-trial-endpoint-call-(?P<part>limit|remaining)",
            r"x-endpoint-(?P<unit>month)ly-call-(?P<part>limit|remaining)",
        ),
        axes={"": "requests"},
        windows_s={"requests": _MINUTE_S},
        source="docs.cohere.com/docs/rate-limits: trial keys only; calls a minute and an endpoint, calls a month",
    ),
    Dialect(
        name="deepseek",
        providers=("deepseek",),
        hosts=("api.deepseek.com",),
        source="api-docs.deepseek.com/quick_start/rate_limit: no quota headers; retry-after is read for every dialect",
    ),
    Dialect(
        name="cerebras",
        providers=("cerebras",),
        hosts=("api.cerebras.ai",),
        headers=(_WINDOWED,),
        source="inference-docs.cerebras.ai/support/rate-limits: requests-day, tokens-minute; resets in seconds",
    ),
    Dialect(
        name="fireworks",
        providers=("fireworks_ai",),
        hosts=("api.fireworks.ai",),
        headers=(_OPENAI,),
        axes={
            "tokens-prompt": "input_tokens",
            "tokens-generated": "output_tokens",
            "tokens-cache-adjusted-prompt": "uncached_input_tokens",
        },
        windows_s={
            "requests": _MINUTE_S,
            "input_tokens": _MINUTE_S,
            "output_tokens": _MINUTE_S,
            "uncached_input_tokens": _MINUTE_S,
        },
        notes={"x-ratelimit-over-limit": "over_limit"},
        per_account=True,
        source="docs.fireworks.ai/serverless/rate-limits: tokens per minute of the account, prompt and generated",
    ),
    Dialect(
        name="ietf",
        providers=("huggingface",),
        source="draft-ietf-httpapi-ratelimit-headers; read for every dialect, here for those that write nothing else",
    ),
)


_BUILT_IN_NAMES: Final = frozenset(row.name for row in DIALECTS)


class DialectTable:
    """All rows, and the reader of each deployment.

    Args:
        dialects: Rows; a later one replaces an earlier one of the same name and its providers and hosts win.
        chosen: Name of the row by deployment id, model group or provider, as configured.
        fault: Gets what a row's own function has raised; by default it is raised.

    Raises:
        ValueError: a row is wrong.
    """

    def __init__(
        self,
        dialects: Iterable[Dialect] = DIALECTS,
        chosen: Mapping[str, str] | None = None,
        fault: Fault | None = None,
    ) -> None:
        rows = {dialect.name: dialect for dialect in dialects}
        self._readers = {name: Reader(row, read_ietf, fault) for name, row in rows.items()}
        self._providers = {provider: row.name for row in rows.values() for provider in row.providers}
        self._hosts = [(host, row.name) for row in reversed(rows.values()) for host in row.hosts]
        self._chosen = dict(chosen or {})
        self._by_host = lru_cache(maxsize=1024)(self._find_host)

    def names(self) -> list[str]:
        """Return the names of all rows."""
        return sorted(self._readers)

    def reader(self, deployment: Deployment) -> Reader:
        """Return the reader for a deployment's answers.

        The configured choice comes first, then the host of ``api_base``, then the provider; unknown ones use OpenAI's.
        """
        chosen = self._chosen
        if chosen:
            for target in (deployment.id, deployment.group, deployment.provider):
                if target in chosen:
                    return self._readers[chosen[target]]
        name = self._by_host(deployment.api_base) if deployment.api_base else None
        return self._readers[name or self._providers.get(deployment.provider, FALLBACK)]

    def _find_host(self, api_base: str) -> str | None:
        try:
            host = (urlsplit(api_base).hostname or "").lower()
        except ValueError:
            return None
        for end, name in self._hosts:
            if host == end.removeprefix(".") or host.endswith(end if end.startswith(".") else f".{end}"):
                return name
        return None


def installed_dialects(entries: Iterable[EntryPoint] | None = None) -> Extensions[Sequence[Dialect]]:
    """Return the rows of this table, each by its name, and those of installed distributions, by their entry points' names.

    What cannot be used is left out until the configuration names it.

    Args:
        entries: Entry points; by default those of the group ``pointsman_signals.dialects``.
    """
    return loaded("signals", ENTRY_POINTS, _rows, {row.name: (row,) for row in DIALECTS}, entries)


def _rows(found: object) -> Sequence[Dialect]:
    """Return the rows that an entry point names.

    Raises:
        TypeError, ValueError: they cannot be used.
    """
    rows = [found] if isinstance(found, Dialect) else found
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Dialect) for row in rows):
        raise TypeError("it must name a Dialect or a sequence of them")
    for row in rows:
        if row.name in _BUILT_IN_NAMES:
            raise ValueError(f"the dialect {row.name!r} is built in; give yours another name")
        Reader(row, read_ietf)
    return rows
