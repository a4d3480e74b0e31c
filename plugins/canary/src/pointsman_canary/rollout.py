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
was routed, so that the requests in flight have the same ages in both arms. Time that counts is time in which somebody
ticked: a clock that jumps, or a night in which no worker ran, moves a rollout by at most a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from . import analysis
from .analysis import Analysis, Finding
from .assignment import FULL_BP
from .experiment import Experiment

#: Who is named for what happens by itself.
ITSELF: Final = "canary"


class Phase(StrEnum):
    """Where an experiment stands."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Gate(StrEnum):
    """What is asked of a webhook."""

    BEFORE_STEP = "before_step"
    BEFORE_PROMOTION = "before_promotion"
    AFTER_ROLLBACK = "after_rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A version that the registry is to make the active one.

    Attributes:
        version_id: The version.
        done: Whether the registry has said so.
        previous_id: What was active before, for a later rollback.
    """

    version_id: str
    done: bool = False
    previous_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The state of one experiment.

    Attributes:
        experiment: Its definition.
        origin: Whether it comes from the configuration or was sent over HTTP.
        run: Counts the starts, from 1.
        stage: Counts the changes of a weight, over all runs.
        phase: Where it stands.
        reason: Why, one phrase.
        step: Index of the present step; -1 before the first and for A/B.
        passed: Whether the present step has passed and the next one is due.
        weights_bp: The weights of the arms beside stable, in 1/10 000.
        elapsed_s: Counted time in this stage.
        ticked_at: Unix seconds of the last tick, or None.
        gate: What is being asked of a webhook.
        gate_since_s: Counted time since which it is being asked.
        gate_due_s: Counted time from which on it is asked again.
        failed: Arms whose fail has been reported in this stage.
        analyses: The evidence, by arm.
        activation: What the registry is to do.
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
    changed_at: float

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def tag(self) -> str:
        """Names the stage; what was routed under another tag does not count."""
        return f"{self.run}.{self.stage}"

    @property
    def finished(self) -> bool:
        """Whether nothing happens any more by itself."""
        return self.phase in {Phase.PROMOTED, Phase.ROLLED_BACK}

    @property
    def weights_percent(self) -> dict[str, float]:
        """The weights of the arms beside stable, in percent."""
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
        what: create, step, pause, resume, promote, rollback, weight, fail, gate, restart, activated, delete.
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
