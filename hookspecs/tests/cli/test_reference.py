"""What can be configured and implemented, as the commands print it from the code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import BeforeValidator, Field, model_validator

from pointsman import PluginConfig, PluginInfo, specs
from pointsman.cli.reference import hook_reference, schema_of, settings_of
from pointsman.config import Section
from pointsman.host.settings import HostConfig

PAGE = Path(__file__).parents[2] / "HOOKS.md"


class Inner(Section):
    share_ratio: float = Field(default=0.5, ge=0, le=1, description="A share.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        return {"share_ratio": 0.1} if value == "small" else value


class Config(PluginConfig):
    target: str = Field(min_length=1, description="A model group.")
    inner: Inner = Inner()
    many: tuple[Inner, ...] = Field(default=(), max_length=3)
    by_name: dict[str, Inner] = Field(default_factory=dict)
    odd: Annotated[object, BeforeValidator(str)] = None


INFO = PluginInfo(name="mine", config=Config, factory=lambda _: object(), summary="Mine.")


def test_every_setting_is_shown_with_its_bounds():
    found = {each.key: each for each in settings_of(Config)}
    assert {"on_failure", "optional", "deadline_ms", "target", "inner", "inner.share_ratio"} <= found.keys()
    assert {"many[].share_ratio", "by_name.<name>.share_ratio"} <= found.keys()
    assert found["target"].default == "required"
    assert found["on_failure"].kind == "deny | allow"
    assert (found["inner.share_ratio"].bounds, found["inner.share_ratio"].default) == ("at least 0, at most 1", "0.5")
    assert found["many"].bounds == "at most 3 items"
    assert all(each.description for each in settings_of(PluginConfig))


class Tree(PluginConfig):
    """A model that contains itself."""

    target: str
    trees: tuple[Tree, ...] = ()


class Unshown(PluginConfig):
    made: list[str] = Field(default_factory=lambda: ["a", "b"])
    fails: int = Field(default_factory=lambda: 1 // 0)
    call: Callable[[], int] = lambda: 1
    most: float = float("inf")


class Schemaless(PluginConfig):
    @classmethod
    def __get_pydantic_json_schema__(cls, *_: object) -> dict[str, Any]:
        raise RuntimeError("no schema")


def test_defaults_are_shown_as_they_are():
    """Those that are made each time too; one that cannot be written is not said to be null."""
    found = {each.key: each.default for each in settings_of(Unshown)}
    assert found["made"] == '["a", "b"]'
    assert (found["fails"], found["call"], found["most"], found["deadline_ms"]) == (
        "not shown",
        "not shown",
        "inf",
        "null",
    )


def test_a_model_that_contains_itself_is_shown_once():
    found = {each.key: each.default for each in settings_of(Tree)}
    assert (found["target"], found["trees"], found["trees[].target"]) == ("required", "[]", "required")
    assert not any(key.startswith("trees[].trees[]") for key in found)


def test_plugins_of_others_do_not_break_the_schema(capsys):
    """One without a schema may have any section; JSON can hold the rest."""
    configs = {"mine": Config, "tree": Tree, "unshown": Unshown, "schemaless": Schemaless}
    made = schema_of({name: PluginInfo(name=name, config=config, factory=object) for name, config in configs.items()})
    json.dumps(made, allow_nan=False)
    says = (
        "plugin 'schemaless': its configuration model has no schema: RuntimeError: no schema; it may have any section"
    )
    assert says in capsys.readouterr().err
    validator = jsonschema.Draft202012Validator(made)
    for right, plugins in (
        (True, [{"tree": {"target": "a", "trees": [{"target": "b"}]}}, "unshown", {"schemaless": {"any": 1}}]),
        (False, ["tree"]),
        (False, [{"tree": {"target": "a", "trees": [{"targett": "b"}]}}]),
    ):
        assert validator.is_valid({"pointsman": {"plugins": plugins}}) is right


def test_show_says_why_a_plugin_has_no_settings_to_show(run, install):
    install(
        "odd",
        (
            "class Config(PluginConfig):",
            "class Config(PluginConfig):\n    __get_pydantic_json_schema__ = classmethod(lambda *_: 1 / 0)",
        ),
    )
    result = run("plugins", "show", "odd")
    assert result.exit_code == 1
    assert "plugin 'odd': its configuration model has no schema: ZeroDivisionError" in result.output


def test_the_hosts_settings_all_have_a_meaning():
    missing = [each.key for each in settings_of(HostConfig) if not each.description and each.kind != "mapping"]
    assert missing == ["store.backend"], "the others need a description"


@pytest.mark.parametrize(
    ("plugins", "right"),
    [
        ([{"mine": {"target": "a"}}], True),
        ([{"mine": {"target": "a", "inner": "small"}}], True),
        ([{"mine": {"target": "a", "inner": {"share_ratio": 0.3}, "deadline_ms": 100}}], True),
        (["plain", {"plain": None}], True),
        (["mine"], False),
        ([{"mine": {"target": "a", "inner": {"share_ratio": 3}}}], False),
        ([{"mine": {"targett": "a"}}], False),
        ([{"gone": {}}], False),
    ],
)
def test_the_schema_takes_what_the_models_take(plugins, right):
    plain = PluginInfo(name="plain", config=PluginConfig, factory=lambda _: object())
    schema = schema_of({"mine": INFO, "plain": plain})
    jsonschema.Draft202012Validator.check_schema(schema)
    config = {"model_list": [], "pointsman": {"store": {"backend": "memory"}, "plugins": plugins}}
    assert jsonschema.Draft202012Validator(schema).is_valid(config) is right


def test_the_commands_print_them(run, install):
    install("good")
    shown = json.loads(run("plugins", "show", "good", "--json").stdout)
    assert shown["name"] == "good"
    assert {"on_failure", "optional"} <= {each["key"] for each in shown["settings"]}
    assert "on_failure" in run("plugins", "show", "good").output
    wrong = run("plugins", "show", "goood")
    assert wrong.exit_code == 1
    assert "did you mean 'good'?" in wrong.output
    assert "good" in json.loads(run("schema").stdout)["$defs"]
    assert run("hooks").stdout == hook_reference()


def test_the_page_of_hooks_is_what_the_specifications_say():
    """``pointsman hooks > hookspecs/HOOKS.md`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == hook_reference()
    for hook in specs.HOOKS:
        assert f"## `{hook.__name__}`" in hook_reference()
