"""A model of a pool and its present state. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import log
from typing import Final

from pointsman.stats import DecayingCount, Ewma

#: Time constant of the averages of load times, in seconds: a load a day ago still counts for something.
LOAD_TAU_S: Final = 86_400.0
#: Time constant of the average duration of attempts, in seconds.
ATTEMPT_TAU_S: Final = 120.0


class State(StrEnum):
    """Where a model is.

    ``sleeping`` keeps a residual part of its memory and can be woken. Only a ``resident`` model serves new requests;
    a ``draining`` one finishes those it has.
    """

    COLD = "cold"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"
    UNLOADING = "unloading"
    SLEEPING = "sleeping"


NEVER: Final = float("inf")
#: No request waits: how many, the oldest arrival, the sum of arrivals.
NONE_WAITS: Final = (0, NEVER, 0.0)
#: States in which a model has to be loaded before it serves.
ABSENT: Final = frozenset({State.COLD, State.SLEEPING})
#: States on the way to another one.
MOVING: Final = frozenset({State.LOADING, State.DRAINING, State.UNLOADING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as the configuration describes it.

    Attributes:
        name: Its name in the configuration.
        pool: The name of its pool.
        footprint: Device to the bytes it takes there; empty: unknown until it has been loaded once, and until then it
            counts as all that evictions can free there.
        pinned: Whether it is never evicted.
        priority: Higher is evicted later.
        preload: Whether it is loaded at the start, as far as it fits beside what was loaded before it.
        idle_ttl_s: Seconds after the end of its latest request at which it is evicted, or None.
        excludes: Models that must not be resident at the same time.
        residual: Device to the bytes that it keeps while it sleeps.
        devices: The devices that it lies on, in equal shares where only a total is known.
        parallel: Requests that its server works on at once.
    """

    name: str
    pool: str = ""
    footprint: Mapping[str, int] = field(default_factory=dict)
    pinned: bool = False
    priority: int = 0
    preload: bool = False
    idle_ttl_s: float | None = None
    excludes: frozenset[str] = frozenset()
    residual: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    parallel: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What another worker says of its requests.

    Attributes:
        seen: The revision of the states that it follows.
        holds: Model to the number of its requests that are being served.
        waiting: Model to the number of its requests that wait, the arrival of the oldest, and the sum of all arrivals (Unix
            seconds).
        rates: Model to its requests a second.
        used: Model to its latest use (Unix seconds).
    """

    seen: int
    holds: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    used: Mapping[str, float] = field(default_factory=dict)


class Slot:
    """A model's place in a pool.

    Attributes:
        model: The model.
        pool: The name of its pool.
        state: Where it is.
        since: When it came into this state, Unix seconds.
        bytes: Device to the bytes that it is counted with; empty while cold.
        learnt: Device to the bytes measured when it was last resident; empty when never.
        pinned: Whether it is never evicted, configured or set by an operator.
        holds: Ticket to the number of times it is held: the requests that are being served.
        waiters: Ticket to its arrival, Unix seconds, oldest first.
        wanted: Why it is to be loaded without a request, or an empty text.
        demand: Requests, decayed.
        asked_at: When the first one came, Unix seconds; 0 when none has.
        used_at: When a request began or ended last, Unix seconds; 0 when never.
        order: Grows with each use: the order in which models were used, also within one moment.
        loaded_at: When it became resident, Unix seconds.
        load_s: Average seconds of a load.
        wake_s: Average seconds of waking up.
        attempt_s: Average seconds of an attempt.
        failures: Consecutive loads that failed.
        error: The message of the latest failure, empty after a success.
        retry_at: Before this no load is started, Unix seconds.
        passing: Whether what made it fail may be over in a moment: requests go on waiting.
        starved: Whether the latest load failed for want of memory, so that one more model has to go first.
        drain_for: The model that it is drained for; empty when for another reason.
        drain_reason: Why it is drained.
        drain_revision: The revision in which draining was announced.
        resident_revision: The revision in which it became resident, in the worker that decides.
        stuck_until: Before this no eviction is tried again, Unix seconds.
        blocked: Why its load has to wait, for the trace.
        loads: Loads that succeeded.
        evictions: Unloads that the server confirmed.
    """

    __slots__ = (
        "asked_at",
        "attempt_s",
        "blocked",
        "bytes",
        "demand",
        "drain_for",
        "drain_reason",
        "drain_revision",
        "error",
        "evictions",
        "failures",
        "holds",
        "learnt",
        "load_s",
        "loaded_at",
        "loads",
        "model",
        "order",
        "passing",
        "pinned",
        "pool",
        "resident_revision",
        "retry_at",
        "since",
        "starved",
        "state",
        "stuck_until",
        "used_at",
        "waiters",
        "wake_s",
        "wanted",
    )

    def __init__(self, model: Model, half_life_s: float) -> None:
        self.model = model
        self.pool: str = model.pool
        self.state = State.COLD
        self.since = 0.0
        self.bytes: Mapping[str, int] = {}
        self.learnt: Mapping[str, int] = {}
        self.pinned = model.pinned
        self.holds: dict[str, int] = {}
        self.waiters: dict[str, float] = {}
        self.wanted = ""
        self.demand = DecayingCount(half_life_s)
        self.asked_at = 0.0
        self.used_at = 0.0
        self.order = 0
        self.loaded_at = 0.0
        self.load_s = Ewma(LOAD_TAU_S, min_gain=0.3)
        self.wake_s = Ewma(LOAD_TAU_S, min_gain=0.3)
        self.attempt_s = Ewma(ATTEMPT_TAU_S, min_gain=0.05)
        self.failures = 0
        self.error = ""
        self.retry_at = 0.0
        self.passing = False
        self.starved = False
        self.drain_for = ""
        self.drain_reason = ""
        self.drain_revision = 0
        self.resident_revision = 0
        self.stuck_until = 0.0
        self.blocked = ""
        self.loads = 0
        self.evictions = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def ready_s(self) -> float | None:
        """Expected seconds until it could serve once it is allowed to load; None when it was never loaded."""
        average = self.wake_s if self.state is State.SLEEPING and self.wake_s.count else self.load_s
        return average.value if average.count else None

    @property
    def waiting(self) -> tuple[int, float, float]:
        """How many requests wait in this worker, the arrival of the oldest and the sum of all arrivals."""
        waiters = self.waiters
        return (len(waiters), next(iter(waiters.values())), sum(waiters.values())) if waiters else NONE_WAITS

    def rate(self, now: float) -> float:
        """Return the requests a second of late, in this worker."""
        count = self.demand.value(now)
        if not count:
            return 0.0
        half_life_s = self.demand.half_life_s
        # Of a model that is new, the decayed number is what came in less time.
        seen: float = 1.0 - 2.0 ** (-max(1.0, now - self.asked_at) / half_life_s)
        return float(count * log(2.0) / (half_life_s * seen))

    def enter(self, state: State, now: float) -> None:
        """Change the state."""
        self.state = state
        self.since = now
