"""What a billing plugin charges, for reservations: its prices and margins, as it announces them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pointsman.types import AttemptKind

if TYPE_CHECKING:
    from pointsman.events import TariffAnnounced, TariffRule

_MOST_ANSWERS: Final = 4096


class Tariff:
    """Finds the rules that apply to a request's first attempt.

    Args:
        announced: The rules; the first that applies counts.
    """

    def __init__(self, announced: TariffAnnounced) -> None:
        self.price = lru_cache(_MOST_ANSWERS)(_Rules(announced.prices).find)
        self.margin = lru_cache(_MOST_ANSWERS)(_Rules(announced.margins).find)


class _Rules:
    def __init__(self, rules: Sequence[TariffRule]) -> None:
        primary = str(AttemptKind.PRIMARY)
        self._rules = [
            (rule, _patterns(rule.tenants), _patterns(rule.models))
            for rule in rules
            if not rule.kinds or primary in rule.kinds
        ]

    def find(self, tenant: str, models: tuple[str, ...]) -> TariffRule | None:
        """Return the first rule that applies to a tenant and to one of these names of a model."""
        for rule, tenants, names in self._rules:
            if (tenants is None or tenants.fullmatch(tenant)) and (names is None or any(map(names.fullmatch, models))):
                return rule
        return None


def _patterns(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Return one expression for all patterns, or None where there are none."""
    return re.compile("|".join(map(translate, patterns))) if patterns else None
