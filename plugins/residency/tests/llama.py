"""Real models on llama.cpp's own server: a process each, behind one port that loads, unloads and lists them.

Run as a program, it serves one model, which needs xllamacpp (llama.cpp's server as a wheel).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from pointsman.testing.provider.server import listen, url_of

_VOCABULARY = 8192


def make_model(path: Path, *, width: int = 64, layers: int = 2, seed: int = 0) -> int:
    """Write a model of llama's architecture with random weights; return its bytes.

    The vocabulary is large, so that the token that ends an answer is rare.
    """
    import gguf  # noqa: PLC0415  # present where xllamacpp is
    import numpy as np  # noqa: PLC0415  # as above

    writer = gguf.GGUFWriter(str(path), "llama")
    heads, wide = 4, 2 * width
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(_VOCABULARY)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (_VOCABULARY - 259)
    tokens += [f" w{number}".encode() for number in range(len(tokens), _VOCABULARY)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * _VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.05).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    tensor("token_embd.weight", _VOCABULARY, width)
    tensor("output.weight", _VOCABULARY, width)
    ones("output_norm.weight")
    for layer in range(layers):
        block = f"blk.{layer}."
        ones(f"{block}attn_norm.weight")
        ones(f"{block}ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{block}{name}.weight", width, width)
        tensor(f"{block}ffn_gate.weight", wide, width)
        tensor(f"{block}ffn_up.weight", wide, width)
        tensor(f"{block}ffn_down.weight", width, wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


class LlamaServers:
    """Loads models on request, each in a process of its own.

    Args:
        models: Model to its file.

    Attributes:
        url: Its base URL: ``/list``, ``/load``, ``/unload``, and everything else for the models.
        processes: Model to its process.
        loads: Models, in the order in which they were loaded.
    """

    def __init__(self, models):
        self.models = dict(models)
        self.processes = {}
        self.loads = []
        self._addresses = {}
        self._client = None
        app = Starlette(
            routes=[
                Route("/list", self._list),
                Route("/load", self._load, methods=["POST"]),
                Route("/unload", self._unload, methods=["POST"]),
                Route("/{path:path}", self._forward, methods=["POST"]),
            ]
        )
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=120)
        self._server = uvicorn.Server(config)
        self._listening = listen("127.0.0.1", 0)
        self.url = url_of(self._listening)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(30)

    def _run(self):
        async def serve():
            async with httpx.AsyncClient(timeout=120, trust_env=False) as self._client:
                await self._server.serve([self._listening])
                for model in list(self.processes):
                    await self._end(model)

        asyncio.run(serve())

    def kill(self, model):
        """End a model's process as the system does when memory runs out."""
        self.processes[model].send_signal(signal.SIGKILL)

    async def _list(self, _: Request):
        rows = [
            {"name": model, "bytes": self.models[model].stat().st_size}
            for model, process in self.processes.items()
            if process.returncode is None and model in self._addresses
        ]
        return JSONResponse({"models": rows})

    async def _load(self, request: Request):
        model = (await request.json())["model"]
        process = self.processes.get(model)
        if process is None or process.returncode is not None:
            process = self.processes[model] = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                str(self.models[model]),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            line = await process.stdout.readline()
            if not line:
                return JSONResponse({"error": f"the process of {model} ended while it loaded"}, 500)
            self._addresses[model] = line.decode().strip()
            self.loads.append(model)
        return JSONResponse({})

    async def _unload(self, request: Request):
        await self._end((await request.json())["model"])
        return JSONResponse({})

    async def _end(self, model):
        self._addresses.pop(model, None)
        process = self.processes.pop(model, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _forward(self, request: Request):
        body = await request.body()
        address = self._addresses.get(json.loads(body)["model"])
        if address is None:
            return JSONResponse({"error": {"message": "the model is not loaded"}}, 500)
        call = self._client.build_request(
            "POST", address + request.url.path, content=body, headers={"content-type": "application/json"}
        )
        answer = await self._client.send(call, stream=True)
        kind = answer.headers.get("content-type")
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose)
        )


def serve_one(path: str, port: int = 0) -> None:
    """Serve a model until the process is killed; print the address when it is ready."""
    import xllamacpp  # noqa: PLC0415  # only here

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_threads_http = 2048, 4, 8
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.port = port
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    serve_one(sys.argv[1], *map(int, sys.argv[2:]))
