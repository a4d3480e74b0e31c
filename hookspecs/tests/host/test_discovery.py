"""Discovery and validation: everything that can be wrong with a plugin stops the start, and is named."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import traceback
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from pydantic import Field

from pointsman import PluginConfig, PluginInfo, hookimpl, specs
from pointsman.errors import HookSignatureError, PluginLoadError
from pointsman.host import discovery
from pointsman.host.host import Host
from pointsman.host.implementations import HOOK_NAMES, implementations
from pointsman.host.settings import parse
from pointsman.testing import FakeGateway


def load(entries, available, tmp_path):
    section = {"store": {"backend": "memory"}, "plugins": entries}
    return Host(parse(section, "proxy.yaml", tmp_path), FakeGateway(), available=available)


def refused(plugin_class, plugin):
    """Return why a plugin of this class is refused."""
    info = plugin(plugin_class, name="mine")
    with pytest.raises(HookSignatureError) as caught:
        implementations("mine", info.factory(PluginConfig()), PluginConfig())
    assert caught.value.plugin == "mine"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_misspelt_hook_is_named_with_the_nearest(plugin):
    class Mine:
        @hookimpl
        async def pre_rout(self, ctx):
            pass

    message = refused(Mine, plugin)
    assert "no hook 'pre_rout' (did you mean 'pre_route'?)" in message
    assert "before_attempt" in message, "all hooks are listed"


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_a_hook_of_the_wrong_colour_is_named(plugin, hook):
    """Every hook, the other way round: async where it must be plain, plain where it must be async."""
    wants_async = inspect.iscoroutinefunction(getattr(specs, hook))

    def plain(self):
        pass

    async def coloured(self):
        pass

    message = refused(type("Mine", (), {hook: hookimpl(plain if wants_async else coloured)}), plugin)
    want, have = ("async", "a plain function") if wants_async else ("a plain function", "async")
    assert f"hook {hook!r} must be {want}; the implementation is {have}" in message


def test_an_async_generator_is_no_async_hook(plugin):
    class Mine:
        @hookimpl
        async def execute(self):
            yield 1

    assert "must be async; the implementation is a plain function" in refused(Mine, plugin)


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_a_forgotten_marker_is_named(plugin, hook):
    class Mine:
        pass

    setattr(Mine, hook, lambda _: None)
    assert f"its method {hook!r} has a hook's name but is not marked @hookimpl" in refused(Mine, plugin)


def test_an_argument_that_can_only_be_named_is_refused(plugin):
    """The host passes arguments by position: the hook would fail each time. One that need not be given harms nothing."""

    class Mine:
        @hookimpl
        async def pre_route(self, ctx, *, route, other=None):
            return route

    assert "hook 'pre_route' takes route by name only" in refused(Mine, plugin)


@pytest.mark.parametrize("kind", ["partial", "Callable"])
def test_a_hook_that_is_no_function_is_refused(plugin, kind):
    """It would not be called, and nothing would say so."""

    class Callable:
        async def __call__(self, ctx):
            pass

    made = functools.partial(Callable.__call__, None) if kind == "partial" else Callable()
    message = refused(type("Mine", (), {"pre_route": hookimpl(made)}), plugin)
    assert f"'pre_route' is marked @hookimpl and is a {kind}" in message


def test_an_unknown_argument_is_named_with_those_allowed(plugin):
    class Mine:
        @hookimpl
        async def pre_route(self, request, route):
            pass

    message = refused(Mine, plugin)
    assert "hook 'pre_route' does not fit its specification (allowed: ctx, route)" in message
    assert "request" in message


@pytest.mark.parametrize("option", ["tryfirst", "trylast", "wrapper", "hookwrapper"])
def test_an_ordering_option_is_refused(plugin, option):
    class Mine:
        @hookimpl(**{option: True})
        def select(self, candidates):
            yield

    assert f"hook 'select' sets {option}; the order is that of the configuration" in refused(Mine, plugin)


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "ctx",
        "attempt",
        "answer",
        "ctx, attempt",
        "attempt, answer",
        "ctx, answer",
        "answer, ctx",
        "ctx, attempt, answer",
    ],
)
def test_an_implementation_gets_the_arguments_that_it_names(wanted):
    """Whichever they are: the first, the last, those in between, with gaps, in another order."""
    method = f"def post_response({', '.join(filter(None, ('self', wanted)))}): return [{wanted}]"
    scope = {"hookimpl": hookimpl}
    exec(f"class Mine:\n  @hookimpl\n  {method}", scope)  # noqa: S102  # a class of this test
    impl = implementations("mine", scope["Mine"](), PluginConfig())["post_response"]
    given = {"ctx": 1, "attempt": 2, "answer": 3}
    args = tuple(given.values())
    assert impl.call(*args[impl.takes]) == [given[name] for name in wanted.split(", ") if name]


async def test_arguments_may_be_left_out_and_reordered(harness, plugin):
    """An implementation takes the arguments it needs, in any order; inherited and static ones count too."""
    seen = []

    class Base:
        @hookimpl
        async def pre_route(self, route, ctx):
            seen.append((route.target, ctx.model))

        @hookimpl
        def post_response(self):
            seen.append("post_response")

    class Mine(Base):
        @staticmethod
        @hookimpl
        def on_error(attempt, ctx):
            """Be accepted."""

        @hookimpl
        async def settle(self, settlement):
            seen.append(settlement.model)

    async with harness([plugin(Mine)]) as h:
        await h.request()
        await h.settled()
        assert (seen, h.faults) == ([("chat", "chat"), "post_response", "chat"], {})


async def test_what_is_no_method_is_left_alone(harness, plugin):
    """Properties are not run while the plugin is looked at, and other attributes may be called what they like."""

    class Mine:
        helper = functools.partial(print)
        items: dict = {}  # noqa: RUF012  # an attribute like any other

        @property
        def state(self):
            raise RuntimeError("not started yet")

        def select_one(self):
            """Be a method of the plugin's own."""

    async with harness([plugin(Mine)]) as h:
        assert (await h.request()).status == 200


# -- names ------------------------------------------------------------------------------------------------------------


class Good:
    """A plugin that does nothing."""

    def __init__(self, config):
        self.config = config


class GoodConfig(PluginConfig):
    """One number."""

    number: int = Field(default=1, ge=0)


GOOD = PluginInfo(name="good", config=GoodConfig, factory=Good)


def test_an_unknown_plugin_is_named_with_the_nearest(tmp_path):
    with pytest.raises(PluginLoadError) as caught:
        load(["godo"], {"good": GOOD}, tmp_path)
    message = str(caught.value)
    assert "proxy.yaml: pointsman.plugins[0]" in message
    assert "no such plugin is installed (did you mean 'good'?); installed: good" in message
    assert "pip install" not in message, "a command to copy, with a misspelt name that anybody may have taken"


def test_without_any_plugin_installed_it_says_so(tmp_path):
    with pytest.raises(PluginLoadError, match="installed: none"):
        load(["good"], {}, tmp_path)


@pytest.fixture
def point(tmp_path, monkeypatch):
    """Make an entry point to a module with this text."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(text, name="good", attribute="plugin"):
        module = f"entry_point_module_{len(made)}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        return EntryPoint(name=name, value=f"{module}:{attribute}", group=discovery.GROUP)

    yield make
    for module in made:
        sys.modules.pop(module, None)


GOOD_TEXT = (
    "from pointsman import specs, PluginConfig, PluginInfo\n"
    "plugin = PluginInfo(name='good', config=PluginConfig, factory=lambda config: object())\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError"),
        ("plugin = 5", "is a int, not a pointsman.PluginInfo"),
        (GOOD_TEXT.replace("'good'", "'other'"), "its PluginInfo calls itself 'other'; both names must be the same"),
        (GOOD_TEXT.replace("config=PluginConfig", "config=dict"), "not a class made from pointsman.PluginConfig"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(point, tmp_path, text, expected):
    """Whatever is wrong behind an entry point, the message names the plugin, its module and the reason."""
    with pytest.raises(PluginLoadError) as caught:
        load(["good"], {"good": point(text)}, tmp_path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("plugin 'good':")


def backported(point):
    """Return an entry point as the backport importlib_metadata has it: alike, but of another class."""
    return SimpleNamespace(name=point.name, value=point.value, group=point.group, dist=point.dist, load=point.load)


@pytest.mark.parametrize("made", [lambda point: point, backported], ids=["own", "backported"])
def test_an_entry_point_that_works_is_loaded(point, tmp_path, made):
    host = load(["good"], {"good": made(point(GOOD_TEXT))}, tmp_path)
    assert host.plugins.names() == ["good"]
    assert host.plugins.loaded[0].distribution == "unknown distribution"


@pytest.mark.parametrize("made", [lambda point: point, backported], ids=["own", "backported"])
def test_two_packages_of_one_name_are_named(point, monkeypatch, tmp_path, made):
    """Two entry points of one name are an error where that name is used, and only there; the same one twice is not."""
    first, second = made(point(GOOD_TEXT)), made(point(GOOD_TEXT))
    other = made(point(GOOD_TEXT.replace("'good'", "'other'"), name="other"))
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [first, second, other, other])
    with pytest.raises(PluginLoadError, match="two installed packages provide it") as caught:
        load(["good"], None, tmp_path)
    assert first.value in str(caught.value)
    assert second.value in str(caught.value)
    assert load(["other"], None, tmp_path).plugins.names() == ["other"]


def test_a_plugin_that_cannot_be_built_is_named(tmp_path):
    def fail(config):
        raise OSError("no disk")

    broken = PluginInfo(name="good", config=PluginConfig, factory=fail)
    with pytest.raises(PluginLoadError, match="plugin 'good': it cannot be built: OSError: no disk"):
        load(["good"], {"good": broken}, tmp_path)


@pytest.mark.parametrize("what", ["NoneType", "coroutine"])
def test_a_factory_that_makes_no_plugin_is_named(tmp_path, what):
    """Without a ``return``, or asynchronous: the plugin would be there, and do nothing."""

    async def late():
        """Make nothing yet."""

    waiting = late()
    forgetful = PluginInfo(name="good", config=PluginConfig, factory=lambda _: waiting if what == "coroutine" else None)
    with pytest.raises(
        PluginLoadError, match=f"cannot be built: TypeError: its factory returned {what}, not the plugin"
    ):
        load(["good"], {"good": forgetful}, tmp_path)
    waiting.close()


def test_wrong_configuration_is_named_and_nothing_of_it_is_in_the_traceback(tmp_path):
    """File, key path, value and what is allowed; the traceback does not repeat the section, which may hold secrets."""
    secret = "sk-secret"
    with pytest.raises(PluginLoadError) as caught:
        load([{"good": {"number": -1, "api_key": secret}}], {"good": GOOD}, tmp_path)
    message = str(caught.value)
    assert "proxy.yaml: pointsman.plugins[0].good.number: -1 is not allowed" in message
    assert "pointsman.plugins[0].good.api_key: unknown key" in message
    assert secret not in "".join(traceback.format_exception(caught.value))


def test_order_is_that_of_the_list(tmp_path):
    names = ["c", "a", "b"]
    available = {name: PluginInfo(name=name, config=PluginConfig, factory=Good) for name in names}
    assert load(names, available, tmp_path).plugins.names() == names
    assert load(names[::-1], available, tmp_path).plugins.names() == names[::-1]


# -- optional: true ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["import no_such_module", "plugin = 5", GOOD_TEXT.replace("object()", "1 / 0")],
    ids=["import", "no plugin", "factory"],
)
def test_an_optional_plugin_that_cannot_be_loaded_is_left_out(point, tmp_path, text):
    """With ``optional: true`` the others start, and the reason is kept."""
    available = {"good": point(text), "other": PluginInfo(name="other", config=PluginConfig, factory=Good)}
    host = load([{"good": {"optional": True}}, "other"], available, tmp_path)
    assert host.plugins.names() == ["other"]
    assert host.plugins.broken["good"].startswith("plugin 'good':")
    assert host.statuses()["good"].summary.startswith("left out: plugin 'good':")
    assert not host.statuses()["good"].ok


async def test_what_is_left_out_is_in_the_log(point, tmp_path, caplog):
    available = {"good": point("import no_such_module")}
    host = load([{"good": {"optional": True}}, {"absent": {"optional": True}}], available, tmp_path)
    with caplog.at_level("ERROR", logger="pointsman"):
        await host.start()
        await host.stop()
    assert [line.split(":")[0] for line in caplog.messages] == ["plugin 'good'", "plugin 'absent'"]
    assert all("it is optional and left out" in line for line in caplog.messages)


async def test_an_optional_plugin_that_cannot_start_is_left_out(harness, plugin, leak_check):
    """Its tasks end, its hooks are never called, the others serve, and the status shows what happened."""
    ended = asyncio.Event()

    class Broken:
        @hookimpl
        async def startup(self, services):
            async def background():
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            services.tasks.spawn(background(), name="background")
            await asyncio.sleep(0)
            raise OSError("no disk")

        @hookimpl
        async def pre_route(self):
            raise AssertionError("called although it was left out")

        @hookimpl
        async def shutdown(self):
            raise AssertionError("shut down although it never started")

    h = harness([(plugin(Broken), {"optional": True})])
    async with h:
        assert ended.is_set()
        assert (await h.request()).status == 200
        page = (await h.admin.get("/status")).json()
        (shown,) = page["plugins"]
        assert not shown["ok"]
        assert "left out: plugin 'broken': its start-up failed: OSError: no disk" in shown["summary"]
    assert h.faults == {}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mine",
        "my plugin",
        "mine/x",
        "..",
        "mine-",
        "a" * 65,
        7,
        *("host", "deferred", "pointsman", "status", "requests", "check", "no", "null"),
    ],
)
def test_a_name_that_the_gateway_cannot_use_is_refused(name):
    """A plugin called as the host's own keys, routes or commands would share them."""
    with pytest.raises(ValueError, match="the name of PluginInfo"):
        PluginInfo(name=name, config=PluginConfig, factory=object)


@pytest.mark.parametrize("field", ["summary", "requires"])
@pytest.mark.parametrize("value", [None, 5, b">=0.1"])
def test_a_text_that_is_something_else_is_named(field, value):
    """Where it is written, not in every command that reads it."""
    with pytest.raises(TypeError, match=f"{field} is .*, not a text"):
        PluginInfo(name="good", config=PluginConfig, factory=lambda _: object(), **{field: value})


@pytest.mark.parametrize("field", ["labels", "replaces_labels", "needs", "conflicts", "before", "after"])
@pytest.mark.parametrize("value", ["quota", None, (7,), {"quota"}])
def test_one_name_instead_of_a_tuple_is_refused(field, value):
    """Its letters would be taken for names."""
    with pytest.raises(TypeError, match=f"{field} is .*, not a tuple of names"):
        PluginInfo(name="mine", config=PluginConfig, factory=object, **{field: value})


@pytest.mark.parametrize("field", ["needs", "conflicts", "before", "after"])
def test_a_plugin_cannot_name_itself_as_another(field):
    """No configuration would be right."""
    with pytest.raises(ValueError, match=f"{field} names the plugin itself"):
        PluginInfo(name="mine", config=PluginConfig, factory=object, **{field: ("other", "mine")})
    PluginInfo(name="mine", config=PluginConfig, factory=object, labels=("mine",))
