"""``pointsman doctor CONFIG``: the configuration, and the environment that it will run in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Final

import click
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .. import __version__
from ..client import AdminClient, AdminFailure
from ..errors import StoreError
from ..host.exporters import Plan, trial_export
from ..host.left_behind import left_behind
from ..host.settings import StoreConfig, open_store
from ..host.versions import TESTED, untested
from ..store import AtomicOp, StateStore
from .check import Report, describe_store, inspect
from .output import Finding, Level, as_json, count, show_findings, show_json, verdict

_TIMEOUT_S: Final = 10.0
_PROBE_TTL_S: Final = 60.0
_CONNECT_TIMEOUT_S: Final = 3.0
_EXPORT_TIMEOUT_S: Final = 3.0
#: Heartbeats and leases have a resolution of seconds.
_SKEW_LIMIT_S: Final = 1.0
_PRIVATE: Final = 0o700

_SERVER_TIME: Final = AtomicOp(
    name="server-time",
    python=lambda _values, _args: ({}, [str(int(time.time())), "0"]),
    lua="return json_encode(redis.call('TIME'))",
)

#: More waiting settlements than current traffic explains.
_BACKLOG: Final = 1000


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--url", help="A running proxy to examine too, for example http://127.0.0.1:4000.")
@click.option(
    "--key", envvar=["POINTSMAN_KEY", "LITELLM_MASTER_KEY"], default=None, show_envvar=True, help="Its admin key."
)
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def doctor(ctx: click.Context, config: Path, *, url: str | None, key: str | None, json_wanted: bool) -> None:
    """Check the LiteLLM configuration CONFIG and the environment it will run in.

    Does everything that 'check' does, then checks versions, the state store (a test value is written and deleted),
    the servers that plugins name, the destination of spans and, with --url, the health of a running proxy. Ends with 1 if something failed; warnings do not count.
    """
    findings = asyncio.run(examine(config, url, key))
    if json_wanted:
        show_json({"ok": verdict(findings) is not Level.FAILED, "checks": as_json(findings)})
    else:
        show_findings(findings)
        click.echo(f"\n{count(findings)}")
    ctx.exit(int(verdict(findings) is Level.FAILED))


async def examine(config: Path, url: str | None, key: str | None) -> list[Finding]:
    """Make all checks, in the order in which a start would meet them."""
    report = inspect(config, os.environ)
    findings = list(check_versions())
    findings += report.findings
    if verdict(report.findings) is not Level.FAILED:
        findings.append(_fine(report))
    if report.host is not None:
        findings += [finding async for finding in check_store(report.host.store, report.base)]
        if (left := left_behind(report.host.store, report.base)) is not None:
            findings.append(Finding(Level.WARNING, "store", left))
    findings += check_files(report)
    findings += await check_services(report)
    if report.spans is not None and report.spans.problem is None:
        findings.append(check_spans(report.spans, report.env))
    if url is not None:
        findings += _proxy(url, key, report)
    return findings


def _fine(report: Report) -> Finding:
    names = ", ".join(plugin.name for plugin in report.plugins) or "none"
    return Finding(Level.OK, "configuration", f"{report.file} is valid; plugins: {names}")


def _proxy(url: str, key: str | None, report: Report) -> list[Finding]:
    with AdminClient(url, key, timeout_s=_TIMEOUT_S) as admin:
        try:
            return list(judge(admin.get("/status"), report))
        except AdminFailure as err:
            return [Finding(Level.FAILED, "proxy", err.message)]
        except (LookupError, TypeError, AttributeError) as err:
            text = f"{admin.url} does not answer with a status ({type(err).__name__}: {err}); is it a proxy with Pointsman?"
            return [Finding(Level.FAILED, "proxy", text)]


# -- versions ---------------------------------------------------------------------------------------------------------


def check_versions() -> Iterator[Finding]:
    """Yield one finding for Python and one for LiteLLM, which is not imported."""
    python, wanted = platform.python_version(), SpecifierSet(metadata("pointsman")["Requires-Python"])
    if wanted.contains(python, prereleases=True):
        yield Finding(Level.OK, "python", f"{python} is supported ({wanted})")
    else:
        yield Finding(Level.FAILED, "python", f"{python} is not supported; install Python {wanted}")
    needed = litellm_requirement()
    try:
        installed = version("litellm")
    except PackageNotFoundError:
        yield Finding(Level.FAILED, "litellm", f"is not installed in this environment: pip install '{needed}'")
        return
    if needed.specifier.contains(installed, prereleases=True):
        if (unknown := untested(installed)) is not None:
            yield Finding(Level.WARNING, "litellm", f"{installed} is supported ({needed.specifier}), but {unknown}")
        else:
            text = f"{installed} is supported ({needed.specifier}) and tested: {TESTED[installed]}"
            yield Finding(Level.OK, "litellm", text)
    else:
        yield Finding(Level.FAILED, "litellm", f"{installed} is not supported: pip install '{needed}'")


def litellm_requirement() -> Requirement:
    """Return the requirement on LiteLLM in Pointsman's own metadata."""
    return next(
        needed
        for text in requires("pointsman") or ()
        if (needed := Requirement(text)).name == "litellm" and not needed.marker
    )


# -- the store --------------------------------------------------------------------------------------------------------


async def check_store(store: StoreConfig, base: Path) -> AsyncIterator[Finding]:
    """Open the store; write, read and delete a test value; yield the results.

    A disk store that does not exist yet is tested in a temporary directory next to it, so that the proxy's user creates
    the real one, not the user of this command.

    Args:
        store: Its configuration.
        base: The directory that relative paths start from.
    """
    place = describe_store(store, base)
    with contextlib.ExitStack() as stack:
        path = base / store.path
        if store.backend == "disk":
            try:
                path, remarks = _directory(path, stack)
            except OSError as err:
                yield Finding(Level.FAILED, "store", f"{place}: it cannot be created there: {err.strerror or err}")
                return
            for remark in remarks:
                yield remark
        logged = stack.enter_context(_warnings_logged())
        try:
            skew_s = await _test_store(store, path)
        except (StoreError, ValueError, OSError) as err:
            yield Finding(Level.FAILED, "store", f"{place}: {err}")
            return
    if store.backend == "memory":
        yield Finding(
            Level.WARNING, "store", f"{place}; suitable for one worker and for tests; otherwise choose disk or redis"
        )
    else:
        yield Finding(Level.OK, "store", f"{place}; a value was written, read and deleted")
    for message in logged:
        yield Finding(Level.WARNING, "store", message)
    if skew_s is not None:
        yield _skew(skew_s)


async def _test_store(config: StoreConfig, path: Path) -> float | None:
    """Use the store once; return how far redis's clock is ahead of this machine's, in seconds; None for other backends.

    Raises:
        StoreError, ValueError: it cannot be used.
    """
    store = await open_store(config, path, lists_older=False)
    try:
        await store.ping()
        key, value = f"doctor/{secrets.token_hex(8)}", secrets.token_hex(8)
        await store.put(key, value, ttl_s=_PROBE_TTL_S)
        if await store.get(key) != value or not await store.delete(key):
            raise StoreError(
                "a value that was written could not be read back and deleted; is another process deleting keys?"
            )
        return await _ahead_s(store, key) if config.backend == "redis" else None
    finally:
        await store.close()


async def _ahead_s(store: StateStore, key: str) -> float:
    """Return the least difference of the server's clock (negative: behind) that the call's duration cannot explain."""
    before_s = time.time()
    answer: Any = await store.run(_SERVER_TIME, [key], None)
    after_s = time.time()
    server_s = int(answer[0]) + int(answer[1]) / 1e6
    if server_s < before_s:
        return server_s - before_s
    return max(server_s - after_s, 0.0)


def _skew(ahead_s: float) -> Finding:
    if abs(ahead_s) <= _SKEW_LIMIT_S:
        return Finding(Level.OK, "clock", f"agrees with redis within {_SKEW_LIMIT_S:g} s")
    side = "behind" if ahead_s > 0 else "ahead of"
    return Finding(
        Level.WARNING,
        "clock",
        f"this machine is {abs(ahead_s):.1f} s {side} redis, so heartbeats and leases may expire too early or too late; "
        "synchronise both with NTP",
    )


def _directory(path: Path, stack: contextlib.ExitStack) -> tuple[Path, list[Finding]]:
    """Return the directory to test, and findings about the real one.

    Raises:
        OSError: it does not exist and could not be created.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        parent = next(directory for directory in path.parents if directory.exists())
        trial = stack.enter_context(tempfile.TemporaryDirectory(prefix=".pointsman-doctor-", dir=parent))
        return Path(trial) / "store", [
            Finding(Level.OK, "store", f"{path} does not exist yet; the first start creates it")
        ]
    remarks = []
    mode = stat.S_IMODE(state.st_mode)
    if mode != _PRIVATE:
        text = f"{path} is accessible to other users (mode {mode:04o}); opening it sets {_PRIVATE:04o}"
        remarks.append(Finding(Level.WARNING, "store", text))
    if state.st_uid != os.geteuid():
        text = f"{path} belongs to another user (id {state.st_uid}); run this command as the user of the proxy"
        remarks.append(Finding(Level.WARNING, "store", text))
    return path, remarks


@contextlib.contextmanager
def _warnings_logged() -> Iterator[list[str]]:
    """Collect warnings that Pointsman would write to the proxy's log."""
    collected: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger, handler = logging.getLogger("pointsman"), Collect(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)


def check_files(report: Report) -> Iterator[Finding]:
    """Yield what plugins find wrong with their own files."""
    for plugin in report.plugins:
        try:
            problems = list(plugin.config.check_files(report.base))
        except Exception as err:  # noqa: BLE001 - a plugin's check that fails is a finding
            problems = [f"its files cannot be checked: {type(err).__name__}: {err}"]
        for problem in problems:
            yield Finding(Level.FAILED, plugin.name, problem)


async def check_services(report: Report) -> list[Finding]:
    """Return what plugins find out about the servers of their sections."""
    findings: list[Finding] = []
    for plugin in report.plugins:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                remarks = list(await plugin.config.check_services())
        except Exception as err:  # noqa: BLE001 - a plugin's check that fails is a finding
            text = f"its servers cannot be checked: {type(err).__name__}: {err}"
            findings.append(Finding(Level.FAILED, plugin.name, text))
        else:
            findings += [Finding(Level(remark.level), plugin.name, remark.text) for remark in remarks]
    return findings


def check_spans(plan: Plan, env: Mapping[str, str]) -> Finding:
    """Report what the collector that spans are sent to answers to an export without spans, sent as the proxy sends them."""
    if plan.lost is not None:
        return Finding(Level.FAILED, "tracing", "spans cannot be sent; correct the address above")
    if plan.endpoint is None:
        return Finding(Level.OK, "tracing", plan.summary)
    endpoint = plan.endpoint
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_TIMEOUT_S).close()
    except OSError as err:
        return Finding(
            Level.FAILED,
            "tracing",
            f"no collector answers at {endpoint.url}: {err.strerror or err}; start it or correct the OTEL_* variables "
            "(requests are served all the same, their spans are lost)",
        )
    refused = trial_export(plan, env, _EXPORT_TIMEOUT_S)
    if refused is not None:
        return Finding(
            Level.FAILED,
            "tracing",
            f"the collector at {endpoint.url} does not take spans: {refused}; check the path, OTEL_EXPORTER_OTLP_HEADERS and "
            "OTEL_EXPORTER_OTLP_PROTOCOL (requests are served all the same, their spans are lost)",
        )
    return Finding(Level.OK, "tracing", f"a collector takes spans at {endpoint.url}")


# -- a running proxy --------------------------------------------------------------------------------------------------


def judge(answer: Mapping[str, Any], report: Report) -> Iterator[Finding]:
    """Yield findings from the answer to ``GET /pointsman/status``.

    Args:
        answer: The answer, of one worker.
        report: The configuration that the proxy should be running.
    """
    yield Finding(
        Level.OK,
        "proxy",
        f"pointsman {answer['version']}, worker {answer['worker']}, up for {answer['uptime_s']:.0f} s, "
        f"{answer['requests']} requests",
    )
    yield from _differences(answer, report)
    for plugin in answer["plugins"]:
        if plugin["ok"]:
            yield Finding(Level.OK, plugin["name"], plugin["summary"])
        else:
            left_out = plugin["name"] in report.left_out
            yield Finding(Level.WARNING if left_out else Level.FAILED, plugin["name"], plugin["summary"])
    for fault in answer["faults"]:
        text = f"{fault['hook']} failed {fault['count']} times since the start; the proxy's log says why"
        yield Finding(Level.WARNING, fault["plugin"], text)
    for hook in answer.get("hooks", ()):
        if hook["blocked"]:
            where = f", in {hook['held_at']}" if hook.get("held_at") else ""
            text = f"{hook['hook']} has held up all other requests {hook['blocked']} times, for up to {hook['longest_ms']:.0f} ms{where}"
            yield Finding(Level.WARNING, hook["plugin"], text)
    for problem in answer.get("problems", ()):
        yield Finding(Level.FAILED, "proxy", problem)
    yield from _journal(answer["journal"])
    if dropped := answer["tracing"].get("spans", {}).get("dropped"):
        text = f"{dropped} spans were lost since the start: the collector did not take them, or not fast enough"
        yield Finding(Level.WARNING, "tracing", text)
    if failures := answer["tracing"]["failures"]:
        yield Finding(Level.WARNING, "tracing", f"failed {failures} times since the start; the proxy's log says why")


def _differences(answer: Mapping[str, Any], report: Report) -> Iterator[Finding]:
    """Yield differences between the running proxy and the file."""
    advice = "restart the proxy, or name the file that it was started with"
    if answer["version"] != __version__:
        yield Finding(
            Level.WARNING, "proxy", f"runs pointsman {answer['version']}, but {__version__} is installed here"
        )
    runs = sorted(plugin["name"] for plugin in answer["plugins"])
    wants = sorted([*(plugin.name for plugin in report.plugins), *report.left_out])
    if runs != wants:
        text = f"runs the plugins {', '.join(runs) or 'none'}, but the file says {', '.join(wants) or 'none'}; {advice}"
        yield Finding(Level.WARNING, "proxy", text)
    backend = answer["store"]["backend"]
    if report.host is not None and backend != report.host.store.backend:
        text = f"uses the {backend} store, but the file says {report.host.store.backend}; {advice}"
        yield Finding(Level.WARNING, "proxy", text)


def _journal(journal: Mapping[str, Any]) -> Iterator[Finding]:
    waiting = {plugin: number for plugin, number in journal.get("waiting", {}).items() if number}
    retried, unjournaled = journal.get("retried", 0), journal.get("unjournaled", 0)
    text = ", ".join(f"{number} for {plugin}" for plugin, number in sorted(waiting.items()))
    if waiting and (retried or max(waiting.values()) > _BACKLOG):
        yield Finding(
            Level.WARNING,
            "journal",
            f"settlements are waiting: {text}; {retried} retries so far. They are kept and retried until they succeed; the "
            "proxy's log says why they fail",
        )
    else:
        yield Finding(Level.OK, "journal", f"{journal.get('settled', 0)} of {journal.get('submitted', 0)} settled")
    if unjournaled:
        yield Finding(
            Level.WARNING,
            "journal",
            f"{unjournaled} settlements could not be written to the store first; a crash would have lost them",
        )
