"""What an attempt costs and what its tenant pays: price and margin rules, unit prices, exact amounts.

Nothing is computed in binary floating point. An amount is exact as long as it has at most 60 digits; so are the sums of
amounts. Micro-dollars are rounded half to even from the exact amount, for people.

No attempt costs more than ten million dollars: a price or a margin that results in more is mistyped. Below that, hundreds
of thousands of attempts add up within the 64 bits that databases have for a sum.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from decimal import ROUND_HALF_EVEN, Decimal
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, NamedTuple, TypeVar

from pydantic import Field, StringConstraints

from pointsman import pricing
from pointsman.config import Section
from pointsman.events import TariffAnnounced, TariffRule
from pointsman.types import TOKEN_PRICES, Attempt, AttemptKind, Price

if TYPE_CHECKING:
    from pointsman.plugin import Prices
    from pointsman.types import Deployment, Usage

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
UsdPerMillion = Annotated[Decimal, Field(ge=0, le=10**6)]
Usd = Annotated[Decimal, Field(ge=0, le=10**4)]
R = TypeVar("R", bound="Scope")

_MOST_ANSWERS: Final = 4096

MOST_USD_MICROS: Final = 10**13
_MICROS: Final = Decimal(1_000_000)
_MOST_USD: Final = MOST_USD_MICROS / _MICROS
_ONE: Final = Decimal(1)

#: The unit prices in a ``Price``.
PRICE_FIELDS: Final = tuple(field.name for field in fields(Price) if field.name.endswith("_usd"))


class Scope(Section):
    """What a rule applies to. An empty field applies to all."""

    tenants: tuple[Pattern, ...] = Field(default=(), description="Tenants, as patterns with * ? and [...]; empty: all.")
    models: tuple[Pattern, ...] = Field(
        default=(),
        description="Models, as patterns with * ? and [...]; compared with the requested model, the model group and the "
        "provider's model; empty: all.",
    )
    kinds: tuple[AttemptKind, ...] = Field(
        default=(), description="Kinds of attempts, for example hedge or mirror; empty: all."
    )


class PriceRule(Scope):
    """Prices in US dollars, of tokens and characters per million. The first rule that applies replaces the gateway's prices."""

    input_usd_per_million: UsdPerMillion = Field(description="Tokens of the prompt.")
    output_usd_per_million: UsdPerMillion = Field(description="Tokens of the answer.")
    cache_read_usd_per_million: UsdPerMillion | None = Field(
        default=None,
        description="Tokens read from the provider's prompt cache; null: the price of other prompt tokens.",
    )
    cache_write_usd_per_million: UsdPerMillion | None = Field(
        default=None,
        description="Tokens written to the provider's prompt cache; null: the price of other prompt tokens.",
    )
    audio_input_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Audio tokens of the prompt; null: the price of other prompt tokens."
    )
    audio_output_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Audio tokens of the answer; null: the price of its other tokens."
    )
    reasoning_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Reasoning tokens; null: the price of the answer's other tokens."
    )
    cache_write_1h_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Tokens written to the provider's prompt cache for an hour; null: as other writes."
    )
    image_input_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Image tokens of the prompt; null: the price of other prompt tokens."
    )
    image_output_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Image tokens of the answer; null: the price of its other tokens."
    )
    search_usd: Usd | None = Field(
        default=None,
        description="A web search by the provider, in US dollars; null: unknown, so searches are unpriced.",
    )
    code_session_usd: Usd | None = Field(
        default=None,
        description="A sandbox in which the provider runs code for an answer, in US dollars; null: unknown, so it is unpriced.",
    )
    image_usd: Usd | None = Field(
        default=None, description="An image where no tokens are counted, in US dollars; null: unknown."
    )
    audio_second_usd: Usd | None = Field(
        default=None, description="A second of audio where no tokens are counted, in US dollars; null: unknown."
    )
    video_second_usd: Usd | None = Field(
        default=None, description="A second of video where no tokens are counted, in US dollars; null: unknown."
    )
    character_usd_per_million: UsdPerMillion | None = Field(
        default=None, description="Characters of a spoken text, in US dollars per million; null: unknown."
    )
    page_usd: Usd | None = Field(default=None, description="A page that is read, in US dollars; null: unknown.")
    search_unit_usd: Usd | None = Field(
        default=None, description="A search of a reranker, in US dollars; null: unknown."
    )
    request_usd: Usd | None = Field(
        default=None, description="A request, in addition to everything else, in US dollars; null: nothing."
    )


class MarginRule(Scope):
    """What a tenant pays in addition to the cost. The first rule that applies counts."""

    margin_ratio: Decimal = Field(
        ge=-1,
        le=1000,
        decimal_places=6,
        description="Margin as a part of the cost: 0.2 adds a fifth, 0 is the cost, -1 is free.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The prices and the margin of an attempt.

    Attributes:
        price: Unit prices; those for the size of its prompt and its service tier are taken.
        parts: Unit prices for each of ``usage.parts``; empty when it has none, or the same prices hold for all.
        configured: Unit prices of the model that the deployment names, where another model answered; None: ``price``.
        source: The origin of the prices: ``gateway`` or ``config``.
        margin_ratio: What the tenant pays in addition: 0.2 is a fifth more, -1 is free.
        trust_gateway: Take the gateway's own figure for the cost, where there is one.
        unlisted: The gateway has logged a cost of zero, and has no price of the model that answered.
    """

    price: Price
    parts: tuple[Price, ...] = ()
    configured: Price | None = None
    source: str = "gateway"
    margin_ratio: Decimal = Decimal(0)
    trust_gateway: bool = False
    unlisted: bool = False


class Case(NamedTuple):
    """The facts that rules are matched with."""

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
        self._remembered = lru_cache(_MOST_ANSWERS)(self._find)

    def find(self, case: Case) -> R | None:
        """Return the first rule that applies, or None."""
        return self._remembered(case) if self._rules else None

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
        prices: The gateway's prices.
        overrides: Price rules that replace the gateway's prices.
        margins: Margin rules.
        trust_gateway: Whether the gateway's own figure is the cost of an attempt to which no price rule applies.
    """

    def __init__(
        self,
        prices: Prices,
        *,
        overrides: Sequence[PriceRule] = (),
        margins: Sequence[MarginRule] = (),
        trust_gateway: bool = False,
    ) -> None:
        self._prices = prices
        self._overrides = Rulebook[PriceRule](overrides)
        self._for_all = _for_all(overrides)
        self._margins = Rulebook[MarginRule](margins)
        self._trust_gateway = trust_gateway
        self._own = lru_cache(_MOST_ANSWERS)(price_of)

    def quote(self, tenant: str, model: str, attempt: Attempt) -> Quote:
        """Return the prices and the margin of an attempt.

        Args:
            tenant: The paying tenant.
            model: The requested model.
            attempt: The attempt.
        """
        deployment = attempt.deployment
        case = Case(tenant, (model, deployment.group, deployment.model), str(attempt.kind))
        override, margin = self._overrides.find(case), self._margins.find(case)
        margin_ratio = margin.margin_ratio if margin is not None else Decimal(0)
        if override is not None:
            return Quote(price=self._own(override), source="config", margin_ratio=margin_ratio)
        usage = attempt.usage
        return Quote(
            price=self._prices.get(deployment, usage),
            parts=tuple(self._prices.get(deployment, part) for part in usage.parts) if usage is not None else (),
            configured=self._prices.get(deployment) if usage is not None and usage.model is not None else None,
            margin_ratio=margin_ratio,
            trust_gateway=self._trust_gateway,
            unlisted=attempt.gateway_cost_usd == 0 and usage is not None and self._is_unlisted(deployment, usage),
        )

    def _is_unlisted(self, deployment: Deployment, usage: Usage) -> bool:
        """Return whether the model that answered is one that the gateway has no price of."""
        return usage.model is not None and self._prices.get(deployment, replace(usage, is_part=True)) == Price()

    def without_price(self, deployments: Iterable[Deployment]) -> list[str]:
        """Return the ids of the deployments that have no price, or one only for half of their tokens.

        A rule for all tenants is one, too.
        """
        return sorted(
            deployment.id
            for deployment in deployments
            if not pricing.is_priced(self._prices.get(deployment), deployment.info.get("mode"))
            and not self._for_all.find(_usual(deployment.group, deployment.model))
        )


def prices_for(rules: Sequence[PriceRule], models: tuple[str, ...], tenant: str) -> bool:
    """Return whether a rule has the price of a model, by one of its names, for a tenant."""
    return Rulebook(rules).find(_usual(*models, tenant=tenant)) is not None


def _for_all(rules: Sequence[PriceRule]) -> Rulebook[PriceRule]:
    return Rulebook([rule for rule in rules if not rule.tenants])


def _usual(*models: str, tenant: str = "") -> Case:
    """Return the facts of a request's first attempt."""
    return Case(tenant, models, str(AttemptKind.PRIMARY))


def price_of(rule: PriceRule) -> Price:
    """Return a rule's prices a token."""

    def unit(value: Decimal | None) -> Decimal | None:
        return None if value is None else value / _MICROS

    return Price(
        input_usd=unit(rule.input_usd_per_million),
        output_usd=unit(rule.output_usd_per_million),
        cache_read_usd=unit(rule.cache_read_usd_per_million),
        cache_write_usd=unit(rule.cache_write_usd_per_million),
        cache_write_1h_usd=unit(rule.cache_write_1h_usd_per_million),
        audio_input_usd=unit(rule.audio_input_usd_per_million),
        audio_output_usd=unit(rule.audio_output_usd_per_million),
        image_input_usd=unit(rule.image_input_usd_per_million),
        image_output_usd=unit(rule.image_output_usd_per_million),
        reasoning_usd=unit(rule.reasoning_usd_per_million),
        search_low_usd=rule.search_usd,
        search_medium_usd=rule.search_usd,
        search_high_usd=rule.search_usd,
        code_session_usd=rule.code_session_usd,
        image_usd=rule.image_usd,
        audio_second_usd=rule.audio_second_usd,
        audio_out_second_usd=rule.audio_second_usd,
        video_second_usd=rule.video_second_usd,
        character_usd=unit(rule.character_usd_per_million),
        page_usd=rule.page_usd,
        search_unit_usd=rule.search_unit_usd,
        request_usd=rule.request_usd,
    )


def announced(overrides: Sequence[PriceRule], margins: Sequence[MarginRule]) -> TariffAnnounced:
    """Return the rules as plugins that keep budgets get them."""

    def rule(one: Scope, **fields: Any) -> TariffRule:
        return TariffRule(tenants=one.tenants, models=one.models, kinds=tuple(map(str, one.kinds)), **fields)

    return TariffAnnounced(
        prices=tuple(rule(one, price=price_of(one)) for one in overrides),
        margins=tuple(rule(one, margin_ratio=one.margin_ratio) for one in margins),
    )


def _patterns(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Return one expression for all patterns, or None where there are none."""
    return re.compile("|".join(translate(pattern) for pattern in patterns)) if patterns else None


def cost_usd(usage: Usage | None, price: Price, parts: Sequence[Price] = ()) -> Decimal | None:
    """Return what an answer cost at these prices, in US dollars.

    Args:
        usage: What was used; None: unknown.
        price: Unit prices.
        parts: Unit prices for each of ``usage.parts``, in their order; empty: ``price`` holds for all.

    Returns:
        The cost, or None when a quantity or a price that is required is unknown. At prices that are all zero the cost
        is zero, whatever was used.
    """
    if usage is None:
        return Decimal(0) if _is_free(price) else None
    if not parts:
        return pricing.cost_usd(usage, price)
    return pricing.parts_usd(usage, price, parts)


def in_force(price: Price, usage: Usage | None) -> Price:
    """Return the unit prices for a prompt of this size and a service tier, without those for others."""
    if not price.above and not price.tiers and price.for_all_tiers:
        return price
    at = price.at(0) if usage is None else price.at(usage.prompt_tokens, usage.service_tier)
    # What is not a token has the same price for all sizes and tiers.
    tokens = {name: getattr(at, name) for name in TOKEN_PRICES}
    return replace(price, above=(), tiers={}, for_all_tiers=True, **tokens)


def _is_free(price: Price) -> bool:
    known = [value for name in PRICE_FIELDS if (value := getattr(price, name)) is not None]
    return price.input_usd == 0 and price.output_usd == 0 and not any(known)


def has_token_price(price: Price) -> bool:
    """Return whether a token of the prompt or of the answer has a price."""
    return price.input_usd is not None or price.output_usd is not None


def plausible_usd(usd: Decimal | None) -> Decimal | None:
    """Return the amount, or None if it cannot be true."""
    return usd if usd is not None and usd.is_finite() and 0 <= usd <= _MOST_USD else None


def with_margin(cost: Decimal, margin_ratio: Decimal) -> Decimal:
    """Return what the tenant pays for this cost."""
    return pricing.CONTEXT.multiply(cost, pricing.CONTEXT.add(_ONE, margin_ratio)) if margin_ratio else cost


def total(amounts: Iterable[Decimal | None]) -> Decimal:
    """Return the exact sum of the amounts that are known."""
    found = Decimal(0)
    for amount in amounts:
        if amount:
            found = pricing.CONTEXT.add(found, amount)
    return found


def micros(usd: Decimal) -> int:
    """Return dollars as integer micro-dollars, rounded half to even."""
    return int(pricing.CONTEXT.multiply(usd, _MICROS).to_integral_value(ROUND_HALF_EVEN, pricing.CONTEXT))


def from_micros(usd_micros: int) -> Decimal:
    """Return micro-dollars as dollars."""
    return pricing.CONTEXT.divide(Decimal(usd_micros), _MICROS)


def decimal_text(value: Decimal) -> str:
    """Return a decimal in its shortest plain form: no exponent, no trailing zeros."""
    if not value:
        return "0"
    return f"{value.normalize(pricing.CONTEXT):f}"
