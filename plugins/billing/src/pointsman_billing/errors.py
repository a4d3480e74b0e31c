"""Errors of this plugin, below the project's own."""

from __future__ import annotations

from pointsman.errors import PointsmanError


class OutboxUnavailable(PointsmanError):
    """The outbox cannot be opened, read or written."""


class OutboxFull(OutboxUnavailable):
    """The outbox has no room for more until a sink has taken some."""
