"""Where events go. ``base`` says what a sink is; each of the others is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

from pydantic import ValidationError

from pointsman.errors import nearest

from .base import EventsRejected, Sink, SinkConfig, SinkContext, SinkError, SinkInfo, SinkUnavailable

GROUP: Final = "pointsman_billing.sinks"


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
        """Under which it keeps its place in the outbox."""
        return self.config.name or self.kind


def choose(written: object) -> Chosen:
    """Return the sink that an element of ``sinks:`` names: ``stdout`` or ``{ndjson: {path: bills.ndjson}}``.

    Raises:
        ValueError: saying what is wrong, without the values: there may be secrets among them.
    """
    if isinstance(written, Chosen):
        return written
    kind, section = _read(written)
    found = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in found:
        installed = ", ".join(sorted(found)) or "none"
        raise ValueError(f"there is no sink {kind!r}{nearest(kind, found)}; installed: {installed}")
    info = found[kind].load()
    if not isinstance(info, SinkInfo):
        raise ValueError(f"the entry point of the sink {kind!r} names no SinkInfo")  # noqa: TRY004 - pydantic reports it
    missing = [module for module in info.modules if importlib.util.find_spec(module) is None]
    if missing:
        what = f"pointsman-billing[{info.extra}]" if info.extra else ", ".join(missing)
        raise ValueError(f"the sink {kind!r} needs the module {missing[0]!r}: pip install '{what}'")
    try:
        return Chosen(kind, info, info.config.model_validate(dict(section)))
    except ValidationError as err:
        raise ValueError(f"sink {kind!r}: {'; '.join(_complaints(info.config, err))}") from None


def _complaints(model: type[SinkConfig], err: ValidationError) -> Iterator[str]:
    """Yield what is wrong with a section, key by key in the host's words, and at last which keys there are."""
    unknown = False
    for detail in err.errors(include_url=False, include_input=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
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
    "EventsRejected",
    "Sink",
    "SinkConfig",
    "SinkContext",
    "SinkError",
    "SinkInfo",
    "SinkUnavailable",
    "choose",
]
