"""Clients that leave before the answer to a plain request has begun.

LiteLLM finishes such a request without asking the server whether the client is still there. That is right for an answer that
comes, since the provider charges for it: its bill is exact. A provider that never answers would keep the request, its slots and
its reservation for as long as LiteLLM's own timeout. So a request whose client has left is continued for a while, then ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from starlette.types import Message, Receive

    from .call import ClientCall

#: Seconds between looks at the open requests.
LOOK_S: Final = 1.0


@dataclass(slots=True)
class _Open:
    """One open request.

    Attributes:
        task: Serves it.
        receive: The server's ``receive``.
        left_at: When it was found that the client had gone, on the event loop's clock, or None.
        ended: Whether it was ended here.
    """

    task: asyncio.Task[object]
    receive: Receive
    left_at: float | None = None
    ended: bool = False


class Departures:
    """Ends plain requests whose clients have left.

    Args:
        patience_s: How long such a request is continued, in seconds.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._open: dict[ClientCall, _Open] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: ClientCall, receive: Receive) -> None:
        """Begin to watch a request that the running task serves, and whose body has been read."""
        task = asyncio.current_task()
        if task is not None:
            self._open[call] = _Open(task, receive)
            if self._timer is None:
                self._timer = task.get_loop().call_later(LOOK_S, self._look)

    def over(self, call: ClientCall) -> bool:
        """Stop watching a request; return whether it was ended here."""
        watched = self._open.pop(call, None)
        return watched is not None and watched.ended

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_S, self._look) if self._open else None
        for call, watched in self._open.items():
            if call.status:
                continue  # The server notices for an answer that has begun.
            if watched.left_at is None and has_gone(watched.receive):
                watched.left_at = loop.time()
                call.leave()
            if watched.left_at is not None and loop.time() - watched.left_at >= self._patience_s and not watched.ended:
                watched.ended = True
                watched.task.cancel()


def has_gone(receive: Receive) -> bool:
    """Look, without waiting, whether the server has noticed that the client went away. The body must have been read.

    uvicorn says so where it reads requests. Of another server, one step of ``receive`` answers: it either has a message now, or
    would wait. The step also lets uvicorn read on where it has paused, as after a body of more than 64 kB: until it does, it does
    not notice that a client leaves.
    """
    try:
        server: Any = receive.__self__  # type: ignore[attr-defined]  # uvicorn's is a method of one request
        if server.disconnected is True:
            return True
        if server.disconnected is False and server.flow.read_paused is False:
            return False
    except AttributeError:
        pass
    pending = receive()
    if not isinstance(pending, CoroutineType):
        return False
    try:
        pending.send(None)
    except StopIteration as stop:
        message: Message = stop.value
        return bool(message["type"] == "http.disconnect")
    except Exception:  # noqa: BLE001  # a server that cannot be asked has not reported a disconnect
        return False
    try:  # noqa: SIM105  # a context manager costs more than all the rest, and this is asked for each request
        pending.close()
    except Exception:  # noqa: BLE001, S110  # as above
        pass
    return False
