"""The deployments that this worker knows: observes attempts, keeps their states, derives their signals. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pointsman.types import Outcome

from .health import Check, DeploymentState, HealthRules, answered_at
from .quota import Quota
from .statistics import SLICES
from .views import Summary, make_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pointsman.types import Attempt, Deployment, Signal

    from .config import SignalsConfig
    from .dialects import DialectTable, Reading

#: Statistics are computed for at most this many deployments at once, so that the event loop is not blocked.
SUMMARIES_AT_ONCE: Final = 100
#: Seconds after which a running attempt counts as lost.
LOST_AFTER_S: Final = 6 * 3_600.0


def health_rules(config: SignalsConfig) -> HealthRules:
    """Return the part of the configuration that verdicts need."""
    return HealthRules(
        reserve_ratio=config.reserve_ratio,
        assumed_reset_s=config.assumed_reset_s,
        refused_s=config.refused_s,
        ttl_s=config.ttl_s,
        degraded_error_ratio=config.degraded_error_ratio,
        min_attempts=config.min_attempts,
    )


class Tracker:
    """The states of all deployments.

    Args:
        config: The plugin's configuration.
        dialects: Readers of the headers.
        on_forget: Called with the id of a deployment that is no longer remembered.
    """

    def __init__(
        self,
        config: SignalsConfig,
        dialects: DialectTable,
        on_forget: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.rules = health_rules(config)
        self.dialects = dialects
        self.states: dict[str, DeploymentState] = {}
        self.forgotten = 0
        self._on_forget = on_forget
        self._summaries: dict[str, Summary] = {}
        self._quotas: dict[tuple[str, str], tuple[Quota, set[str]]] = {}
        self._changed: dict[str, None] = {}
        self._account_of = {target: name for name, targets in config.accounts.items() for target in targets}

    # -- observing ----------------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, now: float) -> Signal:
        """Record an attempt that is about to start; return the new signal."""
        state = self.state(attempt.deployment, now)
        state.in_flight[attempt.id] = attempt.started_at
        return self.signal(state, now)

    def observe(self, attempt: Attempt, now: float, *, generates: bool = True) -> Sequence[Signal]:
        """Learn from an attempt that ended; return the new signals, the deployment's own first.

        If the state of a shared quota changes, the signals of the others follow.

        Args:
            attempt: The attempt.
            now: Unix seconds.
            generates: Whether a model worked for it.
        """
        state = self.state(attempt.deployment, now)
        state.in_flight.pop(attempt.id, None)
        reading, at = None, answered_at(attempt)
        if attempt.headers:
            reading = self.dialects.reader(attempt.deployment).read(attempt.headers, at)
        siblings = state.siblings
        before = state.quota.judge(now).exhausted_until if siblings else None
        if generates or attempt.outcome is not Outcome.OK:
            state.observe(attempt, reading, at, now)
        else:
            state.read(attempt, reading, at)
        self._changed[state.id] = None
        signal = self.signal(state, now)
        if siblings and state.quota.judge(now).exhausted_until != before:
            others = (self.states[one] for one in siblings if one != state.id and one in self.states)
            return (signal, *(self.signal(other, now) for other in others))
        return (signal,)

    def checked(self, state: DeploymentState, check: Check, reading: Reading | None) -> None:
        """Apply the outcome of an active check."""
        state.facts.checked(check)
        state.unsaved = True
        if reading is not None:
            state.quota.observe(reading, check.at)
        self._changed[state.id] = None

    # -- states -------------------------------------------------------------------------------------------------------

    def state(self, deployment: Deployment, now: float) -> DeploymentState:
        """Return a deployment's state; a new one when the deployment is unknown."""
        state = self.states.get(deployment.id)
        if state is not None and state.deployment is deployment:
            return state
        if state is None or state.deployment != deployment:
            state = self._introduce(deployment, state, now)
        state.deployment = deployment
        return state

    def restored(self, state: DeploymentState) -> None:
        """Add a state from the store; its deployment is attached when it is next seen."""
        if state.id not in self.states and len(self.states) < self.config.max_deployments:
            self.states[state.id] = state
            self._changed[state.id] = None

    def changed(self, state: DeploymentState) -> None:
        """Mark a state whose signal is outdated."""
        self._changed[state.id] = None

    def _introduce(self, deployment: Deployment, known: DeploymentState | None, now: float) -> DeploymentState:
        slice_s = self.config.window_of(deployment) / SLICES
        state = known or DeploymentState(deployment.id, slice_s, self.rules)
        state.measure(slice_s)
        state.seen_at = max(state.seen_at, now)
        if known is None:
            self.states[deployment.id] = state
            self._make_room(state)
        self._leave_quota(state)
        state.account = self.account_of(deployment)
        state.capacity = deployment.capacity
        if state.account is not None:
            per_account = self.dialects.reader(deployment).dialect.per_account
            key = (state.account, "" if per_account else deployment.model)
            pool, siblings = self._quotas.setdefault(key, (Quota(self.rules), set()))
            pool.merge(state.quota)
            siblings.add(state.id)
            state.quota, state.siblings = pool, siblings
        return state

    def account_of(self, deployment: Deployment) -> str | None:
        """Return the declared account of a deployment (configuration, else ``model_info.account``), or None."""
        for target in (deployment.id, deployment.group, deployment.provider):
            if target in self._account_of:
                return self._account_of[target]
        account = deployment.info.get("account")
        return account if isinstance(account, str) and account else None

    def _leave_quota(self, state: DeploymentState) -> None:
        if state.siblings is None:
            return
        state.siblings.discard(state.id)
        own = Quota(self.rules)
        own.merge(state.quota)
        state.quota, state.siblings = own, None
        for key in [key for key, (_, siblings) in self._quotas.items() if not siblings]:
            del self._quotas[key]

    def forget(self, deployment_id: str) -> None:
        """Forget a deployment."""
        state = self.states.pop(deployment_id, None)
        if state is not None:
            self._leave_quota(state)
            self.forgotten += 1
        self._summaries.pop(deployment_id, None)
        self._changed.pop(deployment_id, None)
        self._on_forget(deployment_id)

    def _make_room(self, newest: DeploymentState) -> None:
        excess = len(self.states) - self.config.max_deployments
        if excess <= 0:
            return
        # A tenth more than needed is removed, so that a flood of new names does not sort all of them each time.
        idle = [state for state in self.states.values() if not state.in_flight and state is not newest]
        idle.sort(key=lambda state: (state.active, state.seen_at))
        for state in idle[: excess + self.config.max_deployments // 10]:
            self.forget(state.id)

    # -- upkeep -------------------------------------------------------------------------------------------------------

    def adopt(self, deployments: Iterable[Deployment], now: float) -> None:
        """Compare with the gateway's configuration: add its deployments, mark and later forget removed ones."""
        present = {deployment.id: deployment for deployment in deployments}
        if not present:
            return
        for deployment in present.values():
            if deployment.id in self.states or len(self.states) < self.config.max_deployments:
                known = deployment.id in self.states
                state = self.state(deployment, now)
                if not known or not state.active:
                    state.active = True
                    self._changed[state.id] = None
        for state in tuple(self.states.values()):
            if state.id in present:
                continue
            if state.active:
                state.active = False
                self._changed[state.id] = None
            if not state.in_flight and now - max(state.seen_at, state.recorded_at) > max(
                self.config.ttl_s, state.delta.slice_s * SLICES
            ):
                self.forget(state.id)

    def refresh(self, current: Mapping[str, Signal], now: float) -> list[Signal]:
        """Return the signals that have to be replaced: new observations, an end that has come, outdated statistics.

        Args:
            current: The signals as published.
            now: Unix seconds.
        """
        budget = SUMMARIES_AT_ONCE
        due: list[DeploymentState] = []
        for state in self.states.values():
            if state.in_flight and (started := next(iter(state.in_flight.values()))) < now - LOST_AFTER_S:
                state.in_flight = {k: v for k, v in state.in_flight.items() if v > started}
                due.append(state)
                continue
            if now - state.totals_at >= state.delta.slice_s and state.totals is not None and state.totals.requests:
                self._changed[state.id] = None
            signal = current.get(state.id)
            if (
                state.id in self._changed
                or signal is None
                or (
                    state.judge(now).status is not signal.status
                    or (signal.until is not None and now >= signal.until)
                    or state.quota.limits(now) != signal.limits
                )
            ):
                due.append(state)
        signals = []
        for state in due:
            if state.id in self._changed and budget > 0:
                budget -= 1
                del self._changed[state.id]
                self._summaries[state.id] = Summary(state.sum_up(now), state.recent)
            signals.append(make_signal(state, self._summaries.get(state.id), state.quota.limits(now), now))
        return signals

    # -- reading ------------------------------------------------------------------------------------------------------

    def signal(self, state: DeploymentState, now: float) -> Signal:
        """Return a state as a signal: its quotas as last reported, statistics of the last ``refresh``."""
        return make_signal(state, self._summaries.get(state.id), state.quota.seen(now), now)

    def fresh_signal(self, state: DeploymentState, now: float) -> Signal:
        """Return a state as a signal with everything recomputed."""
        self._changed.pop(state.id, None)
        summary = self._summaries[state.id] = Summary(state.sum_up(now), state.recent)
        return make_signal(state, summary, state.quota.limits(now), now)

    def accounts(self) -> dict[tuple[str, bool], list[DeploymentState]]:
        """Return the states by provider account and whether the account is declared.

        Deployments without a declared account are grouped by provider and host.
        """
        grouped: dict[tuple[str, bool], list[DeploymentState]] = {}
        for state in self.states.values():
            deployment = state.deployment
            if deployment is None:
                continue
            key = (state.account, True) if state.account else (_place(deployment), False)
            grouped.setdefault(key, []).append(state)
        return grouped


def _place(deployment: Deployment) -> str:
    try:
        host = urlsplit(deployment.api_base or "").netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return f"{deployment.provider}@{host}" if host else deployment.provider
