"""What the bridge replaces in LiteLLM's routers: attempts, what follows a failure, and the choice of a deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from itertools import starmap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from litellm.router import Router

from ...types import Endpoint
from .. import native_router, router_filters
from ..call import current_call
from ..native_router import NATIVE_ROUTER
from .patch import Patch, a_function, an_async_function, apply, faults, report

if TYPE_CHECKING:
    from ..selection import Selection

Method = Callable[..., Awaitable[Any]]


#: The router's methods that the proxy calls, by endpoint. Requests to other endpoints cannot be executed by a plugin.
ROUTER_METHODS: Final[Mapping[Endpoint, str]] = MappingProxyType(
    {
        Endpoint.CHAT: "acompletion",
        Endpoint.MESSAGES: "anthropic_messages",
        Endpoint.RESPONSES: "aresponses",
        Endpoint.EMBEDDINGS: "aembedding",
    }
)


_REPLACED: Final = "_pointsman_replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterParts:
    """What is put in place of the router's methods; each function returns the new method for the old one.

    Attributes:
        attempt: For the method that makes one attempt, within retries and fallbacks.
        fallbacks: For the methods that go on after a failure.
        native_pick: For the native router's step before it picks a deployment.
        native_attempt: For the native router's step that calls the picked deployment.
    """

    attempt: Callable[[Method], Method]
    fallbacks: Callable[[Method], Method]
    native_pick: Callable[[Method], Method]
    native_attempt: Callable[[Method], Method]


def of_router(llm_router: Any, parts: RouterParts) -> tuple[Patch, ...]:
    """Return what is replaced in a router, so that a plugin may execute a route and attempts end with their error.

    Args:
        llm_router: LiteLLM's router.
        parts: What to put in place of the router's methods.
    """
    unexecuted = "no plugin can execute requests: races are plain requests"
    unnamed = "attempts whose stream fails before its first content end without the provider's error"
    if NATIVE_ROUTER:
        core, driver = native_router.classes()
        step = partial(Patch, owner=driver, where=f"{native_router.WHERE}._Driver", consequence=unexecuted)
        stream = partial(Patch, owner=core, where=f"{native_router.WHERE}.RustCore", consequence=unnamed)
        of_step, of_stream = an_async_function("step"), an_async_function("failure")
        failed = a_function("step", "deployment", "call", "error")
        return (
            step(name="pre_route", replace=parts.native_pick, expected=of_step),
            step(name="attempt", replace=parts.native_attempt, expected=of_step),
            step(name=native_router.FAILED, expected=failed),
            step(name="__init__", expected=native_router.fault_of_drivers),
            stream(name="recover_stream", replace=parts.fallbacks, expected=of_stream),
            stream(name="retry_stream", replace=parts.fallbacks, expected=of_stream),
        )
    method = partial(Patch, owner=llm_router, where="litellm.Router")
    return (
        method(
            # Within retries and fallbacks, which are the gateway's: what a plugin executes is one attempt to them.
            name="make_call",
            replace=parts.attempt,
            expected=an_async_function("original_function"),
            consequence=unexecuted,
        ),
        method(
            name="async_function_with_fallbacks_common_utils",
            replace=parts.fallbacks,
            expected=an_async_function("e"),
            consequence=unnamed,
        ),
    )


#: Of these, all have to be replaced before a plugin can execute a route.
_EXECUTING: Final = frozenset(
    {"pre_route", "attempt", native_router.FAILED, "__init__"} if NATIVE_ROUTER else {"make_call"}
)


def apply_to_router(llm_router: Any, parts: RouterParts, endpoint: Endpoint) -> bool:
    """Replace what is replaced in a router, once, and return whether a plugin can execute this endpoint's requests."""
    if llm_router is None:
        return False
    # The native router's methods are those of its class, whichever router the proxy uses.
    marked = native_router.classes()[1] if NATIVE_ROUTER else llm_router
    if marked is None:
        return False
    if not hasattr(marked, _REPLACED):
        setattr(marked, _REPLACED, frozenset(patch.name for patch in apply(of_router(llm_router, parts))))
    return endpoint in ROUTER_METHODS and getattr(marked, _REPLACED) >= _EXECUTING


def of_selection(selection: Selection) -> tuple[Patch, ...]:
    """Return what is replaced in the router's class, so that plugins choose among what LiteLLM would really serve."""
    too_early = (
        "plugins choose before LiteLLM's tags, order and context-window checks, which may then refuse the choice"
    )
    all_listed = "a file is uploaded to one deployment of its model group instead of all"

    def entry(name: str, replace: Callable[[Any], Any], *parameters: str, consequence: str = too_early) -> Patch:
        return Patch(
            owner=Router,
            name=name,
            where="litellm.Router",
            expected=an_async_function(*parameters),
            consequence=consequence,
            replace=replace,
        )

    if NATIVE_ROUTER:
        refused = Patch(
            owner=native_router.classes()[1],
            name="_pick_failed",
            where=f"{native_router.WHERE}._Driver",
            expected=a_function("event"),
            consequence="traces do not say why LiteLLM has left every deployment out",
            replace=selection.around_refused_pick,
        )
        return (entry("select", selection.around_select, "model", "kind", consequence=all_listed), refused)
    return (
        entry("async_get_healthy_deployments", selection.around_healthy, "model", "request_kwargs"),
        entry("async_get_available_deployment", selection.around_pick, "model", "request_kwargs"),
        entry(
            "async_get_available_deployment_for_pass_through",
            partial(selection.around_pick, pass_through=True),
            "model",
            "request_kwargs",
        ),
    )


def apply_to_selection(selection: Selection) -> bool:
    """Replace the router's methods that pick a deployment; return whether plugins choose after all of its filters.

    All or none: with some of them, ``select`` would run twice or never.
    """
    patches = of_selection(selection)
    if NATIVE_ROUTER:
        apply((*patches, *of_filters()))
        return False
    wrong = faults(patches)
    report(wrong)
    if wrong:
        return False
    for patch in patches:
        patch.apply()
    apply(of_filters())
    return True


def of_filters() -> tuple[Patch, ...]:
    """Return the router's filters, which are watched for the trace."""

    def entry(owner: Any, name: str, reason: str) -> Patch:
        return Patch(
            owner=owner,
            name=name,
            where="litellm.Router" if owner is Router else owner.__name__,
            expected=router_filters.fault,
            consequence=f"traces do not say of a deployment that it was left out for the reason {reason!r}",
            replace=lambda original: router_filters.watched(original, reason),
        )

    return tuple(starmap(entry, router_filters.FILTERS))


def of_cooldowns() -> Iterable[Patch]:
    """Keep from cooldowns what is no failure of a deployment that clients are sent to.

    Up to 1.108 a pick that finds no deployment is logged as a failure of the deployment that the request's record of the call
    names by then: that of the fallback that answers. From 1.109 LiteLLM leaves it out itself; there, failures of mirrors have
    to be kept out, because a ``cooldown_time`` of 0 is not read.
    """
    method = partial(Patch, owner=Router, where="litellm.Router")
    if not NATIVE_ROUTER:

        def reported(callback: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(callback)
            def reporting(self: Router, kwargs: Mapping[str, Any], *args: Any, **more: Any) -> Any:
                refused = router_filters.is_refused_pick(kwargs.get("exception"))
                return False if refused else callback(self, kwargs, *args, **more)

            return reporting

        yield method(
            name="deployment_callback_on_failure",
            expected=a_function("kwargs"),
            consequence="a group without an available deployment may put the one that answers instead into cooldown",
            replace=reported,
        )
        return

    def outside(failure_exits: Any) -> Any:
        def exits(*args: Any, **kwargs: Any) -> Any:
            found = failure_exits(*args, **kwargs)
            call = current_call.get()
            return found if call is None or call.cools_down else {**found, "outside_deployment": True}

        return exits

    yield method(
        name="failure_exits",
        expected=a_function("exception"),
        consequence="a failing mirror may put a deployment into cooldown for clients",
        replace=outside,
    )
