"""What the running proxy can serve, what it costs, and how many tokens a prompt has."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import litellm
from litellm.cost_calculator import cost_per_token
from litellm.proxy import proxy_server

from ..errors import Conflict
from ..types import Deployment, Price, Usage
from . import values

#: The model list is read again after this time, since an administrator can change it while the proxy runs.
_FRESH_S: Final = 1.0
#: Up to here an estimate is a count: about a millisecond.
_COUNTED_CHARS: Final = 8_000
#: Of English text, by the makers of the common tokenizers.
_CHARS_A_TOKEN: Final = 4
_PRICE_KEYS: Final = {
    "input_usd": "input_cost_per_token",
    "output_usd": "output_cost_per_token",
    "cache_read_usd": "cache_read_input_token_cost",
    "cache_write_usd": "cache_creation_input_token_cost",
    "audio_input_usd": "input_cost_per_audio_token",
    "audio_output_usd": "output_cost_per_audio_token",
    "reasoning_usd": "output_cost_per_reasoning_token",
}
_THRESHOLD: Final = re.compile(r"_above_(?P<count>\d+)(?P<k>k?)_tokens")


def router() -> Any:
    """Return LiteLLM's router; None before the configuration has been loaded."""
    return proxy_server.llm_router


class RouterCatalog:
    """The proxy's model list as values."""

    def __init__(self) -> None:
        self._read_at = -_FRESH_S
        self._by_id: dict[str, Deployment] = {}
        self._by_group: dict[str, tuple[Deployment, ...]] = {}
        self._listed: dict[str, Mapping[str, object]] = {}
        self._abilities: dict[tuple[str, str], Mapping[str, bool]] = {}

    def _read(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _FRESH_S:
            return
        llm_router = router()
        entries = list(llm_router.model_list) if llm_router is not None else []
        found = [self._with_abilities(values.deployment(entry)) for entry in entries]
        self._by_id = {d.id: d for d in found}
        groups: dict[str, list[Deployment]] = {}
        for d in found:
            groups.setdefault(d.group, []).append(d)
        self._by_group = {name: tuple(members) for name, members in groups.items()}
        self._read_at = now

    def _with_abilities(self, deployment: Deployment) -> Deployment:
        """Add ``supports_...`` of LiteLLM's model map to what the configuration says."""
        key = (deployment.provider, deployment.model)
        known = self._abilities.get(key)
        if known is None:
            try:
                info: Mapping[str, Any] = litellm.get_model_info(deployment.model, deployment.provider)
            except Exception:  # noqa: BLE001  # LiteLLM raises bare exceptions for models it does not know
                info = {}
            known = {k: v for k, v in info.items() if k.startswith("supports_") and isinstance(v, bool)}
            self._abilities[key] = known
        return replace(deployment, info={**known, **deployment.info}) if known else deployment

    def by_id(self, deployment_id: str) -> Deployment | None:
        """Return one deployment, or None."""
        self._read()
        return self._by_id.get(deployment_id)

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments of a model group or the one with this id; all of them for None; empty if unknown."""
        self._read()
        if target is None:
            return tuple(self._by_id.values())
        if target in self._by_group:
            return self._by_group[target]
        one = self._by_id.get(target)
        return () if one is None else (one,)

    def is_group(self, target: str) -> bool:
        """Say whether the target is a model group."""
        self._read()
        return target in self._by_group

    def is_listed(self, name: str) -> bool:
        """Say whether the name is a model group, a deployment or an alias."""
        llm_router = router()
        return bool(self.deployments(name)) or (llm_router is not None and name in llm_router.model_group_alias)

    def list_model(self, name: str, target: str | None, *, info: Mapping[str, object] | None = None) -> None:
        """Show ``name`` in ``GET /v1/models`` as an alias of ``target``; None stops showing it.

        Args:
            name: What clients ask for.
            target: A model group, a deployment id, or None.
            info: More fields for its entry, as JSON.

        Raises:
            Conflict: the configuration has a model group or an alias of this name.
        """
        llm_router = router()
        if llm_router is None:
            return
        aliases = llm_router.model_group_alias
        if target is None:
            if name in self._listed:
                del self._listed[name]
                aliases.pop(name, None)
            return
        if self.is_group(name) or (name in aliases and name not in self._listed):
            raise Conflict(
                f"the model name {name!r} is taken: the gateway's configuration has a model group or an alias of this "
                "name; choose another name or rename the group",
                param="name",
            )
        members = self.deployments(target)
        group = target if self.is_group(target) or not members else members[0].group
        aliases[name] = {"model": group, "hidden": False}
        self._listed[name] = dict(info or {})

    def listed_info(self, name: str) -> Mapping[str, object]:
        """Return the fields that a plugin adds to the entry of a listed name."""
        return self._listed.get(name, {})


class CostMap:
    """LiteLLM's prices."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, object], str] = {}

    def _key(self, deployment: Deployment) -> str:
        """Return the cost map's key: the id of a deployment with prices of its own, else its base model, else its model."""
        base = deployment.info.get("base_model")
        place = (deployment.id, deployment.model, base)
        key = self._keys.get(place)
        if key is None:
            own = litellm.model_cost.get(deployment.id) or {}
            if "input_cost_per_token" in own:
                key = deployment.id
            elif isinstance(base, str) and self._entry(base, deployment.provider) is not None:
                key = base
            else:
                key = deployment.model
            self._keys[place] = key
        return key

    def _info(self, deployment: Deployment) -> Mapping[str, Any] | None:
        """Return what the map says of a deployment, or None when it has no prices of it."""
        return self._entry(self._key(deployment), deployment.provider)

    @staticmethod
    def _entry(key: str, provider: str) -> Mapping[str, Any] | None:
        try:
            info: Mapping[str, Any] = litellm.get_model_info(key, provider)
        except Exception:  # noqa: BLE001  # LiteLLM raises bare exceptions for models it does not know
            return None
        entry = litellm.model_cost.get(info.get("key"))
        # Of a model that it knows only from the configuration, LiteLLM says that it costs nothing.
        return None if entry is not None and not any("cost" in name for name in entry) else info

    def get(self, deployment: Deployment) -> Price:
        """Return the unit prices of a deployment; fields are None where the map does not know."""
        info = self._info(deployment)
        if info is None:
            return Price()
        fields: dict[str, Any] = {name: _decimal(info.get(key)) for name, key in _PRICE_KEYS.items()}
        above: dict[int, dict[str, Any]] = {}
        for name, key in _PRICE_KEYS.items():
            for threshold, value in _thresholds(info, key):
                above.setdefault(threshold, {})[name] = value
        base = price = Price(**fields)
        tiers = []
        for threshold, changes in sorted(above.items()):
            price = replace(price, **changes)
            tiers.append((threshold, price))
        return replace(base, above=tuple(tiers))

    def cost_usd_micros(self, deployment: Deployment, usage: Usage | None) -> int | None:
        """Return what an answer cost by LiteLLM's own calculation, or None when it does not know the model."""
        if usage is None:
            return None
        try:
            counted = litellm.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                prompt_tokens_details={
                    "cached_tokens": usage.cached_tokens,
                    "cache_creation_tokens": usage.cache_write_tokens,
                    "audio_tokens": usage.audio_prompt_tokens,
                },
                completion_tokens_details={
                    "reasoning_tokens": usage.reasoning_tokens,
                    "audio_tokens": usage.audio_completion_tokens,
                },
                cache_read_input_tokens=usage.cached_tokens,
                cache_creation_input_tokens=usage.cache_write_tokens,
            )
            parts = cost_per_token(
                model=self._key(deployment), custom_llm_provider=deployment.provider, usage_object=counted
            )
        except Exception:  # noqa: BLE001  # LiteLLM raises bare exceptions for models it does not know
            return None
        total = sum(parts)
        return values.usd_micros(total) if total or self._info(deployment) is not None else None


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def _thresholds(info: Mapping[str, Any], key: str) -> Iterator[tuple[int, Decimal | None]]:
    """Yield the prices that hold above so many prompt tokens: ``<key>_above_200k_tokens``."""
    for name, value in info.items():
        found = _THRESHOLD.fullmatch(name.removeprefix(key)) if name.startswith(key) else None
        if found and value is not None:
            yield int(found["count"]) * (1000 if found["k"] else 1), _decimal(value)


class PromptTokenizer:
    """LiteLLM's token counter."""

    def count(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a chat, messages, responses or embeddings request."""
        messages = body.get("messages")
        if isinstance(messages, list):
            return int(litellm.token_counter(model=model, messages=messages))
        source = body.get("input", body.get("prompt"))
        texts = (
            [source]
            if isinstance(source, str)
            else [_text_of(part) for part in source]
            if isinstance(source, list)
            else []
        )
        return sum(int(litellm.token_counter(model=model, text=text)) for text in texts if text)

    def estimate(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a short request; reckon those of a long one from its length, at once."""
        length = len(str(body.get("messages", body.get("input", ""))))
        return self.count(model, body) if length <= _COUNTED_CHARS else length // _CHARS_A_TOKEN

    def count_text(self, model: str, text: str) -> int:
        """Count the tokens of a text."""
        return int(litellm.token_counter(model=model, text=text)) if text else 0


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        content = part.get("content") or part.get("text") or ""
        return content if isinstance(content, str) else " ".join(_text_of(item) for item in content)
    return ""
