"""The journal's rows: what is written comes back, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pointsman.host.journal_rows import Entry, dump, parse, restored_context
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Denial,
    Deployment,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Reservation,
    Route,
    Settlement,
    Usage,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maps = st.dictionaries(texts, texts, max_size=3)
numbers = st.floats(0, 1e12)
usages = st.builds(Usage, prompt_tokens=st.integers(0, 2**53), estimated=st.booleans())
deployments = st.builds(Deployment, info=st.dictionaries(texts, st.booleans() | st.integers() | numbers | texts))
errors = st.builds(AttemptError, kind=st.sampled_from(ErrorClass), status=st.none() | st.integers(100, 599))
attempts = st.builds(
    Attempt,
    id=texts,
    request_id=texts,
    number=st.integers(1, 9),
    kind=st.sampled_from(AttemptKind),
    deployment=deployments,
    started_at=numbers,
    labels=maps,
    outcome=st.sampled_from(Outcome),
    duration_ms=numbers,
    first_token_ms=st.none() | numbers,
    usage=st.none() | usages,
    cost_usd_micros=st.none() | st.integers(0, 2**53),
    headers=maps,
    error=st.none() | errors,
)
reservations = st.builds(
    Reservation,
    expires_at=numbers,
    amounts=st.dictionaries(texts, st.integers(0, 2**53), max_size=3),
    data=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | numbers | texts, max_size=3),
)
settlements = st.builds(
    Settlement,
    request_id=texts,
    endpoint=st.sampled_from(Endpoint),
    identity=st.builds(Identity, tenant=st.none() | texts, claims=maps),
    route=st.builds(Route, labels=maps, reservations=st.lists(reservations, max_size=2).map(tuple)),
    outcome=st.sampled_from(Outcome),
    started_at=numbers,
    finished_at=numbers,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    usage=st.none() | usages,
    denial=st.none() | st.builds(Denial, status=st.integers(400, 599)),
)


@given(settlements, st.lists(st.sampled_from(["one", "two"]), unique=True))
def test_a_row_brings_back_what_was_written(settlement, pending):
    """Through JSON and back, everything but the provider's headers is as it was, in type and value."""
    text = json.dumps(dump([Entry(restored_context(settlement), settlement, pending)]))
    ((entry,), _) = parse(json.loads(text))
    bare = tuple(replace(attempt, headers={}) for attempt in settlement.attempts)
    assert entry.settlement == replace(settlement, attempts=bare)
    assert entry.pending == pending
    assert entry.ctx == restored_context(settlement)


@given(st.recursive(st.none() | st.integers() | texts, lambda x: st.lists(x) | st.dictionaries(texts, x)))
def test_nothing_else_passes_for_a_row(value):
    """What was not written by the journal is unreadable, as a whole or in parts, and nothing is lost of it."""
    entries, unreadable = parse(value)
    assert (entries, unreadable) == ([], [value])
