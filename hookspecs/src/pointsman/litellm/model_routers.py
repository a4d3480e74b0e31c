"""Prices of Azure's model router: each of its answers costs what the model that it has chosen does, and a fee for the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from ..frozen import replace
from ..pricing import CONTEXT
from ..types import Deployment, Price

F = TypeVar("F")

#: In the order in which a model is looked for.
_PROVIDERS: Final = ("azure_ai", "azure")
_NAMES: Final = ("model-router", "model_router")
#: The entries of LiteLLM's map that are the fee.
FEES: Final = ("azure_ai/model_router", "azure_ai/model-router", "azure/model-router")
#: The prices a token of the prompt, to which the fee is added.
_PROMPT: Final = (
    "input_usd",
    "cache_read_usd",
    "explicit_cache_read_usd",
    "cache_write_usd",
    "cache_write_1h_usd",
    "audio_input_usd",
    "image_input_usd",
    "video_input_usd",
    "cached_audio_usd",
    "cached_image_usd",
)


def is_model_router(deployment: Deployment) -> bool:
    """Return whether a deployment is a model router, by its name as LiteLLM does."""
    return deployment.provider in _PROVIDERS and _is_routers(deployment.model)


def _is_routers(model: str) -> bool:
    return any(name in model.lower() for name in _NAMES)


def chosen(model: str, find: Callable[[str, str], F | None]) -> F | None:
    """Return what is found about the model that a router has chosen; None where it is not named or not found.

    Args:
        model: The model that has answered.
        find: Returns what is known about a model of a provider, or None.
    """
    if _is_routers(model):
        return None
    return next((found for provider in _PROVIDERS if (found := find(model, provider))), None)


def fee(entries: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the entry of LiteLLM's map that is the fee, after its name; None where there is none."""
    return next(((name, entries[name]) for name in FEES if name in entries), None)


def with_fee(price: Price, fee_usd: Decimal) -> Price:
    """Return the prices of a model with the fee for each token of its prompt."""
    changes: dict[str, Any] = {
        name: CONTEXT.add(usd, fee_usd) for name in _PROMPT if (usd := getattr(price, name)) is not None
    }
    above = tuple((least, with_fee(higher, fee_usd)) for least, higher in price.above)
    tiers = {name: with_fee(tier, fee_usd) for name, tier in price.tiers.items()}
    return replace(price, above=above, tiers=tiers, **changes)
