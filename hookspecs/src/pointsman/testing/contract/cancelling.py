"""The contract of cancellation: a client that goes away can cut off any async hook where it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from ...host.host import Host
from ...types import AttemptKind, Credential, Event, Outcome
from ..drive import Result
from ..harness import Harness
from ..leaks import at_rest, no_leaks
from ..script import ok
from .base import ContractBase, ContractViolation, check
from .interrupt import CancelPoint

_MOST_POINTS: Final = 200
#: What is lost a little at a time is noticed when it has been lost often.
_REPEATS: Final = 10
_ON_REQUESTS: Final = ("pre_route", "before_attempt", "execute")


class CancellingContract(ContractBase):
    """Every async hook, cancelled wherever it waits."""

    @pytest.mark.parametrize("hook", _ON_REQUESTS)
    @pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
    def test_a_cancelled_request_does_no_harm(self, hook: str, stream: bool) -> None:
        """Wherever the hook is cut off, the request is settled as cancelled and the next one is served as before."""
        self.need(hook)
        self.run(self._requests(hook, stream=stream))

    def test_a_cancelled_authentication_does_no_harm(self) -> None:
        """Wherever ``authenticate`` is cut off, the next caller is known as before."""
        self.need("authenticate")
        self.run(self._authenticate())

    def test_a_cancelled_event_does_no_harm(self) -> None:
        """Wherever ``on_event`` is cut off, no task is left and the next event is heard."""
        self.need("on_event")
        self.run(self._events())

    @pytest.mark.parametrize("hook", ["startup", "shutdown"])
    def test_a_cancelled_start_or_stop_leaves_nothing_behind(self, hook: str) -> None:
        """Wherever ``startup`` or ``shutdown`` is cut off, no task, thread or open file is left behind."""
        self.need(hook)
        self.run(self._cut_off_life(hook))

    async def _at_each_point(self, hook: str, once: Callable[[CancelPoint], Awaitable[None]]) -> None:
        for at in range(1, _MOST_POINTS):
            for _ in range(_REPEATS):
                point = CancelPoint(at)
                await once(point)
                self._check_ended(hook, point)
            if not point.fired:
                return
        raise ContractViolation(f"{hook} waits more than {_MOST_POINTS} times")

    def _check_ended(self, hook: str, point: CancelPoint) -> None:
        check(not point.swallowed, f"{hook} goes on when it is cancelled where it waits for the {point.at}. time")

    def _cut_off(self, h: Harness, hook: str, point: CancelPoint) -> Callable[..., Any]:
        """Let the point cut off the hook, and return the hook as it was."""
        plain = self.hooks(h)[hook]
        armed = [point]

        async def call(*arguments: Any) -> Any:
            return await (armed.pop().run(plain(*arguments)) if armed else plain(*arguments))

        self.rewire(h, hook, call)
        return plain

    async def _requests(self, hook: str, *, stream: bool) -> None:
        async with self.worker() as h:
            usual = await self._ask_in_a_task(h, stream=stream)

            async def once(point: CancelPoint) -> None:
                plain = self._cut_off(h, hook, point)
                before = len(h.settlements)
                result = await self._ask_in_a_task(h, stream=stream)
                self.rewire(h, hook, plain)
                await h.settled()
                check(len(h.settlements) == before + 1, f"{len(h.settlements) - before} settlements were made")
                # Before the host's count of faults, which would not say where it waits.
                self._check_ended(hook, point)
                if point.fired:
                    check(result.outcome is Outcome.CANCELLED, f"the cancelled request ended as {result.outcome}")
                self._check_calls(h, hook)
                after = await self._ask_in_a_task(h, stream=stream)
                await h.settled()
                check(
                    (after.status, after.outcome) == (usual.status, usual.outcome),
                    f"after a cancelled {hook} the next request ended with {after.status} {after.outcome} "
                    f"instead of {usual.status} {usual.outcome}",
                )
                self.check_healthy(h, f"after a cancelled {hook}")

            await self._at_each_point(hook, once)

    async def _ask_in_a_task(self, h: Harness, *, stream: bool) -> Result:
        # Of its own, because a cancelled task stays marked as cancelled.
        script = ok(latency_s=0.2, piece_s=0.01)
        return await asyncio.create_task(self.ask(h, stream=stream, script=script))

    def _check_calls(self, h: Harness, hook: str) -> None:
        left = [call for call in h.gateway.upstream.running if call.request.kind is not AttemptKind.MIRROR]
        check(not left, f"after a cancelled {hook} {len(left)} calls of the request's own are still running")

    async def _authenticate(self) -> None:
        async with self.worker() as h:
            authenticate = self.hooks(h)["authenticate"]
            credential = Credential(api_key=self.api_key or "sk-nobody", path="/v1/chat/completions")
            usual = await authenticate(credential)

            async def once(point: CancelPoint) -> None:
                await asyncio.wait({asyncio.create_task(point.run(authenticate(credential)))})
                check(await authenticate(credential) == usual, "after a cancelled authenticate the answer is another")

            await self._at_each_point("authenticate", once)

    async def _events(self) -> None:
        async with self.worker() as h:
            on_event = self.hooks(h)["on_event"]
            # What the plugin has begun at its start, on threads too, is not the event's.
            await at_rest()

            async def once(point: CancelPoint) -> None:
                async with no_leaks():
                    await asyncio.wait({asyncio.create_task(point.run(on_event(Event(source="contract"))))})
                h.publish(Event(source="contract"))
                await h.settled()
                self.check_healthy(h, "after a cancelled on_event")

            await self._at_each_point("on_event", once)

    async def _cut_off_life(self, hook: str) -> None:
        async def once(point: CancelPoint) -> None:
            async with no_leaks():
                h = self.make()
                if hook == "startup":
                    h.before_start = lambda host: self._cut_off_start(host, point)
                    await asyncio.wait({asyncio.create_task(h.start())})
                    await h.stop()
                    return
                await h.start()
                await asyncio.wait({asyncio.create_task(point.run(self.hooks(h)[hook]()))})
                await h.crash()

        await self._at_each_point(hook, once)

    def _cut_off_start(self, host: Host, point: CancelPoint) -> None:
        hooks = host.hooks
        started = [
            replace(impl, call=lambda *args, impl=impl: point.run(impl.call(*args)))
            if impl.plugin == self.info.name
            else impl
            for impl in hooks.startup
        ]
        host.hooks = replace(hooks, startup=tuple(started))
