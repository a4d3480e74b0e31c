"""Each plugin with only the spine beside it, both from built wheels: its contract and its configuration.

Every plugin gets an environment of its own, as one who installs it has: a copy of one that has the spine and what tests need,
with the plugin installed into it. As many at a time as there are cores.

    tox run -e plugins [-- quota billing]

Ends with 1 when a test of one of them fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAMES: Final = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
#: The other tests run where everything is installed. Files with proxies import the providers' clients, which takes seconds.
SELECTION: Final = (
    "-m",
    "not proxy and not services",
    "-k",
    "config or (contract and not cancelled and not grow)",
    "--ignore-glob=*/test_proxy.py",
    "--ignore-glob=*/test_llama.py",
)


def wheel(source: Path, directory: Path) -> Path:
    """Build the wheel of a distribution into a directory; return it."""
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", directory, source], cwd=ROOT, check=True)  # noqa: S603, S607  # our own command
    return next(directory.glob("*.whl"))


def common(spine: Path, directory: Path) -> Path:
    """Make an environment with the spine and what tests need; return it."""
    environment = directory / "env"
    python = environment / "bin" / "python"
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("uv", "venv", "--quiet", "--python", sys.executable, environment),
        ("uv", "pip", "install", "--quiet", "--python", python, "--group", "test", spine),
        # Compiled once, not in each copy.
        (python, "-c", "import hypothesis, pytest, pointsman.testing"),
    )
    for command in commands:
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603  # our own commands
    return environment


def tried(name: str, base: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of one plugin in a copy of the environment; return what they said."""
    environment = directory / "env"
    # Links: installing replaces files and does not write into them.
    shutil.copytree(base, environment, symlinks=True, copy_function=os.link)
    python = environment / "bin" / "python"
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("uv", "pip", "install", "--quiet", "--python", python, wheel(ROOT / "plugins" / name, directory)),
        (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"plugins/{name}", *SELECTION),
    )
    for command in commands:
        done = subprocess.run(  # noqa: S603  # our own commands
            command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            break
    return done


def main() -> int:
    """Try the plugins that the command names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"there is no plugin {', '.join(unknown)}; there are {', '.join(NAMES)}")
    with (
        tempfile.TemporaryDirectory(prefix="pointsman-alone-") as directory,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        places = {name: Path(directory) / name for name in ("spine", *names)}
        for place in places.values():
            place.mkdir()
        base = common(wheel(ROOT / "hookspecs", places["spine"]), places["spine"])
        failed = []
        for name, done in zip(names, pool.map(lambda name: tried(name, base, places[name]), names), strict=True):
            print(f"==== {name}\n{done.stdout}", flush=True)  # noqa: T201  # the output of this command
            failed += [name] * bool(done.returncode)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(names)} plugins, each alone with the spine: all passed")  # noqa: T201  # as above
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
