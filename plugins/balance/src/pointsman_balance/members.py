"""All deployments this worker has seen, each with its load and its breaker. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .breaker import Breaker
from .load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pointsman.plugin import Prices
    from pointsman.types import Deployment, Price, Signal

    from .config import BalanceConfig, BreakerConfig
    from .policies import Policies

#: A blend of prices: an answer has about a third as many tokens as its prompt.
INPUT_PART, OUTPUT_PART = 0.75, 0.25
PRICE_S = 60.0


class Member:
    """One deployment in one model group.

    Attributes:
        key: Model group and deployment id.
        deployment: As it was last seen.
        load: What runs on it.
        breaker: Its circuit breaker.
        capacity: What it can take, in whatever unit the group uses, or None.
        price_usd: Of a token, blended over input and output, or None.
        seen_at: Unix seconds.
    """

    __slots__ = (
        "_headroom",
        "_headroom_of",
        "_headroom_until",
        "breaker",
        "capacity",
        "deployment",
        "key",
        "label",
        "label_score",
        "load",
        "price_at",
        "price_usd",
        "seen_at",
    )

    def __init__(self, deployment: Deployment, load: Load, breaker: Breaker) -> None:
        self.key = (deployment.group, deployment.id)
        # Its part of the text of a note that names all candidates: one filling in of all scores takes half as long as
        # making a text for each.
        self.label = deployment.id.replace("%", "%%")
        self.label_score = f"{self.label} %.3g"
        self.deployment = deployment
        self.load = load
        self.breaker = breaker
        self.capacity = capacity_of(deployment)
        self.price_usd: float | None = None
        self.price_at = float("-inf")
        self.seen_at = 0.0
        self._headroom: float | None = None
        self._headroom_of: Signal | None = None
        self._headroom_until = 0.0

    def headroom_ratio(self, signal: Signal, now: float) -> float | None:
        """Return what is left of the scarcest quota that a signal tells, 0 to 1; None when it tells none."""
        if signal is self._headroom_of and now < self._headroom_until:
            return self._headroom
        lowest: float | None = None
        until = float("inf")
        for limit in signal.limits:
            remaining = limit.remaining_at(now)
            if limit.resets_at is not None and now < limit.resets_at < until:
                until = limit.resets_at
            if limit.limit and limit.limit > 0.0 and remaining is not None:
                ratio = max(0.0, min(1.0, remaining / limit.limit))
                if lowest is None or ratio < lowest:
                    lowest = ratio
        self._headroom, self._headroom_of, self._headroom_until = lowest, signal, until
        return lowest

    @property
    def idle(self) -> bool:
        """Whether nothing runs on it and nothing stands against it."""
        return not self.load.in_flight and self.breaker.healthy


class Members:
    """The members, by model group and deployment id.

    Args:
        config: The plugin's configuration.
        policies: The settings of each model group.
        introduced: Called with every new member.
    """

    def __init__(
        self, config: BalanceConfig, policies: Policies, introduced: Callable[[Member], None] = lambda _: None
    ) -> None:
        self._config = config
        self._introduced = introduced
        self._policies = policies
        self._all: dict[tuple[str, str], Member] = {}
        self.forgotten = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def most(self) -> int:
        """How many are remembered at most."""
        return self._config.max_deployments

    def find(self, group: str, deployment_id: str) -> Member | None:
        """Return a member that has been seen, or None."""
        return self._all.get((group, deployment_id))

    def of(self, deployment: Deployment, now: float) -> Member:
        """Return a deployment's member; a new one when it has not been seen before."""
        member = self._all.get((deployment.group, deployment.id))
        if member is None:
            config = self._config
            rules = self._policies.breaker(deployment.group)
            member = Member(deployment, Load(config.tau_s, config.stale_s), Breaker(rules))
            member.seen_at = now
            self._all[member.key] = member
            self._make_room(member)
            self._introduced(member)
        elif member.deployment is not deployment:
            member.deployment, member.capacity = deployment, capacity_of(deployment)
            member.price_at = float("-inf")
        member.seen_at = now
        return member

    def apply(self) -> None:
        """Give every breaker the present settings of its model group."""
        for member in self._all.values():
            rules: BreakerConfig = self._policies.breaker(member.key[0])
            if not rules.enabled and not member.breaker.healthy:
                member.breaker.reset(member.breaker.changed_at)
            member.breaker.rules = rules

    def _make_room(self, newest: Member) -> None:
        excess = len(self._all) - self._config.max_deployments
        if excess <= 0:
            return
        # A tenth more than needed goes, so that a flood of new names does not sort all of them each time.
        others = [member for member in self._all.values() if member is not newest]
        others.sort(key=lambda member: (not member.idle, member.seen_at))
        for member in others[: excess + self._config.max_deployments // 10]:
            if len(self._all) <= self._config.max_deployments and not member.idle:
                break
            del self._all[member.key]
            self.forgotten += 1


def price_of(member: Member, prices: Prices, now: float) -> float | None:
    """Return what a token costs there, in US dollars; looked up once a minute."""
    if now - member.price_at > PRICE_S:
        member.price_at, member.price_usd = now, blended(prices.get(member.deployment))
    return member.price_usd


def blended(price: Price) -> float | None:
    """Return one price for a token, or None when the gateway's cost map does not know it."""
    if price.input_usd is None:
        return None
    output = price.input_usd if price.output_usd is None else price.output_usd
    return float(price.input_usd) * INPUT_PART + float(output) * OUTPUT_PART


def capacity_of(deployment: Deployment) -> float | None:
    """Return what a deployment can take: ``model_info.capacity``, else its requests, else its tokens a minute."""
    value = deployment.info.get("capacity")
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    return float(deployment.rpm or deployment.tpm or 0) or None
