"""What one worker of all does: takes observations in, decides, asks the gates, has versions activated.

The lease only keeps the others from doing the same work. That nothing is done twice is the store's atomic step: a
stepper that lost its lease without noticing finds the head changed and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pointsman.errors import NotFound, StoreError
from pointsman.types import ActivationRequested, MirrorGraduated, VersionActivated

from . import codec, lifecycle
from .lifecycle import Outcome
from .repository import LEASE_S

if TYPE_CHECKING:
    from .engine import Engine
    from .gates import Gatekeeper
    from .rollout import Gate, Rollout

_TRIES: Final = 5
#: Without observations a state is written this often, in seconds, so that its time goes on.
_IDLE_S: Final = 1.0
_ACTIVATE_AGAIN_S: Final = 5.0
_ACTIVATE_SELDOM_S: Final = 60.0


@dataclass(slots=True)
class _Request:
    """When the registry was last asked, and how long to wait for it, in seconds of the monotonic clock."""

    at: float
    wait_s: float


class Stepper:
    """Steps the experiments while this worker has the lease.

    Args:
        engine: The experiments.
        gatekeeper: Asks webhooks.
    """

    def __init__(self, engine: Engine, gatekeeper: Gatekeeper) -> None:
        self._engine = engine
        self._services = engine.services
        self._gatekeeper = gatekeeper
        self._asking: set[tuple[str, str, Gate]] = set()
        self._requests: dict[tuple[str, str], _Request] = {}
        self._leading = False
        self._lease_at = float("-inf")

    @property
    def leading(self) -> bool:
        """Whether this worker had the lease when it last looked."""
        return self._leading

    async def tick(self) -> None:
        """Hand in, step if it is this worker's turn, look for news.

        Raises:
            StoreError: the store failed; nothing is lost, the next tick goes on.
        """
        try:
            await self._engine.hand_in()
            if await self._lead():
                for name in list(self._engine.rollouts):
                    await self._step(name)
            await self._engine.refresh()
        except StoreError:
            self._engine.lost()
            raise

    async def resign(self) -> None:
        """Let another worker step at once."""
        if self._leading:
            self._leading = False
            await self._engine.repository.resign(self._services.worker)

    async def _lead(self) -> bool:
        now = self._services.clock.monotonic()
        if now - self._lease_at >= LEASE_S / 3:
            self._leading = False
            self._leading = await self._engine.repository.lead(self._services.worker)
            self._lease_at = now
        return self._leading

    async def _step(self, name: str) -> None:
        for _ in range(_TRIES):
            stored = await self._engine.repository.load(name)
            rollout = stored.rollout
            if rollout is None:
                return
            observed = codec.decode_mail(stored.mail).get(rollout.tag, {})
            now = self._services.clock.now()
            idle = rollout.ticked_at is not None and 0 <= now - rollout.ticked_at < _IDLE_S
            if (rollout.finished and rollout.gate is None) or (idle and not observed):
                break
            after, changes = lifecycle.tick(rollout, now, observed)
            if await self._engine.repository.save(stored, after, changes, took_mail=stored.mail is not None):
                self._engine.rollouts[name] = rollout = after
                await self._engine.changed(after, changes)
                break
        else:
            return
        self._ask(rollout)
        await self._activate(rollout)

    # -- gates --------------------------------------------------------------------------------------------------------

    def _ask(self, rollout: Rollout) -> None:
        gate = rollout.gate
        if gate is None or rollout.elapsed_s < rollout.gate_due_s:
            return
        webhook = rollout.experiment.gates.at(gate)
        question = (rollout.name, rollout.tag, gate)
        if webhook is not None and question not in self._asking:
            self._asking.add(question)
            self._services.tasks.spawn(self._hear(rollout, gate, webhook), name=f"gate {webhook}")

    async def _hear(self, asked: Rollout, gate: Gate, webhook: str) -> None:
        try:
            ruling = await self._gatekeeper.ask(webhook, gate, asked)
            cause = self._engine.cause(f"webhook:{webhook}", ruling.reason)

            def answered(rollout: Rollout) -> Outcome:
                if rollout.tag != asked.tag:
                    return rollout, ()
                return lifecycle.gate_answered(rollout, gate, ruling.verdict, cause)

            await self._engine.change(asked.name, answered)
        finally:
            self._asking.discard((asked.name, asked.tag, gate))

    # -- the registry -------------------------------------------------------------------------------------------------

    async def _activate(self, rollout: Rollout) -> None:
        """Ask for an activation until the registry has it; a plugin that does not hear now may later."""
        wanted = rollout.activation
        if wanted is None or wanted.done:
            return
        now = self._services.clock.monotonic()
        key = (rollout.name, wanted.version_id)
        request = self._requests.setdefault(key, _Request(float("-inf"), _ACTIVATE_AGAIN_S))
        if now - request.at < request.wait_s:
            return
        if self._active_version(rollout.experiment.model) == wanted.version_id:
            await self.heard(rollout.experiment.model, wanted.version_id, None)
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

    def _active_version(self, model: str) -> object:
        registry = self._services.statuses().get("registry")
        active = registry.details.get("active") if registry is not None else None
        return active.get(model) if isinstance(active, dict) else None

    async def on_activated(self, event: VersionActivated) -> None:
        """Note what the registry has activated."""
        if event.version_id is not None:
            await self.heard(event.name, event.version_id, event.previous_id)

    async def on_graduated(self, event: MirrorGraduated) -> None:
        """Write what a mirror has shown into the audit trail of every experiment with the same challenger."""
        shown = "; ".join(
            f"{metric} {figure['mean']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"
            for metric, figure in event.figures.items()
        )
        why = f"mirror {event.mirror}, {event.pairs} pairs, {event.confidence_ratio * 100:g} % intervals: {shown}"
        cause = self._engine.cause(event.who, f"{why}; {event.reason}" if event.reason else why)
        known = {event.challenger, event.version_id}
        for name, rollout in list(self._engine.rollouts.items()):
            targets = rollout.experiment.targets.values()
            named = {target if isinstance(target, str) else target.version for target in targets}
            if event.model in {rollout.experiment.model, "*"} and named & known:
                await self._engine.change(name, lambda state: lifecycle.shadowed(state, cause))

    async def heard(self, model: str, version_id: str, previous_id: str | None) -> None:
        """Note an active version with every experiment that waits for it."""
        cause = self._engine.cause("registry", f"version {version_id} is active")
        for name, rollout in list(self._engine.rollouts.items()):
            if rollout.experiment.model == model and rollout.activation is not None and not rollout.activation.done:
                try:
                    await self._engine.change(
                        name, lambda state: lifecycle.activated(state, version_id, previous_id, cause)
                    )
                except NotFound:
                    continue
