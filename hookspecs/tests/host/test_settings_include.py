"""A configuration is read as LiteLLM reads it, files under ``include`` among it."""

from __future__ import annotations

import pytest

from pointsman.errors import ConfigError
from pointsman.host.settings import read_document


def test_included_lists_are_appended_and_everything_else_replaces(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(
        "include: [sub/b.yaml]\nmodel_list: [1]\npointsman: {plugins: [a]}\nlitellm_settings: {x: 1}"
    )
    (tmp_path / "sub" / "b.yaml").write_text("include: [c.yaml, d.yaml]\nmodel_list: [2]\npointsman: {plugins: [b]}")
    (tmp_path / "sub" / "c.yaml").write_text("include: [../a.yaml]\nmodel_list: [3]")
    (tmp_path / "d.yaml").write_text("model_list: [4]\ngeneral_settings: {y: 2}")
    assert read_document(tmp_path / "a.yaml") == {
        "model_list": [1, 2, 3, 4],
        "pointsman": {"plugins": ["b"]},
        "litellm_settings": {"x": 1},
        "general_settings": {"y": 2},
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", "is not YAML at line 1, column 6"),
        (b"api_key: sk-987654321: x", "is not YAML at line 1, column 22: mapping values are not allowed here"),
        (b"a: \xff", "is not YAML"),
        (b"a: 2024-13-45", "is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"a: " + b"[" * 5000, "is nested too deeply"),
        (b"a: " + b"[" * 900 + b"]" * 900, "is nested too deeply"),
        (b"", "must be a mapping"),
        (b"- a", "must be a mapping"),
        (b"include: x.yaml", "include: must be a list of file names"),
        (b"include: [gone.yaml]", "gone.yaml: cannot be read: No such file"),
    ],
)
def test_unreadable_file_is_one_line_that_quotes_nothing_of_it(tmp_path, content, expected):
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as err:
        read_document(file)
    text = str(err.value)
    assert text.startswith(str(tmp_path))
    assert expected in text
    assert "987654321" not in text
    assert "\n" not in text
