"""The running proxy's deployments."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import litellm
from litellm.proxy import proxy_server
from litellm.proxy._types import SpecialModelNames
from litellm.router_utils.fallback_event_handlers import get_fallback_model_group

from ..errors import Conflict
from ..frozen import FrozenDict, replace
from ..types import Deployment
from . import request_values

#: The model list is read again after this time, since an administrator can change it while the proxy runs.
_FRESH_S: Final = 1.0
#: What has a meaning in a tenant's pattern or in a regular expression, and not in a pattern of LiteLLM's.
_NOT_LITELLMS: Final = frozenset("?[]()+{}|^$\\")
#: Names come from clients.
_MOST_NAMES: Final = 2_000


def router() -> Any:
    """Return LiteLLM's router; None before the configuration has been loaded."""
    return proxy_server.llm_router


class Fallbacks:
    """One of LiteLLM's lists of fallbacks.

    Its own look-up compares every entry with the name of every provider, which takes milliseconds for a list of fifty. It
    is asked with those entries only that may be meant.

    Args:
        entries: The list.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        self._entries = list(entries)
        #: Places of the entries by their key, with and without the parts before a slash; None for other entries.
        self._places: dict[str | None, list[int]] = {}
        for place, entry in enumerate(self._entries):
            key = next(iter(entry), None) if isinstance(entry, Mapping) else None
            parts = key.split("/") if isinstance(key, str) else ()
            names = ["/".join(parts[first:]) for first in range(len(parts))]
            for name in names or (None,):
                self._places.setdefault(name, []).append(place)

    def of(self, group: str) -> Any:
        """Return what LiteLLM falls back to from a model group, or None."""
        names: set[str | None] = {None, "*", group}
        if "/" in group:
            providers = (getattr(one, "value", one) for one in litellm.provider_list)
            names |= {group.replace(f"{one}/", "") for one in providers if group.startswith(f"{one}/")}
        places = sorted({place for name in names for place in self._places.get(name, ())})
        return get_fallback_model_group(fallbacks=[self._entries[place] for place in places], model_group=group)[0]


class RouterCatalog:
    """The proxy's model list as values."""

    def __init__(self) -> None:
        self._read_at = -_FRESH_S
        self._by_id: dict[str, Deployment] = {}
        self._by_group: dict[str, tuple[Deployment, ...]] = {}
        self._allowed: dict[tuple[str, ...], list[str]] = {}
        self._listed: dict[str, Mapping[str, object]] = {}
        self._reachable: dict[str, tuple[Deployment, ...]] = {}
        self._fallbacks: list[Fallbacks] | None = None
        self._by_wildcard: dict[str, tuple[Deployment, ...]] = {}
        self._abilities: dict[tuple[str, str], dict[str, bool | str | int]] = {}

    def _refresh(self) -> None:
        if time.monotonic() - self._read_at >= _FRESH_S:
            self._read()

    def _read(self) -> None:
        llm_router = router()
        entries = list(llm_router.model_list) if llm_router is not None else []
        found = [self._with_abilities(one) for one in request_values.deployments(entries)]
        self._by_id = {d.id: d for d in found}
        groups: dict[str, list[Deployment]] = {}
        for d in found:
            groups.setdefault(d.group, []).append(d)
        self._by_group = {name: tuple(members) for name, members in groups.items()}
        self._allowed = {}
        self._reachable = {}
        self._fallbacks = None
        self._by_wildcard = {}
        self._read_at = time.monotonic()

    def _with_abilities(self, deployment: Deployment) -> Deployment:
        """Add ``mode``, ``max_input_tokens`` and ``supports_...`` of LiteLLM's model map to the fields from the configuration."""
        key = (deployment.provider, deployment.model)
        known = self._abilities.get(key)
        if known is None:
            try:
                info: Mapping[str, Any] = litellm.get_model_info(deployment.model, deployment.provider)
            except Exception:  # noqa: BLE001  # LiteLLM raises bare exceptions for models it does not know
                info = {}
            known = {k: v for k, v in info.items() if k.startswith("supports_") and isinstance(v, bool)}
            for name, kind in (("mode", str), ("max_input_tokens", int)):
                if isinstance(value := info.get(name), kind):
                    known[name] = value
            self._abilities[key] = known
        return replace(deployment, info=FrozenDict({**known, **deployment.info})) if known else deployment

    def by_id(self, deployment_id: str) -> Deployment | None:
        """Return one deployment, or None."""
        if time.monotonic() - self._read_at >= _FRESH_S:
            self._read()
        return self._by_id.get(deployment_id)

    def serving(self, entry: Mapping[str, Any]) -> Deployment:
        """Return the deployment of LiteLLM's entry for a call: of a wildcard's, with the model that is called.

        Args:
            entry: As in LiteLLM's ``model_list``, with the call's own parameters.
        """
        known = self.by_id(request_values.deployment_id(entry))
        if known is not None and "*" not in known.model:
            return known
        called = request_values.deployment(entry)
        return called if known is None else replace(known, model=called.model)

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments that serve a target; all of them for None: see ``pointsman.plugin.Catalog``."""
        if time.monotonic() - self._read_at >= _FRESH_S:
            self._read()
        if target is None:
            return tuple(self._by_id.values())
        return self._by_group.get(target) or self._named(target) or self._of_wildcard(target)

    def _named(self, target: str) -> Sequence[Deployment]:
        """Return the deployments of a model group, or the one with this id."""
        if target in self._by_group:
            return self._by_group[target]
        one = self._by_id.get(target)
        return () if one is None else (one,)

    def _of_wildcard(self, name: str) -> Sequence[Deployment]:
        """Return the deployments of the wildcard group that serves a name, as the provider's model of that name."""
        found = self._by_wildcard.get(name)
        if found is None:
            patterns = getattr(router(), "pattern_router", None)
            entries = None if patterns is None or "*" in name else patterns.route(name)
            found = tuple(request_values.deployment(entry) for entry in entries or ())
            if len(self._by_wildcard) < _MOST_NAMES:
                self._by_wildcard[name] = found
        return found

    def is_group(self, target: str) -> bool:
        """Return whether the target is a model group."""
        self._refresh()
        return target in self._by_group

    def reachable(self, name: str) -> Sequence[Deployment]:
        """Return every deployment that may answer a request for this name: see ``pointsman.plugin.Catalog``."""
        self._refresh()
        found = self._reachable.get(name)
        if found is None:
            found = tuple({d.id: d for group in self._groups_from(name) for d in self._served_by(group)}.values())
            if len(self._reachable) < _MOST_NAMES:
                self._reachable[name] = found
        return found

    def _groups_from(self, name: str) -> Sequence[str]:
        """Return a name, what it is an alias of, and all names that LiteLLM may fall back to from these."""
        llm_router = router()
        if self._fallbacks is None:
            lists = (
                getattr(llm_router, f"{kind}fallbacks", None) for kind in ("", "context_window_", "content_policy_")
            )
            self._fallbacks = [Fallbacks(entries) for entries in lists if entries]
        names = [name]
        for group in names:
            if (alias := _alias_of(llm_router, group)) is not None and alias not in names:
                names.append(alias)
            for fallbacks in self._fallbacks:
                targets = fallbacks.of(group) or ()
                wanted = [target.get("model") if isinstance(target, Mapping) else target for target in targets]
                names.extend(target for target in wanted if isinstance(target, str) and target not in names)
        return names

    def _served_by(self, name: str) -> Sequence[Deployment]:
        """Return what answers a name without fallbacks, aliases and wildcards resolved as LiteLLM does."""
        if found := self.deployments(name):
            return found
        llm_router = router()
        entries = llm_router.get_model_list(model_name=name) if llm_router is not None else None
        return tuple(request_values.deployment(entry) for entry in entries or ())

    def is_listed(self, name: str) -> bool:
        """Return whether the name is a model group, a deployment or an alias."""
        llm_router = router()
        self._refresh()
        return bool(self._named(name)) or (llm_router is not None and name in llm_router.model_group_alias)

    def resolved(self, name: str) -> str:
        """Return what a name is the configuration's alias of, or the name: see ``pointsman.plugin.Catalog``."""
        llm_router = router()
        if llm_router is None or name in self._listed:
            return name
        return _alias_of(llm_router, name) or name

    def allowed(self, patterns: tuple[str, ...]) -> list[str]:
        """Return patterns of models in LiteLLM's terms, for the ``models`` of a key.

        LiteLLM understands ``*`` and names. So the patterns are replaced by what they match among groups, deployments and
        aliases; those that LiteLLM understands are kept as well, since they may match what a plugin routes.

        Args:
            patterns: With ``*``, ``?`` and ``[...]``.
        """
        self._refresh()
        if (known := self._allowed.get(patterns)) is not None:
            return known
        llm_router = router()
        names = {*self._by_group, *self._by_id, *(llm_router.model_group_alias if llm_router is not None else ())}
        matched = sorted(name for name in names if self.matches(name, patterns))
        kept = [pattern for pattern in patterns if _NOT_LITELLMS.isdisjoint(pattern)]
        # An empty list would allow everything.
        found = list(dict.fromkeys((*matched, *kept))) or [SpecialModelNames.no_default_models.value]
        self._allowed[patterns] = found
        return found

    def matches(self, name: str, patterns: tuple[str, ...]) -> bool:
        """Return whether patterns allow a name. An alias is allowed with what it stands for, or by its very name.

        Args:
            name: A group, a deployment, an alias or a listed name.
            patterns: With ``*``, ``?`` and ``[...]``.
        """
        return name in patterns or any(fnmatchcase(self.resolved(name), pattern) for pattern in patterns)

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
                # The native router reads its aliases when they are set, not when the dictionary changes.
                llm_router.model_group_alias = {alias: of for alias, of in aliases.items() if alias != name}
            return
        if self.is_group(name) or (name in aliases and name not in self._listed):
            raise Conflict(
                f"the model name {name!r} is taken: the gateway's configuration has a model group or an alias of this "
                "name; choose another name or rename the group",
                param="name",
            )
        members = self.deployments(target)
        group = target if self.is_group(target) or not members else members[0].group
        alias = {"model": group, "hidden": False}
        if aliases.get(name) != alias:
            llm_router.model_group_alias = {**aliases, name: alias}
        self._listed[name] = dict(info or {})

    def listed_info(self, name: str) -> Mapping[str, object]:
        """Return the fields that a plugin adds to the entry of a listed name."""
        return self._listed.get(name, {})


def _alias_of(llm_router: Any, name: str) -> str | None:
    """Return what LiteLLM calls for a name, in either form of its ``model_group_alias``; None for a name of its own."""
    found = (getattr(llm_router, "model_group_alias", None) or {}).get(name)
    target = found.get("model") if isinstance(found, Mapping) else found
    return target if isinstance(target, str) and target else None
