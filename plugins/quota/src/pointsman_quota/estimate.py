"""How many tokens and how much money to reserve for a request."""

from __future__ import annotations

import asyncio
import logging
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final

from pointsman.types import Endpoint

from .asked import OddRequest, output_limit, text_chars
from .ledger import MAX_REQUEST_TOKENS, MAX_REQUEST_USD_MICROS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman.plugin import Services
    from pointsman.types import RequestContext

    from .config import OutputEstimate
    from .outputs import OutputLengths

log: Final = logging.getLogger("pointsman.quota")

#: Counting takes about a microsecond a word: longer prompts are counted on another thread.
_LONG_PROMPT_CHARS: Final = 8_000
#: For text that cannot be counted; ordinary text has twice as many, so the estimate is rather too high.
_CHARS_A_TOKEN: Final = 2
_PRICES_FOR_S: Final = 60.0
_MICROS: Final = 1_000_000


class Estimator:
    """Estimates requests.

    Args:
        config: How to estimate the output.
        outputs: Past outputs.
        services: The host's tokenizer, catalog and prices.
    """

    def __init__(self, config: OutputEstimate, outputs: OutputLengths, services: Services) -> None:
        self._config = config
        self._outputs = outputs
        self._services = services
        self._prices: dict[str, tuple[float, Decimal, Decimal]] = {}
        self.uncountable = 0

    async def tokens(self, ctx: RequestContext, tenant: str, *, models: int, choices: int) -> tuple[int, int]:
        """Return the estimated prompt and output tokens of a request, all models and choices together.

        Args:
            ctx: The request.
            tenant: Whose past outputs to go by.
            models: How many models will answer.
            choices: How many answers each of them is asked for.

        Raises:
            OddRequest: a field that limits the output is no sensible number, or the sum is absurd.
        """
        output = self._output(ctx, tenant) * choices * models
        prompt = await self._prompt(ctx) * models
        if prompt + output > MAX_REQUEST_TOKENS:
            raise OddRequest(f"The request may use {prompt + output} tokens; ask for less output.", "max_tokens")
        return max(1, prompt), output

    def _output(self, ctx: RequestContext, tenant: str) -> int:
        """Return the estimated tokens of one answer."""
        limit = output_limit(ctx.body)
        if ctx.endpoint is Endpoint.EMBEDDINGS:
            return 0
        learnt = self._outputs.quantile(tenant, ctx.model, self._config.quantile_ratio)
        if limit is None:
            return learnt or self._config.default_tokens
        return min(limit, learnt) if self._config.by == "learnt" and learnt is not None else limit

    async def _prompt(self, ctx: RequestContext) -> int:
        count = self._services.tokenizer.count
        chars = text_chars(ctx.body)
        try:
            if chars > _LONG_PROMPT_CHARS:
                return max(0, await asyncio.to_thread(count, ctx.model, ctx.body))
            return max(0, count(ctx.model, ctx.body))
        except Exception:  # noqa: BLE001  # a body that the tokenizer cannot read must not be a way round the limits
            self.uncountable += 1
            log.debug("request %s: the prompt cannot be counted, its length is used", ctx.request_id)
            return chars // _CHARS_A_TOKEN + 1

    def usd_micros(self, models: Sequence[str], prompt_tokens: int, output_tokens: int) -> int:
        """Return the estimated price, at least 1: of the dearest deployment that may answer, cached tokens not considered.

        Args:
            models: The models that will answer.
            prompt_tokens: Of all models together.
            output_tokens: The same.
        """
        now = self._services.clock.monotonic()
        each = [self._price(model, now) for model in models]
        price = sum((prompt_tokens * inside + output_tokens * outside for inside, outside in each), Decimal(0))
        micros = (price * _MICROS / len(models)).to_integral_value(ROUND_CEILING)
        return max(1, min(MAX_REQUEST_USD_MICROS, int(micros)))

    def _price(self, model: str, now: float) -> tuple[Decimal, Decimal]:
        known = self._prices.get(model)
        if known is not None and now < known[0]:
            return known[1], known[2]
        deployments = self._services.catalog.deployments(model)
        if not deployments:  # a name from outside: nothing to remember
            return Decimal(0), Decimal(0)
        prices = [self._services.prices.get(deployment) for deployment in deployments]
        inside = max(price.input_usd or Decimal(0) for price in prices)
        outside = max(price.output_usd or Decimal(0) for price in prices)
        self._prices[model] = (now + _PRICES_FOR_S, inside, outside)
        return inside, outside

    def learn(self, tenant: str, settled: Mapping[str, object], model: str, completion_tokens: int) -> None:
        """Remember how long an answer was; ``settled`` is what the reservation carried."""
        count = settled.get("choices")
        self._outputs.add(tenant, model, completion_tokens // max(1, count if isinstance(count, int) else 1))
