"""What a configuration file means, and everything that is wrong with it, without starting anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import ConfigError, PluginError, nearest
from ..host import config, manager
from ..host.config import HostConfig, StoreConfig
from ..host.document import read_document
from ..host.manager import HOOK_NAMES, Loaded
from . import gateway, telemetry
from .output import Finding, Level, verdict
from .telemetry import Telemetry

_REVERSED: Final = "shutdown"
_SUBJECT: Final = "configuration"


@dataclass(frozen=True, slots=True)
class Report:
    """What a configuration means.

    Attributes:
        file: The file.
        base: The directory that relative paths start from.
        env: The environment that the proxy will see.
        host: The host's own part, None when it is wrong.
        plugins: The plugins in use, in order.
        hooks: Each hook, and the plugins that implement it in the order in which they run.
        left_out: Optional plugins that cannot be used, with the reason.
        telemetry: What becomes of spans; None when the file cannot be read.
        authenticates: Whether LiteLLM asks our ``authenticate``.
        findings: What is wrong (``failed``) or probably not meant (``warning``).
    """

    file: Path
    base: Path
    env: Mapping[str, str] = field(repr=False)
    host: HostConfig | None = None
    plugins: tuple[Loaded, ...] = ()
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    authenticates: bool = False
    findings: tuple[Finding, ...] = ()


def inspect(path: Path, env: Mapping[str, str]) -> Report:
    """Read a LiteLLM configuration file and build its plugins, without starting them.

    Args:
        path: The file.
        env: The environment of this process.
    """
    base = path.resolve().parent
    try:
        document = read_document(path)
    except ConfigError as err:
        return Report(path, base, env, findings=(Finding(Level.FAILED, _SUBJECT, str(err)),))
    env = gateway.environment(document, env)
    survey = config.survey(document.get(config.SECTION), str(path))
    findings = [Finding(Level.FAILED, _SUBJECT, line) for problem in survey.problems for line in problem.splitlines()]
    findings += _misplaced(document, path)
    plugins: list[Loaded] = []
    left_out: dict[str, str] = {}
    for entry, outcome in manager.load_each(survey.entries):
        if isinstance(outcome, Loaded):
            plugins.append(outcome)
        elif entry.optional:
            left_out[entry.name] = reason = _without_name(outcome)
            findings.append(Finding(Level.WARNING, entry.name, f"left out, since it is optional: {reason}"))
        else:
            findings += [Finding(Level.FAILED, entry.name, line) for line in _without_name(outcome).splitlines()]
    broken = verdict(findings) is Level.FAILED
    hooks = hook_order(plugins)
    spans = telemetry.read(env, enabled=survey.host is None or survey.host.tracing.enabled)
    findings += [Finding(Level.FAILED, "tracing", problem) for problem in spans.problems]
    findings += [Finding(Level.WARNING, "tracing", warning) for warning in spans.warnings]
    findings += [
        Finding(Level.WARNING, "litellm", f"{path}: {warning}")
        for warning in gateway.warnings(document, env, base, None if broken else hooks["authenticate"])
    ]
    return Report(
        file=path,
        base=base,
        env=env,
        host=survey.host,
        plugins=tuple(plugins),
        hooks=hooks,
        left_out=left_out,
        telemetry=spans,
        authenticates=gateway.authenticates(document),
        findings=tuple(findings),
    )


def hook_order(plugins: Sequence[Loaded]) -> dict[str, tuple[str, ...]]:
    """Return each hook, and who implements it in the order in which they run."""
    implemented = {plugin.name: manager.implementations(plugin) for plugin in plugins}
    order = {hook: tuple(name for name, found in implemented.items() if hook in found) for hook in HOOK_NAMES}
    return {**order, _REVERSED: order[_REVERSED][::-1]}


def store_in_words(store: StoreConfig, base: Path) -> str:
    """Say where state is kept; never with a password."""
    match store.backend:
        case "memory":
            return "memory: each worker has its own, and forgets it when it ends"
        case "disk":
            return f"disk: {base / store.path}, shared by all workers of this machine"
        case "redis":
            return f"redis: {_place(store.url) if store.url else 'no url'}, keys begin with {store.prefix}:, shared by many machines"


def _place(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path or '/0'}"


def _without_name(error: Exception) -> str:
    """Return the error's text without the plugin's name in front: it is the subject of the finding."""
    return str(error).removeprefix(f"plugin {error.plugin!r}: ") if isinstance(error, PluginError) else str(error)


def _misplaced(document: Mapping[str, Any], path: Path) -> list[Finding]:
    """Say where the section seems to be when it is not where it belongs."""
    if config.SECTION in document:
        return []
    for key, value in document.items():
        if isinstance(value, Mapping) and config.SECTION in value:
            text = f"{path}: {key}.{config.SECTION}: is not read there; move it to the top level of the file"
            return [Finding(Level.FAILED, _SUBJECT, text)]
    if near := nearest(config.SECTION, map(str, document), cutoff=0.8):
        return [
            Finding(
                Level.FAILED,
                _SUBJECT,
                f"{path}: a similar top-level key is there{near.replace('did you mean', 'is it')}",
            )
        ]
    return []
