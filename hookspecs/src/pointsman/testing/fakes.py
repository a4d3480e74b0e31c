"""The parts of a gateway made of values: a model list, prices and token counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import partial
from typing import Final

from ..counting import read_prompt
from ..errors import Conflict
from ..frozen import FrozenDict
from ..types import OWN_CALLS, AttemptError, AttemptKind, Deployment, ErrorClass, Price, Usage

DEFAULT_PRICE: Final = Price(
    input_usd=Decimal("0.000001"),
    output_usd=Decimal("0.000002"),
    cache_read_usd=Decimal("0.0000001"),
    cache_write_usd=Decimal("0.00000125"),
)
"""The default price of every deployment: one millionth of a dollar per input token, two per output token."""

_MICROS: Final = 1_000_000


def deployment(
    id: str,  # noqa: A002  # the value's own name
    group: str | None = None,
    *,
    provider: str = "openai",
    model: str | None = None,
    weight: float = 1.0,
    rpm: int | None = None,
    tpm: int | None = None,
    **info: str | float | bool,
) -> Deployment:
    """Return a deployment; group and model default to its id."""
    return Deployment(
        id=id,
        group=group or id,
        provider=provider,
        model=model or id,
        api_base="https://upstream.test/v1",
        weight=weight,
        rpm=rpm,
        tpm=tpm,
        info=FrozenDict(info),
    )


DEFAULT_DEPLOYMENTS: Final = (
    deployment("chat-a", "chat"),
    deployment("chat-b", "chat"),
    deployment("backup-a", "backup", provider="anthropic"),
)
"""Two deployments of the model group ``chat`` and one of ``backup``."""


class FakeCatalog:
    """A model list.

    Args:
        deployments: What can be served.

    Attributes:
        listed: The names that plugins show in ``GET /v1/models``, with the model group each stands for.
        listed_info: The other fields of these names' entries.
        fallbacks: The gateway's own fallbacks by model group.
        aliases: The configuration's aliases, with the model group of each.
    """

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        self.listed: dict[str, str] = {}
        self.listed_info: dict[str, Mapping[str, object]] = {}
        self.fallbacks: dict[str, Sequence[str]] = {}
        self.aliases: dict[str, str] = {}
        self._deployments = tuple(deployments)

    def replace(self, deployments: Sequence[Deployment]) -> None:
        """Replace the gateway's configuration."""
        self._deployments = tuple(deployments)

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments that serve a target; all of them for None: see ``pointsman.plugin.Catalog``."""
        if target is None:
            return self._deployments
        for members in (
            tuple(d for d in self._deployments if d.group == target),
            tuple(d for d in self._deployments if d.id == target),
        ):
            if members:
                return members
        if "*" in target:
            return ()
        # The most specific wildcard, as in LiteLLM.
        wild = [d for d in self._deployments if "*" in d.group and fnmatchcase(target, d.group)]
        longest = max((len(d.group) for d in wild), default=0)
        name = target.rpartition("/")[2]
        return tuple(replace(d, model=d.model.replace("*", name)) for d in wild if len(d.group) == longest)

    def is_group(self, target: str) -> bool:
        """Return whether the target is a model group."""
        return any(d.group == target for d in self._deployments)

    def reachable(self, name: str) -> Sequence[Deployment]:
        """Return the deployments that may answer: those of the name, of what it is listed for, and of its fallbacks."""
        names = [name]
        for group in names:
            further = (*self.fallbacks.get(group, ()), *filter(None, [self.listed.get(group), self.aliases.get(group)]))
            names.extend(other for other in further if other not in names)
        return tuple({d.id: d for group in names for d in self.deployments(group)}.values())

    def resolved(self, name: str) -> str:
        """Return what a name is an alias of, or the name."""
        return self.aliases.get(name, name)

    def list_model(self, name: str, target: str | None, *, info: Mapping[str, object] | None = None) -> None:
        """Show ``name`` as an alias of ``target``; None stops showing it.

        Raises:
            Conflict: the configuration has a model group of this name.
        """
        if target is None:
            self.listed.pop(name, None)
            self.listed_info.pop(name, None)
            return
        if self.is_group(name):
            raise Conflict(f"the model name {name!r} is taken: it is a model group of the gateway", param="name")
        members = self.deployments(target)
        self.listed[name] = target if self.is_group(target) or not members else members[0].group
        self.listed_info[name] = dict(info or {})


#: Errors after which LiteLLM leaves a deployment out for a while.
_COOLING: Final = frozenset(
    {
        ErrorClass.AUTH,
        ErrorClass.CONNECTION,
        ErrorClass.NOT_FOUND,
        ErrorClass.RATE_LIMIT,
        ErrorClass.SERVER,
        ErrorClass.TIMEOUT,
    }
)


class FakeCooldowns:
    """The gateway's cooldowns: a deployment that has failed an attempt of a client's is not offered for a while.

    Attributes:
        seconds: How long it is left out, in seconds; None switches cooldowns off.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._until: dict[str, float] = {}

    def failed(self, deployment: Deployment, kind: AttemptKind, error: AttemptError, now: float) -> None:
        """Take in the error of an attempt; those of plugins' own calls keep clients from nothing."""
        if self.seconds is not None and kind not in OWN_CALLS and error.kind in _COOLING:
            self._until[deployment.id] = now + self.seconds

    def offered(self, deployments: Sequence[Deployment], now: float) -> Sequence[Deployment]:
        """Return the deployments that are not cooling down at this time of the monotonic clock."""
        return [d for d in deployments if self._until.get(d.id, now) <= now]


class FakePrices:
    """Unit prices.

    Args:
        prices: One price for all, or prices by deployment id or model; other prices are unknown.
    """

    def __init__(self, prices: Price | Mapping[str, Price] = DEFAULT_PRICE) -> None:
        self._prices = prices

    def get(self, deployment: Deployment, usage: Usage | None = None) -> Price:  # noqa: ARG002  # the protocol's
        """Return the unit prices of a deployment; a field is None where the price is unknown."""
        if isinstance(self._prices, Price):
            return self._prices
        return self._prices.get(deployment.id) or self._prices.get(deployment.model) or Price()

    def cost_usd_micros(self, deployment: Deployment, usage: Usage | None) -> int | None:
        """Return the price of an answer in millionths of a dollar, rounded; None when it is unknown."""
        price = self.get(deployment)
        if usage is None or price.input_usd is None or price.output_usd is None:
            return None
        plain = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        usd = (
            plain * price.input_usd
            + usage.cached_tokens * (price.input_usd if price.cache_read_usd is None else price.cache_read_usd)
            + usage.cache_write_tokens * (price.input_usd if price.cache_write_usd is None else price.cache_write_usd)
            + usage.completion_tokens * price.output_usd
        )
        return round(usd * _MICROS)


class FakeTokenizer:
    """One token per word."""

    def count(self, model: str, body: Mapping[str, object]) -> int:
        """Count the words of the prompt, as ``pointsman.counting`` reads it."""
        return read_prompt(body).tokens(partial(self.count_text, model))

    def count_text(self, model: str, text: str) -> int:  # noqa: ARG002  # the protocol's
        """Count the words of a text."""
        return len(text.split())
