"""The proxy's model list: what a tenant's patterns are in LiteLLM's terms."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

#: pydantic's, about LiteLLM's own types.
pytestmark = pytest.mark.filterwarnings("ignore:Item:UserWarning")


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("pointsman.litellm.catalog")
    names = ("chat", "chat.fast", "secret", "openai/*")
    params = {"model": "openai/gpt-4o-mini", "api_key": "x"}
    models = [{"model_name": name, "litellm_params": params, "model_info": {"id": f"id-{name}"}} for name in names]
    router = pytest.importorskip("litellm").Router(model_list=models, model_group_alias={"chatty": "chat"})
    monkeypatch.setattr(module.proxy_server, "llm_router", router)
    return module.RouterCatalog()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("chat",), ["chat", "chatty"]),
        (("chatty",), ["chatty"]),
        (("chatt?",), ["no-default-models"]),
        (("chat*",), ["chat", "chat.fast", "chatty", "chat*"]),
        (("ch[a-z]t",), ["chat", "chatty"]),
        (("cha?", "id-secret"), ["chat", "chatty", "id-secret"]),
        (("openai/*",), ["openai/*"]),
        (("virtual-*",), ["virtual-*"]),
        (("*",), None),
        (("nothing-?",), ["no-default-models"]),
    ],
)
def test_patterns_become_names_and_what_litellm_understands(
    catalog: Any, patterns: tuple[str, ...], expected: list[str] | None
) -> None:
    """Never an empty list: to LiteLLM, it allows everything. An alias comes with its model, or by its very name."""
    found = catalog.allowed(patterns)
    if expected is None:
        assert "*" in found
    else:
        assert found == expected


def test_everything_that_may_answer_is_reachable(catalog: Any) -> None:
    """Aliases, wildcards, and the fallbacks of each, to any depth."""
    module = pytest.importorskip("pointsman.litellm.catalog")
    router = module.proxy_server.llm_router
    router.fallbacks = [{"chat": ["chat.fast"]}, {"chat.fast": [{"model": "secret"}]}]

    def ids(name: str) -> list[str]:
        return [deployment.id for deployment in catalog.reachable(name)]

    assert ids("secret") == ["id-secret"]
    assert ids("chat.fast") == ["id-chat.fast", "id-secret"]
    assert ids("chat") == ids("chatty") == ["id-chat", "id-chat.fast", "id-secret"]
    assert ids("openai/gpt-4.1") == ["id-openai/*"]
    assert ids("unknown") == []


def test_an_alias_is_resolved_and_a_listed_name_is_its_plugins(catalog: Any) -> None:
    catalog.list_model("virtual", "chat")
    assert [catalog.resolved(name) for name in ("chatty", "chat", "virtual", "unknown", "")] == [
        "chat",
        "chat",
        "virtual",
        "unknown",
        "",
    ]


def test_a_model_that_a_wildcard_serves_is_a_target(catalog: Any) -> None:
    """As the provider's model of that name, on the wildcard's deployment; the wildcard itself names no model."""
    plugin = pytest.importorskip("pointsman.plugin")
    (served,) = catalog.deployments("openai/gpt-4o")
    assert (served.id, served.group) == ("id-openai/*", "openai/*")
    assert catalog.deployments("anthropic/claude") == ()
    assert [d.id for d in catalog.deployments("openai/*")] == ["id-openai/*"]
    assert plugin.unknown_target("openai/gpt-4o", catalog) is None
    assert "'openai/gpt-4o'" in plugin.unknown_target("openai/*", catalog)
    assert "no model group" in plugin.unknown_target("anthropic/claude", catalog)
    # A client that names several models does not get them through a wildcard.
    assert not catalog.is_listed("openai/a,b")


@pytest.mark.parametrize("group", ["chat", "openai/chat", "gpt-4o", "openai/gpt-4o", "azure/openai/chat", "x/chat"])
@pytest.mark.parametrize("seed", range(40))
def test_fewer_fallbacks_are_looked_at_and_the_same_ones_found(group: str, seed: int) -> None:
    module = pytest.importorskip("pointsman.litellm.catalog")
    rng = random.Random(seed)
    keys = [
        "chat",
        "gpt-4o",
        "openai/chat",
        "openai/gpt-4o",
        "azure/gpt-4o",
        "openai/openai/chat",
        "*",
        "other",
        "chatty",
    ]
    fallbacks = [{key: [f"after-{key}-{n}"]} for n, key in enumerate(rng.choices(keys, k=rng.randint(0, 5)))]
    found, _ = module.get_fallback_model_group(fallbacks=fallbacks, model_group=group)
    assert module.Fallbacks(fallbacks).of(group) == found


def test_the_work_for_all_groups_grows_with_their_number_and_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is done on the event loop, for statuses: with hundreds of groups and fallbacks it took seconds."""
    module = pytest.importorskip("pointsman.litellm.catalog")
    litellm = pytest.importorskip("litellm")

    def steps(groups: int) -> int:
        names = [f"group-{number}" for number in range(groups)]
        params = {"model": "openai/gpt-4o-mini", "api_key": "x"}
        models = [{"model_name": name, "litellm_params": params, "model_info": {"id": name}} for name in names]
        router = litellm.Router(model_list=models, fallbacks=[{name: [names[0]]} for name in names])
        monkeypatch.setattr(module.proxy_server, "llm_router", router)
        catalog, count = module.RouterCatalog(), 0
        catalog.deployments()

        def counts(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counts)
        try:
            for name in names:
                assert {deployment.id for deployment in catalog.reachable(name)} == {name, names[0]}
        finally:
            sys.setprofile(None)
        return count

    assert steps(200) < 3 * steps(100)
