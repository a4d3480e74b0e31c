#!/usr/bin/env python
"""Runs ``litellm.yaml`` on a real LiteLLM proxy, sends requests through it, and shows what the plugins decided.

Nothing else is needed: without keys, an upstream that comes along answers like the providers do. Everything the demo
says should happen is checked; it ends with 1 and one message when something does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import httpx
from rich.console import Console
from rich.markup import escape
from tour import Expectations, Unexpected
from tour.advice import how_to_talk
from tour.calls import Answer, ApiError, Call, Clients
from tour.stage import CONFIG, DEFAULT_PORT, OPENAI, PROVIDERS, Stage, choose_port, forward_url, stage
from tour.tables import PIPED_WIDTH, Phase, RequestTable, traffic_table
from tour.traces import Trace, Traces
from tour.traffic import Sent, Traffic, phases

NAMES: Final = frozenset({"assistant", "legacy", "search", "writer"})
"""The registered names that have an active version."""

TOUR: Final = (
    Call("OpenAI", "chat", "assistant"),
    Call("OpenAI", "chat", "assistant", stream=True),
    Call("OpenAI", "responses", "assistant"),
    Call("OpenAI", "responses", "assistant", stream=True),
    Call("OpenAI", "embeddings", "search"),
    Call("Anthropic", "messages", "writer"),
    Call("Anthropic", "messages", "writer", stream=True),
    Call("Anthropic", "messages", "assistant"),
)
RETRIED: Final = Call("OpenAI", "chat", "assistant")
FALLEN_BACK: Final = Call("OpenAI", "chat", "legacy", stream=True)
DENIED: Final = Call("OpenAI", "chat", "preview")

LANES: Final = (
    Call("OpenAI", "chat", "assistant", stream=True),
    Call("OpenAI", "chat", "assistant"),
    Call("Anthropic", "messages", "assistant", stream=True),
    Call("OpenAI", "responses", "assistant", stream=True),
)
ROUNDS: Final = 3
"""How many answers each lane waits for before the next change of version."""

STARTING: Final = "Starting the LiteLLM proxy, which takes 10 to 25 s"
TOLD_EVERY_S: Final = 5
INTERRUPTED: Final = 130


class Demo:
    """The story, scene by scene.

    Args:
        on: What is running.
        console: Where it is told.
    """

    def __init__(self, on: Stage, console: Console) -> None:
        self.on = on
        self.console = console
        self.clients = Clients(on.proxy.url, on.proxy.master_key)
        self.traces = Traces(on.collector)
        self.table = RequestTable(console)
        self.expect = Expectations()
        self.seen: list[Trace] = []

    def requests(self) -> None:
        """One request of each kind, then a retry, a fallback and a denial."""
        listed = {model.id for model in self.clients.openai.models.list()}
        self.expect(listed >= NAMES, f"GET /v1/models does not list {sorted(NAMES - listed)}")
        self.scene(
            "Requests", "made with the real OpenAI and Anthropic clients; the rows are read from the exported spans"
        )
        self.table.heading()
        for call in TOUR:
            self.served(call)
        self.on.trouble()
        trace = self.served(RETRIED)
        self.on.calm()
        if not OPENAI.real:
            self.expect(len(trace.attempts) > 1, f"{RETRIED} was not retried although the first attempt failed")
        groups = [attempt.group for attempt in self.served(FALLEN_BACK).attempts]
        self.expect(
            groups[0] == "retired" and set(groups[1:]) == {"small"},
            f"{FALLEN_BACK} should have been tried at 'retired', then fallen back to 'small', but went to {groups}",
        )
        answer, trace = self.made(DENIED)
        self.expect(
            answer.status == 503 and trace.outcome == "denied" and not trace.attempts,  # noqa: PLR2004 - HTTP
            f"{DENIED} has no active version and should be denied with 503, but: {answer.status} {answer.error}",
        )
        self.note(f"{len(self.seen)}: {answer.error}")
        self.note(
            "tokens: in+out. cost: by LiteLLM's price list. ms: first token/whole answer, inside the proxy; "
            "the first calls of a kind take longer, LiteLLM imports their code then."
        )

    def promotion(self) -> None:
        """Another version is registered and promoted while requests run, and rolled back."""
        self.scene("A promotion under traffic", f"{len(LANES)} clients that never stop asking for 'assistant'")
        self.pointsman("registry register --id assistant-2 --name assistant --version 2 --path claude")
        with Traffic(self.clients, LANES) as traffic:
            traffic.wait_for("1", ROUNDS)
            self.post("/pointsman/registry/versions/assistant-2/activate", reason="try Claude")
            traffic.wait_for("2", ROUNDS)
            self.post("/pointsman/registry/rollback?name=assistant", reason="seen it")
            traffic.wait_for("1", ROUNDS)
            sent = traffic.stop()
        names = ["before", "promoted", "rolled back"]
        parts = phases(sent)
        versions = [version for version, _ in parts]
        self.expect(
            versions == ["1", "2", "1"], f"the traffic should see version 1, then 2, then 1, but saw {versions}"
        )
        told = [self.phase(name, part) for name, (_, part) in zip(names, parts, strict=True)]
        self.console.print(traffic_table(told))
        failed = sum(phase.failed for phase in told)
        self.expect(not failed, f"{failed} requests failed while the version changed")
        history = self.get("/pointsman/registry/history?name=assistant")["history"]
        under_way = [sum(s.started_at < change["at"] < s.ended_at for s in sent) for change in history]
        back, forth, seed = ([*under_way, 0, 0, 0])[:3]
        self.expect(not seed and len(history) == 3, f"the history should have 3 entries: {history}")  # noqa: PLR2004 - one seed, two changes
        self.note(
            f"{len(sent)} requests, {failed} failed; {forth} were under way when the version was promoted, {back} when "
            "it was rolled back, and all of them got their whole answer."
        )

    def phase(self, name: str, sent: Sequence[Sent]) -> Phase:
        """Return one part of the traffic with its traces, which have to agree with what the clients got."""
        traces = self.traces.of(each.answer.request_id for each in sent)
        for each, trace in zip(sent, traces, strict=True):
            self.agree(each.answer, trace)
        self.seen += traces
        return Phase(name, traces, sum(not each.answer.ok for each in sent))

    def registry(self) -> None:
        """Show what the registry knows now; its live metrics have to agree with the traces."""
        self.scene("The registry", "what an operator sees, on the command line or over HTTP")
        for command in ("list", "history assistant", "metrics"):
            self.pointsman(f"registry {command}")
        measured = {each["id"]: each["requests"] for each in self.get("/pointsman/registry/metrics")["metrics"]}
        paths = {each["id"]: each["path"] for each in self.get("/pointsman/registry/versions")["versions"]}
        for version_id, path in paths.items():
            count = sum(a.group == path for t in self.seen if t.version_id == version_id for a in t.attempts)
            self.expect(
                measured[version_id] == count,
                f"the live metrics of {version_id} count {measured[version_id]} attempts, the traces {count}",
            )
        active = self.get("/pointsman/registry/versions/assistant-1")["active"]
        self.expect(active is True, "after the rollback assistant-1 should be active again")
        total = sum(measured.values())
        self.note(
            f"The live metrics and the traces agree on all {total} attempts; a fallback is none of the version's."
        )

    def watch(self) -> None:
        """Show the requests of others until the proxy ends or somebody stops the demo.

        Raises:
            Unexpected: the proxy has ended.
        """
        while self.on.proxy.running:
            for trace in self.traces.arriving(timeout_s=1.0):
                self.table.row(trace)
        raise Unexpected(f"the proxy has ended by itself; its log: {self.on.proxy.log_path}")

    def served(self, call: Call) -> Trace:
        """Make a request that has to succeed."""
        answer, trace = self.made(call)
        self.expect(answer.ok, f"{call} failed: {answer.status} {answer.error or 'without content'}")
        self.expect(not call.stream or trace.first_token_ms, f"{call} has no first token in its trace")
        # What a fallback answers is of no version.
        version = None if trace.attempts[-1].kind == "fallback" else "1"
        self.expect(answer.version == version, f"{call} was answered by version {answer.version} instead of {version}")
        return trace

    def made(self, call: Call) -> tuple[Answer, Trace]:
        """Make a request and show what became of it."""
        answer = self.clients.send(call)
        self.expect(answer.request_id, f"{call} got no x-pointsman-request-id: {answer.status} {answer.error}")
        (trace,) = self.traces.of([answer.request_id])
        self.seen.append(trace)
        self.table.row(trace, call.client)
        self.agree(answer, trace)
        said = (trace.endpoint, trace.model, trace.stream)
        self.expect(said == (call.endpoint, call.model, call.stream), f"the trace of {call} is about {said}")
        return answer, trace

    def agree(self, answer: Answer, trace: Trace) -> None:
        """Expect that the client's answer and the trace say the same."""
        which = f"request {trace.request_id}"
        self.expect(answer.status == trace.status, f"{which}: status {answer.status}, but {trace.status} in its trace")
        counted = answer.headers.get("x-pointsman-attempts", "0")
        self.expect(
            counted == str(len(trace.attempts)), f"{which}: {counted} attempts, but {len(trace.attempts)} in its trace"
        )

    def pointsman(self, command: str) -> None:
        """Run one command of the CLI against the proxy, with its output in the story.

        Raises:
            Unexpected: it failed.
        """
        self.console.print(f"[dim]$[/] [bold]pointsman {escape(command)}[/]", highlight=False, soft_wrap=True)
        env = {**os.environ, "POINTSMAN_URL": self.on.proxy.url, "POINTSMAN_KEY": self.on.proxy.master_key}
        self.console.file.flush()
        done = subprocess.run([cli(), *command.split()], env=env, check=False)  # noqa: S603 - our own command
        self.expect(done.returncode == 0, f"'pointsman {command}' ended with {done.returncode}")

    def get(self, path: str) -> Any:
        """Return the answer of an admin route."""
        with self.on.proxy.client() as admin:
            return admin.get(path).raise_for_status().json()

    def post(self, path: str, **body: str) -> None:
        """Have an admin route change something."""
        self.console.print(f"[dim]>[/] [bold]POST {escape(path)}[/]", highlight=False)
        with self.on.proxy.client() as admin:
            admin.post(path, json={"who": "demo", **body}).raise_for_status()

    def scene(self, title: str, what: str) -> None:
        """Begin a part of the story."""
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left", style="dim")
        self.console.print(what, style="dim", highlight=False, end="\n\n")

    def note(self, text: str) -> None:
        """Say something about what was shown."""
        self.console.print(text, style="dim", highlight=False, markup=False)


def cli() -> str:
    """Return the path of the ``pointsman`` command of this environment."""
    return str(Path(sys.executable).with_name("pointsman"))


def run(console: Console, wanted_port: int | None, *, once: bool) -> None:
    """Tell the whole story.

    Args:
        console: Where.
        wanted_port: Where the proxy listens, or None.
        once: End afterwards, instead of leaving the proxy running.

    Raises:
        Unexpected: something did not go as it should.
    """
    port = choose_port(wanted_port)
    if wanted_port is None and port != DEFAULT_PORT:
        console.print(f"Port {DEFAULT_PORT} is taken: using {port}.", highlight=False)
    providers = ", ".join(f"{p.name} [bold]{'real' if p.real else 'bundled'}[/]" for p in PROVIDERS)
    console.print(f"Upstream: {providers} [dim](real where OPENAI_API_KEY or ANTHROPIC_API_KEY is set)[/]")
    console.print(f"Configuration: {os.path.relpath(CONFIG)}, as it is", highlight=False)
    forward = forward_url(os.environ)
    with contextlib.ExitStack() as running:
        with progress(console) as waiting:
            on = running.enter_context(stage(port, forward, waiting))
        console.print(f"The proxy is ready at [bold]{on.proxy.url}[/]", highlight=False)
        demo = Demo(on, console)
        try:
            demo.requests()
            demo.promotion()
            demo.registry()
        except (Unexpected, httpx.HTTPError, *ApiError) as err:
            raise Unexpected(f"{err}\nThe proxy's log: {on.proxy.log_path}") from err
        if forward is not None:
            lost = on.collector.not_forwarded
            demo.note(f"The spans went on to {forward}; {lost} exports were not accepted there.")
        console.print(f"\n[green]All as it should be:[/] {demo.expect.held} checks passed.", highlight=False)
        if not once:
            how_to_talk(console, on)
            demo.table.heading()
            with contextlib.suppress(KeyboardInterrupt):
                demo.watch()
            console.print("\nStopping the proxy")


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Callable[[float], None]]:
    """Show that the proxy is starting; yields what is to be called with the seconds waited so far."""
    if console.is_terminal:
        with console.status(STARTING) as status:
            yield lambda waited_s: status.update(f"{STARTING}: {waited_s:.0f} s")
        return
    console.print(STARTING, highlight=False)
    told_s = 0

    def tell(waited_s: float) -> None:
        nonlocal told_s
        if waited_s >= told_s + TOLD_EVERY_S:
            told_s += TOLD_EVERY_S
            console.print(f"  {told_s} s", highlight=False)

    yield tell


@click.command()
@click.option("--once", is_flag=True, help="End afterwards instead of leaving the proxy running.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Where the proxy listens; 4000, or a free one if taken.")
def main(*, once: bool, port: int | None) -> None:
    """Run a LiteLLM proxy with Pointsman, and show what its plugins decide."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPED_WIDTH)
    for name in ("SIGTERM", "SIGHUP"):
        # However the demo is ended, as by Ctrl-C: the proxy has to end with it.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    os.environ["NO_PROXY"] = ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")]))
    try:
        run(console, port, once=once)
    except Unexpected as err:
        raise click.ClickException(str(err)) from err
    except KeyboardInterrupt:
        console.print("\nStopped")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
