"""The admin client against real sockets: what it sends, what it prints, how it fails."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

from pointsman.client import AdminClient, AdminFailure, admin_options, segment, table, when

if TYPE_CHECKING:
    from collections.abc import Iterator


class Server(ThreadingHTTPServer):
    """Answers every request with one prepared answer and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, status, body, headers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.headers = status, body, headers
        self.seen = []

    @property
    def url(self):
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Gives the server's prepared answer."""

    def answer(self):
        """Answer whatever was asked."""
        length = int(self.headers.get("content-length", 0))
        self.server.seen.append(
            (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self.rfile.read(length))
        )
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names are http.server's

    def log_message(self, *_):
        """Keep quiet."""


@contextmanager
def serving(status=200, body: object = b"{}", headers=None) -> Iterator[Server]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Server(status, raw, headers or {}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@click.command()
@click.argument("name")
@admin_options
def show(admin: AdminClient, name: str) -> None:
    answer = admin.get(f"/thing/{segment(name)}", all=True, none=None)
    admin.show(answer, lambda: table(["id", "count", "on"], [(a["id"], a["count"], a["on"]) for a in answer["things"]]))


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    clean = {"POINTSMAN_URL": None, "POINTSMAN_KEY": None, "LITELLM_MASTER_KEY": None}
    return CliRunner().invoke(show, args, env={**clean, **(env or {})}, catch_exceptions=False)


THINGS = {"things": [{"id": "[red]a/b[/red]", "count": 3, "on": True}, {"id": "ü\x1b[2J", "count": None, "on": False}]}


def test_request_carries_key_path_and_query():
    """A name with slashes stays one path segment, None parameters are left out, the key is a bearer token."""
    with serving(body=THINGS) as server:
        result = run("a/b ü?", "--url", server.url + "/", "--key", "sk-1")
    assert result.exit_code == 0, result.output
    method, path, headers, body = server.seen[0]
    assert (method, path, body) == ("GET", "/pointsman/thing/a%2Fb%20%C3%BC%3F?all=true", b"")
    assert headers["authorization"] == "Bearer sk-1"


def test_table_is_literal_and_json_is_json():
    """Markup is shown as text and control sequences are defused; --json prints exactly the answer."""
    with serving(body=THINGS) as server:
        shown = run("x", "--url", server.url).output
        as_json = run("x", "--url", server.url, "--json").output
    assert "[red]a/b[/red]" in shown
    assert "\x1b" not in shown
    assert " yes " in shown
    assert " no " in shown
    assert json.loads(as_json) == THINGS


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({"POINTSMAN_KEY": "sk-a", "LITELLM_MASTER_KEY": "sk-b"}, "Bearer sk-a"),
        ({"POINTSMAN_KEY": "", "LITELLM_MASTER_KEY": "sk-b"}, "Bearer sk-b"),
        ({}, None),
    ],
)
def test_environment_gives_address_and_key(env, key):
    """POINTSMAN_URL is the address; POINTSMAN_KEY comes before LITELLM_MASTER_KEY; without either no key is sent."""
    with serving(body={"things": []}) as server:
        result = run("x", env={**env, "POINTSMAN_URL": server.url})
    assert result.exit_code == 0, result.output
    assert server.seen[0][2].get("authorization") == key


def test_post_sends_json_and_delete_returns_the_answer():
    with serving(body={"ok": 1}) as server, AdminClient(server.url) as admin:
        assert admin.post("/x", {"a": "ü"}, name="n") == {"ok": 1}
        assert admin.delete("/x", force=True) == {"ok": 1}
    assert [(method, path) for method, path, *_ in server.seen] == [
        ("POST", "/pointsman/x?name=n"),
        ("DELETE", "/pointsman/x?force=true"),
    ]
    assert json.loads(server.seen[0][3]) == {"a": "ü"}


def test_unreachable_proxy_is_one_clear_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = run("x", "--url", url)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: cannot reach the proxy at {url}")
    assert "POINTSMAN_URL" in result.output


def test_proxy_that_does_not_answer_in_time_is_told():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            AdminClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05) as admin,
            pytest.raises(AdminFailure, match="in time"),
        ):
            admin.get("/x")


ERROR = {"error": {"message": "no version 'x'", "type": "invalid_request_error", "param": "id", "code": "not_found"}}
NO_DB = {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, ERROR, ["no version 'x' [id] (404)"]),
        (422, {"detail": {"error": {"message": "bad id", "param": "id"}}}, ["bad id (422)"]),
        (404, {"detail": "Not Found"}, ["Not Found (404)"]),
        (401, ERROR, ["refuses the key (401): no version 'x'", "--key"]),
        (403, b"", ["refuses the key (403);"]),
        (400, NO_DB, ["refuses the key (400): No connected db."]),
        (500, b"<html>", ["answered 500 without a reason", "callbacks"]),
        (500, {"error": {"message": None}}, ["answered 500 without a reason"]),
        (502, {"error": {"message": "a\n\x1b[31mb"}}, ["Error: a \N{REPLACEMENT CHARACTER}[31mb (502)"]),
        (200, b"<html>", ["is not JSON"]),
        (418, [1], ["answered 418"]),
    ],
)
def test_every_bad_answer_is_one_line_and_exit_code_1(status, body, expected):
    with serving(status, body) as server:
        result = run("x", "--url", server.url, "--key", "sk-secret")
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    for part in expected:
        assert part in result.output
    assert "sk-secret" not in result.output


def test_missing_key_is_named_when_the_proxy_only_says_500():
    """LiteLLM without a database answers a bare 500 when the key is missing."""
    with serving(500, b"Internal Server Error") as server:
        assert "No key was given" in run("x", "--url", server.url).output


def test_redirect_is_not_followed():
    """The admin key is never sent to another address than the one that was given."""
    with serving(307, b"", {"location": "http://elsewhere.invalid/"}) as server:
        result = run("x", "--url", server.url, "--key", "sk-1")
    assert result.exit_code == 1
    assert "http://elsewhere.invalid/" in result.output
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "url", ["localhost:4000", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h:port"]
)
def test_unusable_address_is_a_usage_error(url):
    result = run("x", "--url", url)
    assert result.exit_code == 2
    assert "--url" in result.output


@pytest.mark.parametrize("key", ["sk-ü", "sk\n1"])
def test_unusable_key_is_a_usage_error_that_does_not_repeat_it(key):
    result = run("x", "--url", "http://127.0.0.1:1", "--key", key)
    assert result.exit_code == 2
    assert key not in result.output


def test_when_is_utc_text():
    assert (when(0), when(None)) == ("1970-01-01 00:00:00Z", "-")


def test_help_names_the_environment_but_not_the_key():
    result = run("--help", env={"POINTSMAN_KEY": "sk-secret"})
    assert "POINTSMAN_KEY" in result.output
    assert "LITELLM_MASTER_KEY" in result.output
    assert "sk-secret" not in result.output
