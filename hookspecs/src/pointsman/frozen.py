"""Dictionaries and lists that cannot be changed, for values that several plugins share.

They are dictionaries and lists for ``isinstance``, JSON and comparisons. A change raises ``TypeError``; a copy
(``dict(value)``, ``list(value)``, ``copy.deepcopy(value)``) is the caller's own and can be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_WHY: Final = "this value is shared by all plugins and cannot be changed; change a copy of it: copy.deepcopy(value)"


def _refuse(*_: object, **__: object) -> NoReturn:
    raise TypeError(_WHY)


class FrozenDict(dict[K, V]):
    """A dictionary that cannot be changed."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def copy(self) -> dict[K, V]:
        """Return a dictionary that can be changed, with the same values."""
        return dict(self)

    def __copy__(self) -> dict[K, V]:
        return dict(self)

    def __deepcopy__(self, memo: object) -> dict[K, V]:
        return {key: thawed(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class FrozenList(list[V]):
    """A list that cannot be changed."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def copy(self) -> list[V]:
        """Return a list that can be changed, with the same values."""
        return list(self)

    def __copy__(self) -> list[V]:
        return list(self)

    def __deepcopy__(self, memo: object) -> list[V]:
        return [thawed(value) for value in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def frozen(value: Any) -> Any:
    """Return a value of JSON with every dictionary and list in it frozen, at any depth."""
    kind = type(value)
    if kind is dict:
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    if kind is list:
        return FrozenList([frozen(item) for item in value])
    return value


def thawed(value: Any) -> Any:
    """Return a copy of a value of JSON that can be changed at any depth; of a mapping, a dictionary."""
    if isinstance(value, dict | FrozenBody):
        return {key: thawed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [thawed(item) for item in value]
    return value


class FrozenBody(Mapping[str, Any]):
    """A request's body that cannot be changed. A value is frozen, at any depth, when it is first read.

    So a body costs nothing until a plugin reads it, however large it is.
    """

    __slots__ = ("_frozen", "_source")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = source
        self._frozen: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        try:
            return self._frozen[key]
        except KeyError:
            value = self._frozen[key] = frozen(self._source[key])
            return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, frozen, or the default. Most fields that are looked for are not there: that costs no exception."""
        return self[key] if key in self._source else default

    def __contains__(self, key: object) -> bool:
        return key in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        # A prompt does not belong into a log.
        return f"FrozenBody({sorted(map(str, self._source))})"

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {key: thawed(value) for key, value in self._source.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self._source),)


def frozen_body(body: Mapping[str, Any]) -> FrozenBody:
    """Return a body that cannot be changed."""
    return body if isinstance(body, FrozenBody) else FrozenBody(body)
