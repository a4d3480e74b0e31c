"""What a tenant may read and use where LiteLLM's own checks of keys are on as well, as `pointsman check` advises."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

import httpx
import pytest
from anything import Anything
from doors import config, environment
from rig import Rig, deployment

from pointsman_quota.tenants import hash_key

pytestmark = pytest.mark.proxy

KEY: Final = "sk-narrow-0123456789abcdef"


@pytest.fixture(scope="module", params=[False, True], ids=["ours alone", "with LiteLLM's checks"])
def client(
    provider: Anything, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    settings = config(provider)
    settings["router_settings"] |= {"model_group_alias": {"ok-alias": "ok", "alias": "secret"}}
    settings["general_settings"]["custom_auth_run_common_checks"] = request.param
    settings["litellm_settings"] = {"enable_post_custom_auth_checks": request.param}
    key = {"name": "k", "hash": hash_key(KEY, "0123456789abcdef")}
    versions = [
        {"id": f"{name}-1", "name": name, "version": "1", "path": path, "active": True}
        for name, path in (("assistant", "ok"), ("hidden", "secret"))
    ]
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        Rig(
            tmp_path_factory.mktemp("checked"),
            lambda _: [deployment(provider.url, name, name, id_=f"{name}-1") for name in ("ok", "secret")],
            plugins=[
                {"quota": {"tenants": [{"id": "narrow", "keys": [key], "models": ["ok*", "assistant"]}]}},
                {"registry": {"versions": versions}},
            ],
            config=settings,
            env=environment(provider),
        ) as rig,
        httpx.Client(base_url=rig.proxy.url, headers=headers, timeout=30, trust_env=False) as tenant,
    ):
        yield tenant


#: Before 1.108 LiteLLM lists names that stand for other models, and does not find them one by one.
FINDS_ALIASES: Final = tuple(map(int, version("litellm").split(".")[:2])) >= (1, 108)
READABLE: Final = {
    "ok": 200,
    "assistant": 200,
    "ok-alias": 200,
    "secret": 404,
    "hidden": 404,
    "alias": 404,
    "none": 404,
}


@pytest.mark.parametrize("prefix", ["/v1/models", "/models"])
@pytest.mark.parametrize("name", READABLE)
def test_a_tenant_reads_its_own_models(client: httpx.Client, prefix: str, name: str) -> None:
    """Registered names and aliases too, one by one as in the list."""
    answer = client.get(f"{prefix}/{name}")
    found = READABLE[name] == 200 and (FINDS_ALIASES or name == "ok")
    assert answer.status_code == (200 if found else 404), answer.text
    listed = {entry["id"] for entry in client.get(prefix).json()["data"]}
    assert (name in listed) == (READABLE[name] == 200)


@pytest.mark.parametrize("path", ["/model/info", "/v1/model/info"])
def test_details_are_those_of_its_own_models(client: httpx.Client, path: str) -> None:
    names = {entry["model_name"] for entry in client.get(path).json()["data"]}
    assert "ok" in names
    assert not names & {"secret", "hidden", "alias"}


@pytest.mark.parametrize("path", ["/model/info", "/v1/model/info"])
@pytest.mark.parametrize(("deployment_id", "status"), [("ok-1", 200), ("secret-1", 400), ("none", 400)])
def test_a_deployment_is_shown_by_its_id_to_those_who_may_use_it(
    client: httpx.Client, path: str, deployment_id: str, status: int
) -> None:
    answer = client.get(path, params={"litellm_model_id": deployment_id})
    assert answer.status_code == status, answer.text
    assert ("upstream" in answer.text or "api_base" in answer.text) == (status == 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/router/settings"),
        ("GET", "/get/config/callbacks"),
        ("GET", "/memory-usage-in-mem-cache-items"),
        ("GET", "/debug/memory/summary"),
        ("GET", "/credentials"),
        ("GET", "/credentials/by_model/secret-1"),
        ("GET", "/credentials/by_model/openai"),
        ("GET", "/fallback/secret"),
        ("POST", "/fallback"),
        ("POST", "/cache/flushall"),
        ("POST", "/config/update"),
    ],
)
def test_routes_of_the_administrator_are_closed_to_tenants(client: httpx.Client, method: str, path: str) -> None:
    """Also where LiteLLM's own checks are off, and where a parameter of the path is named as an open route."""
    answer = client.request(method, path, json={} if method == "POST" else None)
    # LiteLLM finds no such credentials where it takes the last part for an open route.
    assert answer.status_code in {401, 403, 404}, answer.text
    assert "api_base" not in answer.text


@pytest.mark.parametrize("path", ["/model_group/info", "/v1/models", "/cursor/models", "/v1/model/deprecations"])
def test_lists_name_its_own_models_only(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert not any(f'"{name}"' in answer.text for name in ("secret", "hidden", "alias", "secret-1")), answer.text


@pytest.mark.parametrize(("model", "status"), [("ok", 200), ("secret", 403)])
@pytest.mark.parametrize("path", ["/configured", "/openai_passthrough/v1/chat/completions"])
def test_pass_throughs_are_open_for_its_own_models(client: httpx.Client, path: str, model: str, status: int) -> None:
    answer = client.post(path, json={"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert answer.status_code == status, answer.text
