"""Each adapter against a server that speaks the calls as they were recorded, and refuses beyond its own memory."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from pointsman.testing import FakeClock
from pointsman_residency.servers import BUILT_IN, Listed, ServerError, Trouble, installed, unknown
from pointsman_residency.servers.connect import certificates, connect
from pointsman_residency.servers.generic import Generic

from .recorded import SERVERS

MODEL = {"ollama": "a:latest"}


class Rig:
    """An adapter, and the server it speaks to, without a socket."""

    def __init__(self, kind, **settings):
        self.clock = FakeClock()
        self.server = SERVERS[kind](self.clock)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.server.app))
        settings = {**self.server.settings, **settings}
        self.adapter = BUILT_IN[kind]("http://models.test", client, self.clock, settings)
        self.name = self.adapter.canonical("a")

    async def do(self, work):
        return await self.clock.run(work)


@pytest.fixture(params=sorted(SERVERS))
def rig(request):
    return Rig(request.param)


async def test_it_lists_loads_and_unloads(rig):
    listed = await rig.do(rig.adapter.models())
    assert all(row.sleeping for row in listed.values())
    await rig.do(rig.adapter.load(rig.name))
    listed = (await rig.do(rig.adapter.models()))[rig.name]
    assert (listed.loading, listed.sleeping) == (False, False)
    assert listed.bytes == (rig.server.sizes["a"] if rig.adapter.tells_bytes else listed.bytes)
    await rig.do(rig.adapter.unload(rig.name))
    # Some list it for a moment longer.
    await rig.clock.advance(1)
    left = (await rig.do(rig.adapter.models())).get(rig.name)
    assert left is None or (rig.adapter.sleeps and left.sleeping)


async def test_loading_what_is_loaded_and_unloading_what_is_not_are_no_errors(rig):
    await rig.do(rig.adapter.load(rig.name))
    await rig.do(rig.adapter.load(rig.name))
    assert rig.server.loads == 1
    for _ in range(2):
        await rig.do(rig.adapter.unload(rig.name))
        await rig.clock.advance(1)


async def test_a_llama_server_that_was_restarted_while_it_loaded_may_be_asked_again():
    rig = Rig("llama_cpp")
    load = asyncio.ensure_future(rig.do(rig.adapter.load("a")))
    await rig.clock.advance(0.2)
    rig.server.loaded.clear()
    with pytest.raises(ServerError) as failed:
        await load
    assert failed.value.trouble is Trouble.UNREACHABLE


async def test_llama_cpp_tells_the_weights_of_what_is_loaded():
    rig = Rig("llama_cpp")
    await rig.do(rig.adapter.load("a"))
    listed = (await rig.do(rig.adapter.models()))["a"]
    assert (listed.bytes, listed.weights) == (None, rig.server.sizes["a"])


async def test_listing_changes_nothing(rig):
    await rig.do(rig.adapter.load(rig.name))
    before = rig.server.state()
    for _ in range(50):
        await rig.do(rig.adapter.models())
    assert rig.server.state() == before


@pytest.mark.parametrize("kind", ["ollama", "llama_cpp", "llama_swap", "lm_studio", "generic"])
async def test_a_broken_model_is_an_error_with_the_servers_message(kind):
    rig = Rig(kind)
    name = rig.adapter.canonical("broken")
    with pytest.raises(ServerError) as failed:
        await rig.do(rig.adapter.load(name))
    assert failed.value.trouble is Trouble.BROKEN
    assert str(failed.value)
    assert name not in await rig.do(rig.adapter.models())


@pytest.mark.parametrize("kind", ["ollama", "lm_studio", "generic", "llama_cpp"])
async def test_an_unknown_model_is_missing(kind):
    rig = Rig(kind)
    with pytest.raises(ServerError) as failed:
        await rig.do(rig.adapter.load(rig.adapter.canonical("nowhere")))
    assert failed.value.trouble is Trouble.MISSING


@pytest.mark.parametrize("kind", ["ollama", "lm_studio", "generic"])
async def test_a_server_without_memory_says_so(kind):
    rig = Rig(kind)
    rig.server.capacity = 10
    with pytest.raises(ServerError) as failed:
        await rig.do(rig.adapter.load(rig.name))
    assert failed.value.trouble is Trouble.MEMORY


async def test_a_busy_server_is_asked_again(rig):
    rig.server.busy = 2
    await rig.do(rig.adapter.load(rig.name))
    assert rig.name in await rig.do(rig.adapter.models())


async def test_a_server_that_stays_busy_is_reported_as_busy(rig):
    rig.server.busy = 100
    with pytest.raises(ServerError) as failed:
        await rig.do(rig.adapter.models())
    assert failed.value.trouble is Trouble.BUSY


@pytest.mark.parametrize("kind", sorted(BUILT_IN))
async def test_a_server_that_is_not_there_is_unreachable(kind):
    clock = FakeClock()
    refused = httpx.MockTransport(_refuse)
    settings = {"list": "/list"} if kind == "generic" else {}
    adapter = BUILT_IN[kind]("http://models.test", httpx.AsyncClient(transport=refused), clock, settings)
    with pytest.raises(ServerError) as failed:
        await clock.run(adapter.models())
    assert failed.value.trouble is Trouble.UNREACHABLE
    assert "models.test" not in str(failed.value)


def _refuse(request):
    raise httpx.ConnectError("connection refused", request=request)


@pytest.mark.parametrize("kind", sorted(BUILT_IN))
@pytest.mark.parametrize("answer", [b"[]", b"42", b'"x"', b"<html>", b"{}", b'{"models": 3, "data": 3, "running": {}}'])
async def test_an_answer_of_another_shape_is_an_error_or_nothing(kind, answer):
    clock = FakeClock()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    settings = {"list": "/list"} if kind == "generic" else {}
    adapter = BUILT_IN[kind]("http://models.test", httpx.AsyncClient(transport=transport), clock, settings)
    with pytest.raises(ServerError) as failed:
        await clock.run(adapter.models())
    assert failed.value.trouble is Trouble.BROKEN


async def test_an_endless_answer_is_cut(monkeypatch):
    monkeypatch.setattr("pointsman_residency.servers.base.MAX_ANSWER_BYTES", 1000)
    clock = FakeClock()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b" " * 2000))
    adapter = BUILT_IN["ollama"]("http://models.test", httpx.AsyncClient(transport=transport), clock)
    with pytest.raises(ServerError, match="longer than 1000 bytes"):
        await clock.run(adapter.models())


async def test_an_error_message_is_one_printable_line_of_bounded_length():
    clock = FakeClock()
    body = {"error": {"message": "first\nsecond\x1b[31m" + "x" * 10_000}}
    transport = httpx.MockTransport(lambda _: httpx.Response(500, json=body))
    adapter = BUILT_IN["ollama"]("http://models.test", httpx.AsyncClient(transport=transport), clock)
    with pytest.raises(ServerError) as failed:
        await clock.run(adapter.load("a"))
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) <= 300


@pytest.mark.parametrize("name", ["../../admin", "a/b", "a?x=1", "a b", "ä"])
async def test_a_name_never_becomes_another_path(name):
    seen = []

    def answer(request):
        seen.append(request.url)
        return httpx.Response(200, text="OK")

    clock = FakeClock()
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    await clock.run(BUILT_IN["llama_swap"]("http://models.test", client, clock).unload(name))
    generic = BUILT_IN["generic"]("http://models.test", client, clock, {"unload": "/x/{model}/off"})
    await clock.run(generic.unload(name))
    assert [url.raw_path.count(b"/") for url in seen] == [4, 3]
    assert not any(url.query for url in seen)


@pytest.mark.parametrize("tells", [True, False], ids=["metrics say it", "metrics do not say it"])
@pytest.mark.parametrize(("level", "calls"), [(1, ["/wake_up"]), (2, ["/wake_up", "/collective_rpc", "/wake_up"])])
async def test_vllm_wakes_as_it_was_put_to_sleep(level, calls, tells):
    rig = Rig("vllm", level=level)
    rig.server.told = "weights_offloaded" if tells else None
    await rig.do(rig.adapter.load("a"))
    await rig.do(rig.adapter.unload("a"))
    rig.server.calls.clear()
    await rig.do(rig.adapter.load("a"))
    assert [path for method, path in rig.server.calls if method == "POST"] == calls
    assert (rig.server.asleep, rig.server.weights) == (set(), "good")


async def test_vllm_reads_its_weights_again_when_something_else_has_thrown_them_away():
    rig = Rig("vllm", level=1)
    await rig.do(rig.adapter.load("a"))
    rig.server.sleep(2)
    await rig.do(rig.adapter.load("a"))
    assert (rig.server.asleep, rig.server.weights) == (set(), "good")


async def test_vllm_that_was_only_half_woken_reads_its_weights_again():
    """Its metrics call it awake then, although its weights may not have been read."""
    rig = Rig("vllm", level=1)
    await rig.do(rig.adapter.load("a"))
    rig.server.sleep(2)
    rig.server._wake({"weights"})
    await rig.do(rig.adapter.load("a"))
    assert (rig.server.asleep, rig.server.weights) == (set(), "good")


async def test_vllm_without_its_sleep_mode_is_an_error():
    rig = Rig("vllm")
    rig.server.dev_mode = False
    for work in (rig.adapter.models, lambda: rig.adapter.load("a"), lambda: rig.adapter.unload("a")):
        with pytest.raises(ServerError) as failed:
            await rig.do(work())
        assert failed.value.trouble is Trouble.MISSING


async def test_lm_studio_tells_the_weights_of_each_instance():
    rig = Rig("lm_studio")
    await rig.do(rig.adapter.load("a"))
    assert (await rig.do(rig.adapter.models()))["a"] == Listed(weights=rig.server.sizes["a"])


async def test_an_lm_studio_that_does_not_know_a_path_has_not_done_it(monkeypatch):
    """It answers such a path with 200."""
    rig = Rig("lm_studio")
    answer = type(rig.server).answer

    async def older(self, method, path, body, query):
        return await answer(self, method, path.replace("/api/v1/models/", "/nowhere/"), body, query)

    monkeypatch.setattr(type(rig.server), "answer", older)
    with pytest.raises(ServerError, match="Unexpected endpoint") as failed:
        await rig.do(rig.adapter.load("a"))
    assert failed.value.trouble is Trouble.BROKEN


async def test_generic_without_a_list_is_believed():
    rig = Rig("generic")
    assert rig.adapter.can_list
    assert not BUILT_IN["generic"]("http://x", httpx.AsyncClient(), rig.clock, {}).can_list


def test_what_is_wrong_with_a_server_is_said():
    assert "did you mean 'ollama'" in (unknown("olama", BUILT_IN, {}) or "")
    assert "did you mean 'level'" in (unknown("vllm", BUILT_IN, {"levl": 1}) or "")
    assert unknown("ollama", BUILT_IN, {"options": {"num_ctx": 1}}) is None


class Entry:
    name = "acme"
    value = "acme:Acme"

    def __init__(self, found):
        self._found = found

    def load(self):
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_a_third_partys_server_is_found_and_a_wrong_one_refused_where_it_is_named():
    assert installed([Entry(BUILT_IN["ollama"])])["acme"] is BUILT_IN["ollama"]
    for named, problem in (
        (Listed, "derived from pointsman_residency.servers.base.ModelServer"),
        (ImportError("no module"), "cannot be imported"),
    ):
        broken = installed([Entry(named)])
        assert set(broken) == set(BUILT_IN)
        assert problem in (unknown("acme", broken, {}) or "")


async def test_servers_with_https_share_their_certificates(monkeypatch):
    made = []
    create = httpx.create_ssl_context
    monkeypatch.setattr(httpx, "create_ssl_context", lambda **options: made.append(1) or create(**options))
    certificates.cache_clear()
    for url in ("https://one.test", "https://two.test"):
        server = connect(Generic, url, headers={}, settings={}, clock=FakeClock(), timeout_s=1)
        await server.client.aclose()
    assert made == [1]
