"""The hook specifications document themselves: exactly their arguments, and everything an author must know."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from pointsman import PluginConfig, hookimpl, specs
from pointsman.host.implementations import HOOK_NAMES, implementations

HOOKS = {hook.__name__: hook for hook in specs.HOOKS}
SECTIONS = ("Args", "Returns", "On error", "Example")


def sections(hook):
    """Return the sections of a specification's docstring by name; what comes before the first is under an empty name."""
    found, name = {"": []}, ""
    for line in inspect.getdoc(hook).splitlines():
        heading = re.fullmatch(r"(Args|Returns|On error|Example):{1,2}", line)
        if heading:
            name = heading[1]
            assert name not in found, f"{hook.__name__} has two sections {name}"
            found[name] = []
        else:
            found[name].append(line)
    return {name: textwrap.dedent("\n".join(lines)).strip() for name, lines in found.items()}


every_hook = pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())


def test_every_specification_is_listed():
    """No hook is specified without being in the list that the host goes by, and the names are those of the module."""
    marked = [name for name, value in vars(specs).items() if hasattr(value, "pointsman_spec")]
    assert sorted(marked) == sorted(HOOK_NAMES)


@every_hook
def test_the_documented_arguments_are_the_real_ones(hook):
    """Args names every argument, in order, and nothing else."""
    documented = re.findall(r"^(\w+): \S", sections(hook).get("Args", ""), flags=re.MULTILINE)
    assert documented == list(inspect.signature(hook).parameters)


@every_hook
def test_the_documentation_says_everything(hook):
    """When it fires, its colour and how results combine, what it returns, what an error does, and an example."""
    found = sections(hook)
    summary, _, rest = found[""].partition("\n\n")
    assert re.fullmatch(r"[A-Z][^\n]*\.", summary), "one line that says what it is for"
    assert re.search(r"\bFires? ", rest), "when it fires"
    colour, other = ("Async", "Sync") if inspect.iscoroutinefunction(hook) else ("Sync", "Async")
    assert re.search(rf"\b{colour}\b", rest), "its colour"
    assert not re.search(rf"\b{other}\b", rest), "the wrong colour"
    order = [name for name in found if name]
    assert order == [name for name in SECTIONS if name in order]
    assert {"Returns", "On error", "Example"} <= set(order)
    assert all(found[name] for name in order), "an empty section"


@every_hook
def test_the_return_annotation_fits_the_documentation(hook):
    """A hook that may return None says what None means; one that returns nothing says so."""
    returns = sections(hook)["Returns"]
    annotation = str(inspect.signature(hook).return_annotation)
    if annotation == "None":
        assert returns == "Nothing."
    elif annotation.endswith("| None"):
        assert "None" in returns
    else:
        assert "None" not in returns


@every_hook
def test_the_example_is_an_implementation(hook):
    """The example compiles, is marked, and the host accepts it as an implementation of this hook."""
    tree = ast.parse(sections(hook)["Example"])
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert function.name == hook.__name__
    namespace = {"hookimpl": hookimpl}
    exec(compile(tree, f"<example of {hook.__name__}>", "exec"), namespace)  # noqa: S102  # our own documentation
    plugin = type("Example", (), {hook.__name__: namespace[hook.__name__]})()
    assert list(implementations("example", plugin, PluginConfig())) == [hook.__name__]


@every_hook
def test_every_hook_has_a_test(hook):
    """For each hook there is a test that is named for it and implements it."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in Path(__file__).parent.glob("test_hooks*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [f for f in functions if f.name.startswith(f"test_{hook.__name__}_")]
    assert tests, f"no test of the hooks is named test_{hook.__name__}_..."
    for test in tests:
        assert any(f.name == hook.__name__ for f in ast.walk(test) if hasattr(f, "name")), (
            f"{test.name} does not implement {hook.__name__}"
        )
