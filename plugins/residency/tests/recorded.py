"""Servers that answer as the real ones did, with a memory of their own that they do not exceed."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

LOAD_S = 1.0


class Recorded:
    """What the servers have in common.

    Args:
        clock: Time.

    Attributes:
        sizes: Model to its bytes.
        capacity: Bytes of its memory.
        busy: How many more calls are answered with 503.
        loaded: Model to ``loading`` or ``ready``.
        loads: Loads that succeeded.
        calls: Method and path of each call.
    """

    settings = {}  # noqa: RUF012  # never changed

    def __init__(self, clock):
        self.clock = clock
        self.sizes = {"a": 2_307_584, "b": 2_307_584, "broken": 100}
        self.capacity = 10**12
        self.busy = 0
        self.loaded = {}
        self.loads = 0
        self.calls = []
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])

    def state(self):
        return dict(self.loaded), self.loads

    async def _answer(self, request: Request):
        self.calls.append((request.method, request.url.path))
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": "server busy, please try again.  maximum pending requests exceeded"}, 503)
        body = await request.json() if await request.body() else {}
        return await self.answer(request.method, request.url.path, body, dict(request.query_params))

    def full(self, model):
        return sum(self.sizes[name] for name in self.loaded) + self.sizes[model] > self.capacity

    async def bring(self, model):
        self.loaded[model] = "loading"
        await self.clock.sleep(LOAD_S)
        self.loaded[model] = "ready"
        self.loads += 1

    async def brought(self, model):
        """Wait for a load that somebody else has asked for."""
        while self.loaded.get(model) == "loading":
            await self.clock.sleep(0.05)


class Ollama(Recorded):
    async def answer(self, method, path, body, query):
        if path == "/api/ps":
            # On a CPU. What is being loaded is not listed.
            rows = [
                {
                    "name": f"{name}:latest",
                    "model": f"{name}:latest",
                    "size": self.sizes[name],
                    "size_vram": 0,
                    "expires_at": "2318-01-01T00:00:00Z",
                    "context_length": 2048,
                    "digest": "0" * 64,
                }
                for name, state in self.loaded.items()
                if state == "ready"
            ]
            return JSONResponse({"models": rows})
        assert (method, path) == ("POST", "/api/generate")
        model = body["model"].removesuffix(":latest")
        if model not in self.sizes:
            return JSONResponse({"error": f"model '{model}' not found"}, 404)
        if body["keep_alive"] == 0:
            if model in self.loaded:
                # Done at once, and still listed just after.
                later_on(self.clock, 0.06, self.loaded.pop, model, None)
            return JSONResponse({"model": model, "response": "", "done": True, "done_reason": "unload"})
        if model == "broken":
            return JSONResponse({"error": "llama runner process has terminated: exit status 2"}, 500)
        if model not in self.loaded:
            if self.full(model):
                message = "model requires more system memory (95.4 GiB) than is available (17.9 GiB)"
                return JSONResponse({"error": message}, 500)
            await self.bring(model)
        await self.brought(model)
        return JSONResponse({"model": model, "response": "", "done": True, "done_reason": "load"})


class LlamaCpp(Recorded):
    def __init__(self, clock):
        super().__init__(clock)
        self.failed = {}
        self.most = 4

    async def answer(self, method, path, body, query):
        if (method, path) == ("GET", "/props"):
            return JSONResponse({"role": "router", "max_instances": self.most, "models_autoload": True})
        if (method, path) == ("GET", "/models"):
            rows = [{"id": name, "status": self.status(name), "meta": self.meta(name)} for name in self.sizes]
            return JSONResponse({"data": rows})
        model = body["model"]
        if path == "/models/load":
            if model not in self.sizes:
                return JSONResponse({"error": {"code": 404, "message": "model not found", "type": "not_found"}}, 404)
            if model in self.loaded:
                return JSONResponse({"error": {"code": 400, "message": "model is already running"}}, 400)
            self.loaded[model] = "loading"
            later_on(self.clock, LOAD_S, self._done, model)
            return JSONResponse({"success": True})
        assert path == "/models/unload"
        if model not in self.loaded:
            return JSONResponse({"error": {"code": 400, "message": "model is not running"}}, 400)
        later_on(self.clock, 0.06, self.loaded.pop, model, None)
        return JSONResponse({"success": True})

    def meta(self, name):
        """Return the weights' bytes, which are told of what is loaded."""
        return {"size": self.sizes[name]} if self.loaded.get(name) == "ready" else None

    def status(self, name):
        if name in self.loaded:
            return {"value": "loaded" if self.loaded[name] == "ready" else "loading"}
        return {"value": "unloaded", **self.failed.get(name, {})}

    def _done(self, model):
        if model not in self.loaded:
            return
        if model == "broken":
            del self.loaded[model]
            self.failed[model] = {"failed": True, "exit_code": 1}
        else:
            self.loaded[model] = "ready"
            self.loads += 1


class LlamaSwap(Recorded):
    async def answer(self, method, path, body, query):
        if path == "/running":
            rows = [
                {"model": name, "state": "ready" if state == "ready" else "starting", "ttl": 0}
                for name, state in self.loaded.items()
            ]
            return JSONResponse({"running": rows})
        if path.startswith("/api/models/unload/"):
            self.loaded.pop(path.rpartition("/")[2], None)
            return PlainTextResponse("OK")
        model = path.removeprefix("/upstream/").removesuffix("/health")
        if model == "broken":
            return PlainTextResponse("upstream command exited prematurely", 500)
        if model not in self.loaded:
            await self.bring(model)
        await self.brought(model)
        return JSONResponse({"status": "ok"})


class Vllm(Recorded):
    """One model, asleep at first: its two parts, weights and cache, are woken together or one by one.

    vLLM 0.32 takes the same calls and has the same list and metrics (seen on a CPU, where no memory is freed); it answers with
    JSON where older versions, and this one, answer with nothing.

    Its weights are lost at level 2 until they are read again, which needs their memory. Like vLLM it has no routes of its
    sleep mode without VLLM_SERVER_DEV_MODE, and says in its metrics how deeply it sleeps, if it is new enough.
    """

    def __init__(self, clock):
        super().__init__(clock)
        self.asleep = {"weights", "kv_cache"}
        self.weights = "good"
        self.dev_mode = True
        #: What the metrics call its state; None in versions that do not say.
        self.told = "weights_offloaded"

    def state(self):
        return set(self.asleep), self.weights

    async def answer(self, method, path, body, query):
        if (method, path) == ("GET", "/v1/models"):
            return JSONResponse({"object": "list", "data": [{"id": "a", "object": "model"}]})
        if (method, path) == ("GET", "/metrics"):
            states = ("awake", "weights_offloaded", "discard_all") if self.told else ()
            lines = [
                f'vllm:engine_sleep_state{{engine="0",model_name="a",sleep_state="{state}"}} {float(state == self.told)}'
                for state in states
            ]
            return PlainTextResponse("\n".join(["# TYPE vllm:engine_sleep_state gauge", *lines, ""]))
        match method, path:
            case _ if not self.dev_mode:
                return JSONResponse({"detail": "Not Found"}, 404)
            case "GET", "/is_sleeping":
                return JSONResponse({"is_sleeping": bool(self.asleep)})
            case "POST", "/sleep":
                self.sleep(int(query["level"]))
            case "POST", "/wake_up":
                if "tags" in query:
                    await self.clock.sleep(LOAD_S)
                    self._wake({query["tags"]})
                else:
                    # With several front ends it answers before it is done.
                    later_on(self.clock, LOAD_S, self._wake, set(self.asleep))
            case "POST", "/collective_rpc":
                assert body == {"method": "reload_weights"}
                if "weights" in self.asleep:
                    return JSONResponse({"error": {"message": "CUDA error: an illegal memory access"}}, 500)
                self.weights = "good"
            case _:
                return JSONResponse({"detail": "Not Found"}, 404)
        return PlainTextResponse("")

    def sleep(self, level):
        """Go to sleep, as somebody asks it to."""
        if not self.asleep:
            self.asleep = {"weights", "kv_cache"}
            self.weights = "lost" if level == 2 else "good"
            self.told = self.told and {1: "weights_offloaded", 2: "discard_all"}[level]

    def _wake(self, parts):
        if self.asleep and not self.asleep - parts:
            self.loads += 1
        self.asleep -= parts
        # Also when it is only half awake.
        self.told = self.told and "awake"


class LmStudio(Recorded):
    async def answer(self, method, path, body, query):
        if (method, path) == ("GET", "/api/v1/models"):
            rows = [
                {
                    "type": "llm",
                    "key": name,
                    "size_bytes": size,
                    "loaded_instances": [{"id": name, "config": {}}] if name in self.loaded else [],
                }
                for name, size in self.sizes.items()
            ]
            return JSONResponse({"models": rows})
        if path == "/api/v1/models/load":
            model = body["model"]
            if model not in self.sizes:
                return JSONResponse({"error": {"type": "model_not_found", "message": f"no model {model}"}}, 404)
            if model == "broken":
                return JSONResponse({"error": {"type": "model_load_failed", "message": "Failed to load model"}}, 500)
            if self.full(model):
                message = "insufficient system resources: not enough memory"
                return JSONResponse({"error": {"type": "model_load_failed", "message": message}}, 500)
            await self.bring(model)
            return JSONResponse({"type": "llm", "instance_id": model, "status": "loaded", "load_time_seconds": LOAD_S})
        if path != "/api/v1/models/unload":
            return JSONResponse({"error": f"Unexpected endpoint or method. ({method} {path})"})
        if self.loaded.pop(body["instance_id"], None) is None:
            return JSONResponse({"error": {"type": "not_found", "message": "no such instance"}}, 404)
        return JSONResponse({"instance_id": body["instance_id"]})


class Generic(Recorded):
    settings = {"list": "/list", "load": "/{model}/on", "unload": "/{model}/off"}  # noqa: RUF012  # never changed

    async def answer(self, method, path, body, query):
        if path == "/list":
            return JSONResponse({"models": [{"name": name, "bytes": self.sizes[name]} for name in self.loaded]})
        model = body["model"]
        if path == f"/{model}/off":
            self.loaded.pop(model, None)
        elif model not in self.sizes:
            return JSONResponse({"error": "no such model"}, 404)
        elif model == "broken":
            return JSONResponse({"error": "broken file"}, 500)
        elif model not in self.loaded:
            if self.full(model):
                return JSONResponse({"error": "out of memory"}, 507)
            await self.bring(model)
        return JSONResponse({})


def later_on(clock, delay_s, call, *args):
    """Do something in the background after a time of the test's clock."""

    async def later():
        await clock.sleep(delay_s)
        call(*args)

    _running.add(task := asyncio.ensure_future(later()))
    task.add_done_callback(_running.discard)


_running = set()
SERVERS = {
    "generic": Generic,
    "llama_cpp": LlamaCpp,
    "llama_swap": LlamaSwap,
    "lm_studio": LmStudio,
    "ollama": Ollama,
    "vllm": Vllm,
}
