"""One worker in a process of its own: refreshes a deployment five times at once and prints the statuses as JSON.

Run it with the store's directory, the deployment's base URL and the worker's name.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from pointsman.testing import Harness
from pointsman.types import Deployment
from pointsman_signals.plugin import plugin


class SystemClock:
    """The clock of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)


async def main(directory, base, name):
    one = Deployment(id="local", group="local", provider="hosted_vllm", model="m", api_base=base)
    section = {"check_interval_s": 3600}
    async with Harness(
        [(plugin, section)], deployments=[one], store="disk", path=Path(directory), clock=SystemClock(), name=name
    ) as h:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        answers = await asyncio.gather(*(h.admin.post("/signals/local/refresh") for _ in range(5)))
        sys.stdout.write(json.dumps([answer.json()["status"] for answer in answers]) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
