"""What this plugin tells the others of a change: an event, a span and a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pointsman.types import RolloutChanged

from . import codec
from .assignment import FULL_BP

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from pointsman.plugin import Services

    from .rollout import Change, Rollout

log: Final = logging.getLogger("pointsman.canary")


def announce(services: Services, rollout: Rollout, changes: Sequence[Change]) -> None:
    """Tell of changes that have been written."""
    for change in changes:
        weights = zip(rollout.experiment.targets, change.weights_bp, strict=True)
        percents = {arm: weight * 100 / FULL_BP for arm, weight in weights}
        log.info("%s: %s by %s: %s; %s", rollout.name, change.what, change.who, change.reason, percents)
        services.tracer.start_span(f"canary {change.what}", attributes=_attributes(rollout, change, percents)).end()
        services.publish(
            RolloutChanged(
                experiment=rollout.name,
                model=rollout.experiment.model,
                what=change.what,
                who=change.who,
                reason=change.reason,
                at=change.at,
                phase=str(change.phase),
                weights_percent=percents,
                analysis=codec.encode_findings(change.findings),
            )
        )


def _attributes(rollout: Rollout, change: Change, percents: Mapping[str, float]) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "pointsman.canary.experiment": rollout.name,
        "pointsman.canary.change": change.what,
        "pointsman.canary.who": change.who,
        "pointsman.canary.reason": change.reason,
        "pointsman.canary.phase": str(change.phase),
        "pointsman.canary.run": change.run,
        "pointsman.canary.step": change.step,
    }
    for arm, percent in percents.items():
        attributes[f"pointsman.canary.{arm}.weight_percent"] = percent
    for arm, findings in change.findings.items():
        for found in findings:
            key = f"pointsman.canary.{arm}.{found.metric}"
            attributes[f"{key}.verdict"] = str(found.verdict)
            attributes[f"{key}.p_harm"] = found.p_harm
            attributes[f"{key}.samples"] = found.canary_samples
    return attributes
