"""The outbox's tables.

``events``    what is delivered, in the order it was written. A sink's cursor is the last ``seq`` it is done with; the
              database hands them out in the order of the commits, so none appears behind a cursor.
``requests``  one row for each settled request and each billed call of our own: it makes writing idempotent, and is what
              reconciliation counts.
``hours``     sums by hour, tenant, model and kind: what usage reports read. Written with the events, in one transaction.
``sinks``     each sink's cursor and how it is doing.
``dead``      what a sink would not take; ``again`` marks those that are to be delivered again.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "1"

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    request_id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_request ON events (request_id);
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY,
    own INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    last_seq INTEGER NOT NULL,
    gateway_usd_micros INTEGER NOT NULL,
    cost_usd_micros INTEGER NOT NULL,
    amount_usd_micros INTEGER NOT NULL,
    difference_usd_micros INTEGER NOT NULL,
    announced INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (at_ms);
CREATE TABLE IF NOT EXISTS hours (
    hour INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    requests INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    audio_tokens INTEGER NOT NULL,
    gateway_usd_micros INTEGER NOT NULL,
    cost_usd_micros INTEGER NOT NULL,
    amount_usd_micros INTEGER NOT NULL,
    difference_usd_micros INTEGER NOT NULL,
    PRIMARY KEY (hour, tenant, model, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sinks (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    worker TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (
    sink TEXT NOT NULL,
    seq INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    error TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    again INTEGER NOT NULL,
    PRIMARY KEY (sink, seq)
) WITHOUT ROWID;
"""

#: The sums of ``hours``, in the order of its columns.
SUMS: Final = (
    "requests",
    "attempts",
    "estimated",
    "unpriced",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "gateway_usd_micros",
    "cost_usd_micros",
    "amount_usd_micros",
    "difference_usd_micros",
)

ADD_TO_HOUR: Final = "ON CONFLICT (hour, tenant, model, kind) DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in SUMS
)
