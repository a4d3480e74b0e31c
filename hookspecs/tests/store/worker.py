"""A process of its own that uses a store.

``worker.py WHAT COUNT OPEN_STORE_ARGUMENTS_AS_JSON``; it says ``ready`` and waits for a line before it starts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

from pointsman.store import Put, StateStore, Update, open_store


async def count(store: StateStore, times: int) -> None:
    """Add one, ``times`` times, in each of three ways; four tasks at once, so that they meet each other as well."""

    async def some() -> None:
        for _ in range(times // 4):
            await store.add("{t}add")
            while True:
                seen = await store.get("{t}cas")
                if await store.compare_and_set("{t}cas", seen, (seen or 0) + 1):
                    break
            while True:
                left, right = await store.get_many(["{t}left", "{t}right"])
                assert left == right, "a torn update was visible"
                update = Update(
                    checks={"{t}left": left},
                    puts={"{t}left": Put((left or 0) + 1), "{t}right": Put((right or 0) + 1)},
                    adds={"{t}updates": 1},
                )
                if await store.update(update):
                    break

    await asyncio.gather(*(some() for _ in range(4)))


async def write_pairs(store: StateStore) -> None:
    """Write the same number under many keys in one step, and say each number that was accepted, until killed."""
    for number in itertools.count(1):
        await store.update(Update(puts={f"{{t}}{name:03}": Put([number, "x" * 500]) for name in range(40)}))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


async def main() -> None:
    """Do what the command line says."""
    what, times, place = sys.argv[1:]
    store = await open_store(**json.loads(place))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    await (count(store, int(times)) if what == "count" else write_pairs(store))
    await store.close()


asyncio.run(main())
