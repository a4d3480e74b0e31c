"""Events on standard output, one line of JSON each."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pointsman_billing.events import BillEvent

from .base import SinkConfig, SinkContext, SinkInfo, SinkUnavailable, in_thread


class StdoutConfig(SinkConfig):
    """The section of a ``stdout`` sink."""


class StdoutSink:
    """Writes to standard output.

    Args:
        config: Its section.
        context: Not needed.
    """

    def __init__(self, config: StdoutConfig, context: SinkContext) -> None:
        del config, context

    async def open(self) -> None:
        """Need nothing."""

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Write the lines and flush.

        Raises:
            SinkUnavailable: standard output cannot be written.
        """
        text = "".join(f"{event.body}\n" for event in batch)

        def write() -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        try:
            await in_thread(write)
        except (OSError, ValueError) as err:
            raise SinkUnavailable(f"standard output cannot be written: {err}") from err

    async def close(self) -> None:
        """Need nothing."""


stdout = SinkInfo(config=StdoutConfig, factory=StdoutSink)
