"""Fixtures for plugin authors; installed with the distribution as the pytest plugin ``pointsman``.

``fake_clock``       time that stands still
``harness``          a factory of ``Harness``; the disk store goes into ``tmp_path``
``leak_check``       the test fails when it leaves a task, a thread or an open file behind
``upstream_server``  a factory of HTTP servers that answer like providers; stopped at the end of the test
``proxy``            a factory of real LiteLLM proxies; stopped at the end of the test

With ``pointsman_warm_proxy = true`` in pytest's configuration, proxies are forks of one process of the run that has
imported LiteLLM once; see ``pointsman.testing.warm``.

A proxy that a fixture gives to several tests, and that ends by itself, fails one of them and skips the rest.

Nothing is imported before a fixture is used, and nothing happens in a run that uses none. ``leak_check`` sees tasks
where pytest-asyncio is installed, threads and files everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from .clock import FakeClock
    from .harness import Harness
    from .provider import UpstreamServer
    from .proxy import ProxyServer

_REPORTED: Final = pytest.StashKey[set[Path]]()
"""The logs of proxies whose end has failed a test already."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting."""
    parser.addini("pointsman_warm_proxy", "start proxies as forks of a process that has imported LiteLLM", type="bool")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a warm parent; it starts with the first proxy. Workers of pytest-xdist share the controller's."""
    if not config.getini("pointsman_warm_proxy") or hasattr(config, "workerinput"):
        return
    from . import warm  # noqa: PLC0415  # see the module's docstring

    directory = Path(tempfile.mkdtemp(prefix="pointsman-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    warm.prepare(directory)


def _proxies(item: pytest.Item) -> Iterator[ProxyServer]:
    """Return the proxies that a test's fixtures have given it, by themselves or as the attribute ``proxy``."""
    module = sys.modules.get(f"{__package__}.proxy")
    if module is None or not isinstance(item, pytest.Function):
        return
    for value in item.funcargs.values():
        for found in (value, getattr(value, "proxy", None)):
            if isinstance(found, module.ProxyServer):
                yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let a proxy that ends by itself fail one test, with its output; the others that share it are skipped."""
    proxies = list(_proxies(item))
    reported = item.session.stash.setdefault(_REPORTED, set())
    if any(proxy.log_path in reported for proxy in proxies):
        pytest.skip("its proxy has ended by itself; the test that failed because of that shows the proxy's output")
    _report(proxies, reported)
    try:
        result = yield
    except Exception as err:
        failures = [proxy.failure for proxy in proxies if proxy.failure is not None]
        reported |= {proxy.log_path for proxy in proxies if proxy.failure is not None}
        for failure in failures:
            err.add_note(failure)
        raise
    _report(proxies, reported)
    return result


def _report(proxies: list[ProxyServer], reported: set[Path]) -> None:
    """Fail the test if one of its proxies has ended by itself."""
    for proxy in proxies:
        failure = proxy.failure
        if failure is not None:
            reported.add(proxy.log_path)
            pytest.fail(failure, pytrace=False)


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
    from .provider import UpstreamServer  # noqa: PLC0415  # see the module's docstring

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
