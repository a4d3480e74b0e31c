"""Real stores, a real plugin on them, and its routes behind real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import httpx
import pytest
from opentelemetry.trace import NoOpTracer
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount

from pointsman.errors import AdminError, Conflict
from pointsman.plugin import Services
from pointsman.store import ScopedStore, StateStore
from pointsman.store import open_store as store_of
from pointsman.types import Attempt, AttemptKind, Deployment, Endpoint, Event, Identity, Outcome, RequestContext
from pointsman_registry.config import RegistryConfig
from pointsman_registry.plugin import RegistryPlugin

GROUPS = {"small": ["dep-a", "dep-b"], "large": ["dep-c"], "spare": ["dep-d"]}


class Clock:
    """Stands still unless it is moved; waiting lets others run and moves it."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


class Tasks:
    """Remembers repeated work, for a test to do it when it wants."""

    def __init__(self) -> None:
        self.repeated = {}

    def spawn(self, work, *, name):
        raise AssertionError(f"nothing is spawned here, but {name} was")

    def every(self, interval_s, work, *, name):
        self.repeated[name] = (interval_s, work)


class Catalog:
    """A gateway's model list; ``listed`` is what it shows in addition."""

    def __init__(self) -> None:
        self.groups = {name: list(ids) for name, ids in GROUPS.items()}
        self.listed = {}

    def deployments(self, target=None) -> Sequence[Deployment]:
        return [
            Deployment(id=id_, group=group, provider="openai", model="gpt")
            for group, ids in self.groups.items()
            for id_ in ids
            if target in {None, group, id_}
        ]

    def is_group(self, target) -> bool:
        return target in self.groups

    def resolved(self, name) -> str:
        return name

    def list_model(self, name, target) -> None:
        if target is None:
            self.listed.pop(name, None)
        elif name in self.groups:
            raise Conflict(f"the gateway's configuration has {name!r} itself", param="name")
        else:
            self.listed[name] = target


@dataclass
class Worker:
    """One worker process of a gateway, as far as the plugin can tell."""

    plugin: RegistryPlugin
    services: Services
    clock: Clock
    tasks: Tasks
    catalog: Catalog
    events: list[Event] = field(default_factory=list)

    @property
    def registry(self):
        return self.plugin._registry

    def app(self) -> Starlette:
        """Return the routes as the host mounts them."""

        async def refuse(_, err):
            body = {
                "error": {"message": str(err), "type": "invalid_request_error", "param": err.param, "code": err.code}
            }
            return JSONResponse(body, status_code=err.status)

        routes = [Mount("/pointsman/registry", routes=list(self.plugin.routes()))]
        return Starlette(routes=routes, exception_handlers={AdminError: refuse})

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app()), base_url="http://gateway/pointsman/registry"
        )

    async def poll(self) -> None:
        """Do once what the plugin repeats in the background."""
        for _, work in self.tasks.repeated.values():
            await work()


def make_worker(
    store: StateStore, *, number: int = 0, config: RegistryConfig | None = None, clock: Clock | None = None
) -> Worker:
    """Return a worker whose plugin has not been started."""
    clock, tasks, catalog = clock or Clock(), Tasks(), Catalog()
    ids = itertools.count()
    worker = Worker(RegistryPlugin(config or RegistryConfig()), None, clock, tasks, catalog)
    worker.services = Services(
        plugin="registry",
        store=ScopedStore(store, "registry/"),
        clock=clock,
        tracer=NoOpTracer(),
        tasks=tasks,
        random=random.Random(number),
        new_id=lambda: f"{number:016x}{next(ids):016x}",
        signals=None,
        catalog=catalog,
        prices=None,
        tokenizer=None,
        upstream=None,
        publish=lambda event: worker.events.append(replace(event, source="registry")),
        statuses=dict,
        worker=f"worker-{number}",
    )
    return worker


async def start_worker(store: StateStore, **options) -> Worker:
    worker = make_worker(store, **options)
    await worker.plugin.startup(worker.services)
    return worker


class SlowStore:
    """A store whose calls let others run before and after them, for varying times, as one behind a wire does."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._turns = random.Random(0)

    def __getattr__(self, name):
        method = getattr(self._store, name)

        async def call(*args, **options):
            await self._let_others_run()
            result = await method(*args, **options)
            await self._let_others_run()
            return result

        return call

    async def _let_others_run(self) -> None:
        for _ in range(self._turns.randrange(4)):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def open_store(backend: str, path) -> AsyncIterator[StateStore]:
    opened = await store_of(backend, path=path)
    try:
        yield SlowStore(opened) if backend == "memory" else opened
    finally:
        await opened.close()


@pytest.fixture(params=["memory", "disk"])
async def store(request, tmp_path):
    """A store of each embedded backend."""
    async with open_store(request.param, tmp_path / "store") as opened:
        yield opened


@pytest.fixture
async def memory():
    """A store in memory, where the backend does not matter."""
    async with open_store("memory", None) as opened:
        yield opened


@pytest.fixture
def kit():
    """The makers above, for tests that need several workers or stores."""

    class Kit:
        make = staticmethod(make_worker)
        start = staticmethod(start_worker)
        open_store = staticmethod(open_store)
        spec = staticmethod(spec)
        attempt = staticmethod(attempt)
        context = staticmethod(context)
        config = staticmethod(config)
        Clock = Clock

    return Kit


def spec(id_: str, **fields) -> dict:
    """Return the body of a registration."""
    return {"id": id_, "name": "chat", "version": "1.0", "path": "small", **fields}


def config(*specs: dict, **fields) -> RegistryConfig:
    """Return a configuration that lists these versions."""
    return RegistryConfig.model_validate({"versions": list(specs), **fields})


def context(**fields) -> RequestContext:
    """Return a request."""
    defaults = {"request_id": "r", "endpoint": Endpoint.CHAT, "model": "chat", "stream": False, "identity": Identity()}
    return RequestContext(received_at=0.0, **{**defaults, **fields})


def attempt(version_id: str | None, deployment_id: str = "dep-a", group: str = "small", **fields) -> Attempt:
    """Return a closed attempt of a version."""
    defaults = {"kind": AttemptKind.PRIMARY, "outcome": Outcome.OK, "duration_ms": 10.0}
    return Attempt(
        id="a",
        request_id="r",
        number=1,
        deployment=Deployment(id=deployment_id, group=group, provider="openai", model="gpt"),
        labels={} if version_id is None else {"version_id": version_id},
        started_at=0.0,
        **{**defaults, **fields},
    )


@pytest.fixture
async def worker(store):
    """A started worker on a store of each backend."""
    return await start_worker(store)
