"""Checks of single fields of what plugins return, and plain values out of derived ones.

Each check takes the name of the field, for the message, and its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeVar

from ..frozen import FrozenDict
from ..types import FRAMING_HEADERS, HOST_HEADERS, is_credential_header

T = TypeVar("T")

_MOST_NAME_CHARS: Final = 512
_MOST_TEXT_CHARS: Final = 16_384
#: Labels, fallbacks, notes and the like.
_MOST_ITEMS: Final = 256
#: Clients and the proxies in front refuse an answer with more: ``http.client`` above 100 headers, nginx above 4 or 8 kB, in both
#: cases with those of the provider and of LiteLLM.
_MOST_HEADERS: Final = 32
_MOST_HEADER_CHARS: Final = 4_000
#: What a store can hold and add up.
MOST_INTEGER: Final = 2**63
#: Some thirty years.
_MOST_SECONDS: Final = 10**9
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TEXTS_ALONE: Final = {str}
_FORBIDDEN_HEADERS: Final = FRAMING_HEADERS | HOST_HEADERS
#: Dictionaries first: whether a value is an abstract mapping takes longer to tell.
_MAPPINGS: Final = (dict, Mapping)


def as_exact_class(kind: type[T], value: T) -> T:
    """Return a value of a class of the contract as one of exactly this class."""
    if type(value) is kind:
        return value
    return kind(**{one.name: getattr(value, one.name) for one in fields(kind)})  # type: ignore[arg-type]  # a dataclass


def plain(value: Any) -> Any:
    """Return a text of a class that is derived from ``str`` as a text, everything else as it is."""
    return str.__str__(value) if type(value) is not str and isinstance(value, str) else value


def plain_texts(values: Iterable[str]) -> tuple[str, ...]:
    """Return texts, those of derived classes as texts."""
    return tuple(map(plain, values))


def int_or_none(value: object) -> int | None:
    """Return a number of a class that is derived from ``int``, such as ``HTTPStatus``, as an int; None when it is not one."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def added_headers(
    field: str, before: Mapping[str, str], after: Mapping[Any, Any], charset: str = "latin-1"
) -> Mapping[str, str]:
    """Return the headers of before together with those that a plugin has set: names in small letters, values as they arrive."""
    if after is before:
        return before
    check_mapping(field, after)
    changed = {name: value for name, value in after.items() if not before.get(name) == value}  # noqa: SIM201  # a class of its own
    if not changed:
        return before
    simple = are_simple(changed.values())
    new = {}
    for name, value in changed.items():
        text = name if type(name) is str else plain(name)
        lower = _header_name(text) if type(text) is str and len(text) <= _MOST_NAME_CHARS else None
        if lower is None:
            check_name(field, name)
            reject(field, f"{name!r} cannot be set by a plugin")
        new[lower] = value.strip(" ") if simple else _header_value(f"{field}[{name!r}]", plain(value), charset)
    merged = FrozenDict({**before, **new})
    chars = sum(map(len, merged)) + sum(map(len, merged.values()))
    if len(merged) > _MOST_HEADERS or chars > _MOST_HEADER_CHARS:
        reject(
            field,
            f"there are {len(merged)} with {chars} characters; at most {_MOST_HEADERS} with {_MOST_HEADER_CHARS} are possible, since "
            "clients refuse larger answers",
        )
    return merged


@lru_cache(maxsize=1_024)
def _header_name(name: str) -> str | None:
    """Return a header's name in small letters; None where plugins cannot set it. Plugins set the same ones all the time."""
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(name) or lower in _FORBIDDEN_HEADERS or is_credential_header(lower):
        return None
    return lower


def _header_value(field: str, value: str, charset: str) -> str:
    """Return a header's value as it arrives: without white space around it."""
    check_encodable(field, value)
    if not value.isprintable():
        reject(field, "contains a control character, such as a line break, or unusual white space")
    if not value.isascii():
        try:
            value.encode(charset)
        except UnicodeEncodeError:
            reject(field, f"contains {value!r:.100}, which is not {charset.upper()}: a header can hold nothing else")
    return value.strip(" ")


def target_headers(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> Mapping[str, Mapping[str, str]]:
    """Return the headers for each target together with those that a plugin has set."""
    if after is before:
        return before
    check_mapping("target_headers", after)
    new = {}
    for target, headers in after.items():
        held = before.get(target, {})
        if headers is held:
            continue
        check_name("target_headers", target)
        new[plain(target)] = added_headers(f"target_headers[{target!r}]", held, headers)
    if not new:
        return before
    check_length("target_headers", merged := {**before, **new})
    return FrozenDict(merged)


def check_count(field: str, value: object, *, known: bool) -> None:
    """Check that a value is a count, or None where the count may be unknown."""
    if value is None and not known:
        return
    if type(value) is not int or not 0 <= value <= MOST_INTEGER:
        reject(field, f"must be an int that is not negative, not {value!r:.100}")


def reject(field: str, what: str) -> NoReturn:
    """Raise the error that names a field and what is wrong with it."""
    raise ValueError(f"the returned value's {field}: {what}")


def check_encodable(field: str, value: object) -> None:
    """Check that a value is a text that can be stored and sent."""
    if not isinstance(value, str):
        reject(field, f"must be a text, not {type(value).__name__}")
    if len(value) > _MOST_TEXT_CHARS:
        reject(field, f"has {len(value)} characters; at most {_MOST_TEXT_CHARS} are possible")
    if not value.isascii():
        check_encoded(field, value)


def check_encoded(field: str, value: str) -> None:
    """Check that a text has no unpaired surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError:
        reject(field, "contains an unpaired surrogate, which cannot be stored or sent")


def check_text(field: str, value: Any) -> None:
    """Check that a value is a text on one line."""
    check_encodable(field, value)
    if not value.isprintable() and _CONTROL.search(value):
        reject(field, "contains a control character, such as a line break")


def are_simple(values: Collection[object]) -> bool:
    """Return whether values are texts as nearly all are: of ``str`` itself, short all together, and nothing but ASCII on one line.

    They are checked all together, which takes less time than one after another.
    """
    if {*map(type, values)} != _TEXTS_ALONE:
        return False
    together = "".join(values)  # type: ignore[arg-type]  # texts here
    return len(together) <= _MOST_NAME_CHARS and together.isascii() and together.isprintable()


def check_name(field: str, value: Any) -> None:
    """Check that a value is a name: a short text on one line that is not empty."""
    if type(value) is str and 0 < len(value) <= _MOST_NAME_CHARS and value.isascii() and value.isprintable():
        return  # as nearly all are
    check_text(field, value)
    if not 0 < len(value) <= _MOST_NAME_CHARS:
        reject(field, f"a name of {len(value)} characters; 1 to {_MOST_NAME_CHARS} are possible")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number that can be stored."""
    if type(value) is int:  # as nearly all are
        return -MOST_INTEGER <= value <= MOST_INTEGER
    return (isinstance(value, float) and math.isfinite(value)) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER
    )


def check_amount(field: str, value: object, most: float = MOST_INTEGER) -> None:
    """Check that a value is a number that can be added to others."""
    if not is_number(value) or not 0 <= value <= most:  # type: ignore[operator]  # a number here
        reject(field, f"must be a finite number from 0 to {most:g}, not {value!r:.100}")


def check_duration(field: str, value: object) -> None:
    """Check that a value is a time span in seconds."""
    check_amount(field, value, _MOST_SECONDS)


def check_length(field: str, value: Collection[object]) -> None:
    """Check that there are not too many."""
    if len(value) > _MOST_ITEMS:
        reject(field, f"there are {len(value)}; at most {_MOST_ITEMS} are possible")


def check_mapping(field: str, value: object) -> None:
    """Check that a value is a mapping."""
    if not isinstance(value, _MAPPINGS):
        reject(field, f"must be a mapping, not {type(value).__name__}")


def check_tuple(field: str, value: object) -> None:
    """Check that a value is a tuple."""
    if not isinstance(value, tuple):
        reject(field, f"must be a tuple, not {type(value).__name__}")
