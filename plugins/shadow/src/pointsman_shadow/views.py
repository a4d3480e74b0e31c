"""What status and routes show of a mirror, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .evidence import Count, Evidence, figures, pairs_wanted, quantiles

if TYPE_CHECKING:
    from .mirror import Mirror


def summary(mirror: Mirror, state: Evidence) -> dict[str, Any]:
    """Return one mirror in a list."""
    config = mirror.config
    return {
        "name": config.name,
        "model": config.model,
        "challenger": config.challenger
        if isinstance(config.challenger, str)
        else {"version": config.challenger.version},
        "phase": str(state.phase),
        "run": state.run,
        "sample_rate": config.sample_rate,
        "total": state.count(Count.TOTAL),
        "sampled": state.count(Count.SAMPLED),
        "mirrored": state.count(Count.MIRRORED),
        "pairs": state.count(Count.PAIRS),
        "pairs_wanted": pairs_wanted(state, config),
        "dropped": state.count(Count.DROPPED),
        "skipped": state.count(Count.SKIPPED),
        "challenger_errors": state.count(Count.CHALLENGER_ERRORS),
        "champion_errors": state.count(Count.CHAMPION_ERRORS),
    }


def detail(mirror: Mirror, state: Evidence, spent: tuple[int, int]) -> dict[str, Any]:
    """Return everything about one mirror.

    Args:
        mirror: The mirror in this worker.
        state: Its state in the store.
        spent: Tokens and millionths of a dollar counted against today's budget.
    """
    config = mirror.config
    return {
        **summary(mirror, state),
        "target": mirror.target,
        "tenant": config.account,
        "started_at": state.started_at,
        "changed_at": state.changed_at,
        "who": state.who,
        "reason": state.reason,
        "confidence": config.confidence,
        "figures": [
            {
                "metric": str(figure.metric),
                "count": figure.count,
                "mean": _rounded(figure.mean),
                "low": _rounded(figure.low),
                "high": _rounded(figure.high),
                "clipped": figure.clipped,
            }
            for figure in figures(state, config)
        ],
        "quantiles": quantiles(state),
        "reasons": {
            "dropped": state.parts(Count.DROPPED),
            "skipped": state.parts(Count.SKIPPED),
            "unpaired": state.parts(Count.UNPAIRED),
            "challenger_errors": state.parts(Count.CHALLENGER_ERRORS),
            "champion_errors": state.parts(Count.CHAMPION_ERRORS),
        },
        "judge": {
            "failed": state.count(Count.JUDGE_FAILED),
            "unread": state.count(Count.JUDGE_UNREAD),
            "contradicted": state.count(Count.JUDGE_CONTRADICTED),
        },
        "embedding_failed": state.count(Count.EMBEDDING_FAILED),
        "redaction_failed": state.count(Count.REDACTION_FAILED),
        "spent": {"tokens": state.count(Count.TOKENS), "usd_micros": state.count(Count.COST_USD_MICROS)},
        "today": {
            "tokens": spent[0],
            "usd_micros": spent[1],
            "tokens_limit": config.budget.tokens_per_day,
            "usd_micros_limit": config.budget.usd_micros_per_day,
        },
        "worker": {"queued": len(mirror.queue), "running": mirror.running, "alive": mirror.alive, "lost": mirror.lost},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
