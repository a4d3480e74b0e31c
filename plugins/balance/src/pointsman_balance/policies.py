"""The settings of each model group: the configuration's, and what an administrator has changed since. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pointsman.errors import ConfigError

from .config import BalanceConfig, BreakerConfig, GroupPolicy
from .registry import make

if TYPE_CHECKING:
    from .config import TacticChoice
    from .tactic import Tactic


class Policies:
    """Tactics and breaker settings by model group.

    Args:
        config: The plugin's configuration.
        kinds: The tactics that there are.
    """

    def __init__(self, config: BalanceConfig, kinds: Mapping[str, type[Tactic]]) -> None:
        self._config = config
        self.kinds = kinds
        self._changed: dict[str, GroupPolicy] = {}
        self._tactics: dict[str, tuple[TacticChoice, Tactic]] = {}
        self._breakers: dict[str, BreakerConfig] = {}

    @property
    def changed(self) -> Mapping[str, GroupPolicy]:
        """What has been changed since the start, by model group."""
        return self._changed

    def choice(self, group: str) -> TacticChoice:
        """Return the name and settings of a group's tactic."""
        for policy in (self._changed.get(group), self._config.groups.get(group)):
            if policy is not None and policy.tactic is not None:
                return policy.tactic
        return self._config.tactic

    def tactic(self, group: str) -> tuple[str, Tactic]:
        """Return the name of a group's tactic and the tactic, always the same object until it is changed."""
        found = self._tactics.get(group)
        if found is None:
            if len(self._tactics) > self._config.max_deployments:
                self._tactics.clear()
            choice = self.choice(group)
            found = self._tactics[group] = (choice, make(choice, self.kinds))
        return found[0].name, found[1]

    def breaker(self, group: str) -> BreakerConfig:
        """Return a group's breaker settings."""
        found = self._breakers.get(group)
        if found is None:
            found = self._breaker(group, self._changed.get(group))
            if len(self._breakers) > self._config.max_deployments:
                self._breakers.clear()
            self._breakers[group] = found
        return found

    def _breaker(self, group: str, changed: GroupPolicy | None) -> BreakerConfig:
        found = self._config.breaker
        for policy in (self._config.groups.get(group), changed):
            if policy is not None:
                found = policy.breaker_over(found)
        return found

    def check(self, group: str, policy: GroupPolicy) -> None:
        """Refuse settings of a group that cannot be used.

        Raises:
            ConfigError: the tactic is not there, its settings are wrong, or the breaker's contradict those for all.
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
        """Take over what an administrator has changed, for all groups; say whether anything is different."""
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
