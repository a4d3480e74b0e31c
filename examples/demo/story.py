"""The demo's scenes. Each makes traffic, shows a table of what was measured, and says the command to look at it oneself."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import openai
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pointsman.testing.otlp import CollectedSpan, Collector
from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

QUESTION: Final = "Why is the sky blue?"
LONGEST_S: Final = 120.0
"""Longest wait for something that should happen."""

#: One answer in twelve is late.
_LATE: Final = Delay(values_ms=(*[60.0] * 7, 4000.0, *[60.0] * 4))
_OK: Final = 200
CENT: Final = 0.01
ENOUGH: Final = 12
"""Requests that a scene waits for."""


class UnexpectedError(Exception):
    """Something did not go as it should."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got.

    Attributes:
        status: The HTTP status.
        headers: The answer's headers.
        error: What the gateway said when it was an error.
        duration_ms: To the end of the answer, at the client.
    """

    status: int
    headers: Mapping[str, str]
    error: str
    duration_ms: float

    @property
    def ok(self) -> bool:
        """Whether it was an answer."""
        return self.status == _OK

    @property
    def request_id(self) -> str:
        """Pointsman's id of the request."""
        return self.headers.get("x-pointsman-request-id", "")


class Story:
    """The scenes, in order.

    Args:
        proxy: The proxy, which runs.
        provider: The bundled provider.
        collector: Gets the spans.
        console: Where it is told.
        jaeger: Where spans are sent on to, or None.
    """

    BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
        "*": Behaviour(latency=Delay(20), tokens=12),
        "gpt-4.1-nano": Behaviour(latency=Delay(20), tokens=12, error_ratios={500: 0.35}),
        "gpt-4o": Behaviour(latency=_LATE, tokens=12),
    }

    def __init__(
        self,
        proxy: ProxyServer,
        provider: UpstreamServer,
        collector: Collector,
        console: Console,
        *,
        jaeger: str | None,
    ) -> None:
        self.proxy = proxy
        self.provider = provider
        self.collector = collector
        self.console = console
        self.jaeger = jaeger
        self.held = 0
        self.clients: dict[str, openai.OpenAI] = {}
        self.lock = threading.Lock()

    def tell(self) -> None:
        """Play all scenes.

        Raises:
            UnexpectedError: something did not go as it should.
        """
        began = time.monotonic()
        self.console.print(
            f"A real LiteLLM proxy with eight plugins is ready at [bold]{self.proxy.url}[/]", highlight=False
        )
        for scene in (
            self.promotion,
            self.rollback,
            self.rollout,
            self.hedging,
            self.illness,
            self.mirror,
            self.limit,
            self.bill,
            self.trace,
        ):
            scene()
        took_s = time.monotonic() - began
        self.console.print(
            f"\n[green]All as it should be:[/] {self.held} checks passed in {took_s:.0f} s.", highlight=False
        )

    # -- the scenes ---------------------------------------------------------------------------------------------------

    def promotion(self) -> None:
        """Promote a version under traffic."""
        self.scene("1. A promotion", "registry: clients ask for 'assistant'; its active version changes under way")
        with self.traffic("assistant") as answers:
            self.wait("answers of version 1", lambda: len(answers) >= ENOUGH)
            self.pointsman("registry activate assistant-2 --who demo --reason 'try it'")
            self.wait(
                "answers of version 2",
                lambda: sum(a.headers.get("x-pointsman-version") == "2" for a in answers) >= ENOUGH,
            )
        versions = Counter(a.headers.get("x-pointsman-version", "-") for a in answers)
        failed = sum(not a.ok for a in answers)
        self.show(["version", "requests"], sorted(versions.items()))
        self.expect(set(versions) == {"1", "2"}, f"two versions should have answered, not {sorted(versions)}")
        self.expect(not failed, f"{failed} requests failed while the version changed")
        self.note(f"{len(answers)} requests, {failed} failed.")

    def rollback(self) -> None:
        """Let a bad canary roll itself back."""
        self.scene("2. A bad canary", "canary: half of 'helper' goes to a model that fails every third request")
        with self.traffic("helper", workers=6) as answers:
            experiment = self.until_phase("bad-idea", "rolled_back")
        arms = Counter(a.headers.get("x-pointsman-arm", "-") for a in answers)
        failed = sum(not a.ok for a in answers)
        self.show(
            ["arm", "requests", "failed for clients"],
            [(arm, n, self.failures(answers, arm)) for arm, n in sorted(arms.items())],
        )
        self.note(f"It rolled itself back to 0 %: {experiment['reason']}")
        self.expect(not failed, f"{failed} clients saw an error although stable stands in for the canary")
        self.note("No client saw an error: stable answered where the canary failed ('fallback_to_stable').")
        self.advise("pointsman canary audit bad-idea")

    def rollout(self) -> None:
        """Let a good canary be promoted."""
        self.scene("3. A good canary", "canary: 'writer' goes to 25 %, then to 100 %, as the evidence comes in")
        with self.traffic("writer", workers=6) as answers:
            experiment = self.until_phase("good-idea", "promoted")
        arms = Counter(a.headers.get("x-pointsman-arm", "-") for a in answers)
        self.show(["arm", "requests"], sorted(arms.items()))
        self.expect(all(a.ok for a in answers), "no request should fail in a healthy rollout")
        self.note(f"Promoted: {experiment['reason']}")
        self.advise("pointsman canary list --watch 1")

    def hedging(self) -> None:
        """Cut the tail of response times."""
        self.scene("4. A tail, cut", "racing: one answer in twelve takes 4 s; with and without hedging after 0.8 s")
        # LiteLLM imports some of its code when it is first needed, and a hedge is a call of another kind.
        self.burst("tail", ENOUGH, workers=1)
        alone = self.burst("tail-alone", 60, workers=3)
        raced = self.burst("tail", 60, workers=3)
        extra = self.get("/racing/tail")["counts"]
        rows = [
            (
                name,
                len(answers),
                round(quantile(answers, 0.5)),
                round(quantile(answers, 0.95)),
                round(quantile(answers, 0.99)),
            )
            for name, answers in (("without", alone), ("hedged", raced))
        ]
        self.show(["", "requests", "p50 ms", "p95 ms", "p99 ms"], rows)
        self.expect(all(a.ok for a in (*alone, *raced)), "every request should be answered")
        self.expect(quantile(raced, 0.95) < quantile(alone, 0.95), "hedging should make the slowest twentieth faster")
        self.note(
            f"{extra['extra']} hedges for {extra['requests']} requests; {extra['overtaken']} of them answered first."
        )
        self.advise("pointsman racing show tail")

    def illness(self) -> None:
        """Avoid a sick deployment."""
        self.scene("5. A sick deployment", "balance: one of two deployments answers nothing but 503")
        self.provider.behave("gpt-4-turbo", Behaviour(latency=Delay(10), error_ratios={503: 1.0}))
        before = self.attempts("pair-sick")
        answers = self.burst("pair", 40, workers=4)
        tried = self.attempts("pair-sick") - before
        state = self.breaker("pair", "pair-sick")
        self.show(
            ["deployment", "attempts", "breaker"],
            [
                ("pair-sick", tried, state["state"]),
                ("pair-well", self.attempts("pair-well"), self.breaker("pair", "pair-well")["state"]),
            ],
        )
        self.expect(all(a.ok for a in answers), "the well deployment should have answered everything")
        self.expect(tried < len(answers) // 2, f"the sick deployment was tried {tried} times")
        self.note(f"{len(answers)} requests, none failed: {state['says']}.")
        self.advise("pointsman balance show pair")

    def mirror(self) -> None:
        """Compare answers with a challenger's."""
        self.scene("6. A mirror", "shadow: each request for 'draft' is also sent to 'fresh'; clients do not notice")

        def compared() -> bool:
            # While the proxy is busy, requests are not mirrored: a client would notice.
            self.burst("draft", 2, workers=1)
            return int(self.get("/shadow/compare")["pairs"]) >= ENOUGH

        self.wait("compared pairs", compared)
        self.pointsman("shadow report compare", lines=28)

    def limit(self) -> None:
        """Stop a tenant at its limit; its client's own retry succeeds."""
        self.scene("7. A limit", "quota: the tenant 'acme' may make two requests at once, and one more a second")
        key = "sk-acme-0123456789abcdef"
        tenant = {
            "id": "acme",
            "limits": {"requests_per_minute": 60, "burst_s": 2},
            "api_keys": [{"name": "app", "key": key}],
        }
        with self.proxy.client() as admin:
            admin.post("/pointsman/quota/tenants", json=tenant).raise_for_status()
        stopped = [self.send("steady", key=key) for _ in range(4)]
        patient = self.send("steady", key=key, retries=5)
        rows = [
            (f"request {n}", a.status, a.headers.get("retry-after", "-"), round(a.duration_ms))
            for n, a in enumerate(stopped, 1)
        ]
        rows.append(("with the client's own retries", patient.status, "-", round(patient.duration_ms)))
        self.show(["", "status", "retry-after", "ms"], rows)
        refused = [a for a in stopped if a.status == 429]  # noqa: PLR2004 - HTTP
        self.expect(refused, "the third request should have been refused")
        self.expect(patient.ok, f"the client that waits as long as it is told should succeed, but: {patient.error}")
        self.note(refused[0].error)
        self.advise("pointsman quota show acme")

    def bill(self) -> None:
        """Bill everything, to the cent."""
        self.scene("8. The bill", "billing: every attempt once; the sum against LiteLLM's own")

        def settled() -> bool:
            with self.proxy.client() as admin:
                status = admin.get("/pointsman/status").json()
            return not any(status["journal"]["waiting"].values())

        self.wait("settlements", settled)
        self.pointsman("billing usage --group-by deployment --period total", lines=40)
        answer = self.get("/billing/reconcile")
        self.pointsman("billing reconcile", lines=40)
        found = Counter[str]()
        for row in answer["comparison"]:
            found[row["finding"]] += row["attempts"]
        logged = (row for row in answer["comparison"] if row["gateway_usd"] != "0")
        apart = sum(abs(row["difference_usd_micros"]) for row in logged) / 1_000_000
        self.expect(found["agrees"] and not found["different"], f"LiteLLM's sums should be ours, but: {dict(found)}")
        self.expect(apart < CENT, f"LiteLLM's sums and ours are {apart} US dollars apart")
        self.note(
            f"{found['agrees']} attempts cost what LiteLLM says, to the cent. {found['cancelled']} it does not log: hedges that lost "
            "and were cancelled."
        )

    def trace(self) -> None:
        """Draw one request."""
        self.scene("9. One request", "the host: why it went where it went, as a trace and in words")
        answer = next(
            (a for a in (self.send("tail") for _ in range(40)) if a.headers.get("x-pointsman-attempts") == "2"), None
        )
        answer = answer or self.send("tail")
        self.console.print(self.drawn(answer.request_id))
        self.pointsman(f"explain {answer.request_id}")
        if self.jaeger is not None:
            lost = self.collector.not_forwarded
            self.note(f"All spans went on to {self.jaeger}; {lost} exports were not accepted there.")
            self.expect(not lost, f"Jaeger at {self.jaeger} did not accept {lost} exports; is it running?")

    def leave_running(self) -> None:
        """Say how to look around, and wait until the demo is stopped."""
        self.console.print("\nThe proxy keeps running. In another terminal, these and the commands above:\n")
        # As they are, however narrow the terminal: they are copied. Its shell does not know this environment.
        programs = shlex.quote(str(Path(sys.executable).parent))
        self.console.print(
            f"  export PATH={programs}:$PATH POINTSMAN_URL={self.proxy.url} POINTSMAN_KEY={self.proxy.master_key}\n"
            "  pointsman top\n  pointsman requests --watch 1\n  pointsman status\n"
            f"  curl -H 'authorization: Bearer {self.proxy.master_key}' {self.proxy.url}/pointsman/metrics\n",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self.console.print("Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            while self.proxy.running:
                time.sleep(1)

    # -- traffic ------------------------------------------------------------------------------------------------------

    def client(self, key: str, retries: int) -> openai.OpenAI:
        """Return the client of a key; one for each number of retries."""
        with self.lock:
            name = f"{key} {retries}"
            if name not in self.clients:
                self.clients[name] = openai.OpenAI(
                    base_url=f"{self.proxy.url}/v1", api_key=key, max_retries=retries, timeout=LONGEST_S
                )
            return self.clients[name]

    def send(self, model: str, *, key: str | None = None, retries: int = 0) -> Answer:
        """Make one request with OpenAI's client."""
        client = self.client(key or self.proxy.master_key, retries)
        started = time.monotonic()
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=60
            )
            status, headers, error = _OK, raw.headers, ""
        except openai.APIStatusError as err:
            body = err.body if isinstance(err.body, Mapping) else {}
            status, headers, error = err.status_code, err.response.headers, str(body.get("message", err))
        return Answer(status, headers, error, (time.monotonic() - started) * 1000)

    def burst(self, model: str, count: int, *, workers: int = 8) -> list[Answer]:
        """Make requests, several at a time."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda _: self.send(model), range(count)))

    @contextlib.contextmanager
    def traffic(self, model: str, *, workers: int = 3) -> Iterator[list[Answer]]:
        """Keep clients busy until the end of the block; yields the answers as they come."""
        answers: list[Answer] = []
        over = threading.Event()

        def keep_asking() -> None:
            while not over.is_set():
                answers.append(self.send(model))

        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(keep_asking) for _ in range(workers)]
            try:
                yield answers
            finally:
                over.set()
        for each in running:
            each.result()

    # -- looking ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: str) -> Any:
        """Return the answer of an admin route."""
        with self.proxy.client() as admin:
            return admin.get(f"/pointsman{path}", params=params).raise_for_status().json()

    def breaker(self, group: str, deployment: str) -> Mapping[str, Any]:
        """Return the state of a breaker."""
        shown = self.get(f"/balance/groups/{group}")
        return next(d["breaker"] for d in shown["deployments"] if d["deployment_id"] == deployment)

    def attempts(self, deployment: str) -> int:
        """Return how many attempts a deployment has had, from the metrics."""
        return round(
            sum(
                point["value"]
                for metric in self.get("/metrics", format="json")["metrics"]
                if metric["name"] == "pointsman.attempts"
                for point in metric["points"]
                if point["labels"].get("pointsman.deployment") == deployment
            )
        )

    def until_phase(self, experiment: str, phase: str) -> Mapping[str, Any]:
        """Wait until an experiment has reached a phase, and return it."""
        found: dict[str, Any] = {}

        def reached() -> bool:
            found.update(self.get(f"/canary/{experiment}"))
            return found["phase"] == phase

        self.wait(f"{experiment} to be {phase}", reached)
        return found

    @staticmethod
    def failures(answers: Sequence[Answer], arm: str) -> int:
        """Return how many requests of an arm failed for their clients."""
        return sum(not a.ok for a in answers if a.headers.get("x-pointsman-arm", "-") == arm)

    def wait(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait until something has happened.

        Raises:
            UnexpectedError: it has not.
        """
        deadline = time.monotonic() + LONGEST_S
        while not happened():
            if time.monotonic() > deadline:
                raise UnexpectedError(f"waited {LONGEST_S:.0f} s in vain for {what}")
            time.sleep(0.1)
        self.held += 1

    def expect(self, met: object, message: str) -> None:
        """Count one expectation.

        Raises:
            UnexpectedError: it is not met.
        """
        if not met:
            raise UnexpectedError(message)
        self.held += 1

    def drawn(self, request_id: str) -> Tree:
        """Return the trace of a request as a tree, once its spans have come."""
        spans = self.collector.wait(lambda found: any(self.is_root(span, request_id) for span in found))
        root = next(span for span in spans if self.is_root(span, request_id))
        time.sleep(0.5)
        spans = [span for span in self.collector.spans if span.trace_id == root.trace_id]
        return draw(root, spans, root.start_ns, Tree(label(root, root.start_ns)))

    @staticmethod
    def is_root(span: CollectedSpan, request_id: str) -> bool:
        """Return whether a span is the one of this client request."""
        return span.attributes.get("pointsman.request_id") == request_id and "pointsman.endpoint" in span.attributes

    # -- telling ------------------------------------------------------------------------------------------------------

    def scene(self, title: str, what: str) -> None:
        """Begin a scene."""
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left", style="dim")
        self.console.print(what, style="dim", highlight=False)

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            numeric = all(isinstance(row[index], int | float | Decimal) for row in rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(table)

    def note(self, text: str) -> None:
        """Say something about what was shown."""
        self.console.print(text, highlight=False, markup=False)

    def advise(self, command: str) -> None:
        """Say the command to look at it oneself."""
        self.console.print(f"[dim]yourself:[/] [bold]{escape(command)}[/]", highlight=False, soft_wrap=True)

    def pointsman(self, command: str, *, lines: int = 200) -> None:
        """Run a command of the CLI against the proxy, with its output in the story.

        Raises:
            UnexpectedError: it failed.
        """
        self.console.print(f"[dim]$[/] [bold]pointsman {escape(command)}[/]", highlight=False, soft_wrap=True)
        env = {**os.environ, "POINTSMAN_URL": self.proxy.url, "POINTSMAN_KEY": self.proxy.master_key}
        program = str(Path(sys.executable).with_name("pointsman"))
        done = subprocess.run([program, *shlex.split(command)], env=env, check=False, capture_output=True, text=True)  # noqa: S603 - our own command
        self.expect(done.returncode == 0, f"'pointsman {command}' ended with {done.returncode}: {done.stderr}")
        shown = done.stdout.rstrip().splitlines()
        for line in shown[:lines]:
            self.console.print(Text(line.rstrip()), soft_wrap=True)
        if len(shown) > lines:
            self.note(f"... {len(shown) - lines} more lines")


def quantile(answers: Sequence[Answer], ratio: float) -> float:
    """Return a quantile of the durations in milliseconds, by nearest rank."""
    ordered = sorted(a.duration_ms for a in answers)
    return ordered[min(len(ordered) - 1, int(ratio * len(ordered)))]


def label(span: CollectedSpan, from_ns: int) -> Text:
    """Return a span in one line: when, how long, what."""
    start_ms, took_ms = (span.start_ns - from_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
    text = Text.assemble((f"{span.name} ", "bold"), (f"{start_ms:.0f} + {took_ms:.0f} ms", "dim"))
    for name in ("pointsman.outcome", "pointsman.target", "pointsman.deployment", "error.type"):
        if name in span.attributes:
            text.append(
                f"  {name.rsplit('.', 1)[-1]}={span.attributes[name]}", style="red" if name == "error.type" else "cyan"
            )
    return text


def draw(span: CollectedSpan, spans: Sequence[CollectedSpan], from_ns: int, tree: Tree) -> Tree:
    """Add the children of a span to a tree, in the order of their start."""
    for child in sorted((each for each in spans if each.parent_id == span.span_id), key=lambda each: each.start_ns):
        draw(child, spans, from_ns, tree.add(label(child, from_ns)))
    return tree
