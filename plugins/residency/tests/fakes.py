"""A server of models without HTTP: it has a memory, takes time on the test's clock, and notes what it was asked."""

from __future__ import annotations

import asyncio
from collections import Counter

from pointsman_residency.servers import Listed, ModelServer, ServerError, Trouble

URL = "http://models.test"


class Machine:
    """The memory behind a fake server.

    Args:
        sizes: Model to the bytes it takes.
        capacity: Bytes; a load beyond them is refused.
        load_s: Seconds of a load, or by model.
    """

    def __init__(self, sizes, *, capacity=10**18, load_s=1.0):
        self.sizes = dict(sizes)
        self.capacity = capacity
        self.load_s = load_s
        self.loaded = {}
        self.loads = Counter()
        self.unloads = Counter()
        self.lists = 0
        self.broken = {}
        self.keeps = set()
        #: Whether its list has the bytes of the weights instead of those of the memory.
        self.weights_only = False
        self.down = False
        #: Whether a load goes on when its client has left, as with llama-server, until ``finish``.
        self.goes_on = False
        self.log = []
        #: Model to the requests that are being served, as far as a test knows.
        self.serving = Counter()
        self.cut = 0

    @property
    def used(self):
        return sum(self.sizes[name] for name in self.loaded)

    def finish(self, model):
        """End a load whose client has left."""
        self.loaded[model] = "ready"


class FakeServer(ModelServer):
    """Reads the machine of its URL."""

    tells_bytes = True
    machines = {}  # noqa: RUF012  # set by the fixture

    @property
    def machine(self):
        return self.machines[self.url]

    def _up(self):
        if self.machine.down:
            raise ServerError("the server cannot be reached", Trouble.UNREACHABLE)

    async def models(self):
        machine = self.machine
        machine.lists += 1
        self._up()
        told = "weights" if machine.weights_only else "bytes"
        return {
            name: Listed(**{told: machine.sizes[name]}, loading=state == "loading")
            for name, state in machine.loaded.items()
        }

    async def load(self, model):
        machine = self.machine
        self._up()
        machine.loads[model] += 1
        machine.log.append(("load", model))
        if model in machine.broken:
            raise ServerError(machine.broken[model], Trouble.BROKEN)
        while machine.loaded.get(model) == "loading":
            await self.clock.sleep(0.1)
        if machine.loaded.get(model) == "ready":
            return
        if machine.used + machine.sizes[model] > machine.capacity:
            raise ServerError("model requires more system memory than is available", Trouble.MEMORY)
        machine.loaded[model] = "loading"
        load_s = machine.load_s[model] if isinstance(machine.load_s, dict) else machine.load_s
        try:
            await self.clock.sleep(load_s)
        except asyncio.CancelledError:
            if not machine.goes_on:
                machine.loaded.pop(model, None)
            raise
        self._up()
        machine.loaded[model] = "ready"

    async def unload(self, model):
        machine = self.machine
        self._up()
        machine.unloads[model] += 1
        machine.log.append(("unload", model))
        machine.cut += machine.serving[model]
        if model not in machine.keeps:
            machine.loaded.pop(model, None)
