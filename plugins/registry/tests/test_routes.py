from __future__ import annotations

import asyncio
import json

import pytest

from pointsman.types import Outcome

FIELDS = {"id", "name", "version", "path", "format", "created_at", "metrics", "active"}


@pytest.fixture
async def worker(memory, kit):
    """Start a worker on one backend only: here it is about requests and answers."""
    return await kit.start(memory)


@pytest.fixture
async def http(worker):
    async with worker.http() as client:
        yield client


async def ids(http, **params):
    return [version["id"] for version in (await http.get("/versions", params=params)).json()["versions"]]


async def test_registered_version_has_exactly_the_promised_fields(http, kit, worker):
    body = kit.spec("1", format="openai", metrics={"accuracy": 0.5, "n": 3})
    answer = await http.post("/versions", json=body)
    assert answer.status_code == 201
    assert set(answer.json()) == FIELDS
    assert answer.json() == {**body, "created_at": worker.clock.at, "active": False}
    assert (await http.get("/versions/1")).json() == answer.json()
    assert (await http.get("/versions")).json() == {"versions": [answer.json()]}


async def test_list_is_in_id_order_and_can_be_narrowed(http, kit):
    for id_, name in (("b", "chat"), ("a", "chat/x"), ("B", "chat"), ("ü", "chat")):
        await http.post("/versions", json=kit.spec(id_, name=name))
    assert await ids(http) == ["B", "a", "b", "ü"]
    assert await ids(http, name="chat") == ["B", "b", "ü"]
    assert await ids(http, name="nobody") == []


async def test_activation_moves_and_is_idempotent(http, kit):
    """At most one version of a name is active, and the history has one entry for each real change."""
    await http.post("/versions", json=kit.spec("1", active=True))
    await http.post("/versions", json=kit.spec("2"))
    first = await http.post("/versions/2/activate", json={"who": "anna", "reason": "better"})
    assert (first.status_code, first.json()["active"]) == (200, True)
    assert (await http.post("/versions/2/activate")).json() == first.json()
    shown = (await http.get("/versions")).json()["versions"]
    assert [(version["id"], version["active"]) for version in shown] == [("1", False), ("2", True)]
    history = (await http.get("/history", params={"name": "chat"})).json()["history"]
    assert [(entry["number"], entry["version_id"], entry["who"], entry["reason"]) for entry in history] == [
        (2, "2", "anna", "better"),
        (1, "1", "admin", "registered as active"),
    ]


@pytest.mark.parametrize(
    ("body", "headers", "who"),
    [
        (None, {}, "admin"),
        (None, {"x-pointsman-user": "berta"}, "berta"),
        ({"who": "carla"}, {"x-pointsman-user": "berta"}, "carla"),
        ({}, {"x-pointsman-user": "berta"}, "berta"),
    ],
)
async def test_who_is_body_then_header_then_admin(http, kit, body, headers, who):
    await http.post("/versions", json=kit.spec("1"))
    answer = await http.post("/versions/1/activate", content=b"" if body is None else json.dumps(body), headers=headers)
    assert answer.status_code == 200
    assert (await http.get("/history")).json()["history"][0]["who"] == who


async def test_rollback_goes_back_step_by_step_and_never_forward(http, kit):
    for id_ in ("1", "2", "3"):
        await http.post("/versions", json=kit.spec(id_, active=True))
    for expected in ("2", "1"):
        answer = await http.post("/rollback", params={"name": "chat"}, json={"who": "anna"})
        assert (answer.status_code, answer.json()["id"], answer.json()["active"]) == (200, expected, True)
    answer = await http.post("/rollback", params={"name": "chat"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    newest = (await http.get("/history", params={"limit": 1})).json()["history"]
    assert [(entry["action"], entry["version_id"], entry["previous_id"]) for entry in newest] == [
        ("rollback", "1", "2")
    ]


async def test_rollback_skips_what_was_deleted_and_never_stays_where_it_is(http, kit):
    """1, 2, 1, 3 were active; with 2 deleted there is one step back to 1, not two."""
    for id_ in ("1", "2", "3"):
        await http.post("/versions", json=kit.spec(id_))
    for id_ in ("1", "2", "1", "3"):
        await http.post(f"/versions/{id_}/activate")
    await http.delete("/versions/2")
    assert (await http.post("/rollback", params={"name": "chat"})).json()["id"] == "1"
    assert (await http.post("/rollback", params={"name": "chat"})).status_code == 409


async def test_active_version_is_deleted_with_force_only(http, kit):
    await http.post("/versions", json=kit.spec("1", active=True))
    await http.post("/versions", json=kit.spec("2"))
    assert (await http.delete("/versions/2")).json() == {"deleted": "2"}
    refused = await http.delete("/versions/1")
    assert refused.status_code == 409
    assert "force=true" in refused.json()["error"]["message"]
    assert await ids(http) == ["1"]
    deleted = await http.request(
        "DELETE", "/versions/1", params={"force": "true"}, content=json.dumps({"who": "anna", "reason": "broken"})
    )
    assert deleted.status_code == 200
    assert await ids(http) == []
    newest = (await http.get("/history")).json()["history"][0]
    assert (newest["action"], newest["version_id"], newest["previous_id"]) == ("delete", None, "1")
    assert (newest["who"], newest["reason"]) == ("anna", "broken")


@pytest.mark.parametrize("id_", ["a/b", "a/activate", "ü ß", "x?y#z", "100%", "%2F", "{registry}", "*"])
async def test_any_allowed_id_can_be_addressed(http, kit, id_):
    path = "/versions/" + "".join(f"%{byte:02X}" for byte in id_.encode())
    assert (await http.post("/versions", json=kit.spec(id_, name=id_))).status_code == 201
    assert (await http.get(path)).json()["id"] == id_
    assert (await http.post(f"{path}/activate")).json()["active"] is True
    assert (await http.get(path.replace("/versions/", "/metrics/"))).json()["id"] == id_
    assert (await http.delete(path, params={"force": True})).json() == {"deleted": id_}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/versions/x"),
        ("GET", "/versions/"),
        ("DELETE", "/versions/x"),
        ("POST", "/versions/x/activate"),
        ("GET", "/metrics/x"),
        ("DELETE", "/metrics/x"),
        ("POST", "/rollback?name=x"),
    ],
)
async def test_unknown_version_or_model_is_404(http, method, path):
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_duplicate_id_is_409(http, kit):
    await http.post("/versions", json=kit.spec("1"))
    answer = await http.post("/versions", json=kit.spec("1", name="other"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "id")


GOOD = {"id": "1", "name": "chat", "version": "1", "path": "small"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"id": 1}, "id"),
        ({"id": "a\n"}, "id"),
        ({"id": "a//b"}, "id"),
        ({"id": "a/../b"}, "id"),
        ({"id": "/a"}, "id"),
        ({"id": "x" * 129}, "id"),
        ({"name": ""}, "name"),
        ({"name": " chat"}, "name"),
        ({"name": "\x00"}, "name"),
        ({"name": "a\u2028b"}, "name"),
        ({"name": "\x85"}, "name"),
        ({"name": ["chat"]}, "name"),
        ({"version": ""}, "version"),
        ({"version": "1 0"}, "version"),
        ({"version": "é"}, "version"),
        ({"version": 1.0}, "version"),
        ({"path": "smal"}, "path"),
        ({"path": ""}, "path"),
        ({"path": "chat"}, "path"),
        ({"format": None}, "format"),
        ({"format": "x" * 65}, "format"),
        ({"metrics": []}, "metrics"),
        ({"metrics": {"a": "1"}}, "metrics.a"),
        ({"metrics": {"a": True}}, "metrics.a"),
        ({"metrics": {"": 1}}, "metrics."),
        ({"metrics": {str(n): n for n in range(101)}}, "metrics"),
        ({"active": "true"}, "active"),
        ({"active": 1}, "active"),
        ({"created_at": 1}, "created_at"),
        ({"nmae": "x"}, "nmae"),
    ],
)
async def test_bad_registration_is_422_and_names_the_field(http, change, param):
    answer = await http.post("/versions", json={**GOOD, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert answer.json()["error"]["message"].startswith(param.rstrip("."))
    assert await ids(http) == []


@pytest.mark.parametrize("missing", sorted(GOOD))
async def test_missing_field_is_422_and_named(http, missing):
    answer = await http.post("/versions", json={key: value for key, value in GOOD.items() if key != missing})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, missing)


async def test_misspelt_field_names_the_nearest(http):
    answer = await http.post("/versions", json={**GOOD, "formt": "x"})
    assert "did you mean 'format'?" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"id": "\\ud800"}',
        b"[" * 100_000,
        b'{"metrics": {"a": NaN}}',
        b'{"metrics": {"a": 1e999}}',
        b'{"metrics": {"a": 1' + b"0" * 400 + b"}}",
    ],
)
@pytest.mark.parametrize("path", ["/versions", "/versions/1/activate", "/rollback?name=chat"])
async def test_body_that_is_no_fitting_json_is_422(http, kit, path, raw):
    """Never a 500, whatever is sent."""
    await http.post("/versions", json=kit.spec("1"))
    answer = await http.post(path, content=raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/versions?nmae=x", "nmae"),
        ("GET", "/versions/1?x=1", "x"),
        ("POST", "/versions?x=1", "x"),
        ("POST", "/versions/1/activate?x=1", "x"),
        ("DELETE", "/versions/1?force=maybe", "force"),
        ("GET", "/history?limit=0", "limit"),
        ("GET", "/history?limit=1001", "limit"),
        ("GET", "/history?limit=ten", "limit"),
        ("POST", "/rollback", "name"),
        ("GET", "/metrics?id=1", "id"),
        ("DELETE", "/metrics/1?name=x", "name"),
    ],
)
async def test_bad_parameter_is_422_and_named(http, kit, method, path, param):
    await http.post("/versions", json=kit.spec("1"))
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"who": ""}, {}, "who"),
        ({"who": "a\tb"}, {}, "who"),
        ({"who": "x" * 129}, {}, "who"),
        ({"reason": 1}, {}, "reason"),
        ({"reason": "x" * 501}, {}, "reason"),
        ({"name": "chat"}, {}, "name"),
        ({}, {"x-pointsman-user": ""}, "x-pointsman-user"),
        ({}, {"x-pointsman-user": "x" * 129}, "x-pointsman-user"),
    ],
)
async def test_bad_signature_is_422_and_changes_nothing(http, kit, body, headers, param):
    await http.post("/versions", json=kit.spec("1"))
    answer = await http.post("/versions/1/activate", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert (await http.get("/versions/1")).json()["active"] is False


async def test_answers_are_current_on_every_worker(store, kit):
    """Admin requests look at the store first, so they need not wait for the next poll."""
    one, other = await kit.start(store), await kit.start(store, number=1)
    async with one.http() as first, other.http() as second:
        await first.post("/versions", json=kit.spec("1"))
        assert await ids(second) == ["1"]
        assert (await second.post("/versions/1/activate")).json()["active"] is True
        assert (await first.get("/versions/1")).json()["active"] is True
        assert (await second.get("/metrics")).json()["metrics"][0]["id"] == "1"


async def test_live_metrics_of_one_of_all_and_reset(http, kit, worker):
    await http.post("/versions", json=kit.spec("1"))
    await http.post("/versions", json=kit.spec("2", name="other", path="large"))
    untouched = {
        "id": "2",
        "name": "other",
        "version": "1.0",
        "since": worker.clock.at,
        "updated_at": None,
        "requests": 0,
        "errors": 0,
        "cancelled": 0,
        "error_ratio": 0.0,
        "latency_ms": None,
        "first_token_ms": None,
    }
    assert (await http.get("/metrics/2")).json() == untouched
    for value in range(1, 101):
        worker.plugin.post_response(kit.context(), kit.attempt("1", duration_ms=float(value), first_token_ms=value / 2))
    for outcome in (Outcome.ERROR, Outcome.DISCONNECTED, Outcome.CANCELLED, Outcome.ERROR):
        worker.plugin.on_error(kit.attempt("1", outcome=outcome))
    one = (await http.get("/metrics/1")).json()
    assert one["latency_ms"] == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "count": 100}
    assert one["first_token_ms"] == {"p50": 25.0, "p95": 47.5, "p99": 49.5, "count": 100}
    assert (one["requests"], one["errors"], one["cancelled"]) == (104, 2, 2)
    assert one["error_ratio"] == pytest.approx(2 / 104)
    assert one["updated_at"] == worker.clock.at
    assert (await http.get("/metrics")).json() == {"metrics": [one, untouched]}
    assert (await http.get("/metrics", params={"name": "other"})).json() == {"metrics": [untouched]}
    worker.clock.at += 1
    assert (await http.delete("/metrics/1")).json() == {"reset": ["1"]}
    after = (await http.get("/metrics/1")).json()
    assert (after["requests"], after["latency_ms"], after["since"]) == (0, None, worker.clock.at)
    assert (await http.delete("/metrics", params={"name": "other"})).json() == {"reset": ["2"]}
    assert (await http.delete("/metrics")).json() == {"reset": ["1", "2"]}


async def test_history_of_all_names_is_newest_first(http, kit, worker):
    for id_, name in (("1", "b"), ("2", "a"), ("3", "b")):
        worker.clock.at += 1
        await http.post("/versions", json=kit.spec(id_, name=name, active=True))
    history = (await http.get("/history")).json()["history"]
    assert [(entry["name"], entry["version_id"]) for entry in history] == [("b", "3"), ("a", "2"), ("b", "1")]
    assert (await http.get("/history", params={"name": "nobody"})).json() == {"history": []}


async def test_activations_at_once_over_http_leave_one_active(http, kit):
    for number in range(8):
        await http.post("/versions", json=kit.spec(str(number)))
    answers = await asyncio.gather(*(http.post(f"/versions/{number}/activate") for number in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    shown = (await http.get("/versions")).json()["versions"]
    assert sum(version["active"] for version in shown) == 1
