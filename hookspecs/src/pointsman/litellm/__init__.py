"""The bridge to the LiteLLM proxy: the only code that imports litellm.

In the proxy's configuration::

    litellm_settings:
      callbacks: ["pointsman.litellm.handler"]

and, for tenants without a database::

    general_settings:
      custom_auth: pointsman.litellm.custom_auth

Importing this package does nothing. Access to ``handler``, as LiteLLM does inside its start-up, reads the ``pointsman:``
section, loads the plugins and installs the bridge into the running proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bridge import custom_auth
    from .callbacks import Callbacks

    handler: Callbacks

__all__ = ["custom_auth", "handler"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import bridge  # noqa: PLC0415  # importing litellm takes seconds; only the proxy needs it
    except (ImportError, AttributeError) as err:
        from .starting import missing_part, stop_the_start  # noqa: PLC0415  # as above

        if (missing := missing_part(err)) is None:
            raise
        stop_the_start(missing)
    return bridge.install() if name == "handler" else bridge.custom_auth
