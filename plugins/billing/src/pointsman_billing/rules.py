"""Which prices and which margin an attempt is charged by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pointsman.types import Attempt, Deployment, Price

from .bill import Quote
from .config import MarginRule, PriceRule, Scope

if TYPE_CHECKING:
    from pointsman.plugin import Clock, Prices

    from .config import BillingConfig

R = TypeVar("R", bound=Scope)

_MILLION: Final = Decimal(1_000_000)
#: How long a deployment's prices are good for: reading them costs more than everything else here.
_FRESH_S: Final = 60.0
_MOST_DEPLOYMENTS: Final = 10_000
_MOST_ANSWERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """What rules look at."""

    tenant: str
    models: tuple[str, ...]
    kind: str


class Rulebook(Generic[R]):
    """Rules in their order; the first that applies counts.

    Args:
        rules: The rules.
    """

    def __init__(self, rules: Sequence[R]) -> None:
        self._rules = [(rule, _patterns(rule.tenants), _patterns(rule.models), set(rule.kinds)) for rule in rules]
        self.find = lru_cache(_MOST_ANSWERS)(self._find)

    def _find(self, case: Case) -> R | None:
        for rule, tenants, models, kinds in self._rules:
            if (
                (tenants is None or tenants.fullmatch(case.tenant))
                and (models is None or any(models.fullmatch(model) for model in case.models))
                and (not kinds or case.kind in kinds)
            ):
                return rule
        return None


class Tariff:
    """Quotes for attempts.

    Args:
        config: The plugin's section.
        prices: The gateway's prices.
        clock: Time.
    """

    def __init__(self, config: BillingConfig, prices: Prices, clock: Clock) -> None:
        self._prices = prices
        self._clock = clock
        self._overrides = Rulebook[PriceRule](config.prices)
        self._margins = Rulebook[MarginRule](config.margins)
        self._trust_gateway = config.cost_from == "gateway"
        self._known: dict[str, tuple[float, Price]] = {}
        self._own = lru_cache(_MOST_ANSWERS)(price_of)

    def quote(self, tenant: str, model: str, attempt: Attempt) -> Quote:
        """Return what an attempt is charged by.

        Args:
            tenant: Who pays.
            model: The model asked for.
            attempt: The attempt.
        """
        deployment = attempt.deployment
        case = Case(tenant, (model, deployment.group, deployment.model), str(attempt.kind))
        override, margin = self._overrides.find(case), self._margins.find(case)
        return Quote(
            price=self._own(override) if override is not None else self._price(deployment),
            source="gateway" if override is None else "config",
            margin_ratio=margin.margin_ratio if margin is not None else Decimal(0),
            trust_gateway=self._trust_gateway and override is None,
        )

    def _price(self, deployment: Deployment) -> Price:
        now = self._clock.monotonic()
        known = self._known.get(deployment.id)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        price = self._prices.get(deployment)
        if len(self._known) >= _MOST_DEPLOYMENTS:
            self._known.clear()
        self._known[deployment.id] = (now, price)
        return price


def price_of(rule: PriceRule) -> Price:
    """Return a rule's prices a token."""

    def unit(value: Decimal | None) -> Decimal | None:
        return None if value is None else value / _MILLION

    return Price(
        input_usd=unit(rule.input_usd_per_million),
        output_usd=unit(rule.output_usd_per_million),
        cache_read_usd=unit(rule.cache_read_usd_per_million),
        cache_write_usd=unit(rule.cache_write_usd_per_million),
        audio_input_usd=unit(rule.audio_input_usd_per_million),
        audio_output_usd=unit(rule.audio_output_usd_per_million),
        reasoning_usd=unit(rule.reasoning_usd_per_million),
    )


def _patterns(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Return one expression for all patterns, or None where there are none."""
    return re.compile("|".join(translate(pattern) for pattern in patterns)) if patterns else None
