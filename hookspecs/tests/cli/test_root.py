"""The root command: quick, lazy, and unharmed by a broken plugin."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from pointsman import __version__
from pointsman.cli import main
from pointsman.plugin import name_problem

COMMANDS = """
import click

@click.group()
def tool():
    '''What the group itself says.'''

@tool.command()
@click.argument("what")
def echo(what):
    click.echo(f"heard {what}")

def __getattr__(name):
    raise SystemExit(3) if name == "ends" else AttributeError(name)

plugin = """


@pytest.fixture
def with_commands(install):
    """Install a plugin ``tool`` whose commands are in its own module."""

    def add(name="tool", target="MODULE:tool", **kwargs):
        return install(name, ("plugin = ", COMMANDS), ("commands=None", f'commands="{target}"'), **kwargs)

    return add


def test_help_lists_commands_and_the_groups_of_plugins_that_have_some(run, install, with_commands):
    """A plugin without commands is not listed; a broken one is, with the command that explains it."""
    install("silent")
    install("broken", ("import PluginConfig", "import PluginConfigg"))
    with_commands()
    result = run("--help")
    assert result.exit_code == 0
    # A long text goes on in lines that are indented further.
    listed = dict(re.findall(r"(?m)^  (\S+) +(.+)$", result.output.partition("Commands:")[2]))
    assert {"check", "doctor", "plugins", "status", "tool", "broken"} <= listed.keys()
    assert "silent" not in listed
    assert listed["tool"] == "For tests."
    assert "plugins list" in listed["broken"]


def test_help_imports_neither_litellm_nor_the_commands():
    """In an interpreter of its own, with all plugins of this environment installed."""
    script = (
        "import sys; from pointsman.cli import main; main(['--help'], standalone_mode=False); "
        "print(*sorted(m for m in sys.modules if m == 'litellm' or m.endswith('.commands') or m.startswith('pointsman.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    assert done.stdout.splitlines()[-1] == "pointsman.cli.root"


def test_version(run):
    assert run("--version").output == f"pointsman, version {__version__}\n"


def test_group_of_a_plugin_is_the_plugins_own(run, with_commands):
    with_commands()
    assert run("tool", "echo", "this").output == "heard this\n"
    assert "What the group itself says." in run("tool", "--help").output
    assert run("tool", "echo").exit_code == 2


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("MODULE:gone", "AttributeError"),
        ("no_such_module_of_ours:tool", "ModuleNotFoundError"),
        ("MODULE:Plugin", "it is a type, not a click command"),
        ("", "cannot be imported"),
        ("MODULE:ends", "SystemExit: 3"),
    ],
)
def test_commands_that_cannot_be_imported_are_an_error_when_used_and_a_warning_of_check(
    run, write, with_commands, target, expected
):
    with_commands(target=target)
    assert run("--help").exit_code == 0
    checked = run("check", write({"plugins": ["tool"]}))
    assert checked.exit_code == 0, checked.output
    (warning,) = [line for line in checked.output.splitlines() if line.startswith("warning")]
    assert warning.startswith("warning  tool")
    assert expected in warning
    assert warning.endswith("the proxy starts without them")
    result = run("tool", "echo", "x")
    assert result.exit_code == 1
    assert result.output.startswith("Error: plugin 'tool': its commands ")
    assert expected in result.output


def test_broken_plugin_says_why_when_it_is_used(run, install):
    install("broken", ("import PluginConfig", "import PluginConfigg"))
    result = run("broken", "list")
    assert result.exit_code == 1
    assert "pointsman-broken 0) cannot be imported: ImportError" in result.output


def test_unknown_command_names_the_nearest_and_those_there_are(run, install, with_commands):
    install("silent")
    with_commands()
    result = run("chekc")
    assert result.exit_code == 2
    assert (
        "no command 'chekc' (did you mean 'check'?); there are: check, doctor, explain, hooks, new-plugin, plugins, reload, requests, schema, status, top"
        in result.output
    )
    assert "pip install" not in result.output, "a command to copy, with a misspelt name that anybody may have taken"
    assert "the plugin 'silent' has no commands" in run("silent").output
    assert run("--nonsense").exit_code == 2


def test_plugin_cannot_take_the_name_of_a_command_of_ours(run, with_commands):
    with_commands("check")
    assert "Validate the 'pointsman:' section" in run("check", "--help").output


def test_completion_offers_commands_and_survives_a_broken_plugin(install, with_commands):
    install("broken", ("import PluginConfig", "import PluginConfigg"))
    with_commands()

    def offered(args, incomplete):
        return {item.value for item in ShellComplete(main, {}, "pointsman", "_X").get_completions(args, incomplete)}

    assert {"tool", "status", "broken"} <= offered([], "")
    assert offered(["tool"], "e") == {"echo"}
    assert offered(["broken"], "") == set()


def test_no_plugin_is_called_as_a_command_of_ours(monkeypatch):
    monkeypatch.setattr("pointsman.cli.root.discover", dict)
    assert [name for name in main.list_commands(click.Context(main)) if not name_problem(name)] == []
