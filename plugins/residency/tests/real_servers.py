"""Real servers of models, built by ``tests/services/install.sh``: llama.cpp's llama-server as a router, and Ollama."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx

from pointsman.testing.ports import free_port

CACHE = Path(os.environ.get("POINTSMAN_SERVICES") or Path.home() / ".cache" / "pointsman")
#: How long a server may take to start, and a model to be made, in seconds.
PATIENCE_S = 120.0
#: Requests that a model answers at once.
PARALLEL = 4


class RealServer:
    """One of them, with its models.

    Args:
        folder: Its own directory.
        models: Model to its file.

    Attributes:
        program: What is run.
        kind: Its kind in the plugin's configuration.
        provider: LiteLLM's provider of its deployments, and the path of their base URL.
        url: Its base URL.
    """

    program: Path
    kind: str
    provider: tuple[str, str]

    def __init__(self, folder, models):
        self.folder, self.models = folder, dict(models)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    @classmethod
    def missing(cls):
        """Return why it cannot be started here, or None."""
        if not cls.program.exists():
            return f"{cls.program} is missing; plugins/residency/tests/services/install.sh builds it"
        return None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Start it, on the same port each time, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own command
                self.command(),
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until_it_answers()

    def freeze(self):
        """Stop it, and the processes of its models, where they are."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self):
        """End it, and the processes of its models, as the system does when memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until_it_answers(self):
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.resident()
            except httpx.HTTPError:
                assert time.monotonic() < end, (self.folder / "server.log").read_text()[-2000:]
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def get(self, path):
        return httpx.get(self.url + path, timeout=30, trust_env=False).raise_for_status().json()

    def post(self, path, body):
        answer = httpx.post(self.url + path, json=body, timeout=PATIENCE_S, trust_env=False)
        return answer.raise_for_status().json()

    def deployment(self, name):
        """Return the entry of ``model_list`` for a model."""
        provider, path = self.provider
        params = {"model": f"{provider}/{name}", "api_base": self.url + path, "api_key": "any"}
        return {"model_name": name, "litellm_params": params, "model_info": {"id": f"{name}-1"}}

    def environment(self):
        """Return its environment variables."""
        return {}


class LlamaServer(RealServer):
    """llama.cpp's llama-server as a router."""

    program = CACHE / "llama-server-11434.0.0" / "llama-server"
    kind = "llama_cpp"
    provider = ("openai", "/v1")

    def command(self):
        """Return what starts it."""
        models = self.folder / "models"
        if not models.exists():
            models.mkdir()
            for name, file in self.models.items():
                shutil.copy(file, models / f"{name}.gguf")
        options = {"--models-dir": models, "--models-max": 8, "-t": 1, "--threads-http": 32, "-c": 2048 * PARALLEL}
        options |= {"--host": "127.0.0.1", "--port": self.port, "--parallel": PARALLEL}
        return [self.program, "--offline", "--no-warmup", *(str(part) for pair in options.items() for part in pair)]

    def resident(self):
        """Return the names of the models that are in memory, or on their way there."""
        rows = self.get("/models")["data"]
        return {row["id"] for row in rows if row["status"]["value"] in {"loaded", "loading"}}

    def bytes_of(self, model):
        """Return what it tells of a loaded model's bytes: those of its weights."""
        return next(row["meta"]["size"] for row in self.get("/models")["data"] if row["id"] == model)

    def footprint(self, model):
        """Return what the configuration has to say of a model."""
        return self.models[model].stat().st_size

    def unload(self, model):
        self.post("/models/unload", {"model": model})


class OllamaServer(RealServer):
    """Ollama."""

    program = CACHE / "ollama-0.17.4" / "ollama"
    kind = "ollama"
    provider = ("ollama_chat", "")

    def start(self):
        """Start it; the first time, it makes its models of the files."""
        first = not (self.folder / "models").exists()
        super().start()
        for name, file in self.models.items() if first else ():
            recipe = self.folder / name
            # The end token stays rare, as with the other servers.
            parameters = {"num_thread": 1, "num_ctx": 2048, "temperature": 1.2, "top_k": 4000, "repeat_penalty": 1}
            lines = [f"FROM {file}", 'TEMPLATE "{{ .Prompt }}"', *(f"PARAMETER {k} {v}" for k, v in parameters.items())]
            recipe.write_text("\n".join(lines))
            environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.environment()}
            command = [self.program, "create", name, "-f", recipe]
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)  # noqa: S603  # as above

    def command(self):
        """Return what starts it."""
        return [self.program, "serve"]

    def environment(self):
        """Return its environment variables: its own limits are above the pool's."""
        return {
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.folder / "models"),
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": "8",
            "OLLAMA_NUM_PARALLEL": str(PARALLEL),
        }

    def resident(self):
        """Return the names of the models that are in memory; what is on its way there is not listed."""
        return {row["name"].removesuffix(":latest") for row in self.get("/api/ps")["models"]}

    def bytes_of(self, model):
        """Return what it tells of a loaded model's bytes."""
        return next(row["size"] for row in self.get("/api/ps")["models"] if row["name"] == f"{model}:latest")

    def footprint(self, model):
        """Return what the configuration has to say of a model: what it takes once it is loaded."""
        self.post("/api/generate", {"model": model, "keep_alive": -1, "stream": False})
        size = self.bytes_of(model)
        self.unload(model)
        return size

    def unload(self, model):
        self.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
