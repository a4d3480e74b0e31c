"""``pointsman new-plugin``: a whole distribution with one working hook, an admin route, tests and type checks."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import click

from .. import __version__
from ..host.discovery import discover
from ..plugin import name_problem

#: Files of the distribution, each with the template it is made from; ``{module}`` stands for the package's name.
_FILES: Final = {
    "pyproject.toml": "pyproject.toml.txt",
    "tox.ini": "tox.ini.txt",
    "README.md": "README.md.txt",
    ".gitignore": "gitignore.txt",
    ".github/workflows/tests.yml": "ci.yml.txt",
    "src/{module}/__init__.py": "init.py.txt",
    "src/{module}/py.typed": None,
    "src/{module}/config.py": "config.py.txt",
    "src/{module}/plugin.py": "plugin.py.txt",
    "src/{module}/routes.py": "routes.py.txt",
    "tests/test_contract.py": "test_contract.py.txt",
    "tests/test_plugin.py": "test_plugin.py.txt",
}


def distribution(name: str, pointsman: str) -> dict[str, str]:
    """Return the files of a new distribution: their paths and what is in them.

    Args:
        name: The plugin's name.
        pointsman: What pip installs for the tests: a requirement, or a path.
    """
    major, minor = (int(part) for part in __version__.split(".")[:2])
    values = {
        "name": name,
        "distribution": f"pointsman-{name}",
        "module": f"pointsman_{name.replace('-', '_')}",
        "label": name.replace("-", "_"),
        "versions": f">={major}.{minor},<{major}.{minor + 1}",
        "pointsman": pointsman,
    }
    templates = files(__package__) / "template"
    return {
        path.format(module=values["module"]): ""
        if template is None
        else Template((templates / template).read_text(encoding="utf-8")).substitute(values)
        for path, template in _FILES.items()
    }


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    problem = name_problem(name)
    if problem or "_" in name:
        raise click.BadParameter(f"it {problem or name_problem('')}")
    if name in discover():
        raise click.BadParameter(f"a plugin {name!r} is installed; choose another name")
    return name


@click.command("new-plugin")
@click.argument("name", callback=_checked)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write it; by default a new directory pointsman-NAME here.",
)
@click.option(
    "--pointsman",
    default="pointsman[testing]",
    show_default=True,
    help="What its tests install: a requirement, or the path of a checkout, such as ../pointsman/hookspecs[testing].",
)
def new_plugin(name: str, directory: Path | None, pointsman: str) -> None:
    """Write a new plugin distribution: typed configuration, a hook, an admin route, tests, type checks, CI.

    NAME is its name in the configuration. Nothing that exists is overwritten.
    """
    root = directory or Path(f"pointsman-{name}")
    if root.exists() and any(root.iterdir()):
        raise click.ClickException(f"{root} exists and is not empty; name another place with --directory")
    path, bracket, extras = pointsman.partition("[")
    if Path(path).is_dir():
        # tox installs from the new directory, not from here.
        pointsman = f"pointsman{bracket}{extras} @ {Path(path).resolve().as_uri()}"
    for file, text in distribution(name, pointsman).items():
        target = root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    click.echo(f"{root} is a plugin with tests. Next:")
    click.echo(f"  cd {root} && tox run            its tests and type checks")
    click.echo(f"  pip install -e {root}           beside the proxy; then '- {name}: {{redirects: ...}}' in plugins:")
