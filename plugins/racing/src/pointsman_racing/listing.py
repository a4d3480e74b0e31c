"""What a virtual model can do, and whether it can do it now: for ``GET /v1/models`` and the admin surface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pointsman.types import SignalStatus

from .field import members

if TYPE_CHECKING:
    from pointsman.plugin import Catalog, Signals
    from pointsman.types import Deployment

    from .book import Book
    from .config import CandidateConfig, VirtualModel

#: Capability to the field of LiteLLM's model map that tells it.
_FROM_MAP: Final = {
    "tools": "supports_function_calling",
    "structured_output": "supports_response_schema",
    "vision": "supports_vision",
    "reasoning": "supports_reasoning",
}
_CHAT_MODES: Final = frozenset({"chat", "responses", "completion"})
_CONTEXT: Final = ("max_input_tokens", "max_output_tokens")


def capabilities(deployments: Sequence[Deployment]) -> dict[str, bool]:
    """Return what every deployment can do; one of which it is not known counts as one that cannot.

    Streams and responses need nothing of the model: the gateway translates, for every model that chats.
    """
    chats = bool(deployments) and all(str(d.info.get("mode", "chat")) in _CHAT_MODES for d in deployments)
    found = {"streaming": chats, "responses": chats}
    for name, key in _FROM_MAP.items():
        found[name] = bool(deployments) and all(d.info.get(key) is True for d in deployments)
    return found


def entry(model: VirtualModel, catalog: Catalog) -> dict[str, object]:
    """Return the fields of a virtual model's entry in ``GET /v1/models``."""
    deployments = all_members(model.candidates, catalog)
    able = capabilities(deployments)
    info: dict[str, object] = {"capabilities": able}
    info.update({key: able[name] for name, key in _FROM_MAP.items()})
    for key in _CONTEXT:
        sizes = [d.info.get(key) for d in deployments]
        if sizes and all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
            info[key] = min(size for size in sizes if isinstance(size, int))
    if model.display_name:
        info["display_name"] = model.display_name
    if model.description:
        info["description"] = model.description
    return info


def all_members(candidates: Sequence[CandidateConfig], catalog: Catalog) -> list[Deployment]:
    """Return the deployments of all candidates, each once."""
    return list({d.id: d for candidate in candidates for d in members(candidate, catalog)}.values())


def healthy(deployment_id: str, book: Book, signals: Signals, now: float) -> bool:
    """Say whether a deployment can serve now, by what races have seen and by the latest signal, if there is one."""
    signal = signals.get(deployment_id)
    return book.healthy(deployment_id, now) and (signal is None or signal.status_at(now) is not SignalStatus.EXHAUSTED)


def candidate_json(
    candidate: CandidateConfig, catalog: Catalog, book: Book, is_healthy: Callable[[str], bool], now: float
) -> dict[str, Any]:
    """Return a candidate with the figures of its deployments."""
    found = members(candidate, catalog)
    rows = [{**book.show(d.id, now), "healthy": is_healthy(d.id)} for d in found]
    return {
        "target": candidate.target,
        "model": candidate.model,
        "priority": candidate.priority,
        "weight": candidate.weight,
        "healthy": any(row["healthy"] for row in rows),
        "deployments": rows,
    }
