"""The available tactics: built-in ones and those of installed distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from pointsman.config import Section, message_of
from pointsman.errors import ConfigError, nearest
from pointsman.plugin import Extensions, extensions

from ..tactic import Tactic
from .adaptive import Adaptive
from .basic import P2C, Capacity, Headroom, LatencyBased, LeastBusy, Random, RoundRobin, SpeedBased, TokenBased
from .cache_affinity import CacheAffinity

ENTRY_POINTS: Final = "pointsman_balance.tactics"

BUILT_IN: Final[Mapping[str, type[Tactic]]] = {
    "adaptive": Adaptive,
    "cache_affinity": CacheAffinity,
    "capacity": Capacity,
    "headroom": Headroom,
    "latency_based": LatencyBased,
    "least_busy": LeastBusy,
    "p2c": P2C,
    "random": Random,
    "round_robin": RoundRobin,
    "speed_based": SpeedBased,
    "token_based": TokenBased,
}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TacticChoice(Section):
    """A tactic's name and, as further keys, its own settings; the tactic validates them."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=64, description="A built-in tactic or one of an installed distribution.")

    @property
    def settings(self) -> dict[str, Any]:
        """The keys other than the name."""
        return dict(self.model_extra or {})


#: As written in the configuration: a name, or a name with settings.
NamedTactic = Annotated[TacticChoice, BeforeValidator(_named)]


def installed(entries: Iterable[EntryPoint] | None = None) -> Extensions[type[Tactic]]:
    """Return all tactics by name; one of a distribution that cannot be used is left out until it is named.

    Args:
        entries: Entry points; by default those of the group ``pointsman_balance.tactics``.
    """
    return extensions("balance", ENTRY_POINTS, Tactic, BUILT_IN, entries)  # type: ignore[type-abstract]  # nothing is made of it


def make(choice: TacticChoice, tactics: Mapping[str, type[Tactic]]) -> Tactic:
    """Build the tactic that the configuration names.

    Args:
        choice: Name and settings.
        tactics: The available tactics.

    Raises:
        ConfigError: there is no such tactic, it cannot be used, or its settings are wrong; the caller adds the key path.
    """
    kind = tactics.get(choice.name)
    if kind is None:
        known = sorted(tactics)
        raise ConfigError(
            f"there is no tactic {choice.name!r}{nearest(choice.name, known)}; available: {', '.join(known)}"
        )
    try:
        return kind(choice.settings)
    except ValidationError as err:
        known = sorted(kind.Settings.model_fields)
        wrong = []
        for detail in err.errors(include_url=False, include_input=False):
            key, message = ".".join(map(str, detail["loc"])), message_of(detail)
            message = f"{message[:1].lower()}{message[1:]}"
            if detail["type"] == "extra_forbidden":
                message = f"unknown key{nearest(key, known)}"
            wrong.append(f"{key}: {message}")
        raise ConfigError(f"{'; '.join(wrong)}; settings of {choice.name!r}: {', '.join(known) or 'none'}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as err:
        raise ConfigError(f"the tactic {choice.name!r} cannot be built: {type(err).__name__}: {err}") from err
