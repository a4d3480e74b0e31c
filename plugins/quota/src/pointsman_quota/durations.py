"""How long a tenant's requests usually take. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

DEFAULT_MS: Final = 1000
_WEIGHT_RATIO: Final = 0.1


class Durations:
    """A moving average by tenant.

    Args:
        capacity: The most tenants to remember; the one unused for longest is forgotten.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._means_ms: OrderedDict[str, float] = OrderedDict()

    def add(self, tenant: str, duration_ms: float) -> None:
        """Remember how long a request took."""
        mean_ms = self._means_ms.get(tenant, duration_ms)
        self._means_ms[tenant] = mean_ms + _WEIGHT_RATIO * (max(0.0, duration_ms) - mean_ms)
        self._means_ms.move_to_end(tenant)
        if len(self._means_ms) > self._capacity:
            self._means_ms.popitem(last=False)

    def typical_ms(self, tenant: str) -> int:
        """Return the usual duration in milliseconds; a second before anything is known."""
        return int(self._means_ms.get(tenant, DEFAULT_MS))
