"""Every distribution declares what it imports, and imports what it declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = sorted([ROOT / "hookspecs", *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))])
#: Which distribution has a module, where the name does not say it; the longest name counts.
PROVIDERS = {
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "pydantic_core": "pydantic",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}
#: Where what an extra brings may be imported.
HOMES = {
    ("pointsman", "grpc"): "pointsman/host/exporters.py",
    ("pointsman", "testing"): "pointsman/testing/",
    ("pointsman-residency", "nvml"): "pointsman_residency/devices.py",
    ("pointsman-billing", "kafka"): "pointsman_billing/sinks/kafka.py",
    ("pointsman-billing", "postgres"): "pointsman_billing/sinks/postgres.py",
}

every_project = pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # Of a namespace package, what is imported may be a distribution's module itself.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def provider(module: str) -> str:
    """Return the distribution that a module comes from."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in PROVIDERS:
            return PROVIDERS[name]
    return parts[0].replace("_", "-")


def imported(project: Path) -> dict[str, set[str]]:
    """Return the distributions that a project imports, with the files that do."""
    found: dict[str, set[str]] = {}
    for file in (project / "src").rglob("*.py"):
        for module in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if module.split(".")[0] not in sys.stdlib_module_names:
                found.setdefault(provider(module), set()).add(file.relative_to(project / "src").as_posix())
    return found


@every_project
def test_dependencies_are_what_is_imported(project):
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    uses = imported(project)
    uses.pop(metadata["name"], None)
    for extra, requirements in metadata.get("optional-dependencies", {}).items():
        for name in names(requirements):
            where = uses.pop(name, set())
            assert where, f"nothing imports {name} of the extra {extra!r}"
            home = HOMES[metadata["name"], extra]
            assert all(file.startswith(home) for file in where), f"{name} is imported outside {home}"
    assert set(uses) == names(metadata["dependencies"])
