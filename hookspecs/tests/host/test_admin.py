"""The admin surface: JSON whatever happens, and errors in one shape."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman import hookimpl
from pointsman.errors import AdminError, Conflict, InvalidInput, NotFound, StoreCorrupt, StoreUnavailable
from pointsman.plugin import name_problem

pytestmark = pytest.mark.usefixtures("leak_check")


def raising(err):
    async def endpoint(request):
        raise err

    return endpoint


class Failing:
    """One route for each way to fail."""

    ERRORS = {  # noqa: RUF012  # never changed
        "invalid": InvalidInput("give a name", param="name"),
        "missing": NotFound("no such thing", param="id"),
        "conflict": Conflict("it is active"),
        "admin": AdminError("not like this"),
        "down": StoreUnavailable("cannot be reached"),
        "corrupt": StoreCorrupt("a strange row"),
        "http": HTTPException(413, "too large", headers={"x-limit": "5"}),
        "bug": RuntimeError("the secret is 42"),
        "exit": SystemExit("the secret is 42"),
        "cancelled": asyncio.CancelledError("the secret is 42"),
    }

    @hookimpl
    def routes(self):
        return [Route(f"/{name}", raising(err), methods=["POST"]) for name, err in self.ERRORS.items()]


@pytest.mark.parametrize(
    ("name", "status", "code", "type_", "param", "message"),
    [
        ("invalid", 422, "invalid_input", "invalid_request_error", "name", "give a name"),
        ("missing", 404, "not_found", "invalid_request_error", "id", "no such thing"),
        ("conflict", 409, "conflict", "invalid_request_error", None, "it is active"),
        ("admin", 400, "bad_request", "invalid_request_error", None, "not like this"),
        ("down", 503, "store_unavailable", "service_unavailable_error", None, "cannot be reached"),
        ("corrupt", 503, "store_unavailable", "service_unavailable_error", None, "a strange row"),
        ("http", 413, "bad_request", "invalid_request_error", None, "too large"),
        ("bug", 500, "internal_error", "server_error", None, "its log says why"),
        ("exit", 500, "internal_error", "server_error", None, "its log says why"),
        ("cancelled", 500, "internal_error", "server_error", None, "its log says why"),
    ],
)
async def test_errors_have_one_shape(harness, plugin, caplog, *, name, status, code, type_, param, message):
    """Status, code, type, param and message; what the gateway's own fault is goes to the log and not to the client."""
    async with harness([plugin(Failing)]) as h:
        answer = await h.admin.post(f"/failing/{name}")
        body = answer.json()["error"]
        assert set(answer.json()) == {"error"}
        assert (answer.status_code, body["code"], body["type"], body["param"]) == (status, code, type_, param)
        assert message in body["message"]
        assert "42" not in answer.text
        assert ("42" in caplog.text) == (name in {"bug", "exit", "cancelled"})
        assert (answer.headers.get("x-limit") == "5") == (name == "http")


async def test_what_is_not_there_says_what_to_look_at(harness, plugin):
    """An unknown path, and a known one with another method, are distinguished, both as JSON."""
    async with harness([plugin(Failing)]) as h:
        unknown = await h.admin.get("/nobody/x")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        assert "GET /pointsman/nobody/x" in unknown.json()["error"]["message"]
        assert "is the plugin enabled?" in unknown.json()["error"]["message"]
        method = await h.admin.get("/failing/bug")
        assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
        assert method.headers["allow"] == "POST"


async def test_only_the_console_has_the_root(harness, plugin):
    """A plugin called ``console`` serves the root too; without it there is nothing."""

    class Console:
        @hookimpl
        def routes(self):
            return [Route("/", lambda _: JSONResponse("console"))]

    async with harness([plugin(Console)]) as h:
        assert [(await h.admin.get(path)).json() for path in ("/", "/console", "/console/")] == ["console"] * 3
        assert (await h.admin.get("/status")).json()["plugins"][0]["name"] == "console"
    async with harness([plugin(Failing)]) as h:
        assert (await h.admin.get("/")).status_code == 404


async def test_the_status_page_says_it_all(harness, plugin):
    """Version, worker, requests, store, tracing, journal, faults and plugins, in the order of the configuration."""

    class First:
        pass

    class Second:
        @hookimpl
        async def pre_route(self, ctx):
            raise ValueError

    async with harness([plugin(First), plugin(Second)], tracing=True) as h:
        await h.request()
        opened = h.host.open((await h.request()).ctx)
        await h.clock.advance(5.0)
        page = (await h.admin.get("/status")).json()
        assert (page["worker"], page["uptime_s"], page["requests"], page["requests_open"]) == ("worker-1", 5.0, 3, 1)
        assert (page["store"], page["tracing"]) == ({"backend": "memory"}, {"enabled": True, "failures": 0})
        assert page["faults"] == [{"plugin": "second", "hook": "pre_route", "count": 2}]
        assert [p["name"] for p in page["plugins"]] == ["first", "second"]
        assert page["journal"]["waiting"] == {}
        opened.close(200)


async def test_no_plugin_is_called_as_a_route_of_the_hosts(harness):
    """It would not be reached."""
    async with harness([]) as h:
        paths = {route.path.split("/")[1] for route in h.host.admin.routes}
        assert {"status", "metrics", "requests"} <= paths
        assert [path for path in paths if not name_problem(path)] == []
