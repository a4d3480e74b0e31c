"""``pointsman check CONFIG``: what a configuration means, and what is wrong with it, without starting anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from ..client import table
from ..config import ENVIRONMENT, variable
from ..errors import ConfigError, PluginError, nearest
from ..host import discovery
from ..host.discovery import Loaded
from ..host.exporters import Plan, metrics_problem, plan
from ..host.implementations import HOOK_NAMES
from ..host.settings import SECTION, HostConfig, StoreConfig, read_document, survey
from .output import Finding, Level, as_json, count, show_findings, show_json, show_table, verdict
from .prices import unpriced_models
from .root import plugin_commands

_REVERSED: Final = "shutdown"
_SUBJECT: Final = "configuration"
HANDLER: Final = "pointsman.litellm.handler"
CUSTOM_AUTH: Final = "pointsman.litellm.custom_auth"

_MASTER_KEY_ENV: Final = "LITELLM_MASTER_KEY"
#: LiteLLM refuses this key, which many tutorials use.
_PUBLIC_KEYS: Final = frozenset({"sk-1234"})
_OTHER_LISTS: Final = ("success_callback", "failure_callback", "service_callback")


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def check(ctx: click.Context, config: Path, *, json_wanted: bool) -> None:
    """Validate the 'pointsman:' section of the LiteLLM configuration CONFIG without starting anything.

    Loads and validates every plugin, prints the order in which they run, and reports LiteLLM settings that would keep
    Pointsman from working. Ends with 1 if the proxy would not start, or would refuse requests because a limit in money
    cannot work; warnings do not count.
    """
    report = inspect(config, os.environ)
    if json_wanted:
        show_json(_as_json(report))
    else:
        _show(report)
    ctx.exit(int(verdict(report.findings) is Level.FAILED))


def _show(report: Report) -> None:
    click.echo(f"{report.file}: {count(report.findings)}")
    if report.host is not None:
        click.echo(f"\nstore    {describe_store(report.host.store, report.base)}")
        click.echo(f"tracing  {report.spans.summary if report.spans else 'unknown'}")
    if report.plugins:
        rows = [
            (position, plugin.name, plugin.distribution, plugin.config.on_failure, plugin.config.optional)
            for position, plugin in enumerate(report.plugins, start=1)
        ]
        click.echo()
        show_table(table(["", "plugin", "package", "when it fails", "optional"], rows, title="Plugins"))
        click.echo()
        rows_of_hooks = [
            (hook, ", ".join(names) + _remark(report, hook)) for hook, names in report.hooks.items() if names
        ]
        show_table(table(["hook", "plugins, in the order they run"], rows_of_hooks, title="Hooks"))
    if report.findings:
        click.echo()
        show_findings(report.findings)


def _remark(report: Report, hook: str) -> str:
    if hook == "authenticate" and not report.authenticates:
        return " (not called: general_settings.custom_auth is not Pointsman's)"
    return " (only the one that a route names)" if hook == "execute" else ""


def _as_json(report: Report) -> dict[str, object]:
    findings = report.findings
    return {
        "file": str(report.file),
        "ok": verdict(findings) is not Level.FAILED,
        "errors": as_json(finding for finding in findings if finding.level is Level.FAILED),
        "warnings": as_json(finding for finding in findings if finding.level is Level.WARNING),
        "store": describe_store(report.host.store, report.base) if report.host else None,
        "tracing": report.spans.summary if report.spans else None,
        "plugins": [
            {
                "name": plugin.name,
                "package": plugin.distribution,
                "on_failure": plugin.config.on_failure,
                "optional": plugin.config.optional,
            }
            for plugin in report.plugins
        ],
        "left_out": dict(report.left_out),
        "hooks": {hook: list(names) for hook, names in report.hooks.items()},
    }


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
        spans: What becomes of spans; None when the file cannot be read.
        authenticates: Whether LiteLLM calls Pointsman's ``authenticate``.
        findings: What is wrong (``failed``) or probably a mistake (``warning``).
    """

    file: Path
    base: Path
    env: Mapping[str, str] = field(repr=False)
    host: HostConfig | None = None
    plugins: tuple[Loaded, ...] = ()
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    spans: Plan | None = None
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
    env = proxy_environment(document, env)
    section = survey(document.get(SECTION), str(path))
    findings = [Finding(Level.FAILED, _SUBJECT, line) for problem in section.problems for line in problem.splitlines()]
    findings += _misplaced(document, path)
    plugins: list[Loaded] = []
    left_out: dict[str, str] = {}
    for entry, outcome in discovery.load_each(section.entries):
        if isinstance(outcome, Loaded):
            plugins.append(outcome)
        elif entry.optional:
            left_out[entry.name] = reason = _without_name(outcome)
            findings.append(Finding(Level.WARNING, entry.name, f"left out, since it is optional: {reason}"))
        else:
            findings += [Finding(Level.FAILED, entry.name, line) for line in _without_name(outcome).splitlines()]
    broken = verdict(findings) is Level.FAILED
    findings += [Finding(Level.WARNING, one.name, warning) for one in plugins for warning in one.warnings]
    findings += [Finding(Level.WARNING, one.name, missing) for one in plugins if (missing := _unusable_commands(one))]
    findings += [Finding(Level.OK, one.name, note) for one in plugins for note in one.notes]
    hooks = hook_order(plugins)
    spans = plan(env, enabled=section.host is None or section.host.tracing.enabled)
    if spans.problem is not None and _traces_itself(document):
        findings.append(
            Finding(
                Level.WARNING,
                "tracing",
                f"{spans.problem}; the proxy starts, and LiteLLM's OTel callback exports all spans",
            )
        )
    elif spans.problem is not None:
        findings.append(Finding(Level.FAILED, "tracing", spans.problem))
    if (section.host is None or section.host.metrics.enabled) and (problem := metrics_problem(env)) is not None:
        findings.append(Finding(Level.FAILED, "metrics", problem))
    if spans.lost is not None:
        findings.append(Finding(Level.WARNING, "tracing", f"{spans.lost}; the proxy starts, but every span is lost"))
    findings += [Finding(Level.WARNING, "tracing", warning) for warning in spans.warnings]
    findings += [
        Finding(Level.WARNING, "litellm", f"{path}: {warning}")
        for warning in litellm_warnings(document, env, base, None if broken else hooks["authenticate"])
    ]
    findings += _unpriced(document, plugins, section.host)
    return Report(
        file=path,
        base=base,
        env=env,
        host=section.host,
        plugins=tuple(plugins),
        hooks=hooks,
        left_out=left_out,
        spans=spans,
        authenticates=_authenticates(document),
        findings=tuple(findings),
    )


def _unusable_commands(plugin: Loaded) -> str:
    """Return why the plugin's commands cannot be used; empty where they can, or there are none."""
    if plugin.info.commands is not None:
        try:
            plugin_commands(plugin.info.commands, plugin.name)
        except click.ClickException as err:
            return f"{err.message.removeprefix(f'plugin {plugin.name!r}: ')}; the proxy starts without them"
    return ""


def _unpriced(document: Mapping[str, Any], plugins: Sequence[Loaded], host: HostConfig | None) -> list[Finding]:
    """Report limits in money that cannot work, because a model that they apply to has no price."""
    models = unpriced_models(
        document, lambda names, tenant: any(plugin.config.has_price(names, tenant) for plugin in plugins)
    )
    policy = HostConfig().unpriced if host is None else host.unpriced
    # With 'allow' the operator has decided that these requests are not counted.
    level = Level.FAILED if policy == "deny" else Level.WARNING
    return [
        Finding(level, plugin.name, problem)
        for plugin in plugins
        if models
        for problem in plugin.config.unpriced(models, policy)
    ]


def hook_order(plugins: Sequence[Loaded]) -> dict[str, tuple[str, ...]]:
    """Return each hook with the plugins that implement it, in the order in which they run."""
    order = {hook: tuple(plugin.name for plugin in plugins if hook in plugin.hooks) for hook in HOOK_NAMES}
    return {**order, _REVERSED: order[_REVERSED][::-1]}


def describe_store(store: StoreConfig, base: Path) -> str:
    """Return where state is kept, without a password."""
    match store.backend:
        case "memory":
            return "memory: each worker has its own, lost when it ends"
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
    """Return the error's text without the plugin's name, which is the subject of the finding."""
    return str(error).removeprefix(f"plugin {error.plugin!r}: ") if isinstance(error, PluginError) else str(error)


def _misplaced(document: Mapping[str, Any], path: Path) -> list[Finding]:
    """Report where the section seems to be when it is not at the top level."""
    if SECTION in document:
        return []
    for key, value in document.items():
        if isinstance(value, Mapping) and SECTION in value:
            text = f"{path}: {key}.{SECTION}: is not read there; move it to the top level of the file"
            return [Finding(Level.FAILED, _SUBJECT, text)]
    if near := nearest(SECTION, map(str, document), cutoff=0.8):
        return [
            Finding(
                Level.FAILED,
                _SUBJECT,
                f"{path}: a similar top-level key is there{near.replace('did you mean', 'is it')}",
            )
        ]
    return []


# -- LiteLLM's own keys -----------------------------------------------------------------------------------------------


def litellm_warnings(
    document: Mapping[str, Any], env: Mapping[str, str], base: Path, authenticating: Sequence[str] | None
) -> Iterator[str]:
    """Yield what is wrong, each with its key path and what to do.

    Args:
        document: The whole LiteLLM configuration.
        env: The environment that the proxy will see.
        base: The directory of the configuration file.
        authenticating: The plugins in use that implement ``authenticate``; None when that is unknown.
    """
    settings, general = _section(document, "litellm_settings"), _section(document, "general_settings")
    yield from _callbacks(settings, base)
    yield from _authentication(settings, general, authenticating)
    yield from _master_key(general, env)


def proxy_environment(document: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment as LiteLLM leaves it: with the configuration's ``environment_variables`` set."""
    own = {str(name): _resolve(value, env) for name, value in _section(document, "environment_variables").items()}
    return {**env, **{name: str(value) for name, value in own.items() if value is not None}}


def _authenticates(document: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM calls Pointsman's ``authenticate``."""
    return _section(document, "general_settings").get("custom_auth") == CUSTOM_AUTH


def _traces_itself(document: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM's OTel callback is on, whose exporter takes our spans where the variables name none for us."""
    settings = _section(document, "litellm_settings")
    return any(
        "otel" in ([value] if isinstance(value, str) else value if isinstance(value, list) else [])
        for value in map(settings.get, ("callbacks", "success_callback", "failure_callback"))
    )


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _resolve(value: Any, env: Mapping[str, str]) -> Any:
    return value if (name := variable(value)) is None else env.get(name)


def _callbacks(settings: Mapping[str, Any], base: Path) -> Iterator[str]:
    where = "litellm_settings.callbacks"
    value = settings.get("callbacks")
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    mentions = names.count(HANDLER)
    if isinstance(value, str):
        yield f'{where}: is a string, not a list: LiteLLM then drops every other callback; write ["{HANDLER}"]'
    if not mentions:
        misplaced = [key for key in _OTHER_LISTS if HANDLER in (settings.get(key) or ())]
        near = nearest(HANDLER, [name for name in names if isinstance(name, str)], cutoff=0.8)
        hint = f" (it is in litellm_settings.{misplaced[0]})" if misplaced else near.replace("did you mean", "is it")
        yield f'{where}: does not mention "{HANDLER}"{hint}: Pointsman would never be loaded; add it to the list'
    elif mentions > 1:
        yield f'{where}: mentions "{HANDLER}" {mentions} times, and every hook would run that many times; keep one'
    if (shadow := base / "pointsman" / "litellm.py").exists():
        yield f"{where}: LiteLLM would import {shadow} instead of the installed package; rename that file"


def _authentication(
    settings: Mapping[str, Any], general: Mapping[str, Any], authenticating: Sequence[str] | None
) -> Iterator[str]:
    where = "general_settings.custom_auth"
    custom_auth = general.get("custom_auth")
    if custom_auth != CUSTOM_AUTH:
        if isinstance(custom_auth, str) and (near := nearest(custom_auth, [CUSTOM_AUTH], cutoff=0.8)):
            yield f"{where}: {custom_auth!r} is not Pointsman's{near}"
        return
    if authenticating is not None and not authenticating:
        yield (
            f"{where}: no plugin in use implements authenticate, so every key but the master key is refused; add one "
            "that does, or remove custom_auth"
        )
    why = "is not set although custom_auth is Pointsman's: without it a key's list of models is not enforced"
    if not settings.get("enable_post_custom_auth_checks"):
        yield f"litellm_settings.enable_post_custom_auth_checks: {why}; set it to true"
    if not general.get("custom_auth_run_common_checks"):
        yield f"general_settings.custom_auth_run_common_checks: {why}; set it to true"


def _master_key(general: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[str]:
    where = "general_settings.master_key"
    written = general.get("master_key", env.get(_MASTER_KEY_ENV))
    key = _resolve(written, env)
    advice = f"set it to {ENVIRONMENT}{_MASTER_KEY_ENV} and that variable to a long random key"
    if key is None and (name := variable(written)) is not None:
        advice = f"set the environment variable {name}, which it names, to a long random key"
    if isinstance(key, str) and key.strip() in _PUBLIC_KEYS:
        yield f"{where}: is a publicly known default, with which LiteLLM refuses to start; {advice}"
    elif not (isinstance(key, str) and key.strip()) and not general.get("key_management_system"):
        yield (
            f"{where}: there is no master key: LiteLLM refuses to start, and the routes under "
            f"/pointsman would be closed to everyone; {advice}"
        )
