"""Requests that go on while versions are promoted and rolled back."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from . import Unexpected
from .calls import Answer, Call, Clients

PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that has been answered.

    Attributes:
        lane: Who sent it.
        started_at: Unix seconds.
        ended_at: The same, when the whole answer had been read.
        answer: What came.
    """

    lane: int
    started_at: float
    ended_at: float
    answer: Answer


class Traffic:
    """Sends requests during the ``with`` block, several at a time: each lane sends its next one when it has an answer.

    Args:
        clients: Whose requests they are.
        lanes: What each lane asks for, again and again.
    """

    def __init__(self, clients: Clients, lanes: Sequence[Call]) -> None:
        self._clients = clients
        self._lanes = lanes
        self._more = threading.Condition()
        self._sent: list[Sent] = []
        self._over = False
        self._threads = [
            threading.Thread(target=self._run, args=(lane, call), name=f"lane-{lane}", daemon=True)
            for lane, call in enumerate(lanes)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> list[Sent]:
        """Send no more, wait for the answers that are still due, and return all, in the order in which they started."""
        self._over = True
        for thread in self._threads:
            thread.join()
        return sorted(self._sent, key=lambda sent: sent.started_at)

    def wait_for(self, version: str, count: int) -> None:
        """Wait until the newest answers of each lane, so many, come from this version.

        Raises:
            Unexpected: they do not, or a request failed.
        """

        def served() -> bool:
            newest = [[s for s in self._sent if s.lane == lane][-count:] for lane in range(len(self._lanes))]
            return all(len(each) == count and all(s.answer.version == version for s in each) for each in newest)

        with self._more:
            if not self._more.wait_for(lambda: self._failed() or served(), PATIENCE_S):
                raise Unexpected(f"the traffic did not move to version {version} within {PATIENCE_S:.0f} s")
            if failed := self._failed():
                raise Unexpected(f"a request failed during the promotion: {failed.answer.status} {failed.answer.error}")

    def _failed(self) -> Sent | None:
        return next((sent for sent in self._sent if not sent.answer.ok), None)

    def _run(self, lane: int, call: Call) -> None:
        while not self._over:
            started_at = time.time()
            answer = self._answer(call)
            with self._more:
                self._sent.append(Sent(lane, started_at, time.time(), answer))
                self._more.notify_all()

    def _answer(self, call: Call) -> Answer:
        try:
            return self._clients.send(call)
        except Exception as err:  # noqa: BLE001 - in a thread nobody else would hear of it
            return Answer(0, error=f"{type(err).__name__}: {err}")


def phases(sent: Sequence[Sent]) -> list[tuple[str | None, list[Sent]]]:
    """Part the requests by the version that answered: before the first change of it, after that, and so on.

    Raises:
        Unexpected: for one lane the versions changed in another order than for the others.
    """
    lanes: dict[int, list[tuple[str | None, list[Sent]]]] = {}
    for each in sent:
        parts = lanes.setdefault(each.lane, [])
        if not parts or parts[-1][0] != each.answer.version:
            parts.append((each.answer.version, []))
        parts[-1][1].append(each)
    orders = {tuple(version for version, _ in parts) for parts in lanes.values()}
    if len(orders) != 1:
        raise Unexpected(f"the lanes of the traffic saw the versions in different orders: {sorted(map(str, orders))}")
    merged = zip(*lanes.values(), strict=True)
    return [(same[0][0], [each for _, part in same for each in part]) for same in merged]
