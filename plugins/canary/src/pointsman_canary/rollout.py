"""The state of an experiment. How it changes is in ``lifecycle``; both are without I/O and without a clock.

::

             create, restart
                   |
                   v          interval over, pass,        last step is 100 %,
    +--- RUNNING: one step ---- gate says go ---+          or a person promotes
    |        ^  |                               |
    |        |  +------- the next step <--------+---------------> PROMOTED
    |  resume|  | pause, undecided too long, 'pause' in the steps, no step left
    |        |  v
    +----- PAUSED (keeps its weight, is still analysed)
    |
    +-- fail, a gate says rollback, a person --> ROLLED_BACK: 0 %, until ``restart``

``stage`` counts every change of a weight. Statistics belong to one stage: a request counts only in the stage in which it
was routed, so that the requests in flight have the same ages in both arms. Only time with ticks counts: a clock that
jumps, or a night without a running worker, moves a rollout by at most a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from . import analysis
from .analysis import Analysis, Finding
from .assignment import FULL_BP
from .experiment import Experiment, MetricName, Version
from .metrics import Histogram, index

#: The author of changes that no person makes.
ITSELF: Final = "canary"
#: Counted time of a stage from which its rate of requests is known, in seconds.
_RATE_AFTER_S: Final = 5.0
_BAD: Final = index(MetricName.ERROR_RATE, 1.0)


class Phase(StrEnum):
    """The phase of an experiment."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Gate(StrEnum):
    """The question to a webhook."""

    BEFORE_STEP = "before_step"
    BEFORE_PROMOTION = "before_promotion"
    AFTER_ROLLBACK = "after_rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A version that the registry is to activate.

    Attributes:
        version_id: The version.
        done: Whether the registry has activated it.
        previous_id: What was active before, for a later rollback.
    """

    version_id: str
    done: bool = False
    previous_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What an arm's requests came to since the run began, whatever windows and steps there were.

    Attributes:
        requests: Requests that took part, disconnected ones included.
        failed: Those that the arm failed.
        disconnected: Those whose client went away.
    """

    requests: int = 0
    failed: int = 0
    disconnected: int = 0

    def plus(self, observed: Mapping[str, Histogram]) -> Total:
        """Return the total with these observations added: metric to histogram."""
        errors = observed.get(MetricName.ERROR_RATE, {})
        disconnects = observed.get(MetricName.DISCONNECT_RATE, {})
        return Total(
            requests=self.requests + sum(disconnects.values()),
            failed=self.failed + errors.get(_BAD, 0),
            disconnected=self.disconnected + disconnects.get(_BAD, 0),
        )

    @property
    def success_ratio(self) -> float | None:
        """The share of requests that the arm did not fail, 0 to 1; None without any."""
        return 1 - self.failed / self.requests if self.requests else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The state of one experiment.

    Attributes:
        experiment: Its definition.
        origin: Whether it comes from the configuration or was sent over HTTP.
        run: Counts the starts, from 1.
        stage: Counts the changes of a weight, over all runs.
        phase: Its phase.
        reason: Why, one phrase.
        step: Index of the present step; -1 before the first and for A/B.
        passed: Whether the current step has passed and the next one is due.
        weights_bp: The weights of the arms other than stable, in 1/10 000.
        elapsed_s: Counted time in this stage.
        ticked_at: Unix seconds of the last tick, or None.
        gate: The question that a webhook is being asked, or None.
        gate_since_s: Counted time since which it is being asked.
        gate_due_s: Counted time at which it is asked again.
        failed: Arms whose fail has been reported in this stage.
        analyses: The evidence, by arm.
        activation: What the registry is to do.
        totals: Counts of the run by arm, stable included.
        stage_requests: Requests of all arms that were counted in this stage, stable included.
        stage_samples: Those of the arm that has most of them, without stable.
        changed_at: Unix seconds of the last change other than a tick.
    """

    experiment: Experiment
    origin: Literal["config", "http"]
    run: int = 1
    stage: int = 0
    phase: Phase = Phase.RUNNING
    reason: str = ""
    step: int = -1
    passed: bool = False
    weights_bp: tuple[int, ...]
    elapsed_s: float = 0.0
    ticked_at: float | None = None
    gate: Gate | None = None
    gate_since_s: float = 0.0
    gate_due_s: float = 0.0
    failed: tuple[str, ...] = ()
    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    activation: Activation | None = None
    totals: Mapping[str, Total] = field(default_factory=dict)
    stage_requests: int = 0
    stage_samples: int = 0
    changed_at: float

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def tag(self) -> str:
        """Name of the stage; requests that were routed under another tag do not count."""
        return f"{self.run}.{self.stage}"

    @property
    def finished(self) -> bool:
        """Whether the experiment no longer changes by itself."""
        return self.phase in {Phase.PROMOTED, Phase.ROLLED_BACK}

    @property
    def requests_per_s(self) -> float | None:
        """Requests per second of both arms in this stage; None before enough time has passed to tell."""
        return self.stage_requests / self.elapsed_s if self.elapsed_s >= _RATE_AFTER_S else None

    def arm_of(self, version_id: str) -> str | None:
        """Return the arm whose target is this version of the registry, or None."""
        targets = self.experiment.targets.items()
        return next((arm for arm, t in targets if isinstance(t, Version) and t.version == version_id), None)

    @property
    def weights_percent(self) -> dict[str, float]:
        """The weights of the arms other than stable, in percent."""
        return {
            arm: weight * 100 / FULL_BP for arm, weight in zip(self.experiment.targets, self.weights_bp, strict=True)
        }

    def findings(self) -> dict[str, tuple[Finding, ...]]:
        """Return what is known about each arm that can be compared now."""
        if self.finished or sum(self.weights_bp) >= FULL_BP:
            return {}
        arms = zip(self.experiment.targets, self.weights_bp, strict=True)
        return {arm: analysis.findings(self.analyses[arm], self.experiment) for arm, weight in arms if weight}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of the audit trail.

    Attributes:
        what: create, step, pause, resume, promote, rollback, weight, fail, gate, restart, activated, shadow, delete.
        who: A person, ``canary`` itself or ``webhook:<name>``.
        reason: Why.
        at: Unix seconds.
        run: The run it happened in.
        step: The step afterwards.
        phase: The phase afterwards.
        weights_bp: The weights afterwards, in 1/10 000.
        findings: The analysis at that moment, by arm.
    """

    what: str
    who: str
    reason: str
    at: float
    run: int
    step: int
    phase: Phase
    weights_bp: tuple[int, ...]
    findings: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
