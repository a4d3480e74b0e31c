"""A gateway without LiteLLM: fakes for everything that the host asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..types import Deployment, Price
from .calls import FakeUpstream
from .fakes import DEFAULT_DEPLOYMENTS, DEFAULT_PRICE, FakeCatalog, FakeCooldowns, FakePrices, FakeTokenizer
from .script import ScriptSource

if TYPE_CHECKING:
    from ..host.host import Host


class FakeGateway:
    """What the host sees of the gateway.

    Args:
        deployments: What it can serve.
        prices: One price for all, or prices by deployment id or model.
        upstream: The answers to plugins' own calls; see ``pointsman.testing.script``.

    Attributes:
        cooldowns: What it leaves out after an error, off by default.
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
        self.cooldowns = FakeCooldowns()
        self.upstream = FakeUpstream(self.catalog, self.prices, upstream, self.cooldowns)

    def attach(self, host: Host) -> None:
        """Serve this host from now on: attempts of plugins' own calls are opened in it."""
        self.upstream.attach(host)
