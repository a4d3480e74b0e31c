# ruff: noqa: INP001 - a script, not a package
"""A model that is a process: ``model_process.py FOLDER NAME ROOM LOAD_S SERVE_S PORT``.

It is healthy once its load is over, and answers chat completions. What it does is written to ``FOLDER/log``, a line each: a
load, and what a real one would suffer from: more models at once than there is room for, or an end while it answers. It needs
the standard library alone, so that the load takes as long as it should.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Model:
    """What one process knows: when its load is over, and how many requests it answers.

    Args:
        folder: Where all models note what they do.
        name: The model.
        room: How many models may be there at once.
        load_s: Seconds of its load.
        serve_s: Seconds of an answer.
    """

    def __init__(self, folder: Path, name: str, *, room: int, load_s: float, serve_s: float) -> None:
        self._folder, self.name, self.serve_s = folder, name, serve_s
        self._loaded_at = time.monotonic() + load_s
        self._present = folder / "present" / name
        self._present.parent.mkdir(exist_ok=True)
        self._present.write_text(str(os.getpid()), encoding="utf-8")
        self._answering = 0
        self._lock = threading.Lock()
        self.note(f"load {name}")
        if sum(lives(path) for path in self._present.parent.iterdir()) > room:
            self.note(f"fault {name} was loaded beyond the memory")

    def note(self, line: str) -> None:
        """Write a line to the log of all models."""
        with (self._folder / "log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def until_loaded(self) -> None:
        """Wait until the load is over."""
        time.sleep(max(0.0, self._loaded_at - time.monotonic()))

    def answer(self) -> None:
        """Take as long as an answer takes."""
        with self._lock:
            self._answering += 1
        time.sleep(self.serve_s)
        with self._lock:
            self._answering -= 1

    def leave(self) -> None:
        """End the process, with everything that it does."""
        if self._answering:
            self.note(f"fault {self.name} was ended with {self._answering} requests in flight")
        self._present.unlink()
        os._exit(0)


def lives(path: Path) -> bool:
    """Return whether the process that a file names is there: one that was killed has left its file."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text(encoding="utf-8")), 0)
        return True
    return False


def handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """Return what answers the requests for a model."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            model.until_loaded()
            self._send({"status": "ok"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            model.answer()
            message = {"role": "assistant", "content": "Hello."}
            self._send(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": model.name,
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
                }
            )

        def _send(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: what counts is in the log of all models."""

    return Handler


class Server(ThreadingHTTPServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 1024


def main() -> None:
    """Serve until the process is ended."""
    folder, name, room, load_s, serve_s, port = sys.argv[1:]
    model = Model(Path(folder), name, room=int(room), load_s=float(load_s), serve_s=float(serve_s))
    signal.signal(signal.SIGTERM, lambda *_: model.leave())
    Server(("127.0.0.1", int(port)), handler(model)).serve_forever()


if __name__ == "__main__":
    main()
