"""The HTTP client and the click options with which every command group speaks to a running proxy.

A plugin's command is a function that takes an ``AdminClient`` first and is decorated with ``admin_options``, which adds
``--url``, ``--key`` and ``--json``::

    @group.command("list")
    @click.option("--name")
    @admin_options
    def list_versions(admin: AdminClient, name: str | None) -> None:
        answer = admin.get("/registry/versions", name=name)
        admin.show(answer, lambda: table(["id", "active"], [(v["id"], v["active"]) for v in answer["versions"]]))

A failure between the command and the proxy ends the command with one line on standard error and exit code 1.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar
from urllib.parse import quote

import click
import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import one_line

DEFAULT_URL: Final = "http://127.0.0.1:4000"
DEFAULT_TIMEOUT_S: Final = 30.0
PIPED_WIDTH_COLUMNS: Final = 240
MAX_MESSAGE_CHARS: Final = 2000

_REFUSED: Final = frozenset({401, 403})
# LiteLLM's answer to an unknown key when no database is connected; the status is 400.
_NO_DATABASE: Final = "no_db_connection"

P = ParamSpec("P")
R = TypeVar("R")


class AdminFailure(click.ClickException):
    """The proxy could not be reached, refused, or answered an error. Click prints the message and exits with 1."""

    exit_code = 1


def segment(text: str) -> str:
    """Return a value as one segment of a URL's path; every character is allowed."""
    return quote(text, safe="")


def when(seconds: float | None) -> str:
    """Return Unix seconds as UTC text to the second, ``-`` for None."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Return a table for the terminal.

    Args:
        columns: Headings.
        rows: One cell per column. Numbers are right-aligned, None is shown as ``-``, booleans as yes and no. Text is
            shown literally: markup and terminal control sequences have no effect.
        title: Line above the table.
    """
    cells = [list(row) for row in rows]
    result = Table(title=title, title_justify="left")
    for index, heading in enumerate(columns):
        numeric = all(_is_number(row[index]) or row[index] is None for row in cells)
        result.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        result.add_row(*(Text(_cell(value)) for value in row))
    return result


class AdminClient:
    """Speaks to the admin surface of one proxy.

    Args:
        url: The proxy's base URL, with the path it is served under if there is one.
        key: Its admin key; None sends none.
        as_json: Whether ``show`` prints the answer as JSON.
        timeout_s: Longest wait for an answer, in seconds.

    Raises:
        click.BadParameter: the URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        as_json: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        base = _checked_url(url)
        self.url = str(base).rstrip("/")
        self.as_json = as_json
        self._has_key = bool(key)
        headers = {"accept": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {_checked_key(key)}"
        # A loopback address is never reached through the environment's web proxy.
        self._http = httpx.Client(headers=headers, timeout=timeout_s, trust_env=not _is_loopback(base.host))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: str | float | bool | None) -> Any:
        """Return the answer to ``GET /pointsman<path>``; parameters that are None are left out."""
        return self.request("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, object] | None = None, **params: str | float | bool | None) -> Any:
        """Return the answer to ``POST /pointsman<path>`` with a JSON body."""
        return self.request("POST", path, params=params, body=body)

    def delete(self, path: str, **params: str | float | bool | None) -> Any:
        """Return the answer to ``DELETE /pointsman<path>``."""
        return self.request("DELETE", path, params=params)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | float | bool | None] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Any:
        """Make one request under ``/pointsman`` and return the JSON of its answer.

        Args:
            method: HTTP method.
            path: Begins with ``/``; make its variable parts with ``segment``.
            params: Query parameters; those that are None are left out.
            body: Sent as JSON; None sends none.

        Raises:
            AdminFailure: no answer, an answer that refuses the key or reports an error, or one that is not JSON.
        """
        query = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = self._http.request(method, f"{self.url}/pointsman{path}", params=query, json=body)
        except httpx.TimeoutException as err:
            raise AdminFailure(f"the proxy at {self.url} did not answer in time; is it overloaded?") from err
        except httpx.HTTPError as err:
            raise AdminFailure(
                f"cannot reach the proxy at {self.url}: {_shown(str(err)) or type(err).__name__}; "
                "is it running? Give its address with --url or POINTSMAN_URL."
            ) from err
        return self._read(answer)

    def show(self, answer: object, *tables: Callable[[], Table]) -> None:
        """Print an answer: as JSON when the user asked for it, else as these tables."""
        if self.as_json:
            click.echo(json.dumps(answer, indent=2))
            return
        console = Console()
        if not console.is_terminal:
            console = Console(width=PIPED_WIDTH_COLUMNS)
        for make in tables:
            console.print(make())

    def show_problems(self, problems: Iterable[str]) -> None:
        """Print what does not work as configured, one line each, on standard error; nothing with ``--json``."""
        if not self.as_json:
            for problem in problems:
                click.echo(f"problem: {problem}", err=True)

    def _read(self, answer: httpx.Response) -> Any:
        try:
            body: Any = answer.json()
        except ValueError:
            body = None
        if answer.is_success:
            if body is None:
                raise AdminFailure(
                    f"the answer of {self.url} ({answer.status_code}) is not JSON: is this a LiteLLM proxy with Pointsman?"
                )
            return body
        message, kind = _error(body)
        if answer.status_code in _REFUSED or kind == _NO_DATABASE:
            what = "the key" if self._has_key else "a request without a key"
            raise AdminFailure(
                f"the proxy at {self.url} refuses {what} ({answer.status_code}){message and f': {message}'}; "
                "give the admin key with --key, POINTSMAN_KEY or LITELLM_MASTER_KEY."
            )
        if answer.is_redirect:
            where = _shown(answer.headers.get("location", "elsewhere"))
            raise AdminFailure(f"the proxy at {self.url} redirects to {where}; give the final address with --url.")
        if not message:
            message = (
                f"the proxy at {self.url} answered {answer.status_code} without a reason; "
                "is Pointsman in its litellm_settings.callbacks, and the plugin in its configuration?"
            )
            if not self._has_key:
                message += " No key was given."
            raise AdminFailure(message)
        raise AdminFailure(f"{message} ({answer.status_code})")


def admin_options(command: Callable[Concatenate[AdminClient, P], R]) -> Callable[P, R]:
    """Add ``--url``, ``--key`` and ``--json`` to a command and pass it an ``AdminClient`` as first argument."""

    @click.option(
        "--url", envvar="POINTSMAN_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="The proxy."
    )
    @click.option(
        "--key", envvar=["POINTSMAN_KEY", "LITELLM_MASTER_KEY"], default=None, show_envvar=True, help="Its admin key."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @functools.wraps(command)
    def with_client(*args: P.args, **kwargs: P.kwargs) -> R:
        options: dict[str, Any] = {name: kwargs.pop(name) for name in ("url", "key", "as_json")}
        with AdminClient(options["url"], options["key"], as_json=options["as_json"]) as admin:
            return command(admin, *args, **kwargs)

    return with_client


def signed(command: Callable[P, R]) -> Callable[P, R]:
    """Add ``--who`` and ``--reason`` to a command that changes something: it gets ``who`` and ``reason``, or None."""
    who = click.option("--who", help="Author of the change; the default is the admin key's user or alias.")
    reason = click.option("--reason", help="Reason of the change.")
    return who(reason(command))


def watchable(command: Callable[P, None]) -> Callable[P, None]:
    """Add ``--watch SECONDS`` to a command: it is repeated, on a cleared screen, until Ctrl-C. Goes above ``admin_options``.

    When the output is no terminal the screen is not cleared. A failure while watching is shown and tried again.
    """

    @click.option(
        "--watch",
        "watch_s",
        type=click.FloatRange(0.2, 3600),
        default=None,
        metavar="SECONDS",
        help="Interval in seconds at which to repeat, until Ctrl-C.",
    )
    @functools.wraps(command)
    def watched(*args: P.args, **kwargs: P.kwargs) -> None:
        watch_s = kwargs.pop("watch_s", None)
        if not isinstance(watch_s, float):
            command(*args, **kwargs)
            return
        repeat(functools.partial(command, *args, **kwargs), watch_s)

    return watched


def repeat(show: Callable[[], None], interval_s: float) -> None:
    """Clear the screen and show something, again and again until Ctrl-C; a failure is shown and tried again.

    Args:
        show: Called each time; ``AdminFailure`` is its failure.
        interval_s: The pause between two calls, in seconds.
    """
    with suppress(KeyboardInterrupt):
        while True:
            click.clear()
            try:
                show()
            except AdminFailure as err:
                err.show()
            time.sleep(interval_s)


def _checked_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, UnicodeError) as err:
        raise click.BadParameter("not a URL", param_hint="--url") from err
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise click.BadParameter(
            f"must begin with http:// or https:// and name a host, as {DEFAULT_URL}", param_hint="--url"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise click.BadParameter(
            "must contain neither credentials nor a query; give the key with --key", param_hint="--url"
        )
    return parsed


def _checked_key(key: str) -> str:
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise click.BadParameter("the key contains characters that cannot be sent in a header", param_hint="--key")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error(body: Any) -> tuple[str, str | None]:
    """Return message and type of an error body: OpenAI's and LiteLLM's shape, or FastAPI's ``detail``."""
    if not isinstance(body, Mapping):
        return "", None
    error = body.get("error", body.get("detail"))
    if isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):
        error = error["error"]
    if not isinstance(error, Mapping):
        return _shown(error) if isinstance(error, str) else "", None
    message, kind, param = error.get("message"), error.get("type"), error.get("param")
    text = _shown(message) if isinstance(message, str) else ""
    if text and isinstance(param, str) and param and param not in text:
        text += f" [{_shown(param)}]"
    return text, kind if isinstance(kind, str) else None


def _shown(text: str) -> str:
    """Return text of the other side as it can be shown."""
    return one_line(text, MAX_MESSAGE_CHARS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return _shown(str(value))
