"""What a faulty plugin does to its request, to the others and to what the operator sees: one test for each way to be wrong."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest
from faults import DENIED, FAULTS, PLUGINS, TEXT, Fault, prescribed, streams

from pointsman.testing import Harness, Result, error, no_leaks, ok
from pointsman.types import Endpoint, Outcome

INJECTED = 100_000 if os.environ.get("POINTSMAN_THOROUGH") else 600
ENDPOINTS = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.COMPLETIONS)


def worker() -> Harness:
    return Harness(PLUGINS, script=ok(TEXT))


async def ask(h: Harness, fault: Fault | None, who: str, *, stream: bool, endpoint: Endpoint = Endpoint.CHAT) -> Result:
    """Make a request that reaches the fault's hook, and wait until it is settled."""
    headers = {f"x-fault-{who}": fault.name} if fault is not None else {}
    return await h.request(headers=headers, stream=stream, endpoint=endpoint, script=[error(503), ok(TEXT)])


@pytest.mark.parametrize("who", ["lenient", "strict"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_stays_its_own(name: str, who: str) -> None:
    """The client is answered by policy, every other plugin has its hooks, and the operator sees whose fault it was."""
    fault = FAULTS[name]
    stream = streams(fault, other=who == "strict")
    async with no_leaks(), worker() as h:
        usual = await ask(h, None, who, stream=stream)
        result = await ask(h, fault, who, stream=stream)
        h.status(who)
        await h.clock.advance(120.0)
        await h.settled()
        witness: Any = h.plugin("witness")
        reference, seen = witness.seen[usual.request_id], witness.seen[result.request_id]
        settled = witness.settled[result.request_id]
        denied = DENIED.get(fault.hook) if who == "strict" and fault.counted else None

        if denied is None:
            assert (result.status, result.text, result.outcome) == (200, TEXT, Outcome.OK)
            assert seen == reference, "every other plugin has its hooks as often as usual"
        elif fault.hook == "transform_stream":
            assert result.error is not None
            assert result.error.status == denied
            assert TEXT not in result.text
        else:
            assert (result.status, result.text) == (denied, "")
        assert seen["settle"] == 1
        assert settled["labels"] == {"owned": "mine"}
        assert settled["reservations"] == ["owner"]
        assert not {"set-cookie", "x-secret"} & result.headers.keys()

        expected = {f"{who}.{fault.hook}"} if fault.counted else set()
        assert set(h.faults) == expected, "the fault is counted against its own plugin and hook"
        if fault.blocks:
            rows: Any = h.host.describe()["hooks"]
            (held_at,) = [
                row["held_at"] for row in rows if row["blocked"] and (row["plugin"], row["hook"]) == (who, fault.hook)
            ]
            assert held_at.startswith("_block (")
            assert "faults.py:" in held_at


@pytest.mark.thorough
@pytest.mark.timeout(3600)
async def test_injected_faults_reach_no_client_that_no_policy_names() -> None:
    """Faults of two plugins, errors of providers, streams and endpoints at random: each client gets what the policies say."""
    chance = random.Random(7)
    quick = [fault for fault in FAULTS.values() if not fault.slow]
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    async with no_leaks(), worker() as h:
        for number in range(INJECTED):
            faults = {who: chance.choice(quick) for who in ("lenient", "strict") if chance.random() < 0.6}
            stream, endpoint = chance.random() < 0.5, chance.choice(ENDPOINTS)
            script = chance.choice([ok(TEXT), [error(503), ok(TEXT)], [error(429), error(500), ok(TEXT)]])
            result = await h.request(
                headers={f"x-fault-{who}": fault.name for who, fault in faults.items()},
                stream=stream,
                endpoint=endpoint,
                script=script,
            )
            statuses[result.status] += 1
            allowed, whole = prescribed(faults.get("strict"), stream=stream)
            cut_off = result.status == 200 and result.text != TEXT and (whole or result.error is None)
            if result.status not in allowed or cut_off:
                wrong.append(f"{number}: {faults} {endpoint} stream={stream}: {result.status} {result.text!r}")
            if number % 500 == 499:
                await h.clock.advance(120.0)
                await h.settled()
                h.settlements.clear()
                h.events.clear()
        await h.clock.advance(120.0)
        await h.settled()
        assert not wrong, wrong[:5]
        assert set(statuses) == {200, 429, 503}
        assert {name.partition(".")[0] for name in h.faults} == {"lenient", "strict"}
