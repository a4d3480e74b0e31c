"""What is public: the page names exactly the names that the modules have.

``python hookspecs/tests/test_public.py > hookspecs/PUBLIC.md`` writes the page.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import ParamSpec, TypeVar

PAGE = Path(__file__).parents[1] / "PUBLIC.md"
MODULES = {
    "pointsman": "the names that every plugin needs",
    "pointsman.plugin": "what a plugin is, and what it is offered",
    "pointsman.specs": "the hooks; [HOOKS.md](HOOKS.md) describes them",
    "pointsman.types": "the values that hooks get and return",
    "pointsman.events": "what plugins announce to one another",
    "pointsman.errors": "every error that is raised deliberately",
    "pointsman.config": "the base of strict sections",
    "pointsman.store": "durable state",
    "pointsman.admin": "what admin routes read",
    "pointsman.client": "the HTTP client of commands",
    "pointsman.text": "printable text and durations",
    "pointsman.stats": "sketches and averages",
    "pointsman.counting": "what a prompt contains",
    "pointsman.pricing": "what an answer costs",
    "pointsman.sessions": "where clients name their session",
    "pointsman.testing": "the kit for authors",
}
HEAD = """# What is public

A plugin may rely on the names below, on the documented behaviour of the hooks, on the attributes of `pointsman.types`, and on the
surfaces that the README lists (headers, HTTP routes, command line, configuration keys, entry points). Everything else, `pointsman.host`
and `pointsman.litellm` above all, changes without notice.

* **Versions.** The second number changes when something public does. A plugin says what it is made for:
  `PluginInfo(requires=">=0.1,<0.2")`; the start refuses another version before anything else.
* **Deprecation.** What is to go is marked for at least two such versions. A hook's argument that is to go warns when a plugin that
  takes it is loaded: a line of the log, and a `DeprecationWarning` in tests.
* **New hooks.** A plugin that also runs with versions that do not have a hook yet marks it
  `@hookimpl(optionalhook=True)`: where the hook is unknown it is left out instead of refused.
* **Additions** (a hook, an argument, a field with a default, a setting) come at any time. Build values by keyword, and take only the
  arguments that you need.
"""


def names(module: str) -> list[str]:
    """Return the public names of a module: those of ``__all__``, else what it defines itself without an underscore."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return sorted(found.__all__)
    own: set[str] = set()
    for node in ast.parse(inspect.getsource(found)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(
        name
        for name in own
        if name[0] != "_" and name != "log" and not isinstance(vars(found)[name], TypeVar | ParamSpec)
    )


def page() -> str:
    """Return the page as it should be."""
    parts = [HEAD]
    for module, summary in MODULES.items():
        parts.append(
            f"## `{module}`\n\n{summary[0].upper()}{summary[1:]}.\n\n{', '.join(f'`{n}`' for n in names(module))}\n"
        )
    return "\n".join(parts)


def test_the_page_names_what_is_public() -> None:
    """Neither more nor less, so that nothing becomes public, or stops to be, without somebody seeing it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_public_names_can_be_imported() -> None:
    """Each of them is there."""
    for module in MODULES:
        found = importlib.import_module(module)
        assert [name for name in names(module) if not hasattr(found, name)] == []


if __name__ == "__main__":
    sys.stdout.write(page())
