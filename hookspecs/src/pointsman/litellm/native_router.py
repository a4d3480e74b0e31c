"""LiteLLM's native router, from 1.109 on: it decides in Rust and asks Python for each step of a call.

A driver answers the steps of one call. Two of them matter to a route that a plugin executes: ``pre_route``, which may answer
a pick with a deployment of its own, and ``attempt``, which calls the picked deployment. The plugin runs in the first, before
the router looks for a deployment, as it does within the attempts of the older router; the second then reports what became
of it. So retries, retry policies and fallbacks go on from there, and nothing is recorded against a deployment twice.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

#: Whether the router is the native one, which does not call the methods that its predecessor consisted of.
NATIVE_ROUTER: Final = importlib.util.find_spec("litellm.router_rust") is not None
#: What a pick is answered with when a plugin has executed the route: no deployment of the configuration.
_EXECUTED: Final = "pointsman-executed"
#: A driver's own attributes: the call's arguments, its answer, and which arguments the answer is for.
_REQUEST, _RESPONSE, _SERVED = "_request", "_last_response", "_served"
#: A driver's method that returns the answer to an ``attempt`` step that has failed.
FAILED: Final = "_failed"


#: Where LiteLLM keeps it, for messages.
WHERE: Final = "litellm.router_rust.core"


def classes() -> tuple[Any, Any]:
    """Return the classes of the native router: the one of its core, and the one of its drivers; None where one is missing."""
    try:
        module = importlib.import_module(WHERE)
    except ImportError:
        # What is done without them is reported with each of their methods.
        return None, None
    return getattr(module, "RustCore", None), getattr(module, "_Driver", None)


def fault_of_drivers(init: Any) -> str | None:
    """Return what is wrong with the class of drivers, as the end of a sentence, by its ``__init__``; None when it fits."""
    known = getattr(getattr(init, "__code__", None), "co_names", ())
    missing = [name for name in (_REQUEST, _RESPONSE, _SERVED) if name not in known]
    return f"sets no {', '.join(missing)}" if missing else None


@dataclass(frozen=True, slots=True)
class Hop:
    """What the fallbacks of a call have come to: the router keeps it to itself, and the older one in the call's arguments.

    Attributes:
        order: The ``order`` that is to be tried, where the fallback is to the next one of the same group; else None.
        elsewhere: Whether the fallback is to the deployments of the same group that have not failed yet.
        params: What the fallbacks that a client gives as dictionaries change in the request.
    """

    order: int | None = None
    elsewhere: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    def after(self, driver: Any, step: Mapping[str, Any]) -> Self:
        """Return it after the fallbacks that a driver's step tells of."""
        hop = self
        for event in step.get("events") or ():
            if event.get("kind") != "fallback":
                continue
            order = event.get("order")
            same = event.get("from") == event.get("to")
            given = getattr(driver, _REQUEST).get("fallbacks")
            target = next((t for t in given or () if isinstance(t, Mapping) and t.get("model") == event.get("to")), {})
            hop = type(self)(order, same and order is None, {**hop.params, **target})
        return hop


def arguments_of(driver: Any, step: Mapping[str, Any], hop: Hop, skipped: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of the call that a driver makes, for the model group of a step.

    Args:
        driver: The driver.
        step: Its step before it picks a deployment.
        hop: What the call's fallbacks have come to.
        skipped: Ids of deployments that the call is not to try again while there are others.
    """
    arguments = {**getattr(driver, _REQUEST), **hop.params, "model": step.get("model")}
    if hop.order is not None:
        arguments["_target_order"] = hop.order
    if skipped:
        arguments["_retry_skipped_deployment_ids"] = skipped
    return arguments


def executed_pick(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a ``pre_route`` step whose attempt a plugin has made."""
    group = str(step.get("model"))
    return {"model_name": group, "litellm_params": {"model": group}, "model_info": {"id": _EXECUTED}}


def answered(driver: Any, step: Mapping[str, Any], answer: Any) -> Mapping[str, Any]:
    """Return the answer to an ``attempt`` step that a plugin has made with success; its calls have counted its usage."""
    setattr(driver, _RESPONSE, answer)
    setattr(driver, _SERVED, (str(step.get("model")), {**getattr(driver, _REQUEST), "model": step.get("model")}))
    return {"ok": True, "total_tokens": 0, "deferred": True, "tracks_usage": False}


def failed(driver: Any, step: Mapping[str, Any], error: Exception) -> Mapping[str, Any]:
    """Return the answer to an ``attempt`` step that a plugin has failed to make; its calls have recorded their failures."""
    return {**getattr(driver, FAILED)(step, {}, None, error), "recorded": True}
