"""How keys and values become text, the same for every backend.

A value is stored as its canonical JSON text: keys sorted, no spaces, no escapes beyond those that JSON demands. Two
values are equal when their canonical texts are, so 1 and 1.0 differ, as do 1 and true.

Pure: no I/O, no clock. Everything here that refuses something raises ``ValueError``, except ``decode``, which reads
what a store holds and raises ``StoreCorrupt``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any, Final, NoReturn, cast

import orjson

from ..errors import StoreCorrupt
from .protocol import JSON, MAX_COUNTER, MAX_KEY_CHARS, MAX_TTL_S, Put, Update

_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
#: Levels of nesting that the quick way encodes.
_DEEP: Final = 100
_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
#: Of these, any value can be written.
_SURE_LEAVES: Final = _LEAVES - {float}
_NO_VALUE: Final = "None means 'no value' and cannot be stored: delete the key instead"


def check_key(key: str) -> None:
    """Refuse what is not a key: see ``protocol``."""
    if type(key) is str and 0 < len(key) <= MAX_KEY_CHARS and key.isascii() and "\0" not in key:
        return  # as nearly all are
    if not isinstance(key, str):
        raise ValueError(f"a store key is text, not {type(key).__name__}")  # noqa: TRY004 - the protocol promises ValueError
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise ValueError(f"a store key has 1 to {MAX_KEY_CHARS} characters, not {len(key)}")
    check_prefix(key)


def check_prefix(prefix: str) -> None:
    """Refuse what no key can start with. Empty is allowed: every key starts with it."""
    if not isinstance(prefix, str):
        raise ValueError(f"a key prefix is text, not {type(prefix).__name__}")  # noqa: TRY004 - as in check_key
    if len(prefix) > MAX_KEY_CHARS:
        raise ValueError(f"a key prefix has at most {MAX_KEY_CHARS} characters, not {len(prefix)}")
    if "\0" in prefix:
        raise ValueError(f"a store key cannot contain a NUL character: {prefix!r}")
    if not prefix.isascii():
        _check_unicode(prefix, "a store key")


def check_keys(keys: Sequence[str]) -> None:
    """Refuse the keys of an atomic step unless there is at least one and none comes twice."""
    for key in keys:
        check_key(key)
    if not keys:
        raise ValueError("an atomic step needs at least one key")
    if len(set(keys)) != len(keys):
        raise ValueError(f"an atomic step names a key twice: {sorted(keys)}")


def check_ttl(ttl_s: float | None) -> None:
    """Refuse a time to live that is not a positive number of seconds within bounds."""
    try:
        allowed = ttl_s is None or (isfinite(ttl_s) and 0 < ttl_s <= MAX_TTL_S)
    except TypeError:
        allowed = False
    if not allowed:
        raise ValueError(f"ttl_s is more than 0 and at most {MAX_TTL_S} seconds, not {ttl_s!r}")


def check_amount(amount: int) -> None:
    """Refuse what cannot be added to a counter."""
    if type(amount) is not int or abs(amount) > MAX_COUNTER:
        raise ValueError(f"an amount is an integer within ±{MAX_COUNTER}, not {amount!r}")


def compare_and_set(key: str, expected: JSON, value: JSON, ttl_s: float | None) -> Update:
    """Return the ``Update`` that is a compare-and-set."""
    checks = {key: expected}
    if value is None:
        check_ttl(ttl_s)
        return Update(checks=checks, deletes=(key,))
    return Update(checks=checks, puts={key: Put(value, ttl_s)})


def encode_update(update: Update) -> tuple[dict[str, str | None], dict[str, tuple[str, float | None]]]:
    """Refuse a bad ``Update`` (a key not allowed, one written in two ways, a bad value) or return its texts.

    Returns:
        The checks as canonical texts (None: must not exist), and the puts as canonical texts with their time to live
        in seconds.
    """
    written = [*update.puts, *update.deletes, *update.adds]
    for key in (*update.checks, *written):
        check_key(key)
    if len(set(written)) != len(written):
        twice = sorted({key for key in written if written.count(key) > 1})
        raise ValueError(f"an Update writes a key in more than one way: {twice}")
    for put in update.puts.values():
        check_ttl(put.ttl_s)
    for amount in update.adds.values():
        check_amount(amount)
    checks = {key: None if value is None else encode(value) for key, value in update.checks.items()}
    return checks, {key: (encode(put.value), put.ttl_s) for key, put in update.puts.items()}


def counter(key: str, text: str | None, amount: int) -> int:
    """Return the sum of a counter's present text (None: no counter yet) and an amount."""
    try:
        present = 0 if text is None else json.loads(text)
    except ValueError:
        present = None
    if type(present) is not int or abs(present) > MAX_COUNTER:
        raise ValueError(not_a_counter(key))
    if abs(present + amount) > MAX_COUNTER:
        raise ValueError(counter_full(key))
    return present + amount


def not_a_counter(key: str) -> str:
    """Return the message for a value that is not a counter."""
    return f"key {key!r} does not hold an integer within ±{MAX_COUNTER}, so nothing can be added to it"


def counter_full(key: str) -> str:
    """Return the message for a sum outside the range of counters."""
    return f"key {key!r}: the sum would leave ±{MAX_COUNTER}; nothing was added"


def encode(value: JSON) -> str:
    """Return the canonical JSON text of a value to be stored or compared with a stored one."""
    if value is None:
        raise ValueError(_NO_VALUE)
    return encode_any(value)


def encode_any(value: JSON) -> str:
    """Return the canonical JSON text of any JSON value, None included: arguments and results of an atomic step."""
    text = _encode_quickly(value)
    return _encode_carefully(value) if text is None else text.decode()


def _encode_quickly(value: JSON) -> bytes | None:
    """Encode what ``orjson`` encodes as we would; None for anything else."""
    if not _is_simple(value, _DEEP):
        return None
    try:
        return orjson.dumps(value, default=_plain, option=_OPTIONS)
    except TypeError:
        return None


def _is_simple(value: Any, deep: int) -> bool:
    """Return whether a value is of JSON's own types, tuples and read-only mappings, and at most this deep.

    ``orjson`` writes more than JSON (enumerations, UUIDs, fragments of text), null for numbers that JSON does not have, and
    a tuple within a tuple, and so on, as deep as memory goes and beyond it.
    """
    kind = type(value)
    if kind in _SURE_LEAVES:
        return True
    if kind is float:
        return isfinite(value)
    if kind is dict or kind is MappingProxyType:
        value = value.values()
    elif kind is not list and not isinstance(value, tuple):
        return False
    if not deep:
        return False
    for item in value:
        # Numbers too are looked at here: some values that are stored are hundreds of them.
        kind = type(item)
        if kind not in _SURE_LEAVES and not (isfinite(item) if kind is float else _is_simple(item, deep - 1)):
            return False
    return True


def _encode_carefully(value: JSON) -> str:
    """Encode what the quick way leaves (integers beyond 64 bits, deep nesting, classes of one's own), or refuse it."""
    try:
        _check_names(value)
        text = _encoder.encode(value)
    except (TypeError, ValueError) as err:
        raise ValueError(f"not a JSON value: {err}") from None
    except RecursionError:
        raise ValueError("not a JSON value: nested too deeply, or within itself") from None
    if not text.isascii():
        _check_unicode(text, "a value")
    # The two spell floats differently: a value has one text, whatever Python types it came in.
    try:
        plain = _encode_quickly(_decoder.decode(text))
    except RecursionError:
        return text
    return text if plain is None else plain.decode()


def as_returned(value: JSON) -> JSON:
    """Return the result of an atomic step as every backend returns it: a copy, of plain types.

    Raises:
        ValueError: it is not a JSON value.
    """
    text = _encode_quickly(value)
    return decode_any(_encode_carefully(value)) if text is None else cast("JSON", orjson.loads(text))


def decode(text: str | bytes, where: str) -> JSON:
    """Return the value of a stored text.

    Args:
        text: What the store holds.
        where: Names the store and the key, for the message.

    Raises:
        StoreCorrupt: when it is not the text of a JSON value other than null.
    """
    try:
        value = decode_any(text)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise StoreCorrupt(
            f"{where} holds something that is not a JSON value; delete the key, or restore the store from a backup"
        )
    return value


def decode_any(text: str | bytes) -> JSON:
    """Return the value of a JSON text of an atomic step's result; ``ValueError`` when it is none."""
    text = text if isinstance(text, str) else text.decode()
    try:
        value, end = _decoder.raw_decode(text)
    except ValueError:
        end = None
    # White space around it, which no encoder here writes: `decode` looks for it, at the price of another decoding.
    return cast("JSON", value if end == len(text) else _decoder.decode(text))


def _check_names(value: object) -> None:
    """Refuse names that are not text, which ``json`` would silently turn into text."""
    inner: Iterable[object]
    if isinstance(value, (list, tuple)):
        inner = value
    elif isinstance(value, (dict, Mapping)):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"the name {name!r} is {type(name).__name__}, not text")
        inner = value.values()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        inner = value
    else:
        return
    for item in inner:
        if type(item) not in _LEAVES:
            _check_names(item)


def _plain(value: object) -> object:
    """Turn other mappings and sequences into those that the encoders know."""
    if isinstance(value, tuple):  # most are: of a class with names
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} contains half a surrogate pair, which is not a character") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_encoder = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":"), default=_plain
)
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
