"""A pool, its servers and clients in simulated time: the policy's loads and waits, beside plain LRU and the optimum.

One event after another by time; no asyncio, so ten thousand requests take a second.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

from pointsman.stats import nearest_rank
from pointsman_residency.decisions import decide
from pointsman_residency.policy import Policy
from pointsman_residency.pool import Pool
from pointsman_residency.slots import Model


@dataclass
class Outcome:
    """What a run came to."""

    loads: int = 0
    waits: list[float] = field(default_factory=list)
    by_model: dict[str, list[float]] = field(default_factory=dict)
    late: int = 0
    finished_at: float = 0.0

    def p(self, ratio):
        return nearest_rank(sorted(self.waits), ratio)


class Simulation:
    """Runs requests through a pool.

    Args:
        sizes: Model to its bytes.
        budget: Bytes.
        policy: The settings.
        load_s: Seconds of a load.
        serve_s: Seconds of a request.
        parallel: Requests of a model at once; more wait at the server.
        deadline_s: Longest wait of a request.
    """

    def __init__(self, sizes, budget, policy, *, load_s=1.0, serve_s=0.05, parallel=4, deadline_s=None):
        self.pool = Pool({"m": budget}, [Model(name=n, footprint={"m": s}) for n, s in sizes.items()], policy)
        self.load_s, self.serve_s, self.parallel, self.deadline_s = load_s, serve_s, parallel, deadline_s
        self.now = 0.0
        self.result = Outcome()
        #: Model to the ends of its requests.
        self.ended = {name: [] for name in sizes}
        self._events, self._order = [], count()
        self._arrived, self._model, self._then = {}, {}, {}
        self._wake_at = float("inf")
        self._free_at = {name: [0.0] * parallel for name in sizes}

    def at(self, when, what, *args):
        heapq.heappush(self._events, (when, next(self._order), what, args))

    def open_loop(self, trace):
        """Let requests arrive at their times: pairs of seconds and model."""
        for when, name in trace:
            self.at(when, self._arrive, name, None)
        return self._run()

    def closed_loop(self, clients):
        """Let each client make its requests one after another; an item is a list of models."""
        for names in clients:
            self._next(iter(names))
        return self._run()

    def _next(self, names):
        if (name := next(names, None)) is not None:
            self.at(self.now, self._arrive, name, names)

    def _run(self):
        while self._events:
            when, _, what, args = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what(*args)
            self._step()
        self.result.finished_at = self.now
        return self.result

    def _arrive(self, name, names):
        ticket = f"r{next(self._order)}"
        self._arrived[ticket], self._model[ticket], self._then[ticket] = self.now, name, names
        if self.pool.request(name, ticket, self.now):
            self._serve(ticket)
        elif self.deadline_s is not None:
            self.at(self.now + self.deadline_s, self._give_up, ticket)

    def _give_up(self, ticket):
        if ticket in self.pool.slots[self._model[ticket]].waiters:
            self.pool.withdraw(self._model[ticket], ticket, self.now)
            self.result.late += 1
            self._after(ticket)

    def _serve(self, ticket):
        waited = self.now - self._arrived[ticket]
        self.result.waits.append(waited)
        self.result.by_model.setdefault(self._model[ticket], []).append(waited)
        slots = self._free_at[self._model[ticket]]
        start = max(self.now, heapq.heappop(slots))
        heapq.heappush(slots, start + self.serve_s)
        self.at(start + self.serve_s, self._end, ticket)

    def _end(self, ticket):
        self.pool.release(self._model[ticket], ticket, self.now)
        self.ended[self._model[ticket]].append(self.now)
        self._after(ticket)

    def _after(self, ticket):
        if (names := self._then.pop(ticket)) is not None:
            self._next(names)

    def _step(self):
        while True:
            decision = decide(self.pool, self.now)
            for unload in decision.unloads:
                self.pool.unload_ended(unload.name, self.now)
            for load in decision.loads:
                self.result.loads += 1
                self.at(self.now + self.load_s, self._loaded, load.name)
            if not decision.unloads:
                break
        for verdict in self.pool.take_verdicts():
            self._serve(verdict.ticket)
        if decision.next_at < self._wake_at or self._wake_at <= self.now < decision.next_at < float("inf"):
            self._wake_at = max(decision.next_at, self.now + 0.02)
            self.at(self._wake_at, lambda: None)

    def _loaded(self, name):
        self.pool.load_ended(name, self.now, took_s=self.load_s)


LRU = Policy(max_wait_s=0.0, min_residence_s=0.0, swap_ratio=0.0)
"""Every request is overdue at once: the models are loaded in the order of the requests, and the least recently used goes."""


def zipf(names, number, *, exponent=1.0, seed=0):
    """Return models, the first asked for most."""
    rng = random.Random(seed)
    return rng.choices(names, weights=[1 / (rank + 1) ** exponent for rank in range(len(names))], k=number)


def belady(trace, room):
    """Return the fewest loads with which models of equal size serve requests one after another (Belady, 1966)."""
    upcoming = {}
    for at, name in enumerate(trace):
        upcoming.setdefault(name, []).append(at)
    resident, loads = set(), 0
    for name in trace:
        upcoming[name].pop(0)
        if name in resident:
            continue
        loads += 1
        if len(resident) == room:
            resident.discard(max(resident, key=lambda one: upcoming[one][0] if upcoming[one] else float("inf")))
        resident.add(name)
    return loads


def clairvoyant(clients, room, *, patience, width=60):
    """Return how many loads suffice for clients that make their requests one after another, if all of them were known.

    A beam search: what was loaded, how far each client has come, and the most promising ``width`` of these after each
    load. So it is no proof that fewer would not do, but a way that does.

    Args:
        clients: The models that each one asks for.
        room: Models of equal size that fit.
        patience: Loads that a request waits at most before it is the next one's turn.
        width: States that are followed.
    """
    todo = [tuple(names) for names in clients]

    def serve(at, since, resident, loads):
        at, since = list(at), list(since)
        for client, names in enumerate(todo):
            first = at[client]
            while at[client] < len(names) and names[at[client]] in resident:
                at[client] += 1
            if at[client] != first:
                since[client] = loads
        return tuple(at), tuple(since)

    start = (0,) * len(todo)
    states, loads = {(start, frozenset()): start}, 0
    while not any(all(done == len(names) for done, names in zip(at, todo, strict=True)) for at, _ in states):
        loads += 1
        following = {}
        for (at, resident), since in states.items():
            waiting = [client for client, names in enumerate(todo) if at[client] < len(names)]
            oldest = min(waiting, key=since.__getitem__)
            if loads - since[oldest] >= patience:
                waiting = [oldest]
            for name in {todo[client][at[client]] for client in waiting}:
                for victim in resident if len(resident) >= room else [None]:
                    now = (resident - {victim}) | {name}
                    come, new = serve(at, since, now, loads)
                    following[come, now] = max(new, following.get((come, now), new), key=sum)
        best = sorted(following.items(), key=lambda item: (sum(item[0][0]), sum(item[1])), reverse=True)
        states = dict(best[:width])
    return loads
