"""``pointsman plugins show``, ``pointsman schema`` and ``pointsman hooks``: what there is to configure and to implement.

All of it is read from the code: settings from the models that validate them, hooks from their specifications.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
from pydantic.json_schema import (
    DEFAULT_REF_TEMPLATE,
    GenerateJsonSchema,
    JsonSchemaValue,
    PydanticJsonSchemaWarning,
)
from pydantic_core.core_schema import BeforeValidatorFunctionSchema, CoreSchema, ModelSchema, WithDefaultSchema

from ..client import table
from ..errors import ConfigError, PluginLoadError, nearest
from ..host.discovery import discover, plugin_info
from ..host.settings import HostConfig
from ..plugin import PluginConfig, PluginInfo
from ..specs import HOOKS
from .output import show_json, show_table
from .status import plugins

_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "pattern {}",
}
_SECTION: Final = re.compile(r"^(Args|Returns|On error|Example):{1,2}$", re.MULTILINE)
_TEXT: Final = {"type": "string"}
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Schema(GenerateJsonSchema):
    """Takes anything where a plugin accepts what no JSON schema can describe."""

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:  # noqa: ARG002  # pydantic's signature
        return {}

    def get_default_value(self, schema: WithDefaultSchema) -> Any:
        """Return a default, also one that is made each time."""
        factory: Any = schema.get("default_factory")
        if factory is not None and not schema.get("default_factory_takes_data"):
            with suppress(Exception):  # it may need what is there at the start only
                return factory()
        return super().get_default_value(schema)

    def encode_default(self, dft: Any) -> Any:
        """Return a default as JSON can hold it."""
        made = super().encode_default(dft)
        return f"{made}" if isinstance(made, float) and not math.isfinite(made) else made

    def function_before_schema(self, schema: BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a value that has a short form: that of the value, or a text."""
        inner = self.generate_inner(schema["schema"])
        # Those of a whole model are closed, and get their short form, with the model.
        return inner if schema["schema"]["type"] == "model-fields" else {"anyOf": [inner, _TEXT]}

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Return a model's schema; one with a short form may also be a text."""
        made = super().model_schema(schema)
        short = schema["schema"]["type"] == "function-before" and not issubclass(schema["cls"], PluginConfig)
        return {"anyOf": [made, _TEXT]} if short else made


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a configuration model.

    Attributes:
        key: Its path; ``[]`` stands for an element of a list, ``<name>`` for a key of a mapping.
        kind: What it takes.
        default: Its default as JSON, or ``required``.
        bounds: What limits it, or empty.
        description: What it does, with its unit.
    """

    key: str
    kind: str
    default: str
    bounds: str
    description: str


def settings_of(model: type[PluginConfig | HostConfig]) -> list[Setting]:
    """Return every setting of a model, with those of the models in it, in the order of their definition.

    Raises:
        ConfigError: the model has no schema.
    """
    schema, defs = _schema_of(model, DEFAULT_REF_TEMPLATE)
    return list(_settings(schema, defs, "", ()))


def _schema_of(model: type[PluginConfig | HostConfig], template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schema of a model, and those of the models in it.

    Raises:
        ConfigError: a plugin's own code has failed at it.
    """
    try:
        with warnings.catch_warnings():
            # Of a default that JSON cannot hold, which is then left out.
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
            made = dict(model.model_json_schema(ref_template=template, schema_generator=_Schema))
    except KeyboardInterrupt:
        raise
    except BaseException as err:
        raise ConfigError(f"its configuration model has no schema: {type(err).__name__}: {err}") from err
    defs = made.pop("$defs", {})
    # A model that contains itself is nothing but a reference to itself.
    if reference := made.get("$ref"):
        made = next(dict(found) for name, found in defs.items() if template.format(model=name) == reference)
    return made, defs


def _settings(
    schema: Mapping[str, Any], defs: Mapping[str, Any], prefix: str, within: tuple[str, ...]
) -> Iterator[Setting]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        key = f"{prefix}{name}"
        yield Setting(
            key=key,
            kind=_kind(field, defs),
            default="required" if name in required else _text(field["default"]) if "default" in field else "not shown",
            bounds=", ".join(_bounds(field)),
            description=" ".join(str(field.get("description", "")).split()),
        )
        for suffix, title, inner in _inner(field, defs):
            # A model that contains itself is shown once.
            if title not in within:
                yield from _settings(inner, defs, f"{key}{suffix}.", (*within, title))


def _inner(
    field: Mapping[str, Any], defs: Mapping[str, Any], suffix: str = ""
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the models that a field may hold: where, their name, their schema."""
    if "properties" in field:
        yield suffix, str(field.get("title", "")), field
    if reference := field.get("$ref"):
        yield from _inner(defs.get(str(reference).rsplit("/", 1)[-1], {}), defs, suffix)
    for each in (*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())):
        yield from _inner(each, defs, suffix)
    for key, step in (("items", "[]"), ("additionalProperties", ".<name>")):
        if isinstance(field.get(key), Mapping):
            yield from _inner(field[key], defs, suffix + step)


def _kind(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if reference := field.get("$ref"):
        found = defs.get(str(reference).rsplit("/", 1)[-1], {})
        return "mapping" if "properties" in found else _kind(found, defs)
    if "enum" in field:
        return " | ".join(map(_text, field["enum"]))
    if "const" in field:
        return _text(field["const"])
    if several := (*field.get("anyOf", ()), *field.get("oneOf", ())):
        return " | ".join(dict.fromkeys(_kind(each, defs) for each in several))
    kind = {"object": "mapping", "array": "list"}.get(str(field.get("type", "any")), str(field.get("type", "any")))
    return (
        f"list of {_kind(field['items'], defs)}" if kind == "list" and isinstance(field.get("items"), Mapping) else kind
    )


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    for key, text in _BOUNDS.items():
        if key in field:
            yield text.format(field[key])
    for each in field.get("anyOf", ()):
        yield from _bounds(each)


def _text(value: object) -> str:
    """Return a value as YAML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False).strip('"')


def _find(name: str) -> PluginInfo:
    available = discover()
    if name not in available:
        known = ", ".join(sorted(available)) or "none"
        raise click.ClickException(f"there is no plugin {name!r}{nearest(name, available)}; installed: {known}")
    try:
        return plugin_info(available[name])
    except PluginLoadError as err:
        raise click.ClickException(str(err)) from err


@plugins.command("show")
@click.argument("name")
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
def show(name: str, *, json_wanted: bool) -> None:
    """Show every setting of a plugin: what it takes, its default, its bounds."""
    info = _find(name)
    try:
        found = settings_of(info.config)
    except ConfigError as err:
        raise click.ClickException(f"plugin {name!r}: {err}") from err
    relations = {
        key: value
        for key in ("requires", "needs", "conflicts", "before", "after", "labels")
        if (value := getattr(info, key))
    }
    if json_wanted:
        show_json({"name": name, "summary": info.summary, **relations, "settings": [asdict(each) for each in found]})
        return
    click.echo(f"{name}: {info.summary}" if info.summary else name)
    for key, value in relations.items():
        click.echo(f"  {key}: {value if isinstance(value, str) else ', '.join(value)}")
    rows = [
        (each.key, each.kind, each.default, ". ".join(filter(None, (each.description.rstrip("."), each.bounds))))
        for each in found
    ]
    show_table(table(["setting", "takes", "default", "meaning and bounds"], rows))


def schema_of(infos: Mapping[str, PluginInfo]) -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of a LiteLLM configuration with the ``pointsman:`` section.

    Args:
        infos: The plugins whose sections it describes. One without a schema may have any section, and the standard error says why.
    """
    defs: dict[str, Any] = {}

    def add(prefix: str, model: type[PluginConfig | HostConfig]) -> dict[str, Any]:
        made, inner = _schema_of(model, f"#/$defs/{prefix}.{{model}}")
        defs.update({f"{prefix}.{name}": each for name, each in inner.items()})
        return made

    sections: dict[str, Any] = {}
    for name, info in infos.items():
        try:
            made = add(name, info.config)
        except ConfigError as err:
            click.echo(f"plugin {name!r}: {err}; it may have any section", err=True)
            made = {}
        defs[name] = {**made, "description": info.summary}
        # A plugin whose settings all have defaults may be written without a section.
        bare = [] if defs[name].get("required") else [{"type": "null"}]
        sections[name] = {"anyOf": [{"$ref": f"#/$defs/{name}"}, *bare], "description": info.summary}
    entry = {
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    alone = [name for name in infos if not defs[name].get("required")]
    section = add("pointsman", HostConfig)
    section["properties"]["plugins"]["items"] = {"anyOf": [{"enum": alone}, entry]}
    return {
        "$schema": _DIALECT,
        "title": "LiteLLM configuration with Pointsman",
        "type": "object",
        "properties": {"pointsman": section},
        "$defs": defs,
    }


@click.command()
def schema() -> None:
    """Print a JSON schema of the configuration with the installed plugins, for editors."""
    infos = {}
    for name, available in sorted(discover().items()):
        try:
            infos[name] = plugin_info(available)
        except PluginLoadError as err:
            click.echo(f"{err}; it is left out", err=True)
    show_json(schema_of(infos))


def hook_reference() -> str:
    """Return the reference of all hooks in Markdown, made from their specifications."""
    parts = ["# Hooks", "", _introduction(), ""]
    for hook in HOOKS:
        lead, *sections = _SECTION.split(inspect.getdoc(hook) or "")
        found = {name: textwrap.dedent(text).strip() for name, text in zip(sections[::2], sections[1::2], strict=True)}
        colour = "async " if inspect.iscoroutinefunction(hook) else ""
        parts += [f"## `{hook.__name__}`", "", "```python", f"{colour}def {hook.__name__}{_signature(hook)}", "```", ""]
        parts += [_markdown(lead.strip()), ""]
        if arguments := found.get("Args"):
            parts += [*_arguments(arguments), ""]
        for name in ("Returns", "On error"):
            parts += [f"**{name}.** {_markdown(found[name])}", ""]
        parts += ["```python", found["Example"], "```", ""]
    return "\n".join(parts).rstrip() + "\n"


def _introduction() -> str:
    return (
        "Made from `pointsman.specs` by `pointsman hooks`. A plugin is any object with methods of these names, marked\n"
        "`@hookimpl`; an implementation may leave out arguments that it does not need. The order of plugins is that of\n"
        "`plugins:` in the configuration."
    )


def _signature(hook: Any) -> str:
    return str(inspect.signature(hook)).replace("'", "")


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _arguments(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name, _, rest = line.partition(": ")
        yield f"* `{name}`: {_markdown(rest)}" if not line.startswith(" ") else f"  {_markdown(line.strip())}"


@click.command()
def hooks() -> None:
    """Print the reference of all hooks, in Markdown."""
    click.echo(hook_reference(), nl=False)
