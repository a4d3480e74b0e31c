"""A plugin's implementations of the hooks, found and checked by pluggy against the specifications."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from types import FunctionType, MethodType
from typing import Any, Final

import pluggy

from .. import specs
from ..errors import HookSignatureError, nearest
from ..plugin import OnFailure, PluginConfig
from .isolation import Timing

log: Final = logging.getLogger("pointsman")

HOOK_NAMES: Final = tuple(hook.__name__ for hook in specs.HOOKS)

_METHODS: Final = (FunctionType, MethodType, staticmethod, classmethod)
_ASYNC: Final = {hook.__name__: inspect.iscoroutinefunction(hook) for hook in specs.HOOKS}
#: Hooks that are not called for a while when they keep failing. The others must not miss a request.
_SUSPENDED: Final = frozenset(
    {
        "pre_route",
        "select",
        "before_attempt",
        "transform_request",
        "execute",
        "first_token",
        "post_response",
        "on_error",
        "transform_response",
        "transform_stream",
    }
)
#: How long a hook may take where the plugin's ``deadline_ms`` says nothing, in seconds. Hooks that are not named have none.
_DEADLINES_S: Final = {
    "authenticate": 2.0,
    "pre_route": 5.0,
    "before_attempt": 5.0,
    "transform_request": 5.0,
    "transform_response": 5.0,
    "transform_stream": 5.0,
}
#: How long a hook may take whatever ``deadline_ms`` says, in seconds.
_FIXED_DEADLINES_S: Final = {"settle": 10.0, "on_event": 10.0}
_ARGS: Final = {hook.__name__: tuple(inspect.signature(hook).parameters) for hook in specs.HOOKS}


@dataclass(frozen=True, slots=True)
class Impl:
    """One plugin's implementation of one hook, ready to call with those arguments of the specification that it takes.

    Attributes:
        plugin: The plugin.
        call: The implementation: ``impl.call(*args[impl.takes])``.
        takes: Which arguments it takes.
        on_failure: What becomes of a request when it fails.
        deadline_s: How long it may take, in seconds; None sets no limit.
        hook: The hook.
        suspend_after: Failures in a row after which it is switched off for ``suspend_s``; None never switches it off.
        suspend_s: For how long, in seconds.
        timing: What its calls take.
    """

    plugin: str
    call: Callable[..., Any]
    on_failure: OnFailure = "allow"
    deadline_s: float | None = None
    hook: str = ""
    suspend_after: int | None = None
    suspend_s: float = 30.0
    timing: Timing = field(default_factory=lambda: Timing("", ""), compare=False)
    takes: slice = field(default_factory=lambda: slice(None), compare=False)

    def __call__(self, *args: object) -> Any:
        """Call it with the specification's arguments, in order."""
        return self.call(*args[self.takes])


def implementations(name: str, instance: object, config: PluginConfig) -> dict[str, Impl]:
    """Return a plugin's hook implementations by hook, checked against the specifications.

    Args:
        name: The plugin's name.
        instance: The plugin object.
        config: Its validated configuration.

    Raises:
        HookSignatureError: a hook is misspelt, has the wrong colour, unknown arguments or pluggy ordering options.
    """
    _check_methods(name, instance)
    manager = pluggy.PluginManager(specs.PROJECT)
    manager.add_hookspecs(specs)
    try:
        with warnings.catch_warnings(record=True) as deprecations:
            warnings.simplefilter("always", DeprecationWarning)
            manager.register(instance, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as err:
        hook = next((h for h in HOOK_NAMES if f"'{h}'" in str(err) or f"{h}(" in str(err)), "unknown")
        allowed = ", ".join(_ARGS.get(hook, ())) or "no arguments"
        raise HookSignatureError(
            name, f"hook {hook!r} does not fit its specification (allowed: {allowed}): {str(err).splitlines()[-1]}"
        ) from err
    for deprecation in deprecations:
        log.warning("plugin %r: %s", name, deprecation.message)
        # In the tests of its author too, whatever they do with warnings.
        warnings.warn(f"plugin {name!r}: {deprecation.message}", deprecation.category, stacklevel=2)
    found: dict[str, Impl] = {}
    for hook in HOOK_NAMES:
        for impl in getattr(manager.hook, hook).get_hookimpls():
            call, takes = _adapt(impl.function, impl.argnames, _ARGS[hook])
            found[hook] = Impl(
                plugin=name,
                call=call,
                takes=takes,
                on_failure=config.on_failure,
                deadline_s=_deadline_s(hook, config),
                hook=hook,
                suspend_after=config.suspend_after if config.on_failure == "allow" and hook in _SUSPENDED else None,
                suspend_s=config.suspend_s,
                timing=Timing(name, hook),
            )
    return found


def _deadline_s(hook: str, config: PluginConfig) -> float | None:
    if hook in _DEADLINES_S and config.deadline_ms is not None:
        return config.deadline_ms / 1000
    return _DEADLINES_S.get(hook) or _FIXED_DEADLINES_S.get(hook)


def _check_methods(name: str, instance: object) -> None:
    """Check what pluggy does not: colour, spelling, missing markers, ordering options."""
    for attribute, method in _methods(name, instance):
        if not hasattr(method, f"{specs.PROJECT}_impl"):
            if attribute in HOOK_NAMES:
                raise HookSignatureError(
                    name, f"its method {attribute!r} has a hook's name but is not marked @hookimpl"
                )
            continue
        options = getattr(method, f"{specs.PROJECT}_impl")
        if attribute not in HOOK_NAMES:
            if options.get("optionalhook"):
                continue  # a hook of another version
            raise HookSignatureError(
                name,
                f"there is no hook {attribute!r}{nearest(attribute, HOOK_NAMES)}. Hooks: {', '.join(HOOK_NAMES)}.",
            )
        if inspect.iscoroutinefunction(method) != _ASYNC[attribute]:
            want, have = ("async", "a plain function") if _ASYNC[attribute] else ("a plain function", "async")
            raise HookSignatureError(name, f"hook {attribute!r} must be {want}; the implementation is {have}")
        if by_name := [one.name for one in inspect.signature(method).parameters.values() if _must_be_named(one)]:
            raise HookSignatureError(
                name,
                f"hook {attribute!r} takes {', '.join(by_name)} by name only; the host passes arguments by position",
            )
        if forbidden := [key for key in ("tryfirst", "trylast", "wrapper", "hookwrapper") if options.get(key)]:
            raise HookSignatureError(
                name,
                f"hook {attribute!r} sets {', '.join(forbidden)}; the order is that of the configuration's plugin list",
            )


def _must_be_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty


def _methods(name: str, instance: object) -> Iterator[tuple[str, Any]]:
    """Yield the methods by name, without running a property: those may need a plugin that has been started.

    Raises:
        HookSignatureError: what is marked as a hook is something else, which pluggy leaves out.
    """
    for attribute in dir(instance):
        found = inspect.getattr_static(instance, attribute, None)
        if isinstance(found, _METHODS):
            yield attribute, getattr(instance, attribute)
        elif isinstance(inspect.getattr_static(found, f"{specs.PROJECT}_impl", None), dict):
            raise HookSignatureError(
                name,
                f"{attribute!r} is marked @hookimpl and is a {type(found).__name__}; a hook is a function or a method",
            )


def is_async(hook: str) -> bool:
    """Return whether a hook is a coroutine function."""
    return _ASYNC[hook]


def _adapt(
    function: Callable[..., Any], wanted: Sequence[str], given: Sequence[str]
) -> tuple[Callable[..., Any], slice]:
    """Return what to call with which of the specification's arguments.

    Args:
        function: The implementation.
        wanted: Its arguments.
        given: The specification's.
    """
    first = given.index(wanted[0]) if wanted else 0
    takes = slice(first, first + len(wanted))
    if tuple(wanted) == tuple(given[takes]):  # as nearly all
        return function, takes
    pick = itemgetter(*map(given.index, wanted))
    return lambda *args: function(*pick(args)), slice(None)
