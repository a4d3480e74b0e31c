"""What a plugin says of versions and of other plugins is checked before the first request, with what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman import PluginConfig, PluginInfo, __version__, hookimpl
from pointsman.errors import PluginLoadError
from pointsman.host import discovery
from pointsman.host.settings import parse
from pointsman.testing import Harness


def load(tmp_path, *infos, optional=()):
    """Load plugins in this order."""
    section = {
        "store": {"backend": "memory"},
        "plugins": [{info.name: {"optional": info.name in optional}} for info in infos],
    }
    entries = parse(section, "proxy.yaml", tmp_path).entries
    return discovery.load(entries, {info.name: info for info in infos}).names()


def info(name, **relations):
    return PluginInfo(name=name, config=PluginConfig, factory=lambda _: object(), **relations)


@pytest.mark.parametrize("requires", ["", f"=={__version__}", ">=0.0.1", ">=0.1,<9"])
def test_a_plugin_for_this_version_is_loaded(tmp_path, requires):
    assert load(tmp_path, info("mine", requires=requires)) == ["mine"]


@pytest.mark.parametrize("requires", [">=99", "<0.0.1", f"!={__version__}"])
def test_a_plugin_for_another_version_is_refused_before_it_is_built(tmp_path, requires):
    def build(_):
        raise AssertionError("it was built")

    with pytest.raises(PluginLoadError, match=f"made for pointsman .*{__version__} is installed"):
        load(tmp_path, replace(info("mine", requires=requires), factory=build))


def test_what_is_no_version_is_named(tmp_path):
    with pytest.raises(PluginLoadError, match="'two', which is not a version specifier such as"):
        load(tmp_path, info("mine", requires="two"))


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ({"needs": ("gone",)}, "it needs the plugin 'gone'; add it to plugins:"),
        ({"conflicts": ("first",)}, "it cannot be used together with 'first'; remove one of them"),
        ({"before": ("first",)}, "it must come before 'first'; change their order"),
        ({"after": ("last",)}, "it must come after 'last'; change their order"),
    ],
)
def test_neighbours_that_do_not_fit_are_named_with_the_mend(tmp_path, relations, message):
    with pytest.raises(PluginLoadError, match=message):
        load(tmp_path, info("first"), info("mine", **relations), info("last"))


def test_neighbours_that_fit_or_are_not_used_are_fine(tmp_path):
    mine = info("mine", needs=("last",), conflicts=("gone",), before=("last", "gone"), after=("first", "gone"))
    assert load(tmp_path, info("first"), mine, info("last")) == ["first", "mine", "last"]


def _no(_):
    raise RuntimeError("no such device")


@pytest.mark.parametrize("turn", [1, -1], ids=["needed first", "needed last"])
def test_a_plugin_does_not_start_without_one_that_it_needs_and_that_is_left_out(tmp_path, turn):
    infos = [
        replace(info("base"), factory=_no),
        info("middle", needs=("base",)),
        info("upper", needs=("middle",)),
        info("other"),
    ]
    with pytest.raises(
        PluginLoadError, match=r"it needs the plugin '.*', which cannot be used .*no such device.*correct that"
    ):
        load(tmp_path, *infos[::turn], optional=("base",))
    assert load(tmp_path, *infos[::turn], optional=("base", "middle", "upper")) == ["other"]


class _Life:
    """Fails to start where it is told to, and notes its start and end."""

    def __init__(self, notes, *, fails=False):
        self._notes, self._fails = notes, fails

    @hookimpl
    async def startup(self):
        if self._fails:
            raise RuntimeError("no such device")
        self._notes.append("start")

    @hookimpl
    async def shutdown(self):
        self._notes.append("end")


@pytest.mark.parametrize("turn", [1, -1], ids=["needed first", "needed last"])
async def test_what_fails_to_start_is_left_out_with_those_that_need_it(turn):
    notes = []
    infos = [
        replace(info("base"), factory=lambda _: _Life(notes, fails=True)),
        replace(info("mine", needs=("base",)), factory=lambda _: _Life(notes)),
    ]
    base, mine = ((info, {"optional": True}) for info in infos)
    with pytest.raises(
        PluginLoadError, match=r"plugin 'mine': it needs the plugin 'base', which cannot be used .*no such device"
    ):
        async with Harness([base, infos[1]][::turn]):
            pass
    assert notes in ([], ["start", "end"])
    notes.clear()
    async with Harness([base, mine][::turn]) as h:
        assert h.host.plugins.names() == []
        assert notes in ([], ["start", "end"]), "it is ended at once"
        assert "needs the plugin 'base'" in h.host.plugins.broken["mine"]
        assert (await h.request()).status == 200
