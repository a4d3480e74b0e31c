"""A fleet in simulated time: the same one that ``bench/fleet.py`` is, without proxy, sockets and waiting."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

from pointsman.types import AttemptError, ErrorClass, Outcome, Usage

from .conftest import NOW, Table, make_attempt, make_deployment, make_request

#: Median time to the first token and time of a token, in milliseconds.
FLEET = {
    "fast": (150, 8),
    "normal-1": (300, 15),
    "normal-2": (300, 15),
    "slow": (900, 30),
    "sick": (300, 15),
    "limited": (250, 15),
}
SLOTS, QUOTA, QUOTA_S = 8, 20, 10.0
RETRIES = 2


@dataclass
class Server:
    """One deployment: how many it serves, who waits, and what is left of its quota."""

    busy: int = 0
    waiting: deque = field(default_factory=deque)
    window: tuple[int, int] = (-1, 0)


class Simulation:
    """Arrivals over a time in the middle of which one deployment is sick.

    Args:
        config: The plugin's.
        rate: Requests a second.
        length_s: How long.
        sick_s: When the brown-out begins and ends.
        error_ratio: Part of the requests that fail in it.
        slower: By how much it is slower.
        seed: Of all chance.
    """

    def __init__(self, config, *, rate=14.0, length_s=36.0, sick_s=(12.0, 24.0), error_ratio=0.3, slower=10.0, seed=1):
        self.table = Table([make_deployment(one) for one in FLEET], config)
        self.servers = {one: Server() for one in FLEET}
        self.random = random.Random(seed)
        self.sick_s = sick_s
        self.error_ratio, self.slower = error_ratio, slower
        self.first_ms = []
        self.errors = 0
        #: Seconds and deployment of every attempt.
        self.attempts = []
        self._events, self._order, self._now = [], count(), 0.0
        at = 0.0
        while (at := at + self.random.expovariate(rate)) < length_s:
            tokens = max(5, min(100, int(self.random.lognormvariate(3.4, 0.6))))
            self._at(at, self._arrive, make_request(), at, tokens, 0)

    def run(self):
        """Run to the end; return itself."""
        while self._events:
            self._now, _, work, arguments = heapq.heappop(self._events)
            work(*arguments)
        self.first_ms.sort()
        return self

    def quantile(self, part):
        return self.first_ms[min(len(self.first_ms) - 1, int(part * len(self.first_ms)))]

    def share(self, begin_s, end_s, one="sick"):
        names = [name for at, name in self.attempts if begin_s <= at < end_s]
        return names.count(one) / len(names)

    def _at(self, at, work, *arguments):
        heapq.heappush(self._events, (at, next(self._order), work, arguments))

    def _arrive(self, request, due, tokens, tries):
        now = NOW + self._now
        (chosen,) = [c for c in self.table.chooser.choose(request, self.table.candidates, now) if not c.dropped]
        name = chosen.deployment.id
        attempt = make_attempt(chosen.deployment, request, at=now, outcome=None, usage=None, first_token_ms=None)
        self.table.observer.begin(request, attempt, now)
        self.attempts.append((self._now, name))
        server, sick = self.servers[name], name == "sick" and self.sick_s[0] <= self._now < self.sick_s[1]
        first_s = FLEET[name][0] / 1e3 * self.random.lognormvariate(0.0, 0.25) * (self.slower if sick else 1.0)
        fails = sick and self.random.random() < self.error_ratio
        call = (request, attempt, due, tokens, tries)
        if name == "limited":
            number = int(self._now // QUOTA_S)
            used = server.window[1] if server.window[0] == number else 0
            if used >= QUOTA:
                error = AttemptError(kind=ErrorClass.RATE_LIMIT, retry_after_s=(number + 1) * QUOTA_S - self._now)
                self._at(self._now + 0.005, self._fail, call, error, None)
                return
            server.window = (number, used + 1)
        server.waiting.append((call, first_s, fails))
        self._serve(server)

    def _serve(self, server):
        while server.waiting and server.busy < SLOTS:
            server.busy += 1
            call, first_s, fails = server.waiting.popleft()
            if fails:
                self._at(self._now + first_s, self._fail, call, AttemptError(kind=ErrorClass.SERVER), server)
            else:
                self._at(self._now + first_s, self._first, call, server)

    def _first(self, call, server):
        _, attempt, due, tokens, _ = call
        now = NOW + self._now
        first_ms = (now - attempt.started_at) * 1e3
        self.table.observer.first_token(attempt, first_ms, now)
        self.first_ms.append((self._now - due) * 1e3)
        end_s = FLEET[attempt.deployment.id][1] / 1e3 * tokens
        self._at(self._now + end_s, self._end, call, first_ms, server)

    def _end(self, call, first_ms, server):
        request, attempt, _, tokens, _ = call
        now = NOW + self._now
        usage = Usage(prompt_tokens=20, completion_tokens=tokens)
        duration_ms = (now - attempt.started_at) * 1e3
        ended = replace(attempt, outcome=Outcome.OK, usage=usage, first_token_ms=first_ms, duration_ms=duration_ms)
        self.table.observer.end(request, ended, now)
        server.busy -= 1
        self._serve(server)

    def _fail(self, call, error, server):
        request, attempt, due, tokens, tries = call
        now = NOW + self._now
        ended = replace(attempt, outcome=Outcome.ERROR, error=error, duration_ms=(now - attempt.started_at) * 1e3)
        self.table.observer.end(request, ended, now)
        if server is not None:
            server.busy -= 1
            self._serve(server)
        if tries < RETRIES:
            self._arrive(request, due, tokens, tries + 1)
        else:
            self.errors += 1
