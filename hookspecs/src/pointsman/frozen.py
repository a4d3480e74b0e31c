"""Values that cannot be changed, since several plugins share them: dictionaries, lists, and dataclasses that are built fast.

Dictionaries and lists are such for ``isinstance``, JSON and comparisons. A change raises ``TypeError``; a copy
(``dict(value)``, ``list(value)``, ``copy.deepcopy(value)``) is the caller's own and can be changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

T = TypeVar("T")
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


#: Returns a copy of a value with other values of some fields, by its class.
_CHANGED: Final[dict[type, Callable[[Any, Mapping[str, Any]], Any]]] = {}


def quick(cls: type[T]) -> type[T]:
    """Let values of a frozen dataclass with slots be built several times as fast, and be copied so by ``replace``.

    ``dataclasses`` sets each field of a frozen value by a call of ``object.__setattr__``. Here a value belongs to an open
    subclass, with the same slots, until all of its fields are set.
    """
    opened = type(
        cls.__name__,
        (cls,),
        {
            "__slots__": (),
            # Both: otherwise Python does not store at once.
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
        },
    )
    plain: Callable[..., None] = cls.__init__
    names = {"cls_": cls, "opened_": opened, "plain_": plain, "missing_": dataclasses.MISSING}
    names |= {"new_": object.__new__, "set_": object.__setattr__}
    fields = sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))  # type: ignore[arg-type]  # it is a dataclass
    parameters, defaults = ["self"], []
    for field in fields:
        name, default = field.name, f"default_{field.name}"
        if field.kw_only and "*" not in parameters:
            parameters.append("*")
        if field.default_factory is not dataclasses.MISSING:
            names[default] = field.default_factory
            parameters.append(f"{name}=missing_")
            defaults += [f"if {name} is missing_:", f"    {name} = {default}()"]
            continue
        if field.default is not dataclasses.MISSING:
            names[default] = field.default
        parameters.append(name if field.default is dataclasses.MISSING else f"{name}={default}")
    given = ", ".join(f"{field.name}={field.name}" if field.kw_only else field.name for field in fields)
    end = ["self.__class__ = cls_", *(["self.__post_init__()"] if hasattr(cls, "__post_init__") else [])]
    source = [
        f"def built_({', '.join(parameters)}):",
        *(f"    {line}" for line in defaults),
        "    if self.__class__ is not cls_:",
        f"        return plain_(self, {given})",
        "    set_(self, '__class__', opened_)",
        *(f"    self.{field.name} = {field.name}" for field in fields),
        *(f"    {line}" for line in end),
        "def changed_(old, changes):",
        "    self = new_(opened_)",
        *(f"    self.{field.name} = old.{field.name}" for field in fields),
        "    for name, value in changes.items():",
        "        set_(self, name, value)",
        *(f"    {line}" for line in (*end, "return self")),
    ]
    made: dict[str, Any] = {}
    exec("\n".join(source), names, made)  # noqa: S102  # as ``dataclasses`` makes its methods: of the names of fields alone
    cls.__init__ = wraps(plain)(made["built_"])  # type: ignore[method-assign]  # with the same signature
    _CHANGED[cls] = made["changed_"]
    return cls


if TYPE_CHECKING:
    from dataclasses import replace as replace  # noqa: PLC0414  # mypy checks the names and types of its arguments
else:

    def replace(value: T, /, **changes: Any) -> T:
        """Return a copy of a dataclass with other values of some fields, as ``dataclasses.replace``.

        Raises:
            TypeError: it has no such field.
        """
        changed = _CHANGED.get(type(value))
        if changed is None:
            return dataclasses.replace(value, **changes)
        try:
            return changed(value, changes)
        except AttributeError as err:
            raise TypeError(str(err)) from err
