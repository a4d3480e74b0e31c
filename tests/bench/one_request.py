"""One request without a gateway around the host, for benchmarks: admitted, selected, answered, settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pointsman.types import Deployment, Endpoint, Identity, Outcome, RequestContext, Usage

if TYPE_CHECKING:
    from pointsman.host.host import Host

TARGET: Final = Deployment(id="good-1", group="good", provider="openai", model="gpt-4o-mini")


class NoGateway:
    """Offers nothing: plugins that do nothing ask for nothing."""

    catalog = prices = tokenizer = upstream = None


async def make_request(host: Host) -> None:
    """Make it."""
    ctx = RequestContext(
        request_id=host.new_id(),
        endpoint=Endpoint.CHAT,
        model="good",
        stream=False,
        identity=Identity(),
        received_at=0.0,
    )
    exchange = host.open(ctx)
    await exchange.admit()
    exchange.select([TARGET])
    _, attempt = await exchange.begin(TARGET, gateway=True)
    attempt.end(Outcome.OK, usage=Usage(prompt_tokens=10, completion_tokens=20), cost_usd_micros=3, status_code=200)
    exchange.close(200)
    await asyncio.sleep(0)
