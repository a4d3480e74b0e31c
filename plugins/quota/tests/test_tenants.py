"""Who is recognised as whom, and what a request may name."""

from __future__ import annotations

import contextlib
import math
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman.types import CREDENTIAL_HEADERS, Credential, Endpoint, Identity
from pointsman_quota.hosted_tools import uses_of
from pointsman_quota.request_limits import (
    InvalidRequest,
    choices,
    models_named,
    output_limit,
    primary_models,
    thinking_budget,
)
from pointsman_quota.tenants import (
    KEY_CLAIM,
    Directory,
    Key,
    Match,
    Tenant,
    TrustedHeader,
    allowed,
    hash_key,
    limited_patterns,
)

SALT, OTHER_SALT = "00ff" * 8, "ab" * 16
KEY = "sk-a-key-of-acme"


def directory(*tenants: Tenant, default: str | None = None, header: TrustedHeader | None = None) -> Directory:
    return Directory(tenants, default=default, header=header)


def name(found: Any) -> str | None:
    return found.tenant.id if found else None


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (Identity(), None),
        (Identity(key_hash="k1"), "by-key"),
        (Identity(claims={"iss": "issuer"}), "by-claim"),
        (Identity(user_id="u1"), "by-user"),
        (Identity(team_id="t1"), "by-team"),
        (Identity(org_id="o1"), "by-org"),
        (Identity(org_id="o1", team_id="t1", user_id="u1", claims={"iss": "issuer"}, key_hash="k1"), "by-key"),
        (Identity(org_id="o1", team_id="t1", user_id="u1", claims={"iss": "issuer"}), "by-claim"),
        (Identity(org_id="o1", team_id="t1", user_id="u1"), "by-user"),
        (Identity(org_id="o1", team_id="t1"), "by-team"),
        (Identity(tenant="by-org", key_hash="k1"), "by-org"),
        (Identity(tenant="gone", key_hash="k1"), "by-key"),
        (Identity(end_user="u1", key_alias="k1"), None),
        (Identity(team_id="u1", user_id="t1"), None),
        (Identity(claims={"sub": "issuer"}), None),
        (Identity(claims={"iss": ["issuer"]}), None),  # type: ignore[dict-item]  # a gateway may pass on anything
    ],
)
def test_an_identity_is_recognised_by_its_most_specific_trait(identity: Identity, expected: str | None) -> None:
    """Key before claim before user before team before organisation; never by what the client chooses."""
    known = directory(
        Tenant(id="by-org", match=Match(orgs=("o1",))),
        Tenant(id="by-team", match=Match(teams=("t1",))),
        Tenant(id="by-user", match=Match(users=("u1",))),
        Tenant(id="by-claim", match=Match(claims={"iss": ("issuer",)})),
        Tenant(id="by-key", match=Match(litellm_keys=("k1",))),
    )
    assert name(known.by_identity(identity, {"x-tenant": "t1"})) == expected


def test_unknown_callers_are_the_default_tenant_where_there_is_one() -> None:
    assert name(directory(Tenant(id="guest"), default="guest").by_identity(Identity(), {})) == "guest"
    assert directory(Tenant(id="guest"), default="missing").by_identity(Identity(), {}) is None


def test_keys_of_different_salts_are_found_and_others_are_not() -> None:
    known = directory(
        Tenant(id="acme", keys=(Key(name="ci", hash=hash_key(KEY, SALT)),)),
        Tenant(id="beta", keys=(Key(name="a", hash=hash_key("sk-of-beta", OTHER_SALT)),)),
    )
    found = known.by_credential(Credential(api_key=KEY, path="/"))
    assert found is not None
    assert found.key is not None
    assert (found.tenant.id, found.key.name) == ("acme", "ci")
    assert name(known.by_credential(Credential(api_key="sk-of-beta", path="/"))) == "beta"
    for shown in ("", KEY + "x", KEY[:-1], hash_key(KEY, SALT)):
        assert known.by_credential(Credential(api_key=shown, path="/")) is None
    by_claim = known.by_identity(Identity(tenant="acme", claims={KEY_CLAIM: "ci"}), {})
    assert by_claim is not None
    assert by_claim.key == found.key


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=4))
def test_a_hash_does_not_show_the_key(key: str) -> None:
    """Salted, of fixed form, different under another salt."""
    made = hash_key(key, SALT)
    assert made != hash_key(key, OTHER_SALT)
    assert Key(name="k", hash=made).hash == made
    assert len(made) == len(hash_key("", SALT))


@pytest.mark.parametrize("salt", ["0" * 15, "0" * 17, "0" * 14, "0" * 130, "xy" * 8, "AB" * 8])
def test_a_hash_whose_salt_is_no_bytes_is_refused(salt: str) -> None:
    with pytest.raises(ValidationError, match="hash"):
        Key(name="k", hash=f"hmac-sha256${salt}${'a' * 64}")
    for good in ("00" * 8, "ab" * 64):
        assert Key(name="k", hash=hash_key(KEY, good)).hash.split("$")[1] == good


@pytest.mark.parametrize("header", sorted(name for name in CREDENTIAL_HEADERS if "_" not in name))
def test_a_header_that_plugins_never_see_cannot_be_trusted(header: str) -> None:
    with pytest.raises(ValidationError, match="carries credentials, which plugins never see"):
        TrustedHeader(name=header)


def test_a_trusted_front_is_believed_only_from_its_network() -> None:
    """With networks the header authenticates peers in them; without, it only names the tenant of who got in anyhow."""
    tenant = Tenant(id="acme", match=Match(header_values=("acme",)))
    networks = TrustedHeader(name="x-tenant", networks=(ip_network("10.0.0.0/8"),))
    headers = {"x-tenant": "acme"}

    def credential(host: str | None) -> Credential:
        return Credential(api_key="", path="/", headers=headers, client_host=host)

    known = directory(tenant, header=networks)
    assert name(known.by_credential(credential("10.1.2.3"))) == "acme"
    for host in ("11.0.0.1", "::1", "not an address", None):
        assert known.by_credential(credential(host)) is None
    assert known.by_identity(Identity(), headers) is None
    open_to_all = directory(tenant, header=TrustedHeader(name="x-tenant"))
    assert open_to_all.by_credential(credential("10.1.2.3")) is None
    assert name(open_to_all.by_identity(Identity(), headers)) == "acme"
    assert directory(tenant).by_identity(Identity(), headers) is None


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (Tenant(id="a"), Tenant(id="a"), "a tenant 'a' already"),
        (Tenant(id="a", match=Match(teams=("t",))), Tenant(id="b", match=Match(teams=("t",))), "both match team 't'"),
        (
            Tenant(id="a", keys=(Key(name="x", hash=hash_key(KEY, SALT)),)),
            Tenant(id="b", keys=(Key(name="y", hash=hash_key(KEY, SALT)),)),
            "is also a key of 'a'",
        ),
    ],
)
def test_two_tenants_cannot_claim_the_same_caller(one: Tenant, two: Tenant, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        directory(one, two)
    known = directory(one)
    with pytest.raises(ValueError, match=message):
        known.add(two)
    assert [tenant.id for tenant in known.all()] == [one.id]


@pytest.mark.parametrize(
    ("model", "body", "ok"),
    [
        ("gpt-4o", {}, True),
        ("gpt-4o,gpt-4.1", {}, True),
        ("gpt-4o , gpt-4.1", {}, True),
        ("", {}, False),
        ("secret", {}, False),
        ("gpt-4o,secret", {}, False),
        ("secret,gpt-4o", {}, False),
        ("gpt-4o,", {}, False),
        ("GPT-4o", {}, False),
        ("openai/gpt-4o", {}, False),
        (" gpt-4o", {}, False),
        ("gpt-4o\nsecret", {}, True),
        ("gpt-4o", {"fallbacks": ["gpt-4.1"]}, True),
        ("gpt-4o", {"fallbacks": ["secret"]}, False),
        ("gpt-4o", {"fallbacks": "secret"}, False),
        ("gpt-4o", {"fallbacks": [{"model": "secret"}]}, False),
        ("gpt-4o", {"fallbacks": [{"model": "gpt-4o", "fallbacks": ["secret"]}]}, False),
        ("gpt-4o", {"fallbacks": [{"gpt-4o": ["secret"]}]}, False),
        ("gpt-4o", {"context_window_fallbacks": [{"gpt-4o": ["secret"]}]}, False),
        ("gpt-4o", {"content_policy_fallbacks": [{"gpt-4o": ["secret"]}]}, False),
        ("gpt-4o", {"router_settings_override": {"fallbacks": [{"gpt-4o": ["secret"]}]}}, False),
        ("gpt-4o", {"models": ["gpt-4.1"]}, True),
        ("gpt-4o", {"models": ["gpt-4.1", "secret"]}, False),
        ("gpt-4o", {"tools": [{"type": "image_generation", "model": "secret"}]}, False),
        ("gpt-4o", {"tools": [{"type": "function", "function": {"name": "f"}}, {"model": "gpt-4.1"}]}, True),
        ("gpt-4o", {"tools": "secret"}, True),
    ],
)
def test_no_way_of_naming_a_model_gets_round_the_list(model: str, body: dict[str, object], ok: bool) -> None:
    tenant = Tenant(id="acme", models=("gpt-4*",))
    assert allowed(tenant, models_named(model, body)) is ok
    assert allowed(Tenant(id="open"), models_named(model, body))


@pytest.mark.parametrize("body", [{"fallbacks": 7}, {"fallbacks": [None]}, {"fallbacks": [[[[[["deep"]]]]]]}])
def test_odd_fallbacks_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        models_named("gpt", body)
    assert caught.value.param == "fallbacks"


def test_too_many_models_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="33 models"):
        models_named(",".join(f"m{number}" for number in range(33)), {})
    assert models_named("gpt", {"fallbacks": ["m"] * 9999}) == ("gpt", "m")
    assert primary_models("a, b,a") == ("a", "b")


def test_the_first_pattern_that_fits_a_model_limits_it() -> None:
    tenant = Tenant.model_validate(
        {"id": "acme", "model_limits": {"gpt-4o": {}, "gpt-4*": {}, "o?": {}, "*-never": {}}}
    )
    assert limited_patterns(tenant, ["gpt-4o"]) == ("gpt-4o",)
    assert limited_patterns(tenant, ["gpt-4o-mini", "o1", "o3", "claude"]) == ("gpt-4*", "o?")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample"])
@pytest.mark.parametrize(
    "value", [0, -1, -(10**30), 10**9 + 1, 10**30, 1.5, math.nan, math.inf, -math.inf, 1e300, "5", True, False, [5], {}]
)
def test_absurd_output_limits_are_refused(field: str, value: object) -> None:
    """Negative, zero, fractional, infinite, huge, not a number: nothing that would shrink a reservation."""
    with pytest.raises(InvalidRequest) as caught:
        output_limit({field: value})
    assert caught.value.param == field


def test_sensible_output_limits_are_read() -> None:
    assert output_limit({}) is None
    assert output_limit({"max_tokens": None}) is None
    assert output_limit({"max_tokens": 10, "max_completion_tokens": 20.0}) == 20
    assert choices({"n": 3, "best_of": 2}) == 3
    assert choices({"n": None}) == 1
    with pytest.raises(InvalidRequest):
        choices({"n": -1})


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"generationConfig": {"maxOutputTokens": 4_000}}, 4_000),
        ({"generation_config": {"max_output_tokens": 4_000}}, 4_000),
        ({"inferenceConfig": {"maxTokens": 4_000}}, 4_000),
        ({"textGenerationConfig": {"maxTokenCount": 4_000}}, 4_000),
        ({"parameters": {"maxOutputTokens": 4_000}}, 4_000),
        ({"max_gen_len": 4_000}, 4_000),
        ({"max_tokens": 5, "generationConfig": {"maxOutputTokens": 4_000}}, 4_000),
        ({"generationConfig": "maxOutputTokens"}, None),
        ({"generationConfig": {}}, None),
    ],
)
def test_the_limit_of_any_api_is_read(body: dict[str, object], limit: int | None) -> None:
    assert output_limit(body) == limit


@pytest.mark.parametrize("value", [-5, 0, "5", 10**30, math.inf])
def test_an_absurd_limit_within_an_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        output_limit({"generationConfig": {"maxOutputTokens": value}})
    assert caught.value.param == "generationConfig.maxOutputTokens"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 4_000}}, 4_000),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 4_000}}}, 4_000),
        ({"reasoning": {"max_tokens": 4_000}}, 4_000),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": -1}}}, 0),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": "much", "reasoning": {"effort": "high"}}, 0),
    ],
)
def test_what_a_model_may_think_is_read(body: dict[str, object], tokens: int) -> None:
    assert thinking_budget(body) == tokens


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a"] * 40}, 40),
        ({"prompt": ["a"] * 40, "n": 2}, 80),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
        ({"generationConfig": {"candidateCount": 8}}, 8),
    ],
)
def test_each_prompt_has_its_answers(body: dict[str, object], answers: int) -> None:
    assert choices(body, Endpoint.COMPLETIONS) == answers


@pytest.mark.parametrize("outer", ["", "config", "extra_body"])
@pytest.mark.parametrize("inner", ["", "generationConfig", "generation_config", "inferenceConfig", "parameters"])
def test_settings_are_read_wherever_they_stand(outer: str, inner: str) -> None:
    settings: dict[str, Any] = {"max_tokens": 7, "n": 3, "thinking": {"budget_tokens": 9}, "plugins": [{"id": "web"}]}
    body = {"model": "gpt"}
    for name in (inner, outer):
        settings = {name: settings} if name else settings
    assert (output_limit(body), choices(body), thinking_budget(body), uses_of(body, 5)) == (None, 1, 0, ({}, None))
    body |= settings
    assert (output_limit(body), choices(body), thinking_budget(body)) == (7, 3, 9)
    assert uses_of(body, 5) == ({"searches": 5}, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.text(max_size=20),
    st.dictionaries(
        st.sampled_from(["fallbacks", "router_settings_override", "max_tokens", "n", "messages"]), json_values
    ),
)
def test_any_body_is_read_or_refused(model: str, body: dict[str, object]) -> None:
    """No body makes the reader fail, which ``on_failure: allow`` would turn into a free pass."""
    for read in (
        lambda: models_named(model, body),
        lambda: output_limit(body),
        lambda: choices(body),
        lambda: thinking_budget(body),
    ):
        with contextlib.suppress(InvalidRequest):
            read()
