"""A start that cannot go on: one message, also where this LiteLLM lacks what a module of the bridge is made of."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from types import ModuleType, TracebackType
from typing import Any, Final, NoReturn

from .. import __version__
from ..errors import ConfigError, PointsmanError
from ..host.versions import SUPPORTED

#: The exit code of a failed start: uvicorn's own, and the one that makes gunicorn stop instead of starting again.
EXIT_START_FAILED: Final = 3
#: Packages whose insides the bridge imports.
_USED: Final = frozenset({"litellm", "websockets"})
_OURS: Final = __package__.partition(".")[0]


def stop_the_start(err: PointsmanError) -> NoReturn:
    """Print the error and end the process: as an exception, it would be hidden among the servers' tracebacks."""
    sys.stdout.flush()
    sys.stderr.write(f"\npointsman: cannot start: {err}\n\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(EXIT_START_FAILED)


def missing_part(err: ImportError | AttributeError) -> ConfigError | None:
    """Return what an import of the bridge lacks in LiteLLM and what that is for; None where LiteLLM is not the reason."""
    if isinstance(err, ImportError):
        owner = err.name or ""
    else:
        owner = err.obj.__name__ if isinstance(err.obj, ModuleType) else str(getattr(err.obj, "__module__", ""))
    package, _, inside = owner.partition(".")
    if package not in _USED or (isinstance(err, ModuleNotFoundError) and not inside):
        return None
    module = _importing(err.__traceback__)
    purpose = str(module.get("__doc__") or "").strip().partition("\n")[0].rstrip(".:")
    return ConfigError(
        f"LiteLLM {importlib.metadata.version('litellm')} is not the LiteLLM that Pointsman {__version__} expects: {err}; "
        f'{module.get("__name__")} needs it ("{purpose}"); install a version that Pointsman supports: {SUPPORTED}'
    )


def _importing(trace: TracebackType | None) -> dict[str, Any]:
    """Return the names of the module of ours that was being imported."""
    found: dict[str, Any] = {}
    while trace is not None:
        names = trace.tb_frame.f_globals
        if str(names.get("__name__")).partition(".")[0] == _OURS:
            found = names
        trace = trace.tb_next
    return found
