"""The plugin of a stranger: built, installed into a fresh environment beside what is here, found, and tested by its own tests."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "examples" / "third_party_plugin"
SECTION = """
model_list:
  - {model_name: gpt-4o, litellm_params: {model: openai/gpt-4o, api_key: x}}
  - {model_name: gpt-4o-mini, litellm_params: {model: openai/gpt-4o-mini, api_key: x}}
general_settings: {master_key: sk-long-and-random-enough}
litellm_settings: {callbacks: ["pointsman.litellm.handler"]}
pointsman:
  store: {backend: memory}
  plugins:
    - curfew: {models: {gpt-4o: {from: "22:00", to: "06:00", instead: gpt-4o-mini}}}
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command to its end; return what it says."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH", "COV"))
    }
    done = subprocess.run(  # noqa: S603  # our own command
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a fresh environment's python and a directory, with the plugin's wheel installed in it."""
    place = tmp_path_factory.mktemp("stranger")
    shutil.copytree(SOURCE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv"), "platbase": str(place / "venv")}))
    # What is installed here serves there too, so that the test needs no index.
    here = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (purelib / "here.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in here))
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    run(python, "-c", build, place, cwd=place / "source")
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "zipfile", "-e", wheel, purelib, cwd=place)
    return python, place


def test_it_is_found_and_checked(installed: tuple[Path, Path]) -> None:
    """``pointsman`` lists it with its version, prints its settings, and checks a configuration that uses it."""
    python, place = installed
    (place / "litellm.yaml").write_text(SECTION, encoding="utf-8")
    pointsman = (python, "-c", "from pointsman.cli import main; main()")
    assert "acme-curfew 1.0.0" in run(*pointsman, "plugins", "list", cwd=place)
    assert "instead" in run(*pointsman, "plugins", "show", "curfew", cwd=place)
    assert "curfew" in run(*pointsman, "check", "litellm.yaml", cwd=place)


def test_its_own_tests_pass(installed: tuple[Path, Path]) -> None:
    """The contract suite among them, against the wheel."""
    python, place = installed
    tested = place / "tested"
    tested.mkdir(exist_ok=True)
    shutil.copytree(
        SOURCE / "tests", tested / "tests", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(SOURCE / "pyproject.toml", tested)
    assert " passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tested)
