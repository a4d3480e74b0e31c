"""A new plugin is complete: it passes its tests as written, in process and in a real proxy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from pointsman.cli.scaffold import distribution
from pointsman.testing.distribution import fake_distribution


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *(
            (name, "lower-case letters")
            for name in ("", "Night", "night shift", "night_shift", "../x", "-x", "x-", "a" * 65)
        ),
        *((name, "the gateway or YAML uses itself") for name in ("host", "pointsman", "status", "check", "off")),
        ("good", "is installed"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(run, install, tmp_path, name, says):
    install("good")
    result = run("new-plugin", "--directory", str(tmp_path / "new"), "--", name)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    result = run("new-plugin", "night-shift", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_written_is_whole():
    files = distribution("night-shift", "pointsman[testing]")
    assert 'night-shift = "pointsman_night_shift.plugin:plugin"' in files["pyproject.toml"]
    assert "${{ matrix.python }}" in files[".github/workflows/tests.yml"]
    assert yaml.safe_load(files[".github/workflows/tests.yml"])["jobs"]["tests"]["steps"]
    assert not [path for path, text in files.items() if "$name" in text or "$module" in text]


@pytest.mark.parametrize("part", ["not proxy", pytest.param("proxy", marks=pytest.mark.proxy)])
def test_its_own_tests_pass(run, tmp_path, part):
    root = tmp_path / "new"
    assert run("new-plugin", "night-shift", "--directory", str(root)).exit_code == 0
    fake_distribution(root / "src", "pointsman-night-shift", {"night-shift": "pointsman_night_shift.plugin:plugin"})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", part]
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=170, check=False)  # noqa: S603  # fixed
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
