"""The table of attributes in ``examples/tracing/ATTRIBUTES.md``, and the attributes that the code sets."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = ROOT / "examples" / "tracing" / "ATTRIBUTES.md"
_ROW: Final = re.compile(r"^\| `([a-z_.*]+)` \|", re.MULTILINE)
#: What a module that sets attributes of spans contains.
_SETS: Final = re.compile(
    r"set_attributes?\(|add_event\(|start_span\(|tracing\.(?:set|event|end|start|link)\(|def \w*attributes\(|LINK: Final"
)
_NAME: Final = re.compile(r"(?:pointsman|gen_ai|http|url|server|error|litellm)(?:\.[a-z][a-z0-9_]*)+")
_PREFIX: Final = re.compile(r"(?:pointsman|gen_ai)(?:\.[a-z][a-z0-9_]*)+[._]")
#: Metrics have a table of their own.
_OF_METRICS: Final = frozenset({"metrics.py", "instruments.py", "observing.py", "measuring.py"})
#: What OpenTelemetry and Jaeger add themselves.
_THEIRS: Final = ("otel.*", "span.kind", "error", "internal.*", "sampler.*", "w3c.*")


def documented() -> frozenset[str]:
    """Return the names in the table; ``*`` stands for any text."""
    return frozenset(_ROW.findall(TABLE.read_text(encoding="utf-8")))


def is_documented(name: str, table: frozenset[str]) -> bool:
    """Return whether an attribute that was seen is in the table, or is none of ours."""
    return any(fnmatchcase(name, pattern) for pattern in (*table, *_THEIRS))


def in_code() -> dict[str, list[str]]:
    """Return the names that the code sets, each with the modules that do; ``*`` stands for what is computed."""
    found: dict[str, list[str]] = {}
    for path in sorted([*ROOT.glob("hookspecs/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]):
        text = path.read_text(encoding="utf-8")
        if path.name in _OF_METRICS or not _SETS.search(text):
            continue
        for name in _names(ast.parse(text)):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def _names(tree: ast.AST) -> set[str]:
    found, parts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            first = node.values[0]
            if isinstance(first, ast.Constant) and _PREFIX.fullmatch(str(first.value)):
                found.add(f"{first.value}*")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getLogger":
            parts |= {id(value) for value in node.args}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in parts)
    return found | {n.value for n in constants if isinstance(n.value, str) and _NAME.fullmatch(n.value)}
