"""What canary adds to the metrics: weights, phases and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.plugin import observe

from .analysis import Verdict
from .rollout import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .rollout import Rollout

_VERDICTS: Final = {Verdict.PASS: 1, Verdict.INCONCLUSIVE: 0, Verdict.FAIL: -1}


def instrument(meter: Meter, rollouts: Callable[[], Iterable[Rollout]]) -> None:
    """Let the meter read the experiments.

    Args:
        meter: The meter.
        rollouts: Returns the experiments.
    """

    def weights() -> Iterator[tuple[Mapping[str, str], float]]:
        for rollout in rollouts():
            for arm, percent in rollout.weights_percent.items():
                yield {"pointsman.experiment": rollout.name, "pointsman.arm": arm}, percent / 100

    def phases() -> Iterator[tuple[Mapping[str, str], float]]:
        for rollout in rollouts():
            for phase in Phase:
                labels = {"pointsman.experiment": rollout.name, "pointsman.phase": str(phase)}
                yield labels, float(rollout.phase is phase)

    def verdicts() -> Iterator[tuple[Mapping[str, str], float]]:
        return (verdict for rollout in rollouts() for verdict in _verdicts(rollout))

    observe(meter, "pointsman.canary.weight", weights, "Share of an arm of an experiment, 0 to 1; stable has the rest.")
    observe(
        meter,
        "pointsman.canary.phase",
        phases,
        "1 for the phase that an experiment is in, 0 for the others.",
        unit="{phase}",
    )
    observe(
        meter,
        "pointsman.canary.verdict",
        verdicts,
        "Latest verdict on a metric of an arm: 1 pass, 0 inconclusive, -1 fail.",
        unit="{verdict}",
    )


def _verdicts(rollout: Rollout) -> Iterator[tuple[Mapping[str, str], float]]:
    for arm, findings in rollout.findings().items():
        for finding in findings:
            labels = {"pointsman.experiment": rollout.name, "pointsman.arm": arm, "pointsman.metric": finding.metric}
            yield labels, _VERDICTS[finding.verdict]
