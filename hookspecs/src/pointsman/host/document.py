"""A LiteLLM configuration file as LiteLLM reads it: YAML, with the files under ``include`` merged in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ..errors import ConfigError

INCLUDE: Final = "include"


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a configuration file and what it includes.

    As in LiteLLM, lists of an included file are appended and everything else in it replaces what was there, at the top
    level only; an included file is looked for beside the file that names it, then beside the first one.

    Raises:
        ConfigError: a file cannot be read, is not YAML, or is not a mapping.
    """
    root = Path(path)
    document = _load(root)
    read = {root.resolve()}
    waiting = [(name, root) for name in _included(document, root)]
    while waiting:
        name, declared_in = waiting.pop(0)
        file = declared_in.parent / name
        if not file.exists() and (beside_root := root.parent / name).exists():
            file = beside_root
        if file.resolve() in read:
            continue
        read.add(file.resolve())
        more = _load(file)
        waiting += [(other, file) for other in _included(more, file)]
        for key, value in more.items():
            both_lists = isinstance(value, list) and isinstance(document.get(key), list)
            document[key] = [*document[key], *value] if both_lists else value
    document.pop(INCLUDE, None)
    return document


def _load(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read: {err.strerror or err}") from err
    except yaml.MarkedYAMLError as err:
        # The library's own text quotes the line, which may hold a key.
        mark = err.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}: is not YAML{at}: {err.problem or err.context}") from err
    except (yaml.YAMLError, ValueError) as err:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(document, Mapping):
        raise ConfigError(f"{file}: is not a LiteLLM configuration: it must be a mapping with keys such as model_list")
    return dict(document)


def _included(document: Mapping[str, Any], file: Path) -> list[str]:
    names = document.get(INCLUDE, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{file}: {INCLUDE}: must be a list of file names")
    return names
