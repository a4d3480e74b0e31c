"""Which models of a configuration have no price, by LiteLLM's cost map as it is installed; LiteLLM is not imported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ..plugin import UnpricedModel
from ..pricing import WITHOUT_ANSWER_TOKENS

_MAP: Final = "model_prices_and_context_window_backup.json"
#: What LiteLLM's names of prices have in common: ``input_cost_per_token``, ``ocr_cost_per_page``.
_PRICE: Final = "_cost_per_"
_BOTH: Final = frozenset({"input_cost_per_token", "output_cost_per_token"})
#: The providers of which LiteLLM knows that the model is another provider's.
_FORWARDING: Final = frozenset({"azure_ai", "litellm_proxy"})
_SETTINGS: Final = ("router_settings", "litellm_settings")
_FALLBACKS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")

Priced = Callable[[tuple[str, ...], str], bool]


def unpriced_models(document: Mapping[str, Any], by_rule: Priced = lambda *_: False) -> list[UnpricedModel]:
    """Return the models for which a deployment without a price may answer; none where there is no cost map to ask.

    A wildcard stands for models that only requests name.

    Args:
        document: LiteLLM's configuration.
        by_rule: Whether the section of a plugin has a price for one of these names of a model, for a tenant.
    """
    known = _cost_map()
    entries = document.get("model_list")
    if known is None or not isinstance(entries, list):
        return []
    groups: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and "model_name" in entry:
            unpriced = groups.setdefault(str(entry["model_name"]), [])
            if not _has_price(entry, known):
                unpriced.append((str(_mapping(entry.get("model_info")).get("id") or ""), _model_of(entry)))
    found = [
        UnpricedModel(id_, group, is_deployment=True, priced_for=_ruled(by_rule, [(group, model)]))
        for group, deployments in groups.items()
        for id_, model in deployments
        if id_
    ]
    for name in [*groups, *_aliases(document)]:
        for group in _answering(document, name):
            if deployments := groups.get(group):
                names = [(name, group, model) for _, model in deployments]
                found.append(UnpricedModel(name, group, priced_for=_ruled(by_rule, names)))
    return sorted(found, key=lambda one: (one.name, one.group != one.name, one.group))


def _ruled(by_rule: Priced, models: Sequence[tuple[str, ...]]) -> Callable[[str], bool]:
    return lambda tenant: all(by_rule(names, tenant) for names in models)


def _answering(document: Mapping[str, Any], name: str) -> list[str]:
    """Return a name, what it is an alias of, and all groups that LiteLLM may fall back to from these."""
    aliases, names = _aliases(document), [name]
    for group in names:
        targets = [aliases.get(group), *(target for of, target in _fallbacks(document) if of in {group, "*"})]
        names += dict.fromkeys(target for target in targets if target and target not in names)
    return names


def _aliases(document: Mapping[str, Any]) -> dict[str, str]:
    aliases = _mapping(_mapping(document.get("router_settings")).get("model_group_alias"))
    return {str(alias): str(_mapping(target).get("model") or target) for alias, target in aliases.items()}


def _fallbacks(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each group, ``*`` for all, with a model that LiteLLM falls back to."""
    for section in (_mapping(document.get(name)) for name in _SETTINGS):
        rules = [rule for kind in _FALLBACKS for rule in _list(section.get(kind)) if isinstance(rule, Mapping)]
        rules.append({"*": section.get("default_fallbacks")})
        for group, targets in (item for rule in rules for item in rule.items()):
            for target in _list(targets):
                yield str(group), str(_mapping(target).get("model") or target)


def _cost_map() -> Mapping[str, Any] | None:
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return None
    try:
        known = json.loads((Path(spec.origin).parent / _MAP).read_bytes())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def _has_price(entry: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    params, info = _mapping(entry.get("litellm_params")), _mapping(entry.get("model_info"))
    configured = {**params, **info}
    if any(_PRICE in str(key) and value is not None for key, value in configured.items()):
        return _whole(configured, str(info.get("mode") or ""))
    model = str(params.get("model") or "")
    if "*" in model:
        return True
    parts = model.split("/")
    provider = str(params.get("custom_llm_provider") or "") or parts[0]
    names = [str(info.get("base_model") or params.get("base_model") or ""), model, f"{provider}/{model}"]
    entries = [_mapping(known.get(name)) for name in names]
    # The map names some models without their provider. What another provider asks for a model of that name is no price.
    shorter = [_mapping(known.get("/".join(parts[start:]))) for start in range(1, len(parts))]
    entries += [f for f in shorter if provider in _FORWARDING or provider in str(f.get("litellm_provider"))]
    return any(_whole(found, str(info.get("mode") or found.get("mode") or "")) for found in entries)


def _whole(entry: Mapping[str, Any], mode: str) -> bool:
    """Return whether there are prices, and not only one for the prompt while what the answer costs is not known."""
    if entry.get("tiered_pricing"):
        return True
    prices = {key for key, value in entry.items() if _PRICE in str(key) and value is not None}
    return bool(prices) and (len(prices & _BOTH) != 1 or mode in WITHOUT_ANSWER_TOKENS)


def _model_of(entry: Mapping[str, Any]) -> str:
    """Return the provider's model name, without the provider's prefix."""
    params = _mapping(entry.get("litellm_params"))
    model = str(params.get("model") or "")
    return model if params.get("custom_llm_provider") else model.partition("/")[2] or model


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
