"""What every plugin must pass.

::

    class TestContract(ContractSuite):
        info = plugin
        config = {"limit": 3}
        bad_configs = [({"limit": -1}, "limit")]

Each test says in one line what it proves. The suite needs nothing from the author's pytest: it runs its own event
loops, fake clocks and memory stores.
"""

from __future__ import annotations

from typing import Any

from ...plugin import PluginInfo
from .base import ContractViolation
from .cancelling import CancellingContract
from .frugality import FrugalContract
from .life import LifeContract
from .settling import SettlingContract
from .surface import SurfaceContract
from .traffic import TrafficContract


class ContractSuite(
    LifeContract, TrafficContract, SettlingContract, CancellingContract, SurfaceContract, FrugalContract
):
    """Derive from it, in a class whose name starts with ``Test``.

    Attributes:
        info: The plugin.
        config: A section of the configuration that works.
        bad_configs: Sections that must be refused, each with a word that the message must contain.
        deployments: What the gateway can serve. The first one's model group is also probed.
        model: A model that the plugin lets through.
        identity: A caller that the plugin lets through, unless ``api_key`` is given.
        api_key: A key that the plugin's ``authenticate`` knows, or None.
        headers: Request headers of that caller.
        body: Its request.
        keeps_request_keys: The plugin keeps something for each request for ever, and means to.
        remembers_requests: Requests that the plugin remembers in memory, at most; 0 where it forgets them when they are settled.
        forgets_within_s: Seconds within which it forgets a request that was not answered.
        held_s: A hook that holds the event loop for this long is ended, in seconds, and the plugin's other tests are skipped; its
            construction, start and end may take 20 times as long.
        background_s: Seconds that the clock moves before two worlds are compared after a restart, for a plugin that keeps what
            it has seen in the background; 0 where ``settle`` or the shutdown does.
        routes_without_body: Paths of admin routes that ignore the body; all others refuse a malformed one.
        streaming_routes: Paths of admin routes whose answer has no end.

    Override ``prepare`` to register, create or activate what the plugin needs before it lets a request through.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Say once what is missing, instead of once a test.

        Raises:
            TypeError: there is no ``info``.
        """
        super().__init_subclass__(**arguments)
        if not isinstance(getattr(cls, "info", None), PluginInfo):
            raise TypeError(f"{cls.__name__} needs the plugin under test: info = <its PluginInfo>")


__all__ = ["ContractSuite", "ContractViolation"]
