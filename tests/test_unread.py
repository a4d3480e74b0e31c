"""Background responses and batches on a real proxy, of which no client ever reads what they have used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from anything import USAGE, Anything, anything
from doors import config, environment
from rig import Rig, only

from pointsman.testing import eventually

pytestmark = pytest.mark.proxy

NOWHERE = "http://127.0.0.1:9"
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def line(number: int, model: str) -> dict[str, object]:
    """Return a line of a batch's results."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]
    body = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": model}
    answer = {"status_code": 200, "request_id": f"r{number}", "body": {**body, "choices": choices, "usage": USAGE}}
    return {"id": f"line-{number}", "custom_id": str(number), "response": answer, "error": None}


RESULTS = {
    "priced": [line(number, "gpt-4o-mini") for number in range(1000)],
    "unpriced": [line(number, "a-model-nobody-knows") for number in range(3)],
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Anything]:
    with anything() as running:
        running.results.update({f"file-{name}": lines for name, lines in RESULTS.items()})
        yield running


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
    tenants = [{"id": name, "limits": {"max_concurrent_requests": 1}} for name in (*"abcde", "f")]
    with Rig(
        tmp_path_factory.mktemp("unread"),
        lambda _: [{"model_name": "chat", "litellm_params": params, "model_info": {"id": "chat-1"}}],
        plugins=["denier", {"quota": {"tenants": tenants}}, {"billing": {"sinks": []}}],
        config={**config(provider), "pointsman": {"background_look_s": 1}},
        # A batch that names no model belongs to the account of a deployment, not to that of the environment.
        env=environment(provider) | {"OPENAI_API_BASE": NOWHERE, "OPENAI_BASE_URL": f"{NOWHERE}/v1"},
    ) as running:
        yield running


def create(rig: Rig, tenant: str, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    sent = {"authorization": f"Bearer tenant-{tenant}", "x-test-case": tenant, **headers}
    with httpx.Client(base_url=rig.proxy.url, headers=sent, timeout=30, trust_env=False) as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def charged(rig: Rig, tenant: str) -> dict[str, Any]:
    """Wait for the settlement of the tenant's request that has used something, or of which that is not known; return it."""

    def find() -> list[dict[str, Any]]:
        found = [row["settlement"] for row in rig.rows() if row["hook"] == "settle"]
        return [
            one for one in found if one["identity"]["tenant"] == tenant and one["generates"] and used(one) != (0, 0)
        ]

    (settlement,) = eventually(find, bool, within_s=60)
    return settlement


def used(settlement: dict[str, Any]) -> tuple[int, int] | None:
    usage = settlement["attempts"][0]["usage"]
    return None if usage is None else (usage["prompt_tokens"], usage["completion_tokens"])


def billed(rig: Rig, request_id: str) -> Any:
    """Wait until a request is billed, and return what is shown of it."""
    with rig.proxy.client() as admin:
        path = f"/pointsman/billing/requests/{request_id}"
        return eventually(lambda: admin.get(path), lambda answer: answer.status_code == 200).json()


def test_a_background_response_is_charged(rig: Rig) -> None:
    create(rig, "a", "/v1/responses", {"model": "chat", "input": "hi", "background": True})
    settlement = charged(rig, "a")
    assert used(settlement) == (10, 20)
    (attempt,) = settlement["attempts"]
    assert attempt["cost_usd_micros"]
    assert (attempt["deployment"]["id"], settlement["status_code"], settlement["outcome"]) == ("chat-1", 200, "ok")


class Case(NamedTuple):
    """A batch, what it uses, and what that costs; None where nothing says which model it was, or what that costs."""

    tenant: str
    file: str
    query: str
    tokens: tuple[int, int]
    usd_micros: int | None


@pytest.mark.parametrize(
    "case",
    [
        Case("b", "file-said", "?model=chat", (10, 20), 7),
        Case("c", "file-priced", "", (10_000, 20_000), 6_750),
        Case("d", "file-priced", "?model=chat", (10_000, 20_000), 6_750),
        Case("e", "file-said", "", (10, 20), None),
        Case("f", "file-unpriced", "", (30, 60), None),
    ],
    ids=lambda case: f"{case.file}{case.query}",
)
def test_a_batch_is_charged(rig: Rig, provider: Anything, case: Case) -> None:
    """With its usage, from the batch itself or from its results, at half the price; once, whoever reads it afterwards."""
    path, tenant = "/v1/batches", case.tenant
    made = create(rig, tenant, path + case.query, {**BATCH, "input_file_id": case.file})["id"]
    settlement = charged(rig, tenant)
    assert (used(settlement), settlement["endpoint"], settlement["outcome"]) == (case.tokens, "batches", "ok")
    assert settlement["attempts"][0]["cost_usd_micros"] == case.usd_micros
    shown = billed(rig, settlement["request_id"])
    assert (shown["state"], shown["amount_usd_micros"]) == (
        "unpriced" if case.usd_micros is None else "billed",
        case.usd_micros or 0,
    )
    looks = provider.kept[:]
    with httpx.Client(base_url=rig.proxy.url, headers={"authorization": f"Bearer tenant-{tenant}"}) as client:
        read = client.get(f"{path}/{made}", headers={"x-test-case": f"{tenant}-read"})
    assert read.json()["status"] == "completed", read.text
    assert not only(rig.of_case(f"{tenant}-read"), "settle")["settlement"]["generates"]
    assert sum(provider.kept) == sum(looks) + 1
    charged(rig, tenant)
