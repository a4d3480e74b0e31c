"""The table of all attributes of spans says what the code sets, no more and no less."""

from __future__ import annotations

import re
from enum import StrEnum

import pytest
from attribute_table import TABLE, documented, in_code

from pointsman.types import AttemptKind, Outcome, SignalStatus
from pointsman_balance.breaker import BreakerState


def test_every_attribute_that_the_code_sets_is_in_the_table() -> None:
    table = documented()
    missing = {name: modules for name, modules in in_code().items() if name not in table}
    assert missing == {}


def test_the_table_has_no_attribute_that_the_code_does_not_set() -> None:
    assert sorted(documented() - set(in_code())) == []


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("pointsman.outcome", Outcome),
        ("pointsman.attempt.kind", AttemptKind),
        ("pointsman.signals.status", SignalStatus),
        ("pointsman.balance.breaker", BreakerState),
    ],
)
def test_the_table_lists_the_values_that_an_attribute_has(attribute: str, values: type[StrEnum]) -> None:
    (row,) = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{attribute}` |")]
    assert set(re.findall(r"`([a-z_]+)`", row.rsplit(" | ", 1)[1])) == {str(value) for value in values}
