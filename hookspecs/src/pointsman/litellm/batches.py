"""Looks at batches where their providers keep them, as LiteLLM's own route does, and reads what they have used."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final

import litellm
from litellm.batches.batch_utils import batch_cost_is_final, handle_completed_batch
from litellm.proxy import proxy_server
from litellm.proxy.openai_files_endpoints.common_utils import (
    decode_model_from_file_id,
    get_batch_id_from_unified_batch_id,
    get_credentials_for_model,
    get_model_id_from_unified_batch_id,
    get_original_file_id,
    get_team_provider_credentials,
    is_base64_encoded_unified_file_id,
    is_litellm_executed_batch,
)

from ..types import Endpoint, Usage
from .batch_results import in_pieces
from .usage_units import answer_usage

log: Final = logging.getLogger("pointsman")

#: LiteLLM's own logs and prices of a batch belong to its client's reads.
_UNLOGGED: Final = {"litellm_metadata": {"batch_ignore_default_logging": True}}


_handle_in_pieces: Final = in_pieces(handle_completed_batch)


@dataclass(frozen=True, slots=True)
class Used:
    """What a batch that has ended has used.

    Attributes:
        usage: Its tokens; None when nothing says them.
        cost_usd: What LiteLLM computes from its results; None when it cannot.
    """

    usage: Usage | None
    cost_usd: Decimal | None = None


def is_kept(answer: str) -> bool:
    """Return whether a provider keeps a batch; LiteLLM carries out some itself, request by request.

    Args:
        answer: The gateway's id of it.
    """
    unified = is_base64_encoded_unified_file_id(answer)
    return not (isinstance(unified, str) and is_litellm_executed_batch(unified))


def asked_model(answer: str) -> str | None:
    """Return the model or the deployment that a batch was created with; None where its file alone names one.

    Args:
        answer: The gateway's id of it.
    """
    return _place(answer, "")[1]


def account_of(key: Any, provider: str) -> str:
    """Return the id of the deployment whose credentials LiteLLM uses for a key's batches that name no model.

    Args:
        key: LiteLLM's ``UserAPIKeyAuth``.
        provider: LiteLLM's name of the provider.

    Returns:
        Empty when it uses those of its own environment.
    """
    llm_router: Any = proxy_server.llm_router
    if llm_router is None or (used := get_team_provider_credentials(llm_router, key, provider)) is None:
        return ""
    for deployment_id in llm_router.get_model_ids():
        found = llm_router.get_deployment_credentials_with_provider(model_id=deployment_id, team_id=key.team_id)
        if found is not None and {name: value for name, value in found.items() if name != "model"} == used:
            return str(deployment_id)
    return ""


async def look(answer: str, deployment_id: str, provider: str) -> Used | None:
    """Return what a batch has used; None while its provider still works for it.

    Args:
        answer: The gateway's id of it.
        deployment_id: The deployment whose credentials it was created with; empty when there is none.
        provider: LiteLLM's name of the provider, for a batch without a deployment.
    """
    id_, model = _place(answer, deployment_id)
    settings: dict[str, Any] = {}
    if model is not None:
        settings = dict(get_credentials_for_model(proxy_server.llm_router, model, "looking at a batch"))
        provider = settings.pop("custom_llm_provider")
        settings.setdefault("model", model)
    batch: Any = await litellm.aretrieve_batch(id_, provider, **settings, **_UNLOGGED)
    said = answer_usage(Endpoint.BATCHES, batch, {})
    if said is None and not batch_cost_is_final(batch):
        return None
    if said is not None and getattr(batch, "output_file_id", None) is None:
        return Used(said)
    try:
        result = await _handle_in_pieces(batch, provider, None, settings)
    except Exception as err:  # noqa: BLE001  # whatever LiteLLM or the provider raises: the batch itself may say it
        log.debug("the results of a batch cannot be read: %s", type(err).__name__)
        return Used(said)
    counted = answer_usage(Endpoint.BATCHES, SimpleNamespace(usage=result.usage), {})
    usage = said or counted
    if usage is None:
        # None of its requests has succeeded.
        return Used(Usage(), Decimal(0))
    served = set(result.models)
    if usage.model is None and len(served) == 1:
        usage = replace(usage, model=served.pop())
    # LiteLLM also computes 0 where it does not know the price.
    return Used(usage, Decimal(str(result.cost)) if result.cost else None)


def _place(answer: str, deployment_id: str) -> tuple[str, str | None]:
    """Return the provider's id of a batch, and the model or deployment whose credentials it needs."""
    if (model := decode_model_from_file_id(answer)) is not None:
        return get_original_file_id(answer), model
    unified = is_base64_encoded_unified_file_id(answer)
    if isinstance(unified, str):
        return get_batch_id_from_unified_batch_id(unified), get_model_id_from_unified_batch_id(unified)
    return answer, deployment_id or None
