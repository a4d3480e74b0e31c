"""Mistakes on LiteLLM's side that would make Pointsman silently not work are warned of."""

from __future__ import annotations

import pytest

from pointsman.cli.check import CUSTOM_AUTH, HANDLER, litellm_warnings, proxy_environment

AUTH = CUSTOM_AUTH
GOOD = {"litellm_settings": {"callbacks": [HANDLER]}, "general_settings": {"master_key": "sk-long-and-random"}}
OURS = {
    "litellm_settings": {"callbacks": [HANDLER], "enable_post_custom_auth_checks": True},
    "general_settings": {"master_key": "k", "custom_auth": AUTH, "custom_auth_run_common_checks": True},
}


def warned(document, base, env=None, authenticating=()):
    return list(litellm_warnings(document, env or {}, base, authenticating))


@pytest.mark.parametrize(
    "document", [GOOD, OURS, {**GOOD, "model_list": [{"model_name": "chat", "model_info": {"id": "a"}}]}]
)
def test_nothing_is_said_of_a_good_document(document, tmp_path):
    assert warned(document, tmp_path, authenticating=["quota"]) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [f'does not mention "{HANDLER}"', "add it to the list"]),
        ({"callbacks": None}, ["does not mention"]),
        ({"callbacks": ["prometheus", 7]}, ["does not mention"]),
        ({"callbacks": ["pointsman.litellm.handlr"]}, ["is it 'pointsman.litellm.handlr'?"]),
        ({"success_callback": [HANDLER]}, ["it is in litellm_settings.success_callback"]),
        ({"callbacks": HANDLER}, ["is a string, not a list", f'write ["{HANDLER}"]']),
        ({"callbacks": [HANDLER, "otel", HANDLER]}, ["2 times", "keep one"]),
    ],
)
def test_callbacks_that_do_not_load_us_once(settings, expected, tmp_path):
    (found,) = warned({**GOOD, "litellm_settings": settings}, tmp_path)
    assert found.startswith("litellm_settings.callbacks: ")
    for part in expected:
        assert part in found


def test_file_that_litellm_would_import_instead_of_the_package(tmp_path):
    (tmp_path / "pointsman").mkdir()
    (tmp_path / "pointsman" / "litellm.py").touch()
    (found,) = warned(GOOD, tmp_path)
    assert f"would import {tmp_path / 'pointsman' / 'litellm.py'}" in found


@pytest.mark.parametrize(
    ("general", "settings", "authenticating", "expected"),
    [
        ({}, {}, [], "custom_auth: no plugin in use implements authenticate"),
        (
            {"custom_auth_run_common_checks": False},
            {},
            ["quota"],
            "general_settings.custom_auth_run_common_checks: is not set",
        ),
        (
            {},
            {"enable_post_custom_auth_checks": None},
            ["quota"],
            "litellm_settings.enable_post_custom_auth_checks: is not set",
        ),
        (
            {"custom_auth": "pointsman.litellm.custom_autth"},
            {},
            ["quota"],
            f"is not Pointsman's (did you mean '{AUTH}'?)",
        ),
    ],
)
def test_custom_auth_that_does_not_do_what_it_should(general, settings, authenticating, expected, tmp_path):
    document = {
        "general_settings": {**OURS["general_settings"], **general},
        "litellm_settings": {**OURS["litellm_settings"], **settings},
    }
    (found,) = warned(document, tmp_path, authenticating=authenticating)
    assert expected in found


def test_another_custom_auth_is_not_warned_of(tmp_path):
    assert warned({**GOOD, "general_settings": {"master_key": "k", "custom_auth": "acme.auth"}}, tmp_path) == []


@pytest.mark.parametrize(
    ("general", "env", "expected"),
    [
        ({}, {}, "there is no master key"),
        ({"master_key": None}, {"LITELLM_MASTER_KEY": "k"}, "there is no master key"),
        ({"master_key": " "}, {}, "there is no master key"),
        ({"master_key": "os.environ/ELSEWHERE"}, {"LITELLM_MASTER_KEY": "k"}, "set the environment variable ELSEWHERE"),
        ({"master_key": "sk-1234"}, {}, "publicly known default"),
        ({"master_key": "os.environ/ELSEWHERE"}, {"ELSEWHERE": "sk-1234"}, "publicly known default"),
        ({"master_key": "os.environ/ELSEWHERE"}, {"ELSEWHERE": "k"}, None),
        ({"master_key": "os.environ/ELSEWHERE", "key_management_system": "aws_kms"}, {}, None),
        ({}, {"LITELLM_MASTER_KEY": "k"}, None),
    ],
)
def test_master_key_that_is_missing_or_public(general, env, expected, tmp_path):
    found = warned({**GOOD, "general_settings": general}, tmp_path, env)
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


@pytest.mark.parametrize("odd", [None, [], "x", 3])
def test_odd_sections_are_litellms_business(odd, tmp_path):
    """No section of another shape makes the check itself fail."""
    names = ("litellm_settings", "general_settings", "router_settings", "model_list", "environment_variables")
    document = dict.fromkeys(names, odd)
    assert len(warned(document, tmp_path, {"LITELLM_MASTER_KEY": "k"})) == 1
    assert proxy_environment(document, {"A": "b"}) == {"A": "b"}
