"""What a patch of LiteLLM is: a target, what it has to look like, and what is lost without it."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import litellm

from ... import __version__
from ...errors import ConfigError
from ...host.versions import SUPPORTED

log: Final = logging.getLogger("pointsman")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patch:
    """One place in LiteLLM that the bridge uses or replaces.

    Attributes:
        owner: The object that has the attribute.
        name: The attribute.
        where: How messages name the owner.
        expected: Returns what is wrong with the attribute's value, as the end of a sentence; None when it fits.
        consequence: What does not work without it.
        required: Whether the start stops without it.
        replace: Returns the new value for the old one; None where the attribute is only used.
    """

    owner: Any
    name: str
    where: str
    expected: Callable[[Any], str | None]
    consequence: str
    required: bool = False
    replace: Callable[[Any], Any] | None = None

    def fault(self) -> str | None:
        """Return why the target does not fit and what that means; None when it fits."""
        missing = object()
        target = getattr(self.owner, self.name, missing)
        try:
            wrong = "is missing" if target is missing else self.expected(target)
        except (TypeError, ValueError):
            # What is compiled may not say which parameters it has.
            wrong = "has parameters that cannot be looked at"
        return None if wrong is None else f"{self.where}.{self.name} {wrong}: {self.consequence}"

    def apply(self) -> None:
        """Replace the target, if it is to be replaced."""
        if self.replace is not None:
            setattr(self.owner, self.name, self.replace(getattr(self.owner, self.name)))


def faults(patches: Iterable[Patch]) -> dict[Patch, str]:
    """Return the patches whose targets do not fit, each with the reason and the consequence."""
    return {patch: fault for patch in patches if (fault := patch.fault()) is not None}


def report(wrong: Mapping[Patch, str]) -> None:
    """Log what does not fit, in one error.

    Raises:
        ConfigError: one of them is required.
    """
    if not wrong:
        return
    found = f"LiteLLM {litellm_version()} is not the LiteLLM that Pointsman {__version__} expects"
    advice = f"install a version that Pointsman supports: {SUPPORTED}"
    if required := [fault for patch, fault in wrong.items() if patch.required]:
        raise ConfigError(f"{found}: {'; '.join(required)}; {advice}")
    log.error("%s: %s; %s", found, "; ".join(wrong.values()), advice)


def apply(patches: Sequence[Patch]) -> Sequence[Patch]:
    """Check all targets, report those that do not fit, and apply and return the patches of the others.

    Raises:
        ConfigError: a required target does not fit; nothing has been applied then.
    """
    wrong = faults(patches)
    report(wrong)
    fitting = [patch for patch in patches if patch not in wrong]
    for patch in fitting:
        patch.apply()
    return fitting


def litellm_version() -> str:
    """Return the version of the LiteLLM that runs."""
    return str(getattr(litellm, "__version__", None) or importlib.metadata.version("litellm"))


def anything(_: Any) -> str | None:
    """Accept any value."""
    return None


def a_function(*parameters: str) -> Callable[[Any], str | None]:
    """Accept a function that has these parameters."""

    def fault(target: Any) -> str | None:
        if not callable(target):
            return "is not a function"
        return lacking(target, parameters)

    return fault


def a_reader(target: Any) -> str | None:
    """Accept a function that returns a mapping and asks for nothing."""
    if not callable(target):
        return "is not a function"
    try:
        value = target()
    except TypeError:
        return "asks for arguments"
    return None if isinstance(value, Mapping) else "returns no mapping"


def an_async_function(*parameters: str) -> Callable[[Any], str | None]:
    """Accept an async function or generator that has these parameters."""

    def fault(target: Any) -> str | None:
        if not (inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)):
            return "is not an async function"
        return lacking(target, parameters)

    return fault


def a_path(target: Any) -> str | None:
    """Accept the path of a file, or none."""
    return None if target is None or isinstance(target, str | os.PathLike) else "is no path"


def a_number(target: Any) -> str | None:
    """Accept an integer."""
    return None if isinstance(target, int) else "is not a number"


def a_pattern(target: Any) -> str | None:
    """Accept a compiled pattern, or what is used like one."""
    return None if callable(getattr(target, "sub", None)) else "is no compiled pattern"


def a_hook_of(ours: Any) -> Callable[[Any], str | None]:
    """Accept a hook whose parameters ours has, too."""

    def fault(theirs: Any) -> str | None:
        known = set(inspect.signature(ours).parameters)
        unknown = [name for name in inspect.signature(theirs).parameters if name not in known]
        return f"has parameters that Pointsman does not know ({', '.join(unknown)})" if unknown else None

    return fault


def lacking(target: Any, parameters: Sequence[str]) -> str | None:
    """Return which of these parameters a function lacks, as the end of a sentence; None when it has all."""
    if not parameters:
        return None
    known = inspect.signature(target).parameters
    missing = [name for name in parameters if name not in known]
    return f"has no parameter {', '.join(map(repr, missing))}" if missing else None
