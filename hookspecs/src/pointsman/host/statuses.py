"""The statuses of all plugins, each computed when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..types import Status


class Statuses(Mapping[str, Status]):
    """Statuses by plugin. Some plugins look at all they know for theirs, and most requests need that of one.

    Args:
        names: The plugins, in order.
        status_of: Returns a plugin's status; called at most once for each.
    """

    def __init__(self, names: Sequence[str], status_of: Callable[[str], Status]) -> None:
        self._names = dict.fromkeys(names)
        self._status_of = status_of
        self._known: dict[str, Status] = {}

    def __getitem__(self, name: str) -> Status:
        if name not in self._known:
            if name not in self._names:
                raise KeyError(name)
            self._known[name] = self._status_of(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
