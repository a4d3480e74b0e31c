"""Sinks: where events are delivered. ``base`` is their interface; each of the other modules is a sink."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

from pydantic import ValidationError

from pointsman.config import message_of
from pointsman.errors import nearest
from pointsman.plugin import load_extension

from .base import EventsKnown, EventsRejected, Sink, SinkConfig, SinkContext, SinkError, SinkInfo, SinkUnavailable

log: Final = logging.getLogger("pointsman.billing")

GROUP: Final = "pointsman_billing.sinks"
_BUILT_IN: Final = "pointsman_billing."


@dataclass(frozen=True, slots=True)
class Chosen:
    """A sink of the configuration.

    Attributes:
        kind: The name of its entry point.
        info: What that names.
        config: Its section.
    """

    kind: str
    info: SinkInfo
    config: SinkConfig

    @property
    def name(self) -> str:
        """The name under which it keeps its place in the outbox."""
        return self.config.name or self.kind


def choose(written: object) -> Chosen:
    """Return the sink that an element of ``sinks:`` names: ``stdout`` or ``{ndjson: {path: bills.ndjson}}``.

    Raises:
        ValueError: the message does not show values, because they may be secrets.
    """
    if isinstance(written, Chosen):
        return written
    kind, section = _read(written)
    info = _loaded(kind)
    if not isinstance(info, SinkInfo):
        raise ValueError(f"the entry point of the sink {kind!r} does not name a SinkInfo")  # noqa: TRY004 - pydantic reports it
    missing = [module for module in info.modules if importlib.util.find_spec(module) is None]
    if missing:
        what = f"pointsman-billing[{info.extra}]" if info.extra else ", ".join(missing)
        raise ValueError(f"the sink {kind!r} needs the module {missing[0]!r}: pip install '{what}'")
    try:
        return Chosen(kind, info, info.config.model_validate(dict(section)))
    except ValidationError as err:
        raise ValueError(f"sink {kind!r}: {'; '.join(_complaints(info.config, err))}") from None


def _loaded(kind: str) -> object:
    """Return what the entry point of a sink names.

    Raises:
        ValueError: there is none, several claim the name, or it cannot be imported.
    """
    points = list(entry_points(group=GROUP))
    values = {point.value: point for point in points if point.name == kind}
    # No other distribution takes the place of a built-in sink.
    point = next((p for value, p in values.items() if value.startswith(_BUILT_IN)), None)
    if point is None and len(values) > 1:
        raise ValueError(
            f"two installed packages provide the sink {kind!r}: {', '.join(sorted(values))}; uninstall one"
        )
    if point is not None and len(values) > 1:
        log.warning(
            "the sink %r is the built-in one; rename the entry points of the others: %s", kind, ", ".join(values)
        )
    if not values:
        names = {point.name for point in points}
        raise ValueError(
            f"there is no sink {kind!r}{nearest(kind, names)}; installed: {', '.join(sorted(names)) or 'none'}"
        )
    try:
        found = load_extension(point or next(iter(values.values())))
    except KeyboardInterrupt:
        raise
    except BaseException as err:
        raise ValueError(f"the sink {kind!r} cannot be imported: {type(err).__name__}: {err}") from err
    return found


def _complaints(model: type[SinkConfig], err: ValidationError) -> Iterator[str]:
    """Yield the errors of a section key by key in the host's wording, then the allowed keys if one is unknown."""
    unknown = False
    for detail in err.errors(include_url=False, include_input=False, include_context=False):
        message = message_of(detail)
        message = message[:1].lower() + message[1:]
        if detail["type"] == "missing":
            message = "is missing"
        elif detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
            message, unknown = f"unknown key{nearest(str(detail['loc'][0]), model.model_fields)}", True
        yield ": ".join(filter(None, (".".join(map(str, detail["loc"])), message)))
    if unknown:
        yield f"allowed: {', '.join(sorted(model.model_fields))}"


def _read(written: object) -> tuple[str, Mapping[str, object]]:
    if isinstance(written, str):
        return written, {}
    if isinstance(written, Mapping) and len(written) == 1:
        ((kind, section),) = written.items()
        if isinstance(kind, str) and (section is None or isinstance(section, Mapping)):
            return kind, section or {}
    raise ValueError("a sink is written as its kind with its settings, for example 'ndjson: {path: bills.ndjson}'")


__all__ = [
    "GROUP",
    "Chosen",
    "EventsKnown",
    "EventsRejected",
    "Sink",
    "SinkConfig",
    "SinkContext",
    "SinkError",
    "SinkInfo",
    "SinkUnavailable",
    "choose",
]
