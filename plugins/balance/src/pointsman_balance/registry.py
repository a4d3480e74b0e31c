"""Which tactics there are: the built-in ones and those of installed distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from pointsman.errors import ConfigError, PluginLoadError, nearest

from .adaptive import Adaptive
from .affinity import CacheAffinity
from .tactic import Tactic
from .tactics import P2C, Capacity, Headroom, LatencyBased, LeastBusy, Random, RoundRobin, SpeedBased, TokenBased

if TYPE_CHECKING:
    from .config import TacticChoice

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


def installed(found: Iterable[EntryPoint] | None = None) -> dict[str, type[Tactic]]:
    """Return all tactics by name; one of a distribution replaces a built-in one of the same name.

    Args:
        found: Entry points; by default those of the group ``pointsman_balance.tactics``.

    Raises:
        PluginLoadError: an entry point cannot be imported or names something else.
    """
    tactics = dict(BUILT_IN)
    for entry in entry_points(group=ENTRY_POINTS) if found is None else found:
        where = f"entry point {entry.name!r} of {ENTRY_POINTS} ({entry.value})"
        try:
            loaded = entry.load()
        except Exception as err:
            raise PluginLoadError("balance", f"{where} cannot be imported: {type(err).__name__}: {err}") from err
        if not (isinstance(loaded, type) and issubclass(loaded, Tactic)):
            raise PluginLoadError("balance", f"{where} must name a class derived from pointsman_balance.tactic.Tactic")
        tactics[entry.name] = loaded
    return tactics


def make(choice: TacticChoice, tactics: Mapping[str, type[Tactic]]) -> Tactic:
    """Make the tactic that the configuration names.

    Args:
        choice: Name and settings.
        tactics: What there is.

    Raises:
        ConfigError: there is no such tactic, or its settings are wrong. Where they were written is the caller's to say.
    """
    kind = tactics.get(choice.name)
    if kind is None:
        known = sorted(tactics)
        raise ConfigError(
            f"there is no tactic {choice.name!r}{nearest(choice.name, known)}; there are {', '.join(known)}"
        )
    try:
        return kind(choice.settings)
    except ValidationError as err:
        known = sorted(kind.Settings.model_fields)
        wrong = []
        for each in err.errors(include_url=False, include_input=False):
            key, message = ".".join(map(str, each["loc"])), f"{each['msg'][:1].lower()}{each['msg'][1:]}"
            if each["type"] == "extra_forbidden":
                message = f"unknown key{nearest(key, known)}"
            wrong.append(f"{key}: {message}")
        raise ConfigError(f"{'; '.join(wrong)}; settings of {choice.name!r}: {', '.join(known) or 'none'}") from None
    except Exception as err:
        raise ConfigError(f"the tactic {choice.name!r} cannot be made: {type(err).__name__}: {err}") from err
