"""LiteLLM's cost map read as unit prices.

What the map has no price for is unknown, never free. LiteLLM itself writes zeros into its map for models that it does not
know; they are told from prices by what the map had when the proxy started and by what the operator has configured.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import litellm
from litellm import constants
from litellm.litellm_core_utils.llm_cost_calc import utils as calculation

from .. import pricing
from ..frozen import replace
from ..types import Deployment, Price, Usage
from . import model_routers
from .catalog import router

#: Prices are read again after this time: an administrator can change them, and some depend on the hour.
_FRESH_S: Final = 10.0
_MOST_KEPT: Final = 10_000

_INPUT: Final = "input_cost_per_token"
_OUTPUT: Final = "output_cost_per_token"
_READ: Final = "cache_read_input_token_cost"
_WRITE: Final = "cache_creation_input_token_cost"
_WRITE_1H: Final = "cache_creation_input_token_cost_above_1hr"
_REASONING: Final = "output_cost_per_reasoning_token"
#: In the map, it is an entry of the provider's and not of each model.
_SESSION: Final = "code_interpreter_cost_per_session"

#: Prices a token that depend on the size of the prompt and on the service tier.
_TIERED: Final[Mapping[str, str]] = {
    "input_usd": _INPUT,
    "output_usd": _OUTPUT,
    "cache_read_usd": _READ,
    "explicit_cache_read_usd": "explicit_cache_read_input_token_cost",
    "cache_write_usd": _WRITE,
    "cache_write_1h_usd": _WRITE_1H,
    "audio_input_usd": "input_cost_per_audio_token",
}
#: Prices a token that depend on the service tier.
_BY_TIER: Final[Mapping[str, str]] = {
    "image_input_usd": "input_cost_per_image_token",
    "image_output_usd": "output_cost_per_image_token",
    "video_input_usd": "input_cost_per_video_token",
    "cached_audio_usd": "cache_read_input_audio_token_cost",
    "cached_image_usd": "cache_read_input_image_token_cost",
}
#: Other prices a token.
_FLAT: Final[Mapping[str, str]] = {
    "audio_output_usd": "output_cost_per_audio_token",
    "video_output_usd": "output_cost_per_video_token",
}
_TOKEN_FIELDS: Final = (*_TIERED, *_BY_TIER, *_FLAT, "reasoning_usd")
#: The end of a key for each service tier that providers name.
_TIERS: Final[Mapping[str, str]] = {
    "flex": "_flex",
    "balanced": "_balanced",
    "priority": "_priority",
    "fast": "_priority",
    "ultrafast": "_ultrafast",
    "batch": "_batches",
}
#: The tiers that a request can ask for. A batch is no such tier.
SERVICE_TIERS: Final = frozenset(_TIERS) - {"batch"}
#: Those of them that cost less than none.
CHEAPER_TIERS: Final = frozenset({"balanced", "flex"})
_ABOVE: Final = re.compile(r"_above_(\d+)(k?)_tokens")
#: The providers that charge the higher price from the threshold on, not above it.
_INCLUSIVE: Final = frozenset({"xai"})
#: The providers that charge all searches of a request together unless the map says otherwise.
_SEARCH_BY_REQUEST: Final = frozenset({"gemini", "vertex_ai", "vertex_ai_beta"})
#: Under which name the map has those models of a provider that another API of it serves: for completions, or for chats.
_OTHER_APIS: Final[Mapping[str | None, str]] = {
    "openai": "text-completion-openai",
    "azure": "azure_text",
    "cohere": "cohere_chat",
}
_IMAGE_SIZE: Final = re.compile(r"(\d{1,5})(?:-x-|x)(\d{1,5})")
_USUAL_IMAGE_SIZE: Final = "1024x1024"
#: The modes of models for which ``input_cost_per_image`` is the price of an image in the prompt.
_TEXT_MODES: Final = frozenset({"chat", "completion", "embedding", "responses"})
_RESOLUTION: Final = re.compile(r"[0-9a-z]{1,12}")
_DATE: Final = re.compile(r"[-@](\d{8}|\d{4}-\d\d-\d\d|latest)$")
_REGIONAL_HOST: Final = re.compile(r"(eu|us)\.api\.openai\.com")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the prices of a model are.

    Attributes:
        entry: The fields of the cost map.
        key: The model's name in the map.
        configured: Whether the operator has set them.
    """

    entry: Mapping[str, Any]
    key: str
    configured: bool = False


class _Usual(NamedTuple):
    """What an entry of the cost map says at any hour.

    Attributes:
        entry: The entry.
        units: Its prices of other units than tokens.
        price: Both as a price.
    """

    entry: Mapping[str, Any]
    units: Mapping[str, Any]
    price: Price


class CostMap:
    """LiteLLM's prices.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Models that cost nothing according to the map before LiteLLM has written into it.
        self._free = frozenset(key for key, entry in litellm.model_cost.items() if _has_prices(entry))
        self._known: dict[tuple[object, ...], tuple[float, Price]] = {}
        self._usual: dict[tuple[str, bool, bool], _Usual] = {}

    def get(self, deployment: Deployment, usage: Usage | None = None) -> Price:
        """Return the unit prices of a deployment, or of the model that has answered instead of it.

        Args:
            deployment: The deployment.
            usage: Names the model that has answered, where it was processed, and the size and quality of its images.
        """
        base = deployment.info.get("base_model")
        place: tuple[object, ...] = (deployment.id, deployment.provider, deployment.model, base, deployment.api_base)
        if usage is not None:
            variant = (usage.region, usage.image_size, usage.image_quality, usage.video_resolution)
            place = (*place, usage.model, usage.is_part, *variant)
        now = self._clock()
        known = self._known.get(place)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        price = self._read(deployment, usage or Usage(), answered=usage is not None)
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[place] = (now, price)
        return price

    def cost_usd_micros(self, deployment: Deployment, usage: Usage | None) -> int | None:
        """Return what an answer cost at these prices, rounded half to even; None when a price is unknown."""
        if usage is None:
            return None
        cost = pricing.total_usd(usage, lambda used: self.get(deployment, used))
        return None if cost is None or not cost.is_finite() else round(cost * 1_000_000)

    def _read(self, deployment: Deployment, usage: Usage, *, answered: bool) -> Price:
        params = _configuration(deployment.id)
        source = self._source(deployment, usage, params)
        if source is None:
            return Price()
        entry = source.entry
        if (complete := getattr(calculation, "apply_provider_cache_read_default", None)) is not None:
            # Prices that a provider publishes for all of its models and not for each.
            entry = complete(entry, deployment.provider)
        units = _unit_prices(source, deployment.provider, usage)
        price = self._unscaled(source, entry, units, inclusive=deployment.provider in _INCLUSIVE)
        if _is_unpriced_region(entry, usage) and not source.configured:
            return _without_tokens(price)
        price = _scaled(price, _multiplier(entry, deployment, usage, params), entry)
        if source.configured or not model_routers.is_model_router(deployment):
            return price
        if source.key in model_routers.FEES:
            # Nothing says which model has answered.
            return _without_tokens(price) if answered else price
        fee = model_routers.fee(litellm.model_cost)
        usd = None if fee is None else _decimal(fee[1].get(_INPUT))
        return _without_tokens(price) if usd is None else model_routers.with_fee(price, usd)

    def _unscaled(
        self, source: _Source, entry: Mapping[str, Any], units: Mapping[str, Any], *, inclusive: bool
    ) -> Price:
        """Return the prices of an entry, those that were read of it before as long as it is the same."""
        place = (source.key, source.configured, inclusive)
        usual = self._usual.get(place)
        if usual is not None and usual.entry == entry and usual.units == units:
            return usual.price
        price = _token_prices(entry, inclusive=inclusive)
        # What the operator has set holds for whatever comes of the deployment.
        price = replace(price, configured=source.configured, for_all_tiers=source.configured)
        price = _with_units(price, units)
        if not _has_hours(entry):
            if len(self._usual) >= _MOST_KEPT:
                self._usual.clear()
            # A copy: who changes the map may change what is in it.
            self._usual[place] = _Usual(deepcopy(dict(entry)), units, price)
        return price

    def _source(self, deployment: Deployment, usage: Usage, params: Mapping[str, Any]) -> _Source | None:
        """Return where the prices are: the operator's own, the base model's, the answering model's, the model's.

        A part of an answer that another model has made has that model's prices or none.
        """
        own = litellm.model_cost.get(deployment.id)
        if own is not None and _has_prices(own) and (_has_prices(params) or (router() is None and _charges(own))):
            return _Source(own, deployment.id, configured=True)
        base, served = deployment.info.get("base_model"), usage.model
        if usage.is_part and served and not {_undated(served)} & {_undated(deployment.model), _undated(str(base))}:
            if model_routers.is_model_router(deployment):
                return model_routers.chosen(served, self._entry)
            found = self._entry(served, deployment.provider)
            of_provider = found is not None and _is_of(found.entry, deployment.provider)
            return found if of_provider else None
        if isinstance(base, str):
            # It may be another provider's: a server of the operator's own that serves it.
            found = self._entry(base, deployment.provider) or self._entry(base, None)
            if found is not None:
                return found
        if served and model_routers.is_model_router(deployment):
            # The map's own entry of it is the fee alone.
            return model_routers.chosen(served, self._entry)
        if served and served != deployment.model:
            found = self._entry(served, deployment.provider)
            if found is not None and found.entry.get("litellm_provider") == deployment.provider:
                return found
        found = self._entry(deployment.model, deployment.provider)
        if found is None and model_routers.is_model_router(deployment):
            fee = model_routers.fee(litellm.model_cost)
            return None if fee is None else _Source(fee[1], fee[0])
        return found

    def _entry(self, model: str, provider: str | None) -> _Source | None:
        found = self._listed(model, provider)
        return self._listed(model, _OTHER_APIS[provider]) if found is None and provider in _OTHER_APIS else found

    def _listed(self, model: str, provider: str | None) -> _Source | None:
        try:
            info: Mapping[str, Any] = litellm.get_model_info(model, provider)
        except Exception:  # noqa: BLE001  # LiteLLM raises bare exceptions for models it does not know
            return None
        key = info.get("key")
        entry = litellm.model_cost.get(key)
        if entry is None:
            return _Source(info, str(key or model)) if _charges(info) else None
        if not _has_prices(entry) or not (_charges(entry) or key in self._free):
            # LiteLLM reports zero prices for a model that it knows only from the configuration.
            return None
        known = {name: value for name, value in info.items() if value is not None and name not in {_INPUT, _OUTPUT}}
        return _Source({**known, **entry}, str(key))


def _undated(model: str) -> str:
    """Return a model's name without the provider before it and the date behind it."""
    return _DATE.sub("", model.rpartition("/")[2])


def _is_of(entry: Mapping[str, Any], provider: str) -> bool:
    """Return whether an entry is of a provider, or of one of the kinds of models that it has, as Vertex AI's are."""
    return str(entry.get("litellm_provider")).startswith(provider)


def _has_prices(entry: Mapping[str, Any]) -> bool:
    return any("cost" in name and value is not None for name, value in entry.items()) or bool(
        entry.get("tiered_pricing")
    )


def _charges(entry: Mapping[str, Any]) -> bool:
    """Return whether a price of the entry is not zero."""
    return bool(entry.get("tiered_pricing")) or any(
        "cost" in name and (isinstance(value, Mapping) or bool(_decimal(value))) for name, value in entry.items()
    )


def _configuration(deployment_id: str) -> Mapping[str, Any]:
    """Return what the operator has configured for a deployment: prices among other things."""
    llm_router = router()
    if llm_router is None:
        return {}
    for entry in llm_router.model_list:
        info = entry.get("model_info") or {}
        if str(info.get("id")) == deployment_id:
            return {**info, **(entry.get("litellm_params") or {})}
    return {}


# -- prices a token ---------------------------------------------------------------------------------------------------


def _token_prices(entry: Mapping[str, Any], *, inclusive: bool) -> Price:
    """Return the prices of tokens: for each size of the prompt, and for each service tier that has its own.

    A part of the prompt or of the answer that has no price in a tier costs there what it usually does, as LiteLLM has it.
    """
    if ranges := _ranges(entry):
        return _in_hours(entry, _range_prices(entry, ranges))
    price = _in_hours(entry, _tier_prices(entry, "", inclusive=inclusive))
    tiers = {
        tier: _in_hours(entry, _tier_prices(entry, suffix, inclusive=inclusive))
        for tier, suffix in _TIERS.items()
        if any(name.endswith(suffix) and "cost" in name for name in entry)
        and not any(_lacks(entry, key, suffix) for key in (_INPUT, _OUTPUT))
    }
    return replace(price, tiers=tiers)


def _tier_prices(entry: Mapping[str, Any], suffix: str, *, inclusive: bool) -> Price:
    keys = {**_TIERED, **_BY_TIER}
    fields: dict[str, Any] = {name: _in_tier(entry, key, suffix) for name, key in keys.items()}
    fields |= {name: _decimal(entry.get(key)) for name, key in _FLAT.items()}
    if not fields["output_usd"] and fields["image_output_usd"] is not None:
        fields["output_usd"] = fields["image_output_usd"]
    reasoning = _decimal(entry.get(_REASONING + suffix))
    if reasoning is None and (not suffix or _decimal(entry.get(_OUTPUT + suffix)) is None):
        reasoning = _decimal(entry.get(_REASONING))
    price = base = Price(reasoning_usd=reasoning, **fields)
    above = []
    for threshold, name in _thresholds(entry, suffix):
        changes: dict[str, Any] = {
            field: value
            for field, key in _TIERED.items()
            if (value := _in_tier(entry, f"{key}{name}", suffix)) is not None
        }
        # What a larger prompt costs in the tier is then unknown, not what it usually costs.
        lacking = {"input_usd": _INPUT, "output_usd": _OUTPUT}
        changes |= {field: None for field, key in lacking.items() if _lacks(entry, f"{key}{name}", suffix)}
        price = replace(price, **changes)
        above.append((threshold - 1 if inclusive else threshold, price))
    return replace(base, above=tuple(above))


def _in_tier(entry: Mapping[str, Any], key: str, suffix: str) -> Decimal | None:
    """Return a price of a service tier; where it has none of its own, the usual one."""
    own = _decimal(entry.get(key + suffix)) if suffix else None
    return _decimal(entry.get(key)) if own is None else own


def _lacks(entry: Mapping[str, Any], key: str, suffix: str) -> bool:
    """Return whether a service tier has no price of its own for something that is not free otherwise."""
    return bool(suffix and _decimal(entry.get(key))) and _decimal(entry.get(key + suffix)) is None


def _thresholds(entry: Mapping[str, Any], suffix: str) -> Iterable[tuple[int, str]]:
    """Return the prompt sizes from which on there are other prices, in ascending order, with the middle of their keys."""
    found: dict[int, str] = {}
    for name, value in entry.items():
        if value is None or not name.startswith(tuple(_TIERED.values())):
            continue
        match = _ABOVE.search(name)
        if match and name[match.end() :] in {"", suffix}:
            found[int(match[1]) * (1000 if match[2] else 1)] = match[0]
    return sorted(found.items())


def _ranges(entry: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return a table of prices by the size of the prompt: for each range its lower end and its prices."""
    table = entry.get("tiered_pricing")
    found = []
    for row in table if isinstance(table, list) else ():
        bounds = row.get("range") if isinstance(row, Mapping) else None
        if isinstance(bounds, list) and len(bounds) == 2 and _INPUT in row:  # noqa: PLR2004  # its two ends
            found.append((int(bounds[0]), row))
    return sorted(found, key=lambda item: item[0])


def _range_prices(entry: Mapping[str, Any], ranges: list[tuple[int, Mapping[str, Any]]]) -> Price:
    prices = []
    for least, row in ranges:
        unit = _decimal(row.get(_INPUT))
        output = _decimal(row.get(_OUTPUT, entry.get(_OUTPUT)))
        write = _decimal(row.get(_WRITE))
        price = replace(
            _tier_prices(entry, "", inclusive=False),
            input_usd=unit,
            output_usd=output,
            cache_read_usd=_decimal(row.get(_READ)),
            cache_write_usd=write,
            cache_write_1h_usd=_decimal(row.get(_WRITE_1H)),
            reasoning_usd=_decimal(row.get(_REASONING)),
            above=(),
        )
        prices.append((least, price))
    return replace(prices[0][1], above=tuple(prices[1:]))


def _has_hours(entry: Mapping[str, Any]) -> bool:
    """Return whether prices may depend on the hour. LiteLLM's router writes the field without a value into what it serves."""
    return entry.get("off_peak_pricing") is not None


def _in_hours(entry: Mapping[str, Any], price: Price) -> Price:
    """Return the prices as they are now, where a provider charges less at some hours."""
    apply = getattr(calculation, "apply_off_peak_pricing", None)
    if apply is None or not _has_hours(entry):
        return price
    usual = calculation.TokenRates(math.nan, math.nan, math.nan, math.nan, None)
    rates = apply(entry, None, usual)
    now = {
        "input_usd": rates.input_rate,
        "output_usd": rates.output_rate,
        "cache_read_usd": rates.cache_read_rate,
        "cache_write_usd": rates.cache_creation_rate,
        "reasoning_usd": rates.reasoning_rate,
    }
    changes: dict[str, Any] = {name: rate for name, value in now.items() if (rate := _decimal(value)) is not None}
    above = tuple((least, replace(higher, **changes)) for least, higher in price.above)
    return replace(price, above=above, **changes)


def _multiplier(
    entry: Mapping[str, Any], deployment: Deployment, usage: Usage, params: Mapping[str, Any]
) -> Decimal | None:
    """Return by how much tokens cost more where they were processed; None for the usual price."""
    regional = None
    host = urlsplit(deployment.api_base or "").hostname or ""
    if deployment.provider == "openai" and (match := _REGIONAL_HOST.fullmatch(host)):
        regional = entry.get(f"regional_processing_uplift_multiplier_{match[1]}")
    location = params.get("vertex_location")
    if isinstance(location, str) and location.lower() != "global" and deployment.provider.startswith("vertex_ai"):
        regional = entry.get("regional_endpoint_uplift_multiplier")
    if _is_special(usage.region):
        regional = _of_region(entry, usage)
    return _decimal(regional)


def _is_special(region: str | None) -> bool:
    """Return whether a region may have prices of its own."""
    return region is not None and region.lower() not in {"global", "not_available"}


def _of_region(entry: Mapping[str, Any], usage: Usage) -> Any:
    special = entry.get("provider_specific_entry")
    return special.get((usage.region or "").lower()) if isinstance(special, Mapping) else None


def _is_unpriced_region(entry: Mapping[str, Any], usage: Usage) -> bool:
    """Return whether the answer was processed where the map has no price."""
    return _is_special(usage.region) and _decimal(_of_region(entry, usage)) is None


def _without_tokens(price: Price) -> Price:
    unknown: dict[str, Any] = dict.fromkeys(_TOKEN_FIELDS)
    return replace(price, above=(), tiers={}, **unknown)


def _scaled(price: Price, factor: Decimal | None, entry: Mapping[str, Any]) -> Price:
    special = entry.get("provider_specific_entry")
    fast = _decimal(special.get("fast")) if isinstance(special, Mapping) else None
    if fast is not None:
        price = replace(price, tiers={**price.tiers, "fast": _times(replace(price, tiers={}), fast)})
    return price if factor is None or factor == 1 else _times(price, factor)


def _times(price: Price, factor: Decimal) -> Price:
    changes: dict[str, Any] = {
        name: pricing.CONTEXT.multiply(value, factor)
        for name in _TOKEN_FIELDS
        if (value := getattr(price, name)) is not None
    }
    above = tuple((least, _times(higher, factor)) for least, higher in price.above)
    tiers = {name: _times(tier, factor) for name, tier in price.tiers.items()}
    return replace(price, above=above, tiers=tiers, **changes)


# -- prices of other units --------------------------------------------------------------------------------------------


def _unit_prices(source: _Source, provider: str, usage: Usage) -> dict[str, Any]:
    entry = source.entry
    by_request = provider in _SEARCH_BY_REQUEST and entry.get("web_search_billing_unit") != "per_query"
    sizes = entry.get("search_context_cost_per_query")
    searches = sizes if isinstance(sizes, Mapping) else {}
    medium = _decimal(searches.get("search_context_size_medium"))
    maps = _decimal(entry.get("google_maps_grounding_cost_per_query"))
    second_out = _decimal(entry.get("output_cost_per_second"))
    files = entry.get("file_search_cost_per_1k_calls")
    if files is None and provider == "openai":
        files = constants.OPENAI_FILE_SEARCH_COST_PER_1K_CALLS
    if files is None and provider == "gemini":
        # What it finds is charged as tokens (ai.google.dev, "File Search").
        files = 0
    return {
        "search_low_usd": _decimal(searches.get("search_context_size_low")),
        "search_medium_usd": medium,
        "search_high_usd": _decimal(searches.get("search_context_size_high")),
        "search_request_usd": medium if by_request else None,
        "citation_usd": _decimal(entry.get("citation_cost_per_token")),
        "maps_query_usd": maps,
        "maps_request_usd": maps if by_request else None,
        # Despite its name, LiteLLM charges it for each call.
        "file_search_usd": _decimal(files),
        "code_session_usd": _first(entry, _SESSION)
        or _first(litellm.model_cost.get(f"{provider}/container", {}), _SESSION),
        "image_usd": _image_usd(source, provider, usage),
        "character_usd": _decimal(entry.get("input_cost_per_character")),
        "audio_second_usd": second_out or _first(entry, "input_cost_per_second", "input_cost_per_audio_per_second"),
        "audio_out_second_usd": second_out,
        "video_second_usd": _video_usd(entry, usage.video_resolution),
        "page_usd": _decimal(entry.get("ocr_cost_per_page")),
        "annotated_page_usd": _decimal(entry.get("annotation_cost_per_page")),
        "search_unit_usd": _decimal(entry.get("input_cost_per_query")),
        "request_usd": _decimal(entry.get("input_cost_per_request")),
    }


def _with_units(price: Price, units: Mapping[str, Any]) -> Price:
    """Return prices of tokens with those of other units, which neither size nor tier changes."""
    above = tuple((least, _with_units(higher, units)) for least, higher in price.above)
    tiers = {name: _with_units(replace(tier, configured=price.configured), units) for name, tier in price.tiers.items()}
    return replace(price, above=above, tiers=tiers, **units)


def _image_usd(source: _Source, provider: str, usage: Usage) -> Decimal | None:
    """Return the price of an image; the map has entries for sizes and qualities of some models."""
    size = _IMAGE_SIZE.fullmatch(usage.image_size or _USUAL_IMAGE_SIZE)
    if size is None or source.configured:
        return _of_image(source.entry, size)
    name = source.key.removeprefix(f"{provider}/")
    for key in _image_keys(f"{size[1]}-x-{size[2]}", usage.image_quality, provider, name):
        entry = litellm.model_cost.get(key)
        if entry is not None and (usd := _of_image(entry, size)) is not None:
            return usd
    return _of_image(source.entry, size)


def _image_keys(size: str, quality: str | None, provider: str, name: str) -> Iterator[str]:
    if quality:
        yield f"{quality}/{size}/{name}"
        yield f"{provider}/{quality}/{size}/{name}"
    yield f"{size}/{name}"
    yield f"{provider}/{size}/{name}"


def _of_image(entry: Mapping[str, Any], size: re.Match[str] | None) -> Decimal | None:
    usd = _first(entry, "output_cost_per_image")
    if usd is None and entry.get("mode") not in _TEXT_MODES:
        usd = _first(entry, "input_cost_per_image")
    pixel = _decimal(entry.get("input_cost_per_pixel"))
    if usd is None and pixel is not None and size is not None:
        usd = pixel * int(size[1]) * int(size[2])
    return usd


def _video_usd(entry: Mapping[str, Any], resolution: str | None) -> Decimal | None:
    label = (resolution or "").strip().lower()
    if _RESOLUTION.fullmatch(label):
        by_resolution = f"output_cost_per_second_{label}"
        return _first(entry, "output_cost_per_video_per_second", by_resolution, "output_cost_per_second")
    return _first(entry, "output_cost_per_video_per_second", "output_cost_per_second")


def _first(entry: Mapping[str, Any], *keys: str) -> Decimal | None:
    return next((usd for key in keys if (usd := _decimal(entry.get(key))) is not None), None)


def _decimal(value: Any) -> Decimal | None:
    """Return a price; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = Decimal(str(value))
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() and number >= 0 else None
