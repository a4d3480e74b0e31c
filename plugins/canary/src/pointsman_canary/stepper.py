"""What one worker of all does: takes in observations, decides, asks webhooks, requests activations of versions.

The lease only keeps the others from doing the same work. The store's atomic step ensures that nothing is done twice: a
stepper that lost its lease without noticing finds the head changed and writes nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from pointsman.errors import NotFound, StoreError
from pointsman.events import ActivationRequested, MirrorGraduated, Notice, VersionActivated

from . import lifecycle
from .lifecycle import GATE_RETRY_S, Outcome
from .observations import of_earlier_stages
from .repository import LEASE_S, decode_mail

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .lifecycle import Cause
    from .repository import Stored
    from .rollout import Gate, Rollout
    from .webhooks import Webhooks

_TRIES: Final = 5
#: Without observations a state is written this often, in seconds, so that its time goes on.
_IDLE_S: Final = 1.0
#: After this time without anything to do, in seconds, the store is read no more often than that.
_QUIET_S: Final = 5.0
_ACTIVATE_AGAIN_S: Final = 5.0
_ACTIVATE_SELDOM_S: Final = 60.0
#: Interval at which the registry's report is read, in seconds.
_LOOK_S: Final = 2.0
#: Twice the longest time after which a registry's copy of the store is read again, in seconds.
_SURE_S: Final = 2.0


@dataclass(slots=True)
class _Request:
    """When the registry was last asked, and how long to wait for its answer, in seconds of the monotonic clock."""

    at: float
    wait_s: float


class Stepper:
    """Steps the experiments while this worker has the lease.

    Args:
        coordinator: The experiments.
        webhooks: Asks webhooks.
    """

    def __init__(self, coordinator: Coordinator, webhooks: Webhooks) -> None:
        self._coordinator = coordinator
        self._services = coordinator.services
        self._webhooks = webhooks
        self._asking: set[tuple[str, str, Gate]] = set()
        self._requests: dict[tuple[str, str], _Request] = {}
        #: Since when an unfinished rollout's version has been seen as the active one, by name, on the monotonic clock.
        self._superseded: dict[str, float] = {}
        self._leading = False
        self._lease_at = float("-inf")
        self._looked_at = float("-inf")
        #: When there was last something to do, and when the store was last read, on the monotonic clock.
        self._busy_at = self._services.clock.monotonic()
        self._read_at = float("-inf")

    @property
    def leading(self) -> bool:
        """Whether this worker had the lease at its last look."""
        return self._leading

    async def tick(self) -> None:
        """Flush, read changes, step when this worker has the lease.

        Raises:
            StoreError: the store failed; nothing is lost, the next tick continues.
        """
        try:
            self._look_at_registry()
            await self._coordinator.flush()
            if not self._is_due():
                return
            names = list(self._coordinator.rollouts) if await self._lead() else []
            for stored in await self._coordinator.look(names):
                await self._step(stored)
        except StoreError:
            self._coordinator.stirred = True
            self._coordinator.lost()
            raise

    def _is_due(self) -> bool:
        """Return whether to read the store: at each tick, and seldom where there has been nothing to do for a while."""
        now = self._services.clock.monotonic()
        if self._coordinator.stirred or self._superseded:
            self._coordinator.stirred, self._busy_at = False, now
        config = self._coordinator.config
        # One answer that fails must not be as long as the limit for a store that does not answer.
        seldom_s = min(_IDLE_S, config.blind_limit_s / 5)
        quiet = now - self._busy_at >= _QUIET_S
        if quiet and now - self._read_at < seldom_s - config.tick_s / 2:
            return False
        self._read_at = now
        return True

    def _look_at_registry(self) -> None:
        now = self._services.clock.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._coordinator.look_at_registry()

    async def resign(self) -> None:
        """Let another worker step at once."""
        if self._leading:
            self._leading = False
            await self._coordinator.repository.resign(self._services.worker)

    async def _lead(self) -> bool:
        now = self._services.clock.monotonic()
        if now - self._lease_at >= LEASE_S / 3:
            self._leading = False
            self._leading = await self._coordinator.repository.lead(self._services.worker)
            self._lease_at = now
        return self._leading

    async def _step(self, stored: Stored) -> None:
        for tried in range(_TRIES):
            if tried:
                stored = await self._coordinator.repository.load(stored.name)
            rollout = stored.rollout
            if rollout is None:
                return
            mail = decode_mail(stored.mail)
            observed, late = mail.get(rollout.tag, {}), of_earlier_stages(mail, rollout.tag)
            now = self._services.clock.now()
            idle = rollout.ticked_at is not None and 0 <= now - rollout.ticked_at < _IDLE_S
            # What a finished experiment still sees is only counted: rarely, and not when there is nothing.
            if (rollout.finished and rollout.gate is None and (idle or not mail)) or (idle and not observed):
                break
            after, changes = lifecycle.tick(rollout, now, observed, late)
            if await self._coordinator.repository.save(stored, after, changes, took_mail=stored.mail is not None):
                self._coordinator.rollouts[stored.name] = rollout = after
                await self._coordinator.changed(after, changes)
                break
        else:
            return
        awaited = rollout.activation is not None and not rollout.activation.done
        if stored.mail is not None or rollout.gate is not None or awaited:
            self._coordinator.stirred = True
        self._ask(rollout)
        await self._activate(rollout)
        await self._end_superseded(rollout)

    # -- gates --------------------------------------------------------------------------------------------------------

    def _ask(self, rollout: Rollout) -> None:
        gate = rollout.gate
        if gate is None or rollout.elapsed_s < rollout.gate_due_s:
            return
        webhook = rollout.experiment.gates.at(gate)
        question = (rollout.name, rollout.tag, gate)
        if webhook is not None and question not in self._asking:
            self._asking.add(question)
            self._services.tasks.spawn(self._await_ruling(rollout, gate, webhook), name=f"gate {webhook}")

    async def _await_ruling(self, asked: Rollout, gate: Gate, webhook: str) -> None:
        try:
            ruling = await self._webhooks.ask(webhook, gate, asked)
            cause = self._coordinator.cause(f"webhook:{webhook}", ruling.reason)

            def answered(rollout: Rollout) -> Outcome:
                if rollout.tag != asked.tag:
                    return rollout, ()
                return lifecycle.gate_answered(rollout, gate, ruling.verdict, cause)

            await self._coordinator.change(asked.name, answered)
            if ruling.verdict == "wait":
                self._services.publish(_waiting(asked, gate, webhook, ruling.reason, self._services.clock.now()))
        finally:
            self._asking.discard((asked.name, asked.tag, gate))

    # -- the registry -------------------------------------------------------------------------------------------------

    async def _activate(self, rollout: Rollout) -> None:
        """Request an activation until the registry reports it; it may not be listening yet."""
        wanted = rollout.activation
        if wanted is None or wanted.done:
            return
        now = self._services.clock.monotonic()
        key = (rollout.name, wanted.version_id)
        request = self._requests.setdefault(key, _Request(float("-inf"), _ACTIVATE_AGAIN_S))
        if now - request.at < request.wait_s:
            return
        if self._coordinator.look_at_registry().active.get(rollout.experiment.model) == wanted.version_id:
            await self.note_active(rollout.experiment.model, wanted.version_id, None)
            return
        if request.at > float("-inf"):
            request.wait_s = min(2 * request.wait_s, _ACTIVATE_SELDOM_S)
        request.at = now
        self._services.publish(
            ActivationRequested(
                name=rollout.experiment.model,
                version_id=wanted.version_id,
                who=f"canary {rollout.name}",
                reason=f"{rollout.phase}: {rollout.reason}",
            )
        )

    async def _end_superseded(self, rollout: Rollout) -> None:
        """End a rollout whose version has become the active one, also when the event of it was lost."""
        served = self._coordinator.served
        version_id = served.active.get(rollout.experiment.model)
        if rollout.finished or rollout.experiment.stable is not None or rollout.arm_of(version_id or "") is None:
            self._superseded.pop(rollout.name, None)
            return
        # The registry's copy in this worker may be older than a rollback that a restart has waited for.
        now = self._services.clock.monotonic()
        if version_id and now - self._superseded.setdefault(rollout.name, now) >= _SURE_S:
            why = f"version {version_id} is active in the registry, and a version is not compared with itself"
            cause = self._coordinator.cause("registry", why)
            previous_id = served.previous.get(rollout.experiment.model)
            await self._coordinator.change(
                rollout.name, lambda state: lifecycle.superseded(state, version_id, previous_id, cause)
            )

    async def on_activated(self, event: VersionActivated) -> None:
        """Note what the registry has activated."""
        if event.version_id is None:
            return
        await self.note_active(event.name, event.version_id, event.previous_id)
        why = f"version {event.version_id} was activated, and a version is not compared with itself"
        cause = self._coordinator.cause(event.who, f"{why}; {event.reason}" if event.reason else why)
        for name, rollout in list(self._coordinator.rollouts.items()):
            if rollout.experiment.model == event.name and not rollout.finished:
                with contextlib.suppress(NotFound):
                    await self._coordinator.change(name, partial(_superseded, event=event, cause=cause))

    async def on_graduated(self, event: MirrorGraduated) -> None:
        """Write a mirror's figures into the audit trail of every experiment with the same challenger."""
        shown = "; ".join(
            f"{metric} {figure['mean']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"
            for metric, figure in event.figures.items()
        )
        why = f"mirror {event.mirror}, {event.pairs} pairs, {event.confidence_ratio * 100:g} % intervals: {shown}"
        cause = self._coordinator.cause(event.who, f"{why}; {event.reason}" if event.reason else why)
        known = {event.challenger, event.version_id}
        for name, rollout in list(self._coordinator.rollouts.items()):
            targets = rollout.experiment.targets.values()
            named = {target if isinstance(target, str) else target.version for target in targets}
            if event.model in {rollout.experiment.model, "*"} and named & known:
                await self._coordinator.change(name, lambda state: lifecycle.shadowed(state, cause))

    async def note_active(self, model: str, version_id: str, previous_id: str | None) -> None:
        """Note an active version with every experiment that waits for it."""
        cause = self._coordinator.cause("registry", f"version {version_id} is active")
        for name, rollout in list(self._coordinator.rollouts.items()):
            if rollout.experiment.model == model and rollout.activation is not None and not rollout.activation.done:
                try:
                    await self._coordinator.change(
                        name, lambda state: lifecycle.activated(state, version_id, previous_id, cause)
                    )
                except NotFound:
                    continue


def _waiting(rollout: Rollout, gate: Gate, webhook: str, reason: str, now: float) -> Notice:
    return Notice(
        kind="gate",
        subject=f"{rollout.name}/{gate}",
        text=f"{rollout.name} waits at the gate {gate}: {webhook}: {reason or 'no reason given'}; "
        f"next try in {GATE_RETRY_S:g} s",
        at=now,
        level="info",
    )


def _superseded(rollout: Rollout, event: VersionActivated, cause: Cause) -> Outcome:
    assert event.version_id is not None  # noqa: S101  # checked by the caller
    return lifecycle.superseded(rollout, event.version_id, event.previous_id, cause)
