"""What every part of the configuration shares: its base model, its references to the environment, its errors.

::

    class Breaker(Section):
        failures: int = Field(default=3, ge=1, description="Consecutive errors that open the breaker.")

    validate(Breaker, {"failure": 4}, "litellm.yaml: pointsman.breaker")
    # ConfigError: litellm.yaml: pointsman.breaker.failure: unknown key (did you mean 'failures'?); allowed: failures

An error is one line per wrong key. It names the key path as the user wrote it, the value, what is allowed and the
nearest name. Values that may be secrets, and whole sections (which may contain some), are not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar, Union, get_args, get_origin
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from .errors import ConfigError, nearest

#: How LiteLLM's configuration names a variable of the environment: ``os.environ/NAME``.
ENVIRONMENT: Final = "os.environ/"

_SECRET: Final = re.compile(r"key|token(?!s)|secret|password|credential|auth|cookie|header|hash|url|dsn", re.IGNORECASE)
_SHOWN_CHARS: Final = 60
_MESSAGES: Final = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "it must be a mapping"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "it must be a list"),
}
_WORDS: Final = {None: "null", True: "true", False: "false"}


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError) as err:
        raise ValueError("it is not an IANA time zone, or the system has no zone data (install tzdata)") from err
    return name


#: The name of an IANA time zone, for example ``Europe/Berlin``.
Zone = Annotated[str, AfterValidator(_known_zone)]

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Base of every mapping that a person writes: unknown keys are errors, numbers are finite, nothing changes."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def variable(value: object) -> str | None:
    """Return the variable's name of a value ``os.environ/NAME``, None for every other value."""
    return value.removeprefix(ENVIRONMENT) if isinstance(value, str) and value.startswith(ENVIRONMENT) else None


def resolve(value: Any, env: Mapping[str, str], where: str, problems: list[str]) -> Any:
    """Return a configuration with the values of the variables it names, at any depth.

    Args:
        value: A mapping, a list or a single value, as read from YAML.
        env: The environment.
        where: File and key path of the value, for messages.
        problems: One line for every variable that is not set is added; its reference stays in the result.
    """
    if (name := variable(value)) is not None:
        if name not in env:
            problems.append(f"{where}: the environment variable {name!r} is not set")
        return env.get(name, value)
    if isinstance(value, Mapping):
        return {key: resolve(item, env, f"{where}.{key}", problems) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, env, f"{where}[{index}]", problems) for index, item in enumerate(value)]
    return value


def validate(model: type[M], raw: Mapping[Any, Any], where: str) -> M:
    """Validate a mapping with a model.

    Args:
        model: The model.
        raw: The mapping as it was written.
        where: File and key path of the mapping, for messages.

    Raises:
        ConfigError: one line per wrong key.
    """
    try:
        return model.model_validate(dict(raw))
    except ValidationError as err:
        # Without its cause: pydantic's own message repeats the input, and a traceback would show the secrets in it.
        raise ConfigError("\n".join(explain(model, err, where))) from None


def explain(model: type[BaseModel], error: ValidationError, where: str) -> list[str]:
    """Return what is wrong, one line per key: the branches of a union that all fail share one."""
    lines: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        place, reason = _explain(model, detail, where)
        reasons = lines.setdefault(place, [])
        if reason not in reasons:
            reasons.append(reason)
    return [f"{place}{', or '.join(reasons)}" for place, reasons in lines.items()]


def _explain(model: type[BaseModel], detail: ErrorDetails, where: str) -> tuple[str, str]:
    """Return the part of the line with place and value, and the part with the reason."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        *path, key = detail["loc"]
        parents, _ = _follow(model, path)
        allowed = fields_at(model, path)
        place = _place(where, [*parents, key])
        return f"{place}: unknown key{nearest(str(key), allowed)}", f"; allowed: {', '.join(allowed) or 'none'}"
    path, _ = _follow(model, detail["loc"])
    if kind == "missing":
        return f"{_place(where, path)}: is missing", ""
    if kind == "union_tag_not_found":
        return f"{_place(where, [*path, context['discriminator'].strip(chr(39))])}: is missing", ""
    near, names = "", re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if kind == "union_tag_invalid":
        path, value = [*path, context["discriminator"].strip("'")], context["tag"]
        message = f"it must be one of {', '.join(names)}"
    else:
        message = message_of(detail)
    if names and isinstance(value, str):
        near = nearest(value, names)
    place = _place(where, path)
    if (
        kind in {"value_error", "assertion_error"}
        and isinstance(value, Mapping | Sequence)
        and not isinstance(value, str)
    ):
        return f"{place}: ", message
    return f"{place}: {_shown(value, path)} is not allowed: ", f"{message[:1].lower()}{message[1:]}{near}"


def message_of(detail: ErrorDetails) -> str:
    """Return pydantic's message about a value in the terms of YAML: lists and mappings, no Python types."""
    return _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").removeprefix(
        "Assertion failed, "
    )


def fields_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the names of the fields that are allowed at a place, sorted.

    Args:
        model: The model of the whole document.
        loc: The place, as pydantic's errors give it.
    """
    return sorted({name for each in _models(_follow(model, loc)[1]) for name in _names(each)})


def _place(where: str, path: Sequence[int | str]) -> str:
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _shown(value: object, path: Sequence[int | str]) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    names = [part for part in path if isinstance(part, str)]
    if any(_SECRET.search(name) for name in names) or (isinstance(value, str) and "token" in "".join(names).lower()):
        return "the value (not shown, it may be a secret)"
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."


def _follow(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[int | str], list[Any]]:
    """Return the part of pydantic's location that is a path of keys, and the annotations it ends at.

    Between the keys pydantic names the branches of unions by tag, class or validator, which are not in the document.
    """
    path: list[int | str] = []
    at: list[Any] = [model]
    for part in loc:
        branches = [branch for annotation in at for branch in _branches(annotation)]
        models = _models(branches)
        fields = [field.annotation for each in models if (field := _field(each, part)) is not None]
        items = [item for branch in branches for item in _items(branch, part)]
        if fields or items:
            path.append(part)
            at = fields or items
        else:
            at = [each for each in models if part == each.__name__ or _is_tag(each, part)] or at
    return path, at


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [branch for argument in get_args(annotation) for branch in _branches(argument)]
    return [annotation]


def _models(annotations: Iterable[Any]) -> list[type[BaseModel]]:
    return [
        branch
        for annotation in annotations
        for branch in _branches(annotation)
        if isinstance(branch, type) and issubclass(branch, BaseModel)
    ]


def _field(model: type[BaseModel], part: int | str) -> Any:
    return next((field for name, field in model.model_fields.items() if part in {name, field.alias}), None)


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _items(annotation: Any, part: int | str) -> list[Any]:
    """Return what a container holds at an index or a key."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or not arguments:
        return []
    if issubclass(origin, Mapping):
        return [] if part == "[key]" else [arguments[1]]
    return [arguments[0]] if isinstance(part, int) else []


def _is_tag(model: type[BaseModel], part: int | str) -> bool:
    literals = (field.annotation for field in model.model_fields.values())
    return any(part in get_args(literal) for literal in literals if get_origin(literal) is Literal)
