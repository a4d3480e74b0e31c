"""The kit for plugin authors.

``Harness`` runs requests through a real host in this process, with a fake clock and a fake gateway; ``ContractSuite``
holds what every plugin must pass, ``TacticContract``, ``SinkContract`` and ``DialectContract`` what extends one;
``no_leaks`` finds what was left behind. For whole systems there are ``pointsman.testing.provider``, an HTTP server that
answers like providers, ``pointsman.testing.proxy``, a real LiteLLM proxy, and ``eventually``, which waits for what it does.

Everything is imported when it is first used: this package costs nothing where it is not needed, and only
``pointsman.testing.proxy`` ever starts LiteLLM.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .clock import FakeClock
    from .contract import ContractSuite
    from .drive import Result
    from .fakes import DEFAULT_DEPLOYMENTS, deployment
    from .gateway import FakeGateway
    from .harness import Harness
    from .leaks import LeakError, no_leaks
    from .parts import DialectContract, SinkContract, TacticContract
    from .script import Step, breaks, cancel, disconnect, error, never, ok
    from .store import FragileStore
    from .waiting import eventually

_HOMES: Final = {
    "DEFAULT_DEPLOYMENTS": "fakes",
    "ContractSuite": "contract",
    "DialectContract": "parts",
    "FakeClock": "clock",
    "FakeGateway": "gateway",
    "FragileStore": "store",
    "Harness": "harness",
    "LeakError": "leaks",
    "Result": "drive",
    "SinkContract": "parts",
    "Step": "script",
    "TacticContract": "parts",
    "breaks": "script",
    "cancel": "script",
    "deployment": "fakes",
    "disconnect": "script",
    "error": "script",
    "eventually": "waiting",
    "never": "script",
    "no_leaks": "leaks",
    "ok": "script",
}

__all__ = [
    "DEFAULT_DEPLOYMENTS",
    "ContractSuite",
    "DialectContract",
    "FakeClock",
    "FakeGateway",
    "FragileStore",
    "Harness",
    "LeakError",
    "Result",
    "SinkContract",
    "Step",
    "TacticContract",
    "breaks",
    "cancel",
    "deployment",
    "disconnect",
    "error",
    "eventually",
    "never",
    "no_leaks",
    "ok",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
