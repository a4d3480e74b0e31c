"""What tests say on websockets, and how they read what becomes of it."""

from __future__ import annotations

import json
from typing import Any, Final

from rig import Rig
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pointsman.testing import eventually

PATHS: Final = {"realtime": "/v1/realtime", "responses": "/v1/responses", "live": "/vertex_ai/live"}
MODELS: Final = {"realtime": "talk", "responses": "chat", "live": "talk"}
LAST: Final = {"realtime": "response.done", "responses": "response.completed"}
#: Tokens of one response: prompt, answer.
USED: Final = {"realtime": (132, 121), "responses": (328, 52)}


def entry(group: str, model: str, url: str, **params: Any) -> dict[str, Any]:
    return {
        "model_name": group,
        "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "sk-provider", **params},
        "model_info": {"id": f"{group}-1"},
    }


def socket(rig: Rig, protocol: str, case: str, key: str = "o", *, model: str = "", **headers: str) -> ClientConnection:
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}{PATHS[protocol]}?model={model or MODELS[protocol]}"
    sent = {"authorization": f"Bearer tenant-{key}", "x-test-case": case}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return connect(url, additional_headers=sent, open_timeout=30)


def ask(connection: ClientConnection, protocol: str, what: str = "", **fields: Any) -> None:
    asked = {"instructions": what, **fields}
    event = (
        {"response": asked, "event_id": "mine"} if protocol == "realtime" else {"model": "chat", "input": "hi", **asked}
    )
    connection.send(json.dumps({"type": "response.create", **event}))


def until(connection: ClientConnection, *types: str) -> dict[str, Any]:
    """Return the first event of one of these types."""
    while True:
        event: dict[str, Any] = json.loads(connection.recv(30))
        if event["type"] in types:
            return event


def ended(connection: ClientConnection) -> tuple[dict[str, Any], int | None]:
    """Return the last event before the connection was closed, and the code."""
    event: dict[str, Any] = {}
    try:
        while True:
            event = json.loads(connection.recv(30))
    except ConnectionClosed as err:
        return event, err.rcvd.code if err.rcvd else None


def settlements(rig: Rig, case: str, count: int, more: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Wait for them; return that of the connection and those of the responses on it, in the order of their beginning."""
    # A connection ends last, and may be settled after a response that LiteLLM has asked for by itself.
    found = eventually(
        lambda: settled(rig, case),
        lambda found: len(found) >= count and not all(one["generates"] for one in found),
    )
    assert count <= len(found) == len({one["request_id"] for one in found}) <= count + more
    connections = [one for one in found if not one["generates"]]
    assert len(connections) == 1
    return connections[0], sorted((one for one in found if one["generates"]), key=lambda one: one["started_at"])


def settled(rig: Rig, case: str) -> list[dict[str, Any]]:
    rows = rig.rows()
    ids = {row["request"] for row in rows if row.get("case") == case and row["hook"] == "pre_route"}
    return [row["settlement"] for row in rows if row["hook"] == "settle" and row["request"] in ids]


def tokens(settlement: dict[str, Any]) -> tuple[int, int]:
    (attempt,) = settlement["attempts"]
    return attempt["usage"]["prompt_tokens"], attempt["usage"]["completion_tokens"]


def refused(rig: Rig, protocol: str, case: str, **how: str) -> tuple[dict[str, Any], int | None]:
    """Return why a connection was refused, and the HTTP status of its handshake or the code that it was closed with."""
    try:
        with socket(rig, protocol, case, **how) as connection:
            ask(connection, protocol, **({"model": how["model"]} if "model" in how else {}))
            return ended(connection)
    except InvalidStatus as err:
        response = err.response
        found = {"status": response.status_code, "headers": dict(response.headers.items())}
        return {**json.loads(response.body), **found}, response.status_code
