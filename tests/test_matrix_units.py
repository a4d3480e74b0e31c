"""The endpoints that count in other units than chat tokens: admitted, metered and settled like the first five.

On a real proxy, in front of the bundled upstream, with the recorder plugin.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from rig import Rig, counts, only
from units import DOORS, model_list, sent

from pointsman.testing.provider import Behaviour, Delay

pytestmark = pytest.mark.proxy

SCENARIOS = ("ok", "error", "denial")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    config = {
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    with Rig(tmp_path_factory.mktemp("units"), model_list, plugins=["denier"], config=config) as running:
        for door in DOORS.values():
            model = door.model.partition("/")[2]
            running.upstream.behave(f"{model}-error", Behaviour(error_ratios={500: 1.0}))
            # A plain answer is waited for although the client has gone; of a stream, much must be left.
            pace = Delay(median_ms=300) if door.stream else Delay()
            running.upstream.behave(f"{model}-slow", Behaviour(latency=Delay(median_ms=900), per_token=pace, tokens=40))
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", list(DOORS))
def test_every_endpoint_is_metered_and_settled_once(rig: Rig, name: str, scenario: str) -> None:
    """One cell: the hooks fire once, and the settlement says what was used and what it cost, or that it is not known."""
    door, case = DOORS[name], f"{name}-{scenario}"
    group = f"{name}-error" if scenario == "error" else name
    headers = {"authorization": "Bearer tenant-a", "x-test-case": case}
    if scenario == "denial":
        headers["x-test-deny"] = "429"
    url = f"{rig.proxy.url}{door.path.format(model=group)}"
    answer = httpx.post(url, headers=headers, timeout=60, **sent(door, group))
    rows = rig.of_case(case)
    fired = counts(rows)
    ok = scenario == "ok"
    assert fired["pre_route"] == fired["settle"] == 1
    assert fired["select"] == fired["before_attempt"] == (scenario != "denial")
    assert (fired["post_response"], fired["on_error"]) == (int(ok), int(scenario == "error")), answer.text
    settlement = only(rows, "settle")["settlement"]
    assert settlement["endpoint"] == door.endpoint
    assert settlement["status_code"] == answer.status_code
    assert (answer.status_code == 200) == ok, answer.text
    if scenario == "denial":
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    if ok:
        (attempt,) = settlement["attempts"]
        assert all(attempt["usage"].get(unit) for unit in door.used), attempt["usage"]
        assert (attempt["cost_usd_micros"] is not None) == door.priced, attempt
        assert (attempt["first_token_ms"] is not None) == door.stream


@pytest.mark.parametrize("name", list(DOORS))
def test_a_client_that_goes_away_is_settled_once(rig: Rig, name: str) -> None:
    """Before a plain answer, and within a stream, of which the part that has come is estimated."""
    door, case = DOORS[name], f"{name}-disconnect"
    slow = sent(door, f"{name}-slow") | {"headers": {"authorization": "Bearer tenant-a", "x-test-case": case}}
    url = f"{rig.proxy.url}{door.path.format(model=f'{name}-slow')}"
    if door.stream:
        with httpx.stream("POST", url, timeout=60, **slow) as answer:
            assert answer.status_code == 200
            next(answer.iter_raw())
    else:
        rig.leave(url, **slow)
    rows = rig.of_case(case, timeout_s=60)
    fired = counts(rows)
    assert fired["pre_route"] == fired["settle"] == 1
    assert fired["select"] == fired["before_attempt"] <= 1
    assert fired["post_response"] + fired["on_error"] == fired["before_attempt"]
    settlement = only(rows, "settle")["settlement"]
    assert settlement["outcome"] == "disconnected"
    if door.stream:
        (attempt,) = settlement["attempts"]
        assert attempt["outcome"] == "disconnected"
        assert attempt["usage"]["estimated"]
