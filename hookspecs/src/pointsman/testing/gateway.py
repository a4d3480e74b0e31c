"""A gateway without a gateway: a catalog, prices, token counts and calls of our own, all from values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from ..errors import Conflict
from ..types import Deployment, Price, Usage
from .calls import FakeUpstream
from .script import ScriptSource

if TYPE_CHECKING:
    from ..host.host import Host

DEFAULT_PRICE: Final = Price(
    input_usd=Decimal("0.000001"),
    output_usd=Decimal("0.000002"),
    cache_read_usd=Decimal("0.0000001"),
    cache_write_usd=Decimal("0.00000125"),
)
"""What every deployment costs by default: one and two millionths of a dollar a token, in and out."""

_PROMPT_KEYS: Final = ("messages", "input", "prompt", "system", "instructions")
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
    """Return a deployment; group and model are called like the deployment itself unless they are given."""
    return Deployment(
        id=id,
        group=group or id,
        provider=provider,
        model=model or id,
        api_base="https://upstream.test/v1",
        weight=weight,
        rpm=rpm,
        tpm=tpm,
        info=info,
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
        listed_info: What else they say of these names.
    """

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        self.listed: dict[str, str] = {}
        self.listed_info: dict[str, Mapping[str, object]] = {}
        self._deployments = tuple(deployments)

    def replace(self, deployments: Sequence[Deployment]) -> None:
        """Configure the gateway anew."""
        self._deployments = tuple(deployments)

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments of a model group or the one with this id; all of them for None; empty if unknown."""
        if target is None:
            return self._deployments
        members = tuple(d for d in self._deployments if d.group == target)
        return members or tuple(d for d in self._deployments if d.id == target)

    def is_group(self, target: str) -> bool:
        """Say whether the target is a model group."""
        return any(d.group == target for d in self._deployments)

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


class FakePrices:
    """Unit prices.

    Args:
        prices: One price for all, or prices by deployment id or model; what is not named is unknown.
    """

    def __init__(self, prices: Price | Mapping[str, Price] = DEFAULT_PRICE) -> None:
        self._prices = prices

    def get(self, deployment: Deployment) -> Price:
        """Return the unit prices of a deployment; fields are None where nobody knows."""
        if isinstance(self._prices, Price):
            return self._prices
        return self._prices.get(deployment.id) or self._prices.get(deployment.model) or Price()

    def cost_usd_micros(self, deployment: Deployment, usage: Usage | None) -> int | None:
        """Return the price of an answer in millionths of a dollar, rounded; None when it is not known."""
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
    """One token a word."""

    def count(self, model: str, body: Mapping[str, object]) -> int:  # noqa: ARG002  # the protocol's
        """Count the words of the prompt, wherever they stand in it."""
        return sum(len(text.split()) for key in _PROMPT_KEYS for text in _texts(body.get(key)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


class FakeGateway:
    """What the host sees of the gateway.

    Args:
        deployments: What it can serve.
        prices: One price for all, or prices by deployment id or model.
        upstream: What calls of our own are answered with; see ``pointsman.testing.script``.
    """

    def __init__(
        self,
        deployments: Sequence[Deployment] = DEFAULT_DEPLOYMENTS,
        *,
        prices: Price | Mapping[str, Price] = DEFAULT_PRICE,
        upstream: ScriptSource | None = None,
    ) -> None:
        self.catalog = FakeCatalog(deployments)
        self.prices = FakePrices(prices)
        self.tokenizer = FakeTokenizer()
        self.upstream = FakeUpstream(self.catalog, self.prices, upstream)

    def attach(self, host: Host) -> None:
        """Serve this host from now on: attempts of calls of our own are opened in it."""
        self.upstream.attach(host)
