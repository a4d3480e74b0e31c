"""The settings of each model group: the configured ones, overridden by an administrator's live changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pointsman.errors import ConfigError

from .tactics import make

if TYPE_CHECKING:
    from .breaker import BreakerConfig
    from .config import BalanceConfig, GroupPolicy
    from .tactic import Tactic
    from .tactics import TacticChoice


class Policies:
    """Tactics and breaker settings by model group.

    Args:
        config: The plugin's configuration.
        kinds: The available tactics by name.
    """

    def __init__(self, config: BalanceConfig, kinds: Mapping[str, type[Tactic]]) -> None:
        self._config = config
        self.kinds = kinds
        self._changed: dict[str, GroupPolicy] = {}
        self._tactics: dict[str, tuple[TacticChoice, Tactic]] = {}
        self._breakers: dict[str, BreakerConfig] = {}

    @property
    def changed(self) -> Mapping[str, GroupPolicy]:
        """The live changes by model group."""
        return self._changed

    def choice(self, group: str) -> TacticChoice:
        """Return the name and settings of a group's tactic."""
        for policy in (self._changed.get(group), self._config.groups.get(group)):
            if policy is not None and policy.tactic is not None:
                return policy.tactic
        return self._config.tactic

    def tactic(self, group: str) -> tuple[str, Tactic]:
        """Return the name of a group's tactic and the tactic, the same object until it is changed."""
        known = self._tactics.get(group)
        if known is None:
            if len(self._tactics) > self._config.max_deployments:
                self._tactics.clear()
            choice = self.choice(group)
            known = self._tactics[group] = (choice, make(choice, self.kinds))
        return known[0].name, known[1]

    def inherit(self, previous: Policies) -> None:
        """Go on with the tactics of another one whose settings are the same here, and so with what they remember."""
        for group, (choice, tactic) in previous._tactics.items():
            if self.choice(group) == choice:
                self._tactics[group] = (choice, tactic)

    def breaker(self, group: str) -> BreakerConfig:
        """Return a group's breaker settings."""
        settings = self._breakers.get(group)
        if settings is None:
            settings = self._breaker(group, self._changed.get(group))
            if len(self._breakers) > self._config.max_deployments:
                self._breakers.clear()
            self._breakers[group] = settings
        return settings

    def _breaker(self, group: str, changed: GroupPolicy | None) -> BreakerConfig:
        settings = self._config.breaker
        for policy in (self._config.groups.get(group), changed):
            if policy is not None:
                settings = policy.breaker_over(settings)
        return settings

    def check(self, group: str, policy: GroupPolicy) -> None:
        """Reject settings of a group that cannot be used.

        Raises:
            ConfigError: the tactic is unknown, its settings are wrong, or the breaker's contradict the plugin's.
        """
        key = "breaker"
        try:
            self._breaker(group, policy)
            if policy.tactic is not None:
                key = "tactic"
                make(policy.tactic, self.kinds)
        except ConfigError as err:
            raise ConfigError(f"{key}: {err}") from None

    def replace(self, changed: Mapping[str, GroupPolicy]) -> bool:
        """Replace the live changes of all groups; return whether anything is different."""
        if dict(changed) == self._changed:
            return False
        touched = self._changed.keys() | changed.keys()
        self._changed = dict(changed)
        for group in touched:
            self._breakers.pop(group, None)
            kept = self._tactics.get(group)
            if kept is not None and kept[0] != self.choice(group):
                del self._tactics[group]
        return True
