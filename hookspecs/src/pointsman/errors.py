"""Every error that Pointsman raises deliberately.

::

    PointsmanError
    ├── ConfigError            the configuration is wrong; stops the start
    ├── PluginError            a plugin is at fault (carries its name)
    │   ├── PluginLoadError    it cannot be found, imported or built; stops the start
    │   ├── HookSignatureError an implementation is misspelt, wrongly coloured or wrongly typed; stops the start
    │   └── HookError          an implementation failed or took too long during traffic
    ├── StoreError             the state store
    │   ├── StoreUnavailable   cannot be reached or written
    │   └── StoreCorrupt       holds a row that Pointsman does not write
    ├── UpstreamError          a plugin's own call to a deployment failed
    └── AdminError             an admin request that cannot be carried out (has an HTTP status)
        ├── InvalidInput       422: a field is missing or wrong (carries the field's name)
        ├── NotFound           404
        └── Conflict           409

Messages say what is wrong, where, and what to do. They never contain a key, a prompt or an answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_NEAR_RATIO: Final = 0.6
#: Some thirty years.
_MOST_RETRY_AFTER_S: Final = 10**9


class PointsmanError(Exception):
    """Base of all errors of Pointsman."""


class ConfigError(PointsmanError):
    """The ``pointsman:`` section (or an environment variable it needs) is wrong."""


class PluginError(PointsmanError):
    """A plugin is at fault.

    Args:
        plugin: The plugin's name as written in the configuration.
        message: What happened and what to do.
    """

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"plugin {plugin!r}: {message}")
        self.plugin = plugin


class PluginLoadError(PluginError):
    """The plugin cannot be found, imported, configured or built."""


class HookSignatureError(PluginError):
    """A hook implementation does not fit its specification."""


class HookError(PluginError):
    """A hook implementation failed during traffic.

    Args:
        plugin: The plugin's name.
        hook: The hook's name, for example ``pre_route``.
        request_id: The request it happened on, or None.
        message: What happened.
    """

    def __init__(self, plugin: str, hook: str, request_id: str | None, message: str) -> None:
        where = (f"hook {hook!r}" if hook.isidentifier() else hook) + (f", request {request_id}" if request_id else "")
        super().__init__(plugin, f"{where}: {message}")
        self.hook = hook
        self.request_id = request_id


class StoreError(PointsmanError):
    """The state store failed."""


class StoreUnavailable(StoreError):
    """The state store cannot be reached, opened or written."""


class StoreCorrupt(StoreError):
    """The state store holds a row that Pointsman does not write (for example a pickle)."""


class UpstreamError(PointsmanError):
    """A plugin's own call (hedge, mirror, probe, judge) failed.

    Args:
        message: What happened; no secrets.
        status: The provider's HTTP status, or None when there was no answer.
        error_class: Stable class of the error: ``rate_limit``, ``auth``, ``timeout``, ``server``, ``client``,
            ``content_policy``, ``connection`` or ``unknown``.
        retry_after_s: The wait that the provider asked for, in seconds, or None.

    Raises:
        TypeError, ValueError: no HTTP answer can be made of it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_class: str = "unknown",
        retry_after_s: float | None = None,
    ) -> None:
        if status is not None and not isinstance(status, int):
            raise TypeError(f"an UpstreamError's status must be an int or None, not {status!r:.100}")
        if retry_after_s is not None and not 0 <= retry_after_s <= _MOST_RETRY_AFTER_S:
            raise ValueError(
                f"an UpstreamError's retry_after_s must be a number of seconds, not {retry_after_s!r:.100}"
            )
        super().__init__(message)
        self.status = status
        self.error_class = error_class
        self.retry_after_s = retry_after_s


class AdminError(PointsmanError):
    """An admin request that cannot be carried out.

    Args:
        message: What is wrong and what to do.
        param: The offending field of the request, or None.
    """

    status = 400
    code = "bad_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidInput(AdminError):
    """A field is missing, unknown or has a value that is not allowed."""

    status = 422
    code = "invalid_input"


class NotFound(AdminError):
    """The object that the request names does not exist."""

    status = 404
    code = "not_found"


class Conflict(AdminError):
    """The request conflicts with the current state."""

    status = 409
    code = "conflict"


def nearest(name: str, known: Iterable[str], *, cutoff: float = _NEAR_RATIO) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty text.

    Args:
        name: What was written.
        known: What could have been meant.
        cutoff: How alike they must be, 0 to 1.
    """
    match = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=cutoff)
    return f" (did you mean {match[0]!r}?)" if match else ""
