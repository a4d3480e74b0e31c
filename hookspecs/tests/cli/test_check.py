"""``pointsman check``: what it prints of a good configuration, and of every way in which a plugin can be bad."""

from __future__ import annotations

import json

import pytest


def test_good_configuration_is_explained(run, write, install):
    """Order per hook as it runs (shutdown backwards), store and tracing in words; nothing is started or made."""
    install("first")
    install("second", ("async def pre_route(self, ctx, route)", "def select(self, candidates)"))
    file = write({"store": {"path": "state"}, "plugins": ["second", {"first": {"on_failure": "deny"}}]})
    result = run("check", file)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]
    assert lines[0] == f"{file}: no errors"
    assert f"store disk: {file.parent / 'state'}, shared by all workers of this machine" in lines
    assert "tracing off: no OTEL_* variable names an exporter" in lines
    assert "1 second pointsman-second 0 allow no" in lines
    assert "2 first pointsman-first 0 deny no" in lines
    assert "startup second, first" in lines
    assert "shutdown first, second" in lines
    assert "pre_route first" in lines
    assert "select second" in lines
    assert not (file.parent / "state").exists()


def test_json_says_the_same(run, write, install):
    install("first")
    install("second")
    answer = json.loads(run("check", write({"plugins": ["second", "first"]}), "--json").stdout)
    assert answer["ok"] is True
    assert (answer["errors"], answer["warnings"], answer["left_out"]) == ([], [], {})
    assert answer["hooks"]["shutdown"] == ["first", "second"]
    assert answer["hooks"]["pre_route"] == ["second", "first"]
    assert answer["hooks"]["settle"] == []
    assert [plugin["name"] for plugin in answer["plugins"]] == ["second", "first"]


def test_piped_output_has_no_control_sequences(run, write, install):
    """Nor does it with errors that carry them, and one finding is one line."""
    install("loud", ("self.config = config", "raise ValueError('\\x1b[31mred\\nsecond line')"))
    output = run("check", write({"plugins": ["loud"]})).output
    assert "\x1b" not in output
    assert "\N{REPLACEMENT CHARACTER}[31mred" in output
    assert output.splitlines()[-1].startswith("failed   loud")


def test_file_that_is_not_there_is_an_error_and_a_missing_argument_is_usage(run, tmp_path):
    result = run("check", tmp_path / "gone.yaml")
    assert result.exit_code == 1
    assert "gone.yaml: cannot be read: No such file" in result.output
    assert run("check").exit_code == 2
    assert run("check", tmp_path, "--nonsense").exit_code == 2


def test_file_without_the_section_says_where_it_seems_to_be(problems):
    assert "is not read there; move it to the top level" in "".join(
        problems(pointsman=..., general_settings={"master_key": "sk-x", "pointsman": {}})
    )
    assert "is it 'pointsmann'?" in "".join(problems(pointsman=..., pointsmann={}))


PRE_ROUTE = "async def pre_route(self, ctx, route)"
BAD = {
    "misspelt hook": ((PRE_ROUTE, "async def pre_rout(self, ctx)"), ["no hook 'pre_rout' (did you mean 'pre_route'?)", "before_attempt"]),
    "async hook that is not": ((PRE_ROUTE, "def pre_route(self, ctx, route)"), ["hook 'pre_route' must be async", "a plain function"]),
    "sync hook that is not": (("def status", "async def status"), ["hook 'status' must be a plain function"]),
    "unknown argument": ((PRE_ROUTE, "async def pre_route(self, context)"), ["hook 'pre_route' does not fit", "allowed: ctx, route"]),
    "not marked": (("@hookimpl\n    def status", "def status"), ["'status' has a hook's name but is not marked @hookimpl"]),
    "ordering option": (("@hookimpl\n    def status", "@hookimpl(tryfirst=True)\n    def status"), ["'status' sets tryfirst", "plugin list"]),
    "cannot be imported": (("import PluginConfig", "import PluginConfigg"), ["'MODULE:plugin' (pointsman-bad 0) cannot be imported: ImportError"]),
    "ends the program": (("plugin = ", "raise SystemExit(7)\nplugin = "), ["cannot be imported: SystemExit: 7"]),
    "is something else": (("plugin = ", "plugin = 'x'\nother = "), ["is a str, not a pointsman.PluginInfo"]),
    "another name": (('name="NAME"', 'name="other"'), ["calls itself 'other'"]),
    "another model": (("config=Config", "config=dict"), ["not a class made from pointsman.PluginConfig"]),
    "cannot be built": (("self.config = config", "1 / 0"), ["it cannot be built: ZeroDivisionError"]),
}  # fmt: skip


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_plugin_is_an_error_and_an_optional_one_is_left_out(problems, install, case, optional):
    """The message names what is wrong; with ``optional: true`` it is a warning, and the others are still used."""
    change, expected = BAD[case]
    module = install("bad", change)
    install("good")
    found = problems({"plugins": [{"bad": {"optional": optional}}, "good"]})
    assert len(found) == 1
    assert found[0].startswith("warning: left out" if optional else "failed: ")
    for part in expected:
        assert part.replace("MODULE", module) in found[0]


def test_two_packages_that_provide_one_plugin_are_an_error_only_where_it_is_used(problems, install):
    install("twin", package="pointsman-twin")
    install("twin", package="acme-twin")
    install("good")
    (found,) = problems({"plugins": ["twin", "good"]})
    assert "acme-twin 0 (acme_twin:plugin) and pointsman-twin 0 (pointsman_twin:plugin); uninstall one" in found
    assert problems({"plugins": [{"twin": {"optional": True}}, "good"]})[0].startswith("warning: left out")
    assert problems({"plugins": ["good"]}) == []


def test_what_a_plugin_that_could_not_be_loaded_does_is_not_guessed(problems, install):
    """It may be the one that authenticates."""
    install("first")
    ours = {"general_settings": {"custom_auth": "pointsman.litellm.custom_auth"}}
    assert any("no plugin in use implements authenticate" in line for line in problems({"plugins": ["first"]}, **ours))
    found = problems({"plugins": [{"first": {"limt": 1}}]}, **ours)
    assert not any("implements authenticate" in line for line in found), found


def test_unknown_plugin_and_wrong_keys_of_all_plugins_are_reported_together(problems, install):
    install("first")
    install("second")
    found = problems({"plugins": [{"first": {"limt": 1}}, {"second": {"limit": "x", "on_failure": "alow"}}, "secund"]})
    assert len(found) == 4
    assert "pointsman.plugins[0].first.limt: unknown key (did you mean 'limit'?)" in found[0]
    assert any("pointsman.plugins[1].second.limit: 'x' is not allowed" in line for line in found)
    assert any("on_failure: 'alow' is not allowed" in line and "did you mean 'allow'?" in line for line in found)
    assert "pointsman.plugins[2]: no such plugin is installed (did you mean 'second'?); installed: " in found[3]


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ({"backend": "memory"}, "memory: each worker has its own"),
        (
            {"backend": "redis", "url": "redis://user:hunter2@h/3", "prefix": "p"},
            "redis: redis://h:6379/3, keys begin with p:",
        ),
        ({"backend": "redis", "url": "unix:///run/redis.sock?password=hunter2"}, "redis: unix:///run/redis.sock, keys"),
    ],
)
def test_store_in_words_has_no_password(run, write, store, expected):
    result = run("check", write({"store": store, "plugins": []}))
    assert expected in result.output
    assert "hunter2" not in result.output


def test_tracing_that_would_stop_the_start_is_an_error(problems, monkeypatch):
    """The variables count as the proxy will see them: those in the file's environment_variables too."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "oltp")
    assert "'oltp' is not supported (did you mean 'otlp'?)" in problems()[0]
    assert problems(environment_variables={"OTEL_TRACES_EXPORTER": "none"}) == []
    assert problems({"tracing": {"enabled": False}, "plugins": []}) == []


@pytest.mark.parametrize("name", ["callbacks", "success_callback"])
def test_tracing_by_litellms_callback_does_not_stop_the_start(run, write, monkeypatch, name):
    """Its exporter takes our spans where the variables name none that we have."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "oltp")
    settings = {"callbacks": ["pointsman.litellm.handler"]}
    settings[name] = [*settings.get(name, []), "otel"]
    result = run("check", write(litellm_settings=settings))
    assert result.exit_code == 0
    assert "'oltp' is not supported" in result.output.replace("\n", " ")
    assert "LiteLLM's OTel callback exports all spans" in " ".join(result.output.split())


def test_metrics_that_would_stop_the_start_are_an_error(problems, monkeypatch):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "oltp")
    assert "OTEL_METRICS_EXPORTER: 'oltp' is not supported (did you mean 'otlp'?)" in problems()[0]
    assert problems({"metrics": {"enabled": False}, "plugins": []}) == []


def test_authenticate_that_is_not_called_is_marked(run, write, install):
    install("guard", (PRE_ROUTE, "async def authenticate(self, credential)"))
    section = {"plugins": ["guard"]}
    assert "guard (not called:" in run("check", write(section)).output
    own = {"master_key": "sk-x", "custom_auth": "pointsman.litellm.custom_auth", "custom_auth_run_common_checks": True}
    settings = {"callbacks": ["pointsman.litellm.handler"], "enable_post_custom_auth_checks": True}
    result = run("check", write(section, general_settings=own, litellm_settings=settings))
    assert "not called" not in result.output
    assert "no errors" in result.output
