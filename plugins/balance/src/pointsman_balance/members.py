"""The deployments that this worker knows, each with its load and its breaker. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .breaker import Breaker
from .load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pointsman.plugin import Prices
    from pointsman.types import Deployment, Price, Signal

    from .breaker import BreakerConfig

#: Weights of the blended price: an answer has about a third as many tokens as its prompt.
INPUT_SHARE, OUTPUT_SHARE = 0.75, 0.25
#: Seconds after which a price is looked up again.
PRICE_S = 60.0


class Member:
    """One deployment in one model group.

    Attributes:
        key: Model group and deployment id.
        deployment: The deployment as last seen.
        load: Its load.
        breaker: Its circuit breaker.
        capacity: Its capacity, in the unit that the group uses, or None.
        price_usd: Price per token, blended over input and output, or None.
        seen_at: When it was last used or listed, Unix seconds.
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
        # Its part of a note that names all candidates: one formatting of all scores takes half as long as formatting
        # each.
        self.label = deployment.id.replace("%", "%%")
        self.label_score = f"{self.label} %.3g"
        self.deployment = deployment
        self.load = load
        self.breaker = breaker
        self.capacity = deployment.capacity
        self.price_usd: float | None = None
        self.price_at = float("-inf")
        self.seen_at = 0.0
        self._headroom: float | None = None
        self._headroom_of: Signal | None = None
        self._headroom_until = 0.0

    def headroom_ratio(self, signal: Signal, now: float) -> float | None:
        """Return the remaining share of the scarcest quota of a signal, 0 to 1; None when it has none."""
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
        """Whether nothing runs on it and its breaker is closed."""
        return not self.load.in_flight and self.breaker.healthy


class Members:
    """The members, by model group and deployment id.

    Args:
        breaker_of: Returns the breaker settings of a model group.
        max_deployments: Deployments remembered at most.
        tau_s: Time constant of the moving averages, in seconds.
        stale_s: Time constant, in seconds, with which the measured wait of an unused deployment fades.
        introduced: Called with every new member.

    Attributes:
        max_deployments: Deployments remembered at most.
        forgotten: Members removed to make room, so far.
    """

    def __init__(
        self,
        breaker_of: Callable[[str], BreakerConfig],
        *,
        max_deployments: int,
        tau_s: float,
        stale_s: float,
        introduced: Callable[[Member], None] = lambda _: None,
    ) -> None:
        self.max_deployments = max_deployments
        self._breaker_of = breaker_of
        self._tau_s = tau_s
        self._stale_s = stale_s
        self._introduced = introduced
        self._all: dict[tuple[str, str], Member] = {}
        self.forgotten = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def find(self, group: str, deployment_id: str) -> Member | None:
        """Return a known member, or None."""
        return self._all.get((group, deployment_id))

    def of(self, deployment: Deployment, now: float) -> Member:
        """Return a deployment's member; a new one when it is unknown."""
        member = self._all.get((deployment.group, deployment.id))
        if member is None:
            load = Load(self._tau_s, self._stale_s)
            member = Member(deployment, load, Breaker(self._breaker_of(deployment.group)))
            member.seen_at = now
            self._all[member.key] = member
            self._make_room(member)
            self._introduced(member)
        elif member.deployment is not deployment:
            member.deployment, member.capacity = deployment, deployment.capacity
            member.price_at = float("-inf")
        member.seen_at = now
        return member

    def apply(self) -> None:
        """Apply the current settings of the model groups to all breakers, and to openings that have not ended."""
        for member in self._all.values():
            rules = self._breaker_of(member.key[0])
            if rules is not member.breaker.rules:
                member.breaker.apply(rules)

    def inherit(self, previous: Members) -> None:
        """Go on with the members of another one, which from now on has the same ones, by the rules of this one."""
        members = previous._all
        for key, member in self._all.items():
            members.setdefault(key, member)
        self._all = members
        previous._breaker_of, previous._introduced = self._breaker_of, self._introduced
        previous._tau_s, previous._stale_s = self._tau_s, self._stale_s
        previous.max_deployments = self.max_deployments
        for member in members.values():
            member.load.apply(self._tau_s, self._stale_s)
        self.apply()

    def _make_room(self, newest: Member) -> None:
        excess = len(self._all) - self.max_deployments
        if excess <= 0:
            return
        # A tenth more than needed is removed, so that a flood of new names does not sort all of them each time.
        others = [member for member in self._all.values() if member is not newest]
        others.sort(key=lambda member: (not member.idle, member.seen_at))
        for member in others[: excess + self.max_deployments // 10]:
            if len(self._all) <= self.max_deployments and not member.idle:
                break
            del self._all[member.key]
            self.forgotten += 1


def price_of(member: Member, prices: Prices, now: float) -> float | None:
    """Return the price per token in US dollars, looked up once a minute; None when unknown."""
    if now - member.price_at > PRICE_S:
        member.price_at, member.price_usd = now, blended(prices.get(member.deployment))
    return member.price_usd


def blended(price: Price) -> float | None:
    """Return one price per token, or None when the gateway's cost map has none."""
    if price.input_usd is None:
        return None
    output = price.input_usd if price.output_usd is None else price.output_usd
    return float(price.input_usd) * INPUT_SHARE + float(output) * OUTPUT_SHARE
