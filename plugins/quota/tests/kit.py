"""A worker with tenants, and requests to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman.testing import Harness, Result
from pointsman.types import Identity
from pointsman_quota.plugin import plugin

#: Two words and no messages, whose frame would count too.
BODY = {"prompt": "Hello there", "max_tokens": 90}


def tenant(name: str = "acme", **given: Any) -> dict[str, Any]:
    return {"id": name, "match": {"teams": [f"team-{name}"]}, **given}


def caller(name: str = "acme", **given: Any) -> Identity:
    return Identity(team_id=f"team-{name}", **given)


def worker(*tenants: Mapping[str, Any], others: Any = (), **section: Any) -> Harness:
    names = ("store", "clock", "name", "prices", "path", "host", "tracing", "deployments")
    kit = {name: section.pop(name) for name in names if name in section}
    return Harness([(plugin, {"tenants": list(tenants), **section}), *others], **kit)


async def call(h: Harness, identity: Identity | None = None, **given: Any) -> Result:
    given.setdefault("body", BODY)
    return await h.request(identity=identity or caller(), **given)


async def usage(h: Harness, name: str = "acme") -> dict[str, Any]:
    answer = (await h.admin.get(f"/quota/tenants/{name}")).json()
    return {
        " ".join(filter(None, (row["scope"], row["name"] if row["scope"] != "tenant" else ""))): row
        for row in answer["usage"]
    }


def details(h: Harness) -> Any:
    return h.status("quota").details
