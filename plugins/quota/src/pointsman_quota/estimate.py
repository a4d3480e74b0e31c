"""How many tokens and how much money to reserve for a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pointsman import pricing
from pointsman.counting import read_prompt
from pointsman.plugin import UnpricedModel
from pointsman.sessions import goes_on_from
from pointsman.types import Deployment, Endpoint, Usage

from .expected import WITHOUT_OUTPUT_TOKENS, usage_of
from .ledger import MAX_REQUEST_TOKENS, MAX_REQUEST_USD_MICROS, PICOS
from .request_limits import InvalidRequest, output_limit, thinking_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pointsman.counting import Prompt
    from pointsman.plugin import Services
    from pointsman.types import RequestContext

    from .config import QuotaConfig
    from .statistics import OutputLengths
    from .tariff import Tariff

log: Final = logging.getLogger("pointsman.quota")

#: Counting takes about a microsecond a word: longer prompts are counted on another thread.
_LONG_PROMPT_CHARS: Final = 8_000
#: For text that cannot be counted. Ordinary text has twice as many, so the estimate is rather too high.
_CHARS_A_TOKEN: Final = 2

#: The context window of a model of which it is not known.
_WINDOW_TOKENS: Final = 128_000
#: What takes everything but tokens and tools from a usage.
_UNITS: Final = (
    "images",
    "characters",
    "audio_ms",
    "audio_out_ms",
    "video_ms",
    "pages",
    "annotated_pages",
    "search_units",
)
_NO_UNITS: Final[Mapping[str, Any]] = dict.fromkeys(_UNITS)
_units_of = attrgetter(*_UNITS)
_NO_TOOLS: Final[Mapping[str, Any]] = dict.fromkeys(
    ("searches", "maps_queries", "file_searches", "code_sessions", "other_tools")
)


def _searches(deployment: Deployment) -> bool:
    """Return whether a model searches the web without being asked to."""
    return deployment.provider == "perplexity" or "-search" in deployment.model


class Size(NamedTuple):
    """How large a request may be.

    Attributes:
        models: How many models will answer.
        prompt_tokens: Estimated tokens of the prompt, all models together.
        output_tokens: The same of the answers.
        usage: What one model would use.
    """

    models: int
    prompt_tokens: int
    output_tokens: int
    usage: Usage

    @property
    def without_tools(self) -> Size:
        """The same without the provider's tools; itself where it uses none."""
        return self._replace(usage=replace(self.usage, **_NO_TOOLS)) if pricing.uses_tools(self.usage) else self


class Estimator:
    """Estimates requests.

    Args:
        config: How to estimate what a request does not say.
        outputs: Past outputs.
        services: The host's tokenizer, catalog and prices.
    """

    def __init__(self, config: QuotaConfig, outputs: OutputLengths, services: Services) -> None:
        self._config = config
        self._outputs = outputs
        self._services = services
        self.uncountable = 0
        #: What a billing plugin charges, where budgets follow it; None: the gateway's prices.
        self.tariff: Tariff | None = None

    async def size(self, ctx: RequestContext, tenant: str, *, names: Iterable[str], models: int, choices: int) -> Size:
        """Return how large a request may be.

        Args:
            ctx: The request.
            tenant: Whose past outputs to go by.
            names: Everything that the request names to answer it.
            models: How many models will answer.
            choices: How many answers each of them is asked for.

        Raises:
            InvalidRequest: a field that limits the output is not a valid number, or the sum is larger than any limit.
        """
        if not ctx.generates:
            return Size(models, 0, 0, Usage())
        output = self._output(ctx, tenant) * choices
        prompt = read_prompt(ctx.body, self._config.unseen_document_pages)
        counted = max(1, await self._count(ctx, prompt)) + ctx.carried_tokens
        if not ctx.carried_tokens and goes_on_from(ctx.endpoint, ctx.body):
            counted = self._after_unknown_history(counted, names)
        if (counted + output) * models > MAX_REQUEST_TOKENS:
            raise InvalidRequest(
                f"The request may use {(counted + output) * models} tokens; ask for less output.", "max_tokens"
            )
        usage = usage_of(ctx, prompt, counted, output, choices=choices, tool_uses=self._config.tool_uses)
        return Size(models, counted * models, output * models, usage)

    def _after_unknown_history(self, counted: int, names: Iterable[str]) -> int:
        """Return how many tokens a model may read for a prompt after a conversation whose length is not known."""
        if self._config.unknown_history_tokens is not None:
            return counted + self._config.unknown_history_tokens
        reachable = [one for name in names for one in self._services.catalog.reachable(name)]
        windows = [one.info.get("max_input_tokens") for one in reachable]
        return max(counted, max((size for size in windows if isinstance(size, int)), default=_WINDOW_TOKENS))

    def _output(self, ctx: RequestContext, tenant: str) -> int:
        """Return the estimated tokens of one answer."""
        limit, thinks = output_limit(ctx.body), thinking_budget(ctx.body)
        if ctx.endpoint in WITHOUT_OUTPUT_TOKENS:
            return 0
        config = self._config.output
        if limit is not None and config.by != "learnt":
            return max(limit, thinks)
        learnt = self._outputs.quantile(tenant, ctx.model, config.quantile_ratio)
        if limit is None:
            return max(learnt or config.default_tokens, thinks)
        return max(limit, thinks) if learnt is None else min(max(limit, thinks), learnt)

    async def _count(self, ctx: RequestContext, prompt: Prompt) -> int:
        count = partial(self._services.tokenizer.count_text, ctx.model)
        try:
            if len(prompt.text) > _LONG_PROMPT_CHARS:
                return await asyncio.to_thread(prompt.tokens, count)
            return prompt.tokens(count)
        except Exception:  # noqa: BLE001  # a text that the tokenizer cannot read must not circumvent the limits
            self.uncountable += 1
            log.debug("request %s: the prompt cannot be counted, its length is used", ctx.request_id)
            return prompt.tokens(lambda text: len(text) // _CHARS_A_TOKEN + 1)

    def usd_picos(
        self, endpoint: Endpoint, names: Iterable[str], size: Size, *, tenant: str = "", model: str = ""
    ) -> int | None:
        """Return the estimated price: of the dearest deployment that may answer, cached tokens not considered.

        Args:
            endpoint: The kind of API.
            names: Everything that may be asked to answer: models, fallbacks, the route's target.
            size: How large the request is.
            tenant: Who pays, for prices and margins of a billing plugin.
            model: The requested model, for the same.

        Returns:
            Picodollars, or None when the price of one of these deployments is unknown, or none is known.
        """
        if size.usage.is_empty:
            return 0
        usage = size.usage
        used: Sequence[Usage] = (usage,)
        if any(_units_of(usage)):
            # By tokens or by other units, whichever is more.
            units = replace(
                usage, prompt_tokens=0, completion_tokens=0, image_prompt_tokens=0, image_completion_tokens=0
            )
            used = [part for part in (replace(usage, **_NO_UNITS), units) if not part.is_empty]
        dearest: Decimal | None = None
        for deployment in self._reachable(endpoint, names):
            usd = self._usd(deployment, usage, used, tenant, model)
            if usd is None:
                return None
            if dearest is None or usd > dearest:
                dearest = usd
        if dearest is None:
            return None
        usd_picos = dearest * size.models * PICOS**2
        return min(MAX_REQUEST_USD_MICROS * PICOS, int(usd_picos.to_integral_value(ROUND_CEILING)))

    def unpriced(self) -> list[UnpricedModel]:
        """Return the model groups that a deployment without a price may answer for, fallbacks included."""
        catalog = self._services.catalog
        groups = sorted({deployment.group for deployment in catalog.deployments()})
        found: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        for group in groups:
            for one in catalog.reachable(group):
                if not pricing.is_priced(self._services.prices.get(one), one.info.get("mode")):
                    found.setdefault((group, one.group), []).append((group, one.group, one.model))
        return [UnpricedModel(*names, priced_for=self._ruled(models)) for names, models in sorted(found.items())]

    def _ruled(self, models: Sequence[tuple[str, ...]]) -> Callable[[str], bool]:
        def ruled(tenant: str) -> bool:
            return self.tariff is not None and all(self.tariff.price(tenant, names) for names in models)

        return ruled

    def _usd(
        self, deployment: Deployment, usage: Usage, ways: Sequence[Usage], tenant: str, model: str
    ) -> Decimal | None:
        """Return what one model would cost: in the dearest of these ways to count the usage; None if no cost is known."""
        price, margin_ratio = None, Decimal(0)
        if self.tariff is not None:
            names = (model, deployment.group, deployment.model)
            rule, margin = self.tariff.price(tenant, names), self.tariff.margin(tenant, names)
            price = None if rule is None else rule.price
            margin_ratio = margin_ratio if margin is None else margin.margin_ratio
        price = price or self._services.prices.get(deployment, usage)
        if usage.searches is None and usage.completion_tokens and price.search_medium_usd and _searches(deployment):
            ways = [replace(used, searches=1) for used in ways]
        costs = [pricing.cost_usd(used, price) for used in ways]
        known = max((usd for usd in costs if usd is not None and usd.is_finite() and usd >= 0), default=None)
        return known if known is None or not margin_ratio else pricing.CONTEXT.multiply(known, 1 + margin_ratio)

    def _reachable(self, endpoint: Endpoint, names: Iterable[str]) -> Sequence[Deployment]:
        """Return the deployments that may answer; of those that have the same price, one."""
        reachable: list[Deployment] = []
        for name in dict.fromkeys(names):
            found = self._services.catalog.reachable(name)
            if not found and endpoint is Endpoint.PASS_THROUGH:
                # The provider's own name of the model.
                found = (Deployment(id=name, group=name, provider="", model=name),)
            reachable.extend(found)
        if len(reachable) == 1:
            return reachable
        priced: dict[tuple[object, ...], Deployment] = {}
        for deployment in reachable:
            configured = deployment.id if self._services.prices.get(deployment).configured else None
            group = deployment.group if self.tariff is not None else None
            kind = (configured, group, deployment.provider, deployment.model, deployment.info.get("base_model"))
            priced.setdefault(kind, deployment)
        return list(priced.values())

    def learn(self, tenant: str, settled: Mapping[str, object], model: str, completion_tokens: int) -> None:
        """Remember how long an answer was; ``settled`` is what the reservation carried."""
        count = settled.get("choices")
        self._outputs.add(tenant, model, completion_tokens // max(1, count if isinstance(count, int) else 1))
