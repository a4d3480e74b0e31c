"""Fixtures for plugin authors; installed with the distribution as the pytest plugin ``pointsman``.

``fake_clock``       time that stands still
``harness``          a factory of ``Harness``; the disk store goes into ``tmp_path``
``leak_check``       the test fails when it leaves a task, a thread or an open file behind
``upstream_server``  a factory of HTTP servers that answer like providers; stopped at the end of the test
``proxy``            a factory of real LiteLLM proxies; stopped at the end of the test

Nothing is imported before a fixture is used, and nothing happens in a run that uses none. ``leak_check`` sees tasks
where pytest-asyncio is installed, threads and files everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .clock import FakeClock
    from .harness import Harness
    from .proxy import ProxyServer
    from .upstream import UpstreamServer


@pytest.fixture
def fake_clock() -> FakeClock:
    """Give a clock that stands still until it is moved."""
    from .clock import FakeClock  # noqa: PLC0415  # see the module's docstring

    return FakeClock()


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., Harness]:
    """Give a factory of ``Harness``, with the same arguments. Use what it returns with ``async with``."""
    from .harness import Harness  # noqa: PLC0415  # see the module's docstring

    def make(*args: Any, **kwargs: Any) -> Harness:
        kwargs.setdefault("path", tmp_path)
        return Harness(*args, **kwargs)

    return make


@pytest.fixture
def upstream_server() -> Iterator[Callable[..., UpstreamServer]]:
    """Give a factory of running ``UpstreamServer``, with the same arguments."""
    from .upstream import UpstreamServer  # noqa: PLC0415  # see the module's docstring

    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(UpstreamServer(*args, **kwargs))


@pytest.fixture
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ProxyServer]]:
    """Give a factory of running ``ProxyServer``: the LiteLLM configuration, then the same keyword arguments."""
    from .proxy import ProxyServer  # noqa: PLC0415  # see the module's docstring

    with contextlib.ExitStack() as stack:

        def start(config: Mapping[str, Any], directory: Path | None = None, **kwargs: Any) -> ProxyServer:
            return stack.enter_context(ProxyServer(config, directory or tmp_path_factory.mktemp("proxy"), **kwargs))

        yield start


if importlib.util.find_spec("pytest_asyncio") is not None:
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def leak_check() -> AsyncIterator[None]:
        """Fail the test when it leaves a task, a thread or an open file behind."""
        from .leaks import no_leaks  # noqa: PLC0415  # see the module's docstring

        async with no_leaks():
            yield

else:

    @pytest.fixture
    def leak_check() -> Iterator[None]:
        """Fail the test when it leaves a thread or an open file behind."""
        from .leaks import no_thread_leaks  # noqa: PLC0415  # see the module's docstring

        with no_thread_leaks():
            yield
