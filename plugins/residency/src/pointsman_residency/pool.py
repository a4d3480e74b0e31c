"""The models that share one memory: what is in it, what waits, what became of it. Pure: no I/O, no clock.

A pool is driven from outside: requests come and go (``request``, ``release``, ``withdraw``), ``decisions.decide`` says what
to load and to unload, and the outcome is told (``load_ended``, ``unload_ended``, ``observe``). What it has decided about waiting
requests is taken with ``take_verdicts``.

::

    cold -> loading -> resident -> draining -> unloading -> cold | sleeping

A model counts with its bytes from the decision to load it until the server has confirmed that it is gone, so the sum of
the *expected* sizes never exceeds the budget. What is measured after a load replaces what was expected; if the sum is then
above the budget, models are evicted until it fits.

Of several workers one decides; the others follow it, and tell it of their requests in a ``Report``: see ``sharing``. A model
that drains is unloaded when every worker has seen that it drains and has no request on it.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pointsman.errors import PointsmanError

from .policy import Policy, fits
from .slots import ABSENT, MOVING, NONE_WAITS, Model, Report, Slot, State

#: Evictions that nothing waits for are told apart from those for a model by an empty name.
NOBODY: Final = ""
#: What a model that was never loaded is expected to take, in seconds: longer than most, so that it is not the first choice.
UNKNOWN_LOAD_S: Final = 30.0
#: Why a model is loaded at the start, of the gateway or of its server. It then takes no other one's place.
PRELOAD: Final = "preload"


class Unavailable(PointsmanError):
    """A model cannot be made resident for a request.

    Args:
        message: What is wrong and what to do; for the client.
        code: Stable, for programs.
        retry_after_s: When to come back, in seconds, or None when that would not help.
    """

    def __init__(self, message: str, *, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a waiting request: it may go on, or ``error`` says why not."""

    ticket: str
    error: Unavailable | None = None


class Pool:
    """Decides which models are resident.

    Args:
        budget: Device to its bytes, each more than 0.
        models: The members.
        policy: The settings of the choice.

    Attributes:
        slots: The models by name.
        revision: Grows with each change of a state.
        foreign: Device to the bytes of models on the server that are not members.
        reports: Other workers by name.
        drifts: Changes on the server that this gateway has not caused.
        after: Model to those that have to go before its load is tried again, which lacked memory.
        aliases: Members that are the same model on the server as another one, which stands for them.
        rivals: Model to those that are the same one on the server with other settings: it has one of them at a time.

    Raises:
        ValueError: a budget or a size is not above 0.
    """

    def __init__(self, budget: Mapping[str, int], models: Iterable[Model], policy: Policy | None = None) -> None:
        if not budget or any(size <= 0 for size in budget.values()):
            raise ValueError(f"a budget must be more than 0 bytes, not {dict(budget)!r}")
        self.budget = dict(budget)
        self.policy = policy or Policy()
        self.slots: dict[str, Slot] = {}
        self.revision = 0
        self.foreign: dict[str, int] = {}
        self.reports: dict[str, Report] = {}
        self.drifts = 0
        self._verdicts: list[Verdict] = []
        self._uses = 0
        self._forced: set[str] = set()
        self.after: dict[str, set[str]] = {}
        self.aliases: Mapping[str, str] = {}
        self.rivals: Mapping[str, frozenset[str]] = {}
        for model in models:
            self.add(model)

    def add(self, model: Model) -> None:
        """Add a model, cold.

        Raises:
            ValueError: a size is not above 0, or the name is taken.
        """
        if any(size <= 0 for size in model.footprint.values()):
            raise ValueError(f"the footprint of {model.name!r} must be more than 0 bytes")
        if model.name in self.slots:
            raise ValueError(f"the model {model.name!r} is a member already")
        self.slots[model.name] = Slot(model, self.policy.demand_half_life_s)

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(self, name: str, ticket: str, now: float) -> bool:
        """Ask for a model on behalf of a request; return whether it may go on at once, otherwise it waits.

        Raises:
            Unavailable: it can never be loaded, or its load has just failed.
        """
        slot = self.slots[name]
        slot.demand.add(now)
        if not slot.asked_at:
            slot.asked_at = now
        if slot.state is State.RESIDENT:
            self._hold(slot, ticket, now)
            return True
        self.check(name, now)
        slot.waiters.setdefault(ticket, now)
        return False

    def touch(self, name: str, now: float) -> None:
        """Mark a model as the most recently used."""
        slot = self.slots[name]
        slot.used_at = now
        self._uses += 1
        slot.order = self._uses

    def move(self, name: str, old: str, new: str) -> bool:
        """Let a ticket take over another one's hold; return whether there was one."""
        holds = self.slots[name].holds
        if old not in holds:
            return False
        self._drop(holds, old)
        holds[new] = holds.get(new, 0) + 1
        return True

    def release(self, name: str, ticket: str, now: float) -> None:
        """Give a hold back; harmless when there is none."""
        slot = self.slots[name]
        if ticket in slot.holds:
            self._drop(slot.holds, ticket)
            self.touch(name, now)

    def withdraw(self, name: str, ticket: str, now: float) -> None:
        """End a request's wait, or give back what it has got meanwhile."""
        if self.slots[name].waiters.pop(ticket, None) is None:
            self.release(name, ticket, now)

    def take_verdicts(self) -> list[Verdict]:
        """Return what was decided about waiting requests since the last call."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def preload(self) -> None:
        """Have the models loaded that the configuration wants at the start."""
        for slot in self.slots.values():
            if slot.model.preload and slot.state in ABSENT:
                self.slots[self.aliases.get(slot.name, slot.name)].wanted = PRELOAD

    def share(self, places: Mapping[str, tuple[Hashable, Hashable]]) -> None:
        """Let one member stand for all that are the same model on one server, which has it once, whatever its names.

        Args:
            places: Model to its place on a server, and the settings with which it is loaded there.
        """
        aliases = dict[str, str]()
        by_place = dict[Hashable, dict[Hashable, str]]()
        for name, (place, settings) in places.items():
            first = by_place.setdefault(place, {}).setdefault(settings, name)
            if first != name:
                aliases[name] = first
        for name, first in aliases.items():
            if self.aliases.get(name) != first:
                self.slots[first].pinned |= self.slots[name].model.pinned
        self.aliases = aliases
        self.rivals = {
            name: frozenset(names.values()) - {name} for names in by_place.values() for name in names.values()
        }

    def excludes(self, slot: Slot) -> frozenset[str]:
        """Return the models that must not be resident at the same time."""
        return slot.model.excludes | self.rivals.get(slot.name, frozenset())

    # -- operators ----------------------------------------------------------------------------------------------------

    def want(self, name: str, reason: str, now: float) -> None:
        """Have a model loaded without a request.

        Raises:
            Unavailable: it can never be loaded, or its load has just failed.
        """
        self.check(name, now)
        slot = self.slots[name]
        if slot.state is State.RESIDENT:
            self.touch(name, now)
        elif slot.state is not State.LOADING:
            slot.wanted = reason
            self.revision += 1

    def check(self, name: str, now: float) -> None:
        """Check that a model is not absent for good, or for the time being.

        Raises:
            Unavailable: it can never be loaded, or its load has just failed.
        """
        slot = self.slots[name]
        if slot.state not in ABSENT:
            return
        sizes = self.size(slot)
        if not fits(sizes, self.budget):
            raise Unavailable(
                f"The model {slot.name!r} takes {_total(sizes)} bytes, more than the {_total(self.budget)} of its pool; "
                "an operator has to raise the budget or use a smaller model.",
                code="model_too_large",
            )
        if slot.retry_at > now and not slot.passing:
            raise self._broken(slot, now)

    def evict(self, name: str, reason: str, now: float, *, force: bool = False) -> bool:
        """Drain a model, to be unloaded when its requests have ended; return whether there is anything to evict.

        Args:
            name: The model. A pin does not protect it.
            reason: Why.
            now: Unix seconds.
            force: Unload it although requests are in flight.
        """
        slot = self.slots[name]
        slot.wanted = ""
        if slot.state is State.RESIDENT:
            self.drain(slot, NOBODY, reason, now)
        elif slot.state is State.DRAINING:
            slot.drain_for, slot.drain_reason = NOBODY, reason
        elif slot.state is not State.UNLOADING:
            return False
        if force:
            self._forced.add(name)
        return True

    def keep(self, name: str, now: float) -> None:
        """Take an eviction back that has not begun to unload."""
        slot = self.slots[name]
        if slot.state is State.DRAINING:
            self.enter(slot, State.RESIDENT, now)
            self.admit(slot, now)

    def pin(self, name: str, pinned: bool) -> None:
        """Set or remove a pin."""
        slot = self.slots[name]
        if slot.pinned != pinned:
            slot.pinned = pinned
            self.revision += 1

    # -- reading ------------------------------------------------------------------------------------------------------

    def size(self, slot: Slot) -> Mapping[str, int]:
        """Return the bytes that a model is expected to take: learnt, else configured, else all that evictions can free."""
        return slot.learnt or slot.model.footprint or self._whole(slot)

    def used(self) -> dict[str, int]:
        """Return the bytes that are counted, by device."""
        total = dict.fromkeys(self.budget, 0)
        for device, size in self.foreign.items():
            total[device] = total.get(device, 0) + size
        for slot in self.slots.values():
            for device, size in slot.bytes.items():
                total[device] = total.get(device, 0) + size
        return total

    def resident(self) -> list[Slot]:
        """Return what is in memory and awake, the most recently used first."""
        return sorted(
            (slot for slot in self.slots.values() if slot.state not in ABSENT),
            key=lambda slot: (slot.order, slot.used_at),
            reverse=True,
        )

    def rate(self, slot: Slot, now: float) -> float:
        """Return a model's requests a second of late, in all workers."""
        return slot.rate(now) + sum(report.rates.get(slot.name, 0.0) for report in self.reports.values())

    def in_flight(self, slot: Slot) -> int:
        """Return the requests that are being served, in all workers."""
        return len(slot.holds) + sum(report.holds.get(slot.name, 0) for report in self.reports.values())

    def waiting(self, slot: Slot) -> int:
        """Return the requests that wait, in all workers."""
        return len(slot.waiters) + sum(report.waiting.get(slot.name, NONE_WAITS)[0] for report in self.reports.values())

    def busy(self, slot: Slot) -> bool:
        """Return whether requests are, or may be, in flight in some worker."""
        if slot.name in self._forced:
            return False
        return bool(slot.holds) or any(
            report.holds.get(slot.name) or (slot.state is not State.RESIDENT and report.seen < slot.drain_revision)
            for report in self.reports.values()
        )

    def unheard(self, slot: Slot) -> bool:
        """Return whether requests wait for a resident model in a worker that does not know yet that it is resident."""
        return any(
            report.waiting.get(slot.name) and report.seen < slot.resident_revision for report in self.reports.values()
        )

    def changed_at(self) -> float:
        """Return when what still changes began to: the latest transition, or a model's first waiting request; 0 at rest."""
        moments = [slot.since for slot in self.slots.values() if slot.state in MOVING]
        moments += [next(iter(slot.waiters.values())) for slot in self.slots.values() if slot.waiters]
        return max(moments, default=0.0)

    def expected_s(self, slot: Slot) -> float:
        """Return the seconds that a new request has to expect before its own work begins."""
        if slot.state is State.RESIDENT:
            ahead = self.in_flight(slot) + 1 - slot.model.parallel
            return max(0, ahead) * slot.attempt_s.value / slot.model.parallel
        return UNKNOWN_LOAD_S if slot.ready_s is None else slot.ready_s

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def load_ended(
        self, name: str, now: float, *, took_s: float | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        """Note that a load has succeeded, and admit what waits.

        Args:
            name: The model.
            now: Unix seconds.
            took_s: How long it took; None when it was resident already.
            sizes: Device to the bytes that it takes, where the server tells them.
        """
        slot = self.slots[name]
        if took_s is not None:
            slot.loads += 1
            (slot.wake_s if slot.model.residual and slot.load_s.count else slot.load_s).add(took_s, now)
        if sizes:
            slot.learnt = dict(sizes)
        slot.bytes = dict(self.size(slot))
        slot.failures, slot.error, slot.retry_at, slot.starved, slot.passing = 0, "", 0.0, False, False
        slot.loaded_at = now
        self.touch(name, now)
        self.enter(slot, State.RESIDENT, now)
        self.admit(slot, now)

    def load_failed(self, name: str, now: float, message: str, *, memory: bool = False, passing: bool = False) -> None:
        """Note that a load has failed. After the first failure for want of memory one more model goes, and it is retried.

        While what made it fail may pass, requests go on waiting; otherwise they are refused, and so are new ones until
        the next load may be tried.

        Args:
            name: The model.
            now: Unix seconds.
            message: Why, for clients and operators.
            memory: Whether the server had too little memory.
            passing: Whether the server was busy or out of reach.
        """
        slot = self.slots[name]
        slot.bytes = {}
        slot.error = message
        slot.failures += 1
        self.enter(slot, State.COLD, now)
        if memory and slot.failures == 1:
            slot.starved = True
            if not slot.waiters and not slot.wanted:
                slot.wanted = "retry after a lack of memory"
            return
        policy = self.policy
        doubled = 2.0 ** min(slot.failures - 1, 16)
        slot.starved = False
        slot.passing = passing and slot.failures < policy.passing_failures
        if slot.passing:
            slot.retry_at = now + policy.passing_s * doubled
            slot.blocked = message
            return
        slot.retry_at = now + min(policy.backoff_s * doubled, policy.max_backoff_s)
        self.refuse(slot, now)

    def unload_ended(self, name: str, now: float, *, gone: bool = True, sleeping: bool = False) -> None:
        """Note the end of an unload.

        Args:
            name: The model.
            now: Unix seconds.
            gone: Whether the server's own list confirms it; otherwise the model still counts.
            sleeping: Whether it sleeps, with its residual bytes.
        """
        slot = self.slots[name]
        self._forced.discard(name)
        if gone:
            slot.evictions += 1
            slot.bytes = dict(slot.model.residual) if sleeping else {}
            slot.error = ""
            self.enter(slot, State.SLEEPING if sleeping else State.COLD, now)
            return
        slot.stuck_until = now + self.policy.stuck_s
        slot.error = "the server did not confirm that it was unloaded"
        self.enter(slot, State.RESIDENT, now)
        self.admit(slot, now)

    def postpone(self, name: str, now: float) -> None:
        """Take an unload back because a request of another worker turned out to be in flight."""
        self.enter(self.slots[name], State.DRAINING, now)

    def observe(
        self,
        listing: Mapping[str, Mapping[str, int]],
        now: float,
        *,
        foreign: Mapping[str, int],
        unread: Container[str] = (),
        taking_over: bool = False,
    ) -> list[str]:
        """Compare with what the server itself says; return what was repaired, one phrase each.

        Args:
            listing: The members that are resident on the server, with the bytes by device where it tells them.
            now: Unix seconds.
            foreign: Device to the bytes of everything else on the server.
            unread: The members of which nothing is known.
            taking_over: Whether another worker has begun what is being loaded.
        """
        self.foreign = {device: size for device, size in foreign.items() if device in self.budget}
        repaired = []
        for slot in self.slots.values():
            there, sizes = slot.name in listing, listing.get(slot.name) or {}
            if there and taking_over and slot.state is State.LOADING:
                self.load_ended(slot.name, now, sizes=sizes)
            if slot.state in {State.LOADING, State.UNLOADING} or slot.name in unread:
                continue
            if there and slot.state in ABSENT:
                repaired.append(f"{slot.name} was loaded by something else")
                self.load_ended(slot.name, now, sizes=sizes)
            elif there and sizes and dict(slot.bytes) != dict(sizes):
                slot.learnt = slot.bytes = dict(sizes)
                self.revision += 1
            elif not there and slot.state not in ABSENT:
                repaired.append(f"{slot.name} is no longer in the server's memory")
                slot.bytes = {}
                self.enter(slot, State.COLD, now)
                if slot.pinned or slot.model.preload:
                    slot.wanted = PRELOAD
        self.drifts += len(repaired)
        return repaired

    # -- parts --------------------------------------------------------------------------------------------------------

    def _broken(self, slot: Slot, now: float) -> Unavailable:
        return Unavailable(
            f"The model {slot.name!r} could not be loaded: {slot.error}",
            code="model_not_loaded",
            retry_after_s=max(1.0, slot.retry_at - now),
        )

    def _whole(self, slot: Slot) -> dict[str, int]:
        """Return what is free on a model's devices once everything else is gone that may go."""
        left = {
            device: self.budget[device] - self.foreign.get(device, 0) for device in slot.model.devices or self.budget
        }
        for other in self.slots.values():
            stays = other.bytes if other.pinned else other.model.residual if other.bytes else {}
            for device in left if other is not slot else ():
                left[device] -= stays.get(device, 0)
        return {device: max(1, size) for device, size in left.items()}

    def _hold(self, slot: Slot, ticket: str, now: float) -> None:
        slot.holds[ticket] = slot.holds.get(ticket, 0) + 1
        slot.used_at = now
        self._uses += 1
        slot.order = self._uses

    @staticmethod
    def _drop(holds: dict[str, int], ticket: str) -> None:
        if holds[ticket] > 1:
            holds[ticket] -= 1
        else:
            del holds[ticket]

    def drain(self, slot: Slot, for_model: str, reason: str, now: float) -> None:
        """Let a model finish its requests and take no new ones; it is unloaded then."""
        self.enter(slot, State.DRAINING, now)
        slot.drain_for, slot.drain_reason, slot.drain_revision = for_model, reason, self.revision

    def block(self, slot: Slot, why: str) -> None:
        """Note why a load has to wait: requests in the other workers are told it too."""
        if slot.blocked != why:
            slot.blocked = why
            self.revision += 1

    def enter(self, slot: Slot, state: State, now: float) -> None:
        """Change a model's state."""
        slot.enter(state, now)
        self.revision += 1
        if state is State.RESIDENT:
            slot.resident_revision = self.revision
        if state in ABSENT:
            # It has made its room; what is loaded again since then is another matter.
            for first in self.after.values():
                first.discard(slot.name)

    def admit(self, slot: Slot, now: float) -> None:
        """Let everything go on that waits for a model."""
        waiters, slot.waiters = slot.waiters, {}
        for ticket in waiters:
            self._hold(slot, ticket, now)
            self._verdicts.append(Verdict(ticket))

    def refuse(self, slot: Slot, now: float) -> None:
        """Refuse everything that waits for a model which could not be loaded."""
        waiters, slot.waiters = slot.waiters, {}
        slot.wanted = ""
        error = self._broken(slot, now)
        self._verdicts.extend(Verdict(ticket, error) for ticket in waiters)


def _total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values())
