"""The available kinds of servers: built-in ones and those of installed distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, Final

from pointsman.errors import ConfigError, nearest
from pointsman.plugin import Extensions, extensions

from .base import ModelServer
from .generic import Generic
from .llama_cpp import LlamaCpp
from .llama_swap import LlamaSwap
from .lm_studio import LmStudio
from .ollama import Ollama
from .vllm import Vllm

ENTRY_POINTS: Final = "pointsman_residency.servers"

BUILT_IN: Final[Mapping[str, type[ModelServer]]] = {
    "generic": Generic,
    "llama_cpp": LlamaCpp,
    "llama_swap": LlamaSwap,
    "lm_studio": LmStudio,
    "ollama": Ollama,
    "vllm": Vllm,
}


def installed(entries: Iterable[EntryPoint] | None = None) -> Extensions[type[ModelServer]]:
    """Return all kinds by name; one of a distribution that cannot be used is left out until it is named.

    Args:
        entries: Entry points; by default those of the group ``pointsman_residency.servers``.
    """
    return extensions("residency", ENTRY_POINTS, ModelServer, BUILT_IN, entries)  # type: ignore[type-abstract]  # nothing is made of it


def unknown(kind: str, kinds: Mapping[str, type[ModelServer]], settings: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a server of the configuration, or None.

    Args:
        kind: The name of its kind.
        kinds: The available ones.
        settings: Its further keys.
    """
    try:
        found = kinds.get(kind)
    except ConfigError as err:
        return str(err)
    if found is None:
        known = sorted(kinds)
        return f"there is no kind {kind!r}{nearest(kind, known)}; available: {', '.join(known)}"
    for key in settings:
        if key not in found.keys:
            return (
                f"{key}: unknown key{nearest(key, found.keys)}; settings of {kind!r}: {', '.join(found.keys) or 'none'}"
            )
    return None
