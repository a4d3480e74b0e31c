"""Which routes the keys of tenants open, by LiteLLM's own rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pointsman import PluginInfo, hookimpl
from pointsman.plugin import PluginConfig
from pointsman.testing import Harness
from pointsman.types import Credential, Identity

# LiteLLM's own warnings are not ours.
auth = pytest.importorskip("pointsman.litellm.auth")
proxy_server = pytest.importorskip("litellm.proxy.proxy_server")
requests = pytest.importorskip("starlette.requests")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Knows:
    """Knows every caller."""

    @hookimpl
    async def authenticate(self, credential: Credential) -> Identity | None:
        return Identity(tenant=credential.api_key)


async def asked(path: str) -> int:
    """Ask for a route as a tenant; return the status."""
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    request = requests.Request({**scope, "route": SimpleNamespace(path=path)})
    async with Harness([PluginInfo(name="knows", config=PluginConfig, factory=lambda _: Knows(), summary="")]) as h:

        async def running() -> Any:
            return h.host

        try:
            await auth.authenticate(request, "tenant", running, list)
        except auth.DenialError as err:
            return int(err.code)
    return 200


async def test_a_pass_through_that_is_added_later_opens_to_those_who_have_asked_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_server, "general_settings", {})
    assert [await asked("/later"), await asked("/credentials")] == [403, 403]
    proxy_server.general_settings["pass_through_endpoints"] = [{"path": "/later", "target": "http://localhost"}]
    assert [await asked("/later"), await asked("/credentials")] == [200, 403]
