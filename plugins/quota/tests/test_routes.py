"""Tenants over HTTP and with keys of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pointsman.cli.check import litellm_warnings
from pointsman.store import Put, Update
from pointsman.testing import Harness, deployment, never
from pointsman.types import Identity
from pointsman_quota.config import QuotaConfig
from pointsman_quota.plugin import plugin
from pointsman_quota.tenants import hash_key

KEY = "sk-acme-0123456789abcdef"
ACME = {
    "id": "acme",
    "name": "Acme Ltd",
    "limits": {"requests_per_minute": 60, "usd_per_day": "1.5"},
    "models": ["chat"],
    "api_keys": [{"name": "ci", "key": KEY, "limits": {"requests_per_minute": 1}}],
}


def worker(**section: Any) -> Harness:
    kit = {name: section.pop(name) for name in ("store", "clock", "name") if name in section}
    return Harness([(plugin, section)], **kit)


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["param"]


async def test_a_tenant_is_added_used_shown_and_removed() -> None:
    async with worker() as h:
        made = await h.admin.post("/quota/tenants", json=ACME)
        assert made.status_code == 201
        assert made.json()["source"] == "store"
        first = await h.request(api_key=KEY)
        assert (first.status, first.route.labels["tenant"]) == (200, "acme")
        second = await h.request(api_key=KEY)
        assert second.denial is not None
        assert (second.status, second.denial.code) == (429, "requests_per_minute_exceeded")
        assert "key 'ci'" in second.denial.message
        await h.settled()
        shown = (await h.admin.get("/quota/tenants/acme")).json()
        assert [(row["scope"], row["name"], row["day_tokens"]) for row in shown["usage"]] == [
            ("tenant", "acme", 15),
            ("key", "ci", 15),
        ]
        assert (shown["name"], shown["limits"]["usd_per_day"]) == ("Acme Ltd", "1.5")
        listed = (await h.admin.get("/quota/tenants")).json()
        assert [tenant["id"] for tenant in listed["tenants"]] == ["acme"]
        assert (await h.admin.delete("/quota/tenants/acme")).json() == {"removed": "acme"}
        assert (await h.request(api_key=KEY)).status == 401
        assert error(await h.admin.delete("/quota/tenants/acme")) == (404, "not_found", "id")
        assert error(await h.admin.get("/quota/tenants/acme")) == (404, "not_found", "id")


async def test_missing_and_unknown_keys_are_refused_with_401() -> None:
    async with worker() as h:
        await h.admin.post("/quota/tenants", json=ACME)
        for key in ("", "sk-unknown", KEY.upper()):
            assert (await h.request(api_key=key)).status == 401


async def test_a_key_is_kept_and_shown_only_as_a_salted_hash() -> None:
    """Not in the store, not in an answer, not in an error."""
    async with worker() as h:
        answers = [
            await h.admin.post("/quota/tenants", json=ACME),
            await h.admin.post("/quota/tenants", json=ACME),
            await h.admin.post("/quota/tenants", json={**ACME, "id": "bad id"}),
            await h.admin.post(
                "/quota/tenants", json={**ACME, "id": "b", "api_keys": [{"name": "x", "key": KEY, "n": 1}]}
            ),
            await h.admin.post("/quota/tenants", json={**ACME, "id": "b", "api_keys": [{"name": "x", "key": KEY[:9]}]}),
            await h.admin.post("/quota/tenants", json={**ACME, "id": "b", "api_keys": {"name": KEY}}),
            await h.admin.get("/quota/tenants"),
            await h.admin.get("/quota/tenants/acme"),
        ]
        assert [answer.status_code for answer in answers] == [201, 409, 422, 422, 422, 422, 200, 200]
        kept = json.dumps(await h.stored("quota"), default=str)
        for text in (kept, *(answer.text for answer in answers)):
            assert KEY not in text
            assert KEY[:9] not in text
        stored = (await h.stored("quota"))["salt"]
        assert hash_key(KEY, str(stored)) in answers[-1].text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{", "body"),
        ("[]", "body"),
        ({}, "id"),
        ({"id": "../x"}, "id"),
        ({"id": "a", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"id": "a", "limits": {"tokens_per_minute": -5}}, "limits.tokens_per_minute"),
        ({"id": "a", "limits": {"tokens_per_day": 1e3}}, "limits.tokens_per_day"),
        ({"id": "a", "limits": {"tokens_per_day": True}}, "limits.tokens_per_day"),
        ({"id": "a", "limits": {"usd_per_day": "NaN"}}, "limits.usd_per_day"),
        ({"id": "a", "limits": {"usd_per_day": "1e40"}}, "limits.usd_per_day"),
        ({"id": "a", "limits": {"requests_per_second": 1}}, "limits.requests_per_second"),
        ({"id": "a", "keys": [{"name": "x", "hash": "plain"}]}, "keys.0.hash"),
    ],
)
async def test_what_is_not_a_tenant_is_refused_with_the_field(body: Any, param: str) -> None:
    async with worker() as h:
        content = body if isinstance(body, str) else json.dumps(body)
        assert error(await h.admin.post("/quota/tenants", content=content)) == (422, "invalid_input", param)


async def test_the_same_name_twice_among_raw_and_hashed_keys_is_refused() -> None:
    async with worker() as h:
        keys = [{"name": "ci", "hash": hash_key("another-key", "00" * 16)}]
        assert error(await h.admin.post("/quota/tenants", json={**ACME, "keys": keys}))[0] == 422


async def test_a_huge_body_is_refused() -> None:
    async with worker() as h:
        answer = await h.admin.post("/quota/tenants", content=b"[" + b"1," * 600_000)
        assert error(answer)[:2] == (422, "invalid_input")


async def test_tenants_of_the_configuration_can_be_seen_but_not_changed() -> None:
    async with worker(tenants=[{"id": "acme", "match": {"teams": ["t"]}}]) as h:
        assert (await h.admin.get("/quota/tenants/acme")).json()["source"] == "config"
        assert error(await h.admin.post("/quota/tenants?replace=true", json=ACME)) == (409, "conflict", "id")
        assert error(await h.admin.delete("/quota/tenants/acme")) == (409, "conflict", "id")
        same_team = {"id": "other", "match": {"teams": ["t"]}}
        assert error(await h.admin.post("/quota/tenants", json=same_team))[:2] == (409, "conflict")


async def test_replacing_is_possible_and_keeps_what_was_spent() -> None:
    async with worker() as h:
        await h.admin.post("/quota/tenants", json=ACME)
        await h.request(api_key=KEY)
        await h.settled()
        assert (await h.admin.post("/quota/tenants", json=ACME)).status_code == 409
        changed = {**ACME, "limits": {"tokens_per_day": 100}}
        assert (await h.admin.post("/quota/tenants?replace=true", json=changed)).status_code == 201
        shown = (await h.admin.get("/quota/tenants/acme")).json()
        assert (shown["limits"]["tokens_per_day"], shown["usage"][0]["day_tokens"]) == (100, 15)


async def test_other_workers_see_a_change_after_the_refresh_time() -> None:
    async with worker() as h, worker(store=h.store, clock=h.clock, name="other") as other:
        await h.admin.post("/quota/tenants", json=ACME)
        await h.clock.advance(1.0)
        assert (await other.request(api_key=KEY)).status == 200
        await other.admin.delete("/quota/tenants/acme")
        await h.clock.advance(1.0)
        assert (await h.request(api_key=KEY)).status == 401


async def test_a_stored_tenant_that_contradicts_the_configuration_is_left_out_and_reported() -> None:
    """The configuration wins; the others go on."""
    async with worker() as h:
        await h.admin.post("/quota/tenants", json=ACME)
        await h.admin.post("/quota/tenants", json={"id": "fine"})
        await h.store.put("quota/{tenants}/broken", {"id": "broken", "limits": 7})
        async with worker(tenants=[{"id": "acme"}], store=h.store, clock=h.clock, name="new") as new:
            status = new.status("quota")
            problems: Any = status.details["problems"]
            assert (status.ok, len(problems)) == (False, 2)
            listed = (await new.admin.get("/quota/tenants")).json()
            assert [tenant["id"] for tenant in listed["tenants"]] == ["acme", "fine"]


async def test_a_default_tenant_that_does_not_exist_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    said = "the default tenant 'gest' does not exist (did you mean 'guest'?): unknown callers are refused"
    async with worker(default_tenant="gest", tenants=[{"id": "guest"}, {"id": "acme"}]) as h:
        assert [
            record.message
            for record in caplog.records
            if (record.name, record.levelname) == ("pointsman.quota", "WARNING")
        ] == [f"quota.default_tenant: {said}"]
        assert h.status("quota").summary == said
        assert (await h.request()).status == 401
        await h.admin.post("/quota/tenants", json={"id": "gest"})
        assert h.status("quota").ok
        assert (await h.request()).status == 200


async def test_a_default_tenant_that_is_there_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    async with worker() as h:
        await h.admin.post("/quota/tenants", json={"id": "guest"})
        async with worker(default_tenant="guest", store=h.store, clock=h.clock, name="new"):
            assert not [
                record for record in caplog.records if (record.name, record.levelname) == ("pointsman.quota", "WARNING")
            ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"limit": {}}, "limit: unknown key (did you mean 'limits'?); allowed: api_keys, dry_run, id, "),
        (
            {"limits": {"tokens_per_minut": 1}},
            "limits.tokens_per_minut: unknown key (did you mean 'tokens_per_minute'?)",
        ),
        ({"model_limits": {"gpt-*": {"tokens_day": 1}}}, "tokens_day: unknown key (did you mean 'tokens_per_day'?)"),
        ({"match": {"team": ["t"]}}, "match.team: unknown key (did you mean 'teams'?)"),
        (
            {"api_keys": [{"nam": "x", "name": "x", "key": KEY}]},
            "api_keys.0.nam: unknown key (did you mean 'name'?); allowed: key, limits, name, priority",
        ),
        ({"colour": "red"}, "colour: unknown key; allowed: "),
        ({"keys": [{"name": "x", "hash": KEY}]}, "keys.0.hash: it is not the hash of a key"),
    ],
)
async def test_what_was_meant_is_named(body: dict[str, Any], message: str) -> None:
    async with worker() as h:
        said = (await h.admin.post("/quota/tenants", json={"id": "a", **body})).json()["error"]["message"]
        assert message in said
        assert KEY not in said


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tenants": [{"id": "a"}, {"id": "a"}]}, "a tenant 'a' already"),
        ({"timezone": "Mars/Olympus"}, "not an IANA time zone"),
        ({"tenants": [{"id": "a", "limits": {"tokens_per_minut": 1}}]}, "tokens_per_minute"),
        (
            {"tenants": [{"id": "a", "keys": [{"name": "k", "hash": "sk-raw-key"}]}]},
            r"keys\[0\]\.hash: .*pointsman quota hash-key",
        ),
        ({"trusted_header": {"name": "x-api-key"}}, r"trusted_header\.name: .*carries credentials"),
        ({"tenants": [{"id": "a", "match": {"teams": ["t"]}}, {"id": "b", "match": {"teams": ["t"]}}]}, "both match"),
    ],
)
async def test_a_wrong_configuration_stops_the_start(section: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        await worker(**section).start()
    assert "sk-raw-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "warned"),
    [
        (None, []),
        ({"name": "x-tenant"}, ["every client can set 'x-tenant'"]),
        ({"name": "x-tenant", "networks": ["10.0.0.7/32"]}, []),
        (
            {"name": "x-tenant", "networks": ["10.0.0.7/32", "0.0.0.0/0", "::/0"]},
            ["0.0.0.0/0 contains", "::/0 contains"],
        ),
    ],
)
def test_check_warns_where_clients_could_choose_their_tenant(header: Any, warned: list[str]) -> None:
    found = list(QuotaConfig.model_validate({"trusted_header": header}).warnings())
    assert [part in warning for part, warning in zip(warned, found, strict=True)] == [True] * len(warned)
    assert all("trusted_header.networks" in warning for warning in found)


def example() -> Any:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])


async def test_the_readmes_example_works() -> None:
    section = example()["pointsman"]["plugins"][0]["quota"]
    async with worker(**section) as h:
        h.gateway.catalog.replace([deployment("gpt-4o"), deployment("gpt-4o-mini")])
        acme = Identity(team_id="team-acme")
        assert (await h.request(identity=acme, model="gpt-4o")).route.labels["tenant"] == "acme"
        assert (await h.request(api_key="sk-of-nobody", model="gpt-4o-mini")).status == 401
        admin = Identity(admin=True)
        assert (await h.request(identity=admin, model="gpt-4o-mini")).route.labels["tenant"] == "guest"
        assert (await h.request(identity=admin, model="gpt-4o")).status == 403


def test_nothing_is_amiss_on_litellms_side_of_the_readmes_example(tmp_path: Path) -> None:
    document = {**example(), "model_list": []}
    assert list(litellm_warnings(document, {"LITELLM_MASTER_KEY": "sk-long-and-random"}, tmp_path, ["quota"])) == []


async def test_a_stored_tenant_with_a_bad_salt_is_left_out_and_disturbs_nobody() -> None:
    async with worker() as h:
        await h.admin.post("/quota/tenants", json=ACME)
        odd = {"id": "odd", "keys": [{"name": "k", "hash": f"hmac-sha256${'0' * 17}${'a' * 64}"}]}
        assert error(await h.admin.post("/quota/tenants", json=odd)) == (422, "invalid_input", "keys.0.hash")
        repository = h.plugin("quota")._repository
        await repository._snapshot.modify(lambda _: (Update(puts={"{tenants}/odd": Put(odd)}), None))
        assert (await h.request(api_key=KEY)).status == 200
        assert (await h.request(api_key="sk-unknown")).status == 401
        assert (h.faults, h.status("quota").ok) == ({}, False)
        assert "'odd': not readable by this version (keys.0.hash)" in h.status("quota").summary


async def test_a_tenant_that_is_removed_and_added_again_has_the_rates_it_had() -> None:
    limits = {"requests_per_minute": 3, "tokens_per_minute": 5000}
    acme = {"id": "acme", "match": {"teams": ["team-acme"]}, "limits": limits}
    async with worker() as h:
        await h.admin.post("/quota/tenants", json=acme)
        given: dict[str, Any] = {"identity": Identity(team_id="team-acme"), "moves_clock": False}
        assert [(await h.request(**given)).status for _ in range(2)] == [200, 200]
        await h.settled()
        running = asyncio.create_task(h.request(script=never(), **given))
        await h.clock.quiet()
        await h.admin.delete("/quota/tenants/acme")
        running.cancel()
        await asyncio.wait({running})
        await h.settled()
        await h.admin.post("/quota/tenants", json=acme)
        shown = (await h.admin.get("/quota/tenants/acme")).json()["usage"][0]
        assert (shown["requests_left"], shown["tokens_left"], shown["requests_in_flight"]) == (0, 4970, 0)
