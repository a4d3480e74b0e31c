"""What headers, spans, ``GET /v1/models``, the status and the admin routes show. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pointsman.stats import nearest_rank
from pointsman.types import Outcome, SignalStatus

from .candidates import all_members, dropped_because, members
from .config import CandidateConfig
from .hedging import COLLECTING, Won
from .statistics import TOTALS, Counts, score

if TYPE_CHECKING:
    from pointsman.plugin import Catalog, Signals
    from pointsman.types import Attempt, Deployment

    from .budget import Bucket
    from .candidates import RacedModel
    from .config import VirtualModel
    from .runner import RaceAttempt, RaceRunner
    from .statistics import DeploymentStats, Statistics

HEADER: Final = "x-pointsman-raced"

#: Capability to the field of LiteLLM's model map that states it.
_FROM_MODEL_MAP: Final = {
    "tools": "supports_function_calling",
    "structured_output": "supports_response_schema",
    "vision": "supports_vision",
    "reasoning": "supports_reasoning",
}
_CHAT_MODES: Final = frozenset({"chat", "responses", "completion"})
_CONTEXT_SIZES: Final = ("max_input_tokens", "max_output_tokens")


# -- headers and spans ------------------------------------------------------------------------------------------------


def header(runner: RaceRunner, winner: RaceAttempt, strategy: str) -> str:
    """Return the value of ``x-pointsman-raced``: target, deployment, attempt, strategy and time of the winner.

    ``first_content_ms`` counts from the start of the race, for a plain request to the whole answer.
    """
    parts = [
        _header_token(winner.entry.target),
        f"attempt={winner.number + 1}/{len(runner.attempts)}",
        f"strategy={strategy}",
        f"first_content_ms={winner.decided_ms or 0.0:.0f}",
    ]
    if (deployment := winner.deployment) is not None and deployment.id != winner.entry.target:
        parts.insert(1, f"deployment={_header_token(deployment.id)}")
    return "; ".join(parts)


def _header_token(text: str) -> str:
    if text.isascii() and text.isprintable() and ";" not in text and "," not in text:
        return text  # as nearly all are
    return "".join(char if char.isascii() and char.isprintable() and char not in ";," else "_" for char in text)


def attributes(runner: RaceRunner, value: Attempt, strategy: str) -> dict[str, str | int | float | bool]:
    """Return what the span of an attempt shows about its race; empty for an attempt of another origin."""
    attempt = next((a for a in runner.attempts if (v := a.value) is not None and v.id == value.id), None)
    if attempt is None:
        return {}
    shown: dict[str, str | int | float | bool] = {
        "pointsman.racing.strategy": strategy,
        "pointsman.racing.leg": attempt.number + 1,
        "pointsman.racing.legs": len(runner.attempts),
        "pointsman.racing.reason": str(attempt.reason),
        "pointsman.racing.target": attempt.entry.target,
        "pointsman.racing.started_ms": round(attempt.started_ms, 3),
        "pointsman.racing.standing": round(attempt.entry.score, 4),
    }
    earlier = (other.deployment for other in runner.attempts[: attempt.number])
    if any(other is not None and other.id == value.deployment.id for other in earlier):
        shown["pointsman.racing.same_deployment"] = True
    answers_now = value.outcome is Outcome.OK and attempt.decided_ms is None
    decided_ms = runner.now_ms if answers_now else attempt.decided_ms
    if decided_ms is not None:
        shown["pointsman.racing.first_content_ms"] = round(decided_ms, 3)
    if isinstance(runner.race.result, Won):
        shown["pointsman.racing.won"] = runner.race.result.attempt == attempt.number
    elif answers_now and runner.race.result is None and strategy not in COLLECTING:
        # The attempt of a plain request is closed just before its race receives the answer; the first one wins.
        shown["pointsman.racing.won"] = all(other.decided_ms is None for other in runner.attempts)
    if runner.race.denied:
        shown["pointsman.racing.denied_by_budget"] = runner.race.denied
    return shown


# -- the list of models -----------------------------------------------------------------------------------------------


def capabilities(deployments: Sequence[Deployment]) -> dict[str, bool]:
    """Return what every deployment can do; a capability that the model map does not state counts as absent.

    Streams and responses need nothing of the model: the gateway translates, for every model that chats.
    """
    chats = bool(deployments) and all(str(d.info.get("mode", "chat")) in _CHAT_MODES for d in deployments)
    able = {"streaming": chats, "responses": chats}
    for name, key in _FROM_MODEL_MAP.items():
        able[name] = bool(deployments) and all(d.info.get(key) is True for d in deployments)
    return able


def listed_model(model: VirtualModel, catalog: Catalog) -> dict[str, object]:
    """Return the fields of a virtual model's entry in ``GET /v1/models``."""
    deployments = all_members(model.candidates, catalog)
    able = capabilities(deployments)
    info: dict[str, object] = {"capabilities": able}
    info.update({key: able[name] for name, key in _FROM_MODEL_MAP.items()})
    for key in _CONTEXT_SIZES:
        sizes = [d.info.get(key) for d in deployments]
        if sizes and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
            info[key] = min(size for size in sizes if isinstance(size, int))
    if model.display_name:
        info["display_name"] = model.display_name
    if model.description:
        info["description"] = model.description
    return info


# -- the admin routes -------------------------------------------------------------------------------------------------


def race_json(
    raced: RacedModel,
    others: Counts | None,
    statistics: Statistics,
    *,
    catalog: Catalog,
    signals: Signals,
    now: float,
) -> dict[str, Any]:
    """Return a race with its candidates and counts.

    Args:
        raced: The race.
        others: The counts of the other workers.
        statistics: What is known about deployments.
        catalog: What the gateway can serve.
        signals: The latest signal of each deployment, which may contradict its past.
        now: Unix seconds.
    """
    model = raced.model
    configured = model.candidates if model is not None else (CandidateConfig(target=raced.name),)
    candidates = [_candidate_json(candidate, statistics, catalog, signals, now) for candidate in configured]
    counts = Counts()
    for part in (raced.counts, others):
        if part is not None:
            counts.merge(part)
    shown: dict[str, Any] = {
        "name": raced.name,
        "kind": "group" if model is None else "model",
        "strategy": raced.settings.strategy,
        "healthy": any(candidate["healthy"] for candidate in candidates),
        "candidates": candidates,
        "counts": counts.to_json(),
        "extra_ratio": None if counts.extra_ratio is None else round(counts.extra_ratio, 4),
        "budget": bucket_json(raced.bucket),
    }
    if model is not None:
        shown["display_name"], shown["description"] = model.display_name, model.description
        shown["capabilities"] = capabilities(all_members(model.candidates, catalog))
    return shown


def _candidate_json(
    candidate: CandidateConfig, statistics: Statistics, catalog: Catalog, signals: Signals, now: float
) -> dict[str, Any]:
    rows = [
        {
            **deployment_json(d.id, statistics, now),
            "healthy": _healthy(d.id, statistics, signals, now),
            "dropped": d.drained,
        }
        for d in members(candidate, catalog)
    ]
    return {
        "target": candidate.target,
        "model": candidate.model,
        "priority": candidate.priority,
        "weight": candidate.weight,
        "healthy": any(row["healthy"] for row in rows),
        "dropped": dropped_because(candidate, catalog),
        "deployments": rows,
    }


def _healthy(deployment_id: str, statistics: Statistics, signals: Signals, now: float) -> bool:
    signal = signals.get(deployment_id)
    exhausted = signal is not None and signal.status_at(now) is SignalStatus.EXHAUSTED
    return statistics.healthy(deployment_id, now) and not exhausted


def deployment_json(deployment_id: str, statistics: Statistics, now: float) -> dict[str, Any]:
    """Return what all workers know about a deployment; ``now`` in Unix seconds."""
    stats = statistics.together(deployment_id, now)
    until = statistics.blocked_until(deployment_id)
    return {
        "deployment_id": deployment_id,
        **{name: stats.totals[name] for name in TOTALS},
        "first_token_ms": _figures(stats, now, stream=True),
        "whole_ms": _figures(stats, now, stream=False),
        "error_ratio": _ratio(stats.failures.value(now), stats.attempts.value(now)),
        "score": round(score([stats], stream=True, now=now), 4),
        "score_plain": round(score([stats], stream=False, now=now), 4),
        "healthy": statistics.healthy(deployment_id, now),
        "blocked_until": until if until > now else None,
    }


def _figures(stats: DeploymentStats, now: float, *, stream: bool) -> dict[str, float] | None:
    times = stats.times(stream=stream)
    quantiles, mean_ms = times.quantiles((0.5, 0.95, 0.99)), times.mean()
    if quantiles is None or mean_ms is None:
        return None
    p50, p95, p99 = (round(value, 2) for value in quantiles)
    return {"mean": round(mean_ms, 2), "p50": p50, "p95": p95, "p99": p99, "samples": round(times.weight(now), 2)}


def _ratio(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 4) if whole > 0 else None


def bucket_json(bucket: Bucket) -> dict[str, float]:
    """Return a budget's bucket."""
    return {
        "ratio": bucket.ratio,
        "burst": bucket.burst,
        "tokens": round(bucket.tokens, 3),
        "refused": bucket.refused,
    }


def cancelling_json(durations_ms: Iterable[float]) -> dict[str, float] | None:
    """Return quantiles of how long cancelled losers took to be closed; None without any."""
    ordered = sorted(durations_ms)
    if not ordered:
        return None
    p50, p99 = (nearest_rank(ordered, ratio) for ratio in (0.5, 0.99))
    return {"count": len(ordered), "p50": round(p50, 3), "p99": round(p99, 3), "max": round(ordered[-1], 3)}
