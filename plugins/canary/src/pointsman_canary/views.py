"""What status, routes, webhooks and events show of an experiment, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from . import planning
from .analysis import Finding

if TYPE_CHECKING:
    from .rollout import Rollout, Total

_FINDINGS: Final = TypeAdapter(Mapping[str, Sequence[Finding]])


def findings(by_arm: Mapping[str, Sequence[Finding]]) -> Any:
    """Return the findings of each arm."""
    return _FINDINGS.dump_python(by_arm, mode="json")


def summary(rollout: Rollout) -> dict[str, object]:
    """Return where an experiment stands."""
    plan = rollout.experiment.plan()
    return {
        "name": rollout.name,
        "model": rollout.experiment.model,
        "kind": "ab" if rollout.experiment.arms is not None else "rollout",
        "origin": rollout.origin,
        "phase": rollout.phase,
        "reason": rollout.reason,
        "run": rollout.run,
        "step": rollout.step + 1,
        "steps": len(plan),
        "weights_percent": rollout.weights_percent,
        "totals": {arm: _total(total) for arm, total in rollout.totals.items()},
        "requests_per_s": rollout.requests_per_s,
        "estimate": planning.as_json(planning.remaining(rollout)),
        "elapsed_s": round(rollout.elapsed_s, 3),
        "gate": rollout.gate,
        "changed_at": rollout.changed_at,
        "analysis": findings(rollout.findings()),
    }


def detail(rollout: Rollout) -> Mapping[str, object]:
    """Return everything about an experiment that is of use outside."""
    activation = rollout.activation
    return {
        **summary(rollout),
        "stage": rollout.tag,
        "activation": None
        if activation is None
        else {"version_id": activation.version_id, "done": activation.done, "previous_id": activation.previous_id},
        "definition": rollout.experiment.model_dump(mode="json"),
    }


def _total(total: Total) -> dict[str, object]:
    return {
        "requests": total.requests,
        "failed": total.failed,
        "disconnected": total.disconnected,
        "success_ratio": total.success_ratio,
    }
