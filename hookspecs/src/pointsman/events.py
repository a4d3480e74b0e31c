"""What single plugins announce to the others: the values by which they meet.

A plugin announces with ``services.publish`` and hears in the hook ``on_event``. An event is delivered within the worker
in which it was announced, or in all of them where its class says ``everywhere``. A third-party plugin defines its own events in the same way, from ``pointsman.types.Event``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from .frozen import quick
from .types import Event, Price

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something that an operator should read: a line of the log, and a message to the webhooks of ``notify``.

    The host writes and sends it; plugins may hear it. Changes of breakers and rollouts become notices by themselves.

    Attributes:
        kind: What it is about, in lower case: ``exhausted``, ``limit``, ``gate``, ``dead_letters``. ``notify`` chooses by it.
        subject: Whose state it is about: a deployment, a tenant's limit, an experiment, a sink. Within a minute, the same
            text about the same subject is sent once, by one of the workers.
        text: What has happened, why, and what comes next. No secrets, no prompts.
        level: How bad it is.
        at: Unix seconds.
        logged: Whether the plugin has written it to the log itself.
    """

    kind: str
    subject: str
    text: str
    at: float
    level: Level = "warning"
    logged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRequested(Event):
    """A request that a registered version becomes the active one.

    Attributes:
        name: The registered model name.
        version_id: The version.
        who: The person or plugin that asks.
        reason: Why, for the history.
    """

    name: str
    version_id: str
    who: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionActivated(Event):
    """A registered version has become the active one (None: the name has no active version any more)."""

    name: str
    version_id: str | None
    previous_id: str | None
    who: str
    reason: str = ""


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpent(Event):
    """Money was spent on behalf of a tenant, as a billing plugin prices it: overrides and margins included.

    Announced once for each settled request that made attempts, 0 included, and once for each call of our own that cost
    something. After a crash it can come again, with the same request id.

    Attributes:
        tenant: The tenant that pays.
        cost_usd_micros: How much, rounded to micro-dollars.
        amount_usd: How much, exactly; budgets add this up. None: only the rounded amount is known.
        at: Unix seconds.
        request_id: The client request, or the call of our own; empty when it belongs to none.
        settled: Whether it belongs to a client request, whose settlement every plugin gets.
    """

    tenant: str
    cost_usd_micros: int
    at: float
    request_id: str = ""
    settled: bool = False
    amount_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TariffRule:
    """What some attempts cost, or by how much more their tenant pays. An empty field applies to all.

    Attributes:
        tenants: Tenants, as patterns with * ? and [...].
        models: Models, as such patterns; compared with the requested model, the model group and the provider's model.
        kinds: Kinds of attempts.
        price: Their unit prices; None: the gateway's.
        margin_ratio: What the tenant pays in addition, as a part of the cost.
    """

    tenants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    price: Price | None = None
    margin_ratio: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TariffAnnounced(Event):
    """What a billing plugin charges, announced when it starts: what will be announced as ``BudgetSpent`` follows it.

    Attributes:
        prices: Rules with a price; the first that applies replaces the gateway's prices.
        margins: Rules with a margin; the first that applies counts.
    """

    prices: tuple[TariffRule, ...] = ()
    margins: tuple[TariffRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetsLost(Event):
    """The store has lost what budgets had spent. A plugin that knows it announces ``PastSpending``.

    Attributes:
        life: The store's time since then, see ``StoreEmptied``.
        at: Unix seconds at which it was noticed. What ends later is counted as ever.
        day_began: Unix seconds at which the present day of the budgets began.
        month_began: The same of the month.
        since: Unix seconds since which what was spent is lost; 0: all of it is.
    """

    life: str
    at: float
    day_began: float
    month_began: float
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What was spent in a time.

    Attributes:
        tokens: Tokens of answers to clients.
        cost_usd: What they cost.
        amount_usd: What their tenant pays for them, margins included.
    """

    tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    amount_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spender:
    """Whose spending it was.

    Attributes:
        tenant: The tenant that pays.
        key: The name of the caller's key; empty when there was none.
        model: The model that clients asked for.
        own: Whether it was spent by calls of our own, such as mirrors.
    """

    tenant: str
    key: str
    model: str
    own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSpending(Event):
    """The answer to ``BudgetsLost``: what was spent before, as far as one place knows it.

    Attributes:
        asked: What it answers.
        place: An id of the place that knows it, such as a machine's outbox. Others know the rest.
        months: Since the beginning of the month.
        days: The part of it since the beginning of the day.
    """

    asked: BudgetsLost
    place: str
    months: Mapping[Spender, Spending]
    days: Mapping[Spender, Spending]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Event):
    """A circuit breaker of one model group and deployment changed its state."""

    group: str
    deployment_id: str
    state: str
    reason: str
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutChanged(Event):
    """An experiment has changed: a step, a pause, a promotion, a rollback, a weight, ...

    Announced once, in the worker that made the change.

    Attributes:
        experiment: Its name.
        model: The model name that clients ask for.
        what: The kind of change, as in the audit trail.
        who: A person, ``canary`` itself or ``webhook:<name>``.
        reason: Why.
        at: Unix seconds.
        phase: running, paused, promoted or rolled_back, afterwards.
        weights_percent: Arm to its weight afterwards; stable has the rest.
        analysis: The findings that decided it, as JSON: arm to a list with metric, verdict, samples and figures.
    """

    experiment: str
    model: str
    what: str
    who: str
    reason: str
    at: float
    phase: str
    weights_percent: Mapping[str, float]
    analysis: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorGraduated(Event):
    """A mirror has shown enough and was ended; these are its figures.

    Announced once, in the worker that made the change.

    Attributes:
        mirror: Its name.
        model: The model name that clients ask for, or ``*``.
        challenger: The model group or deployment id that was compared.
        version_id: The registered version it is, or None.
        who: The person who ended it.
        reason: Why.
        at: Unix seconds.
        pairs: How many requests were answered by both and compared.
        confidence_ratio: Of each interval, 0 to 1, at all times together.
        figures: Metric to ``mean``, ``low``, ``high`` and ``count``; differences are challenger minus champion.
    """

    mirror: str
    model: str
    challenger: str
    version_id: str | None
    who: str
    reason: str
    at: float
    pairs: int
    confidence_ratio: float
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyChanged(Event):
    """A local model was loaded or evicted, could not be, or its state was not as expected.

    Announced once, in the worker that acted.

    Attributes:
        pool: The pool.
        model: The model's name in it.
        what: ``loaded``, ``evicted``, ``failed`` or ``repaired``.
        reason: Why.
        at: Unix seconds.
    """

    pool: str
    model: str
    what: str
    reason: str
    at: float
