"""The table of all attributes of spans says what the code sets, no more and no less."""

from __future__ import annotations

from attribute_table import documented, in_code


def test_every_attribute_that_the_code_sets_is_in_the_table() -> None:
    table = documented()
    missing = {name: modules for name, modules in in_code().items() if name not in table}
    assert missing == {}


def test_the_table_has_no_attribute_that_the_code_does_not_set() -> None:
    assert sorted(documented() - set(in_code())) == []
