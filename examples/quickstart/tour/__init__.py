"""The parts of the demo: its stage, its requests, its steady traffic, the traces that come back, and how they look."""

from __future__ import annotations


class Unexpected(Exception):
    """Something did not go as it should. The message says what, and ends the demo."""


class Expectations:
    """Counts what went as it should.

    Attributes:
        held: How many expectations were met so far.
    """

    def __init__(self) -> None:
        self.held = 0

    def __call__(self, met: object, message: str) -> None:
        """Count one expectation.

        Args:
            met: True when it is met.
            message: What to say when it is not.

        Raises:
            Unexpected: it is not.
        """
        if not met:
            raise Unexpected(message)
        self.held += 1
