"""A process that shares an outbox with others, as a worker does.

``open DIRECTORY COUNT`` opens a new outbox for each line it is sent, and answers each with a line. ``append DIRECTORY FIRST
COUNT`` writes so many bills, from a number on.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pointsman.types import Identity, Usage
from pointsman_billing import bill
from pointsman_billing.database import Database
from pointsman_billing.outbox import Outbox
from pointsman_billing.pricing import Quote

from .kit import PRICE, attempt, settlement

MB = 1_000_000


def a_bill(number: int, *, tokens: int = 100, tenant: str = "acme", at: float = 1_750_000_000.0) -> bill.Bill:
    one = attempt(request_id=f"request-{number}", usage=Usage(prompt_tokens=tokens), started_at=at)
    found = settlement(one, request_id=f"request-{number}", identity=Identity(tenant=tenant), finished_at=at)
    return bill.of_settlement(found, tenant, lambda _: Quote(price=PRICE))


def open_many(path: Path, count: int) -> None:
    for number in range(count):
        sys.stdin.readline()
        Database(path / str(number), fsync=False, timeout_s=5.0, max_bytes=100 * MB).close()
        print("opened", flush=True)  # noqa: T201  # the answer


async def append_many(path: Path, first: int, count: int) -> None:
    outbox = Outbox(path, fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()
    for start in range(first, first + count, 10):
        await asyncio.gather(*(outbox.write(lambda db, n=n: db.append([a_bill(n)])) for n in range(start, start + 10)))
    await outbox.close()


if __name__ == "__main__":
    what, directory, *numbers = sys.argv[1:]
    if what == "open":
        open_many(Path(directory), int(numbers[0]))
    else:
        asyncio.run(append_many(Path(directory), int(numbers[0]), int(numbers[1])))
