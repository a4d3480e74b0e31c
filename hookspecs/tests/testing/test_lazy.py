"""The kit's names are imported when they are used, and never bring LiteLLM along."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pointsman
from pointsman import testing


def python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout  # noqa: S603  # our own


def test_importing_the_kit_imports_nothing_else():
    code = "import sys, pointsman.testing; print(sorted(m for m in sys.modules if m.startswith('pointsman')))"
    assert python(code).strip() == "['pointsman', 'pointsman.testing']"


def test_no_name_of_the_kit_imports_litellm():
    code = (
        "import sys; from pointsman.testing import *; import pointsman.testing.pytest_plugin, pointsman.testing.proxy, "
        "pointsman.testing.provider, pointsman.testing.otlp; print('litellm' in sys.modules)"
    )
    assert python(code).strip() == "False"


@pytest.mark.parametrize("module", [pointsman, testing])
def test_every_name_is_there(module):
    """All names can be had, are listed, and are those that a type checker sees; others are errors that say so."""
    assert all(getattr(module, name) is not None for name in module.__all__)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for statement in guarded.body for alias in statement.names}
    assert seen == set(module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


def test_the_names_can_be_listed():
    assert set(testing.__all__) <= set(dir(testing))
