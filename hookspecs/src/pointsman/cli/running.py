"""What the status of a running proxy says about its health."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .. import __version__
from .output import Finding, Level
from .report import Report

_SUBJECT: Final = "proxy"
#: More settlements than this at once are not those of the requests of the moment.
_BACKLOG: Final = 1000


def judge(answer: Mapping[str, Any], report: Report) -> Iterator[Finding]:
    """Yield what the answer to ``GET /pointsman/status`` says.

    Args:
        answer: The answer, of one worker.
        report: The configuration that the proxy should be running.
    """
    yield Finding(
        Level.OK,
        _SUBJECT,
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
    yield from _journal(answer["journal"])
    if failures := answer["tracing"]["failures"]:
        yield Finding(Level.WARNING, "tracing", f"failed {failures} times since the start; the proxy's log says why")


def _differences(answer: Mapping[str, Any], report: Report) -> Iterator[Finding]:
    """Yield where the proxy does not run what the file says."""
    advice = "restart the proxy, or name the file that it was started with"
    if answer["version"] != __version__:
        yield Finding(
            Level.WARNING, _SUBJECT, f"runs pointsman {answer['version']}, but {__version__} is installed here"
        )
    runs = sorted(plugin["name"] for plugin in answer["plugins"])
    wants = sorted([*(plugin.name for plugin in report.plugins), *report.left_out])
    if runs != wants:
        text = f"runs the plugins {', '.join(runs) or 'none'}, but the file says {', '.join(wants) or 'none'}; {advice}"
        yield Finding(Level.WARNING, _SUBJECT, text)
    backend = answer["store"]["backend"]
    if report.host is not None and backend != report.host.store.backend:
        text = f"uses the {backend} store, but the file says {report.host.store.backend}; {advice}"
        yield Finding(Level.WARNING, _SUBJECT, text)


def _journal(journal: Mapping[str, Any]) -> Iterator[Finding]:
    waiting = {plugin: number for plugin, number in journal.get("waiting", {}).items() if number}
    retried, unjournaled = journal.get("retried", 0), journal.get("unjournaled", 0)
    text = ", ".join(f"{number} for {plugin}" for plugin, number in sorted(waiting.items()))
    if waiting and (retried or max(waiting.values()) > _BACKLOG):
        yield Finding(
            Level.WARNING,
            "journal",
            f"settlements wait: {text}; {retried} were tried again. They are kept and tried until they succeed; the "
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
