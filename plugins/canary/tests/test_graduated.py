"""What a mirror has shown is written down where it matters."""

from __future__ import annotations

import pytest

from pointsman.events import MirrorGraduated


def graduated(**fields):
    return MirrorGraduated(
        **{
            "mirror": "chat-next",
            "model": "chat",
            "challenger": "new",
            "version_id": None,
            "who": "anna",
            "reason": "good enough",
            "at": 0.0,
            "pairs": 1200,
            "confidence_ratio": 0.95,
            "figures": {"latency_ms": {"mean": -12.5, "low": -20.0, "high": -4.0, "count": 1190.0}},
            **fields,
        }
    )


@pytest.mark.parametrize("fields", [{}, {"model": "*"}, {"challenger": "elsewhere", "version_id": "new"}])
async def test_what_a_mirror_has_shown_is_in_the_audit_trail(fleet, kit, fields):
    """One entry with the figures; neither weights nor reason nor evidence change."""
    worker = await fleet.worker(kit.rollout())
    before = await fleet.state()
    worker.publish(graduated(**fields))
    await worker.settled()
    entry = (await fleet.entries())[-1]
    assert (entry["what"], entry["who"]) == ("shadow", "anna")
    assert entry["reason"] == ("mirror chat-next, 1200 pairs, 95 % intervals: latency_ms -12.5 [-20, -4]; good enough")
    after = await fleet.state()
    assert (after.weights_bp, after.reason, after.stage) == (before.weights_bp, before.reason, before.stage)


@pytest.mark.parametrize("fields", [{"model": "other"}, {"challenger": "elsewhere"}])
async def test_a_mirror_of_something_else_is_not(fleet, kit, fields):
    worker = await fleet.worker(kit.rollout())
    entries = await fleet.entries()
    worker.publish(graduated(**fields))
    await worker.settled()
    assert await fleet.entries() == entries
