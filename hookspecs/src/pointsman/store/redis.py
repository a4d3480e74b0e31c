"""The state store of many machines: redis, alone or as a cluster, with one round trip per operation."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from . import encoding, lua, patience
from .base import JSON, AtomicOp, Update

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = 50
_SCAN_KEYS: Final = 1000
_REFUSED: Final = re.compile(r"(^|-)(OOM|READONLY|MISCONF|NOREPLICAS|NOPERM|MASTERDOWN|LOADING|CLUSTERDOWN) ")
"""What a server says in the middle of a script when the fault is not the script's."""


class RedisStore:
    """JSON texts in redis strings.

    A call takes one round trip, except ``scan``, which walks all keys of the server, and the first call of each Lua
    script. Nothing is sent twice by itself: a lost answer is ``StoreUnavailable``, not a second ``add``.

    Use ``open``. All calls come from the event loop that opened it.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster, where: str, prefix: str, timeout_s: float) -> None:
        self._client = client
        self._where = where
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._free_connections = asyncio.Semaphore(_CONNECTIONS)
        self._scripts: dict[str, AsyncScript] = {}
        self._closed = False

    @classmethod
    async def open(cls, url: str, *, prefix: str = "pointsman:", timeout_s: float = 5.0) -> Self:
        """Connect to the server, or to the cluster that it is part of.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database as redis-py reads them.
            prefix: Put before every key, so that others can use the same server.
            timeout_s: Longest time a call may take, in seconds.

        Raises:
            ValueError: the URL cannot be read.
            StoreUnavailable: nobody answers there, or not to this user.
        """
        encoding.check_prefix(prefix)
        settings: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            # `_asking` bounds every call as a whole. A second limit of the library's own would cost each a task.
            "socket_timeout": None,
            "socket_connect_timeout": timeout_s,
            "max_connections": 2 * _CONNECTIONS,
        }
        try:
            client = redis.Redis.from_url(url, **settings)
        except (ValueError, TypeError):
            # The library's message repeats parts of the URL, which may be parts of the password.
            raise ValueError(
                "the store's url is not one of redis: write redis://[[user]:password@]host[:port][/database], rediss://"
                " for TLS or unix://path, with special characters of the password percent-encoded"
            ) from None
        store = cls(client, _place(client), prefix, timeout_s)
        try:
            async with store._asking():
                about = dict(await client.info())
            if about.get("cluster_enabled"):
                await client.aclose()
                store._client = redis.RedisCluster.from_url(url, **settings)
            await store.ping()
            if about.get("maxmemory") and about.get("maxmemory_policy") != "noeviction":
                _log.warning(
                    "%s drops keys when its memory is full (maxmemory-policy %s), which loses state that plugins rely"
                    " on; set maxmemory-policy to noeviction",
                    store._where,
                    about["maxmemory_policy"],
                )
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, key: str) -> JSON:
        """See ``StateStore.get``."""
        encoding.check_key(key)
        async with self._asking():
            text = await self._client.execute_command("GET", self._prefix + key)
        return self._value(key, text)

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``. On a cluster, one round trip for each group of keys that lie together."""
        for key in keys:
            encoding.check_key(key)
        texts = await self._texts([self._prefix + key for key in keys])
        return [self._value(key, text) for key, text in zip(keys, texts, strict=True)]

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        encoding.check_key(key)
        encoding.check_ttl(ttl_s)
        life = () if ttl_s is None else ("PX", _milliseconds(ttl_s))
        text = encoding.encode(value)
        async with self._asking():
            await self._client.execute_command("SET", self._prefix + key, text, *life)

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        encoding.check_key(key)
        async with self._asking():
            return bool(await self._client.execute_command("DEL", self._prefix + key))

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        return await self.update(encoding.compare_and_set(key, expected, value, ttl_s))

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        encoding.check_key(key)
        encoding.check_amount(amount)
        encoding.check_ttl(ttl_s)
        total = await self._script(lua.ADD, [key], [amount, _milliseconds(ttl_s)])
        self._check_counters(total)
        return int(total)

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``. Takes a time that grows with the number of all keys of the server."""
        encoding.check_prefix(prefix)
        pattern = _literally(self._prefix + prefix) + "*"
        async with self._asking():
            found = {key async for key in self._client.scan_iter(match=pattern, count=_SCAN_KEYS)}
        try:
            names = sorted(key.decode() for key in found)
        except UnicodeDecodeError:
            raise StoreCorrupt(f"{self._where} has a key below {prefix!r} that is not text; delete it") from None
        pairs = []
        for start in range(0, len(names), _SCAN_KEYS):
            some = names[start : start + _SCAN_KEYS]
            for name, text in zip(some, await self._texts(some), strict=True):
                if text is not None:
                    key = name.removeprefix(self._prefix)
                    pairs.append((key, self._value(key, text)))
        return pairs

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        checks, puts = encoding.encode_update(update)
        keys = [*checks, *puts, *update.deletes, *update.adds]
        if not keys:
            return True
        writes = [len(puts), len(update.deletes)]
        values = [word for text, ttl_s in puts.values() for word in (text, _milliseconds(ttl_s))]
        expected: dict[str, str | bytes] = {key: text or "" for key, text in checks.items()}
        while True:
            reply = await self._script(
                lua.UPDATE, keys, [len(checks), *writes, *expected.values(), *values, *update.adds.values()]
            )
            if reply == 1:
                return True
            self._check_counters(reply)
            present = {keys[number - 1]: text for number, text in zip(reply[::2], reply[1::2], strict=True)}
            if not all(self._means(key, text, checks[key]) for key, text in present.items()):
                return False
            # Lua may spell the same value differently. Only the exact text tells that nothing has changed since.
            expected.update(present)

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        encoding.check_keys(keys)
        text = encoding.encode_any(args)
        reply = await self._script(op.lua, keys, [text], f" of {op.name!r}", prelude=lua.PRELUDE)
        try:
            return encoding.decode_any(reply)
        except (ValueError, AttributeError, TypeError):
            raise StoreError(
                f"the Lua script of {op.name!r} did not return a JSON text; end it with json_encode"
            ) from None

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        async with self._asking():
            await self._client.execute_command("PING")

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._client.aclose()

    async def _texts(self, names: list[str]) -> list[bytes | None]:
        if not names:
            return []
        client = self._client
        reading = client.mget_nonatomic if isinstance(client, redis.RedisCluster) else client.mget
        async with self._asking():
            texts: list[Any] = await reading(names)
        return texts

    async def _script(
        self, script: str, keys: Sequence[str], args: Sequence[Any], whose: str = "", prelude: str = ""
    ) -> Any:
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self._client.register_script(prelude + script)
        async with self._asking(whose):
            return await registered([self._prefix + key for key in keys], args)

    @asynccontextmanager
    async def _asking(self, whose: str = "") -> AsyncIterator[None]:
        """Bound the time of what is asked, and turn every failure into one of ours."""
        if self._closed:
            raise StoreUnavailable(f"{self._where}: the store has been closed")
        try:
            async with patience.within(self._timeout_s), self._free_connections:
                yield
        except TimeoutError:
            raise StoreUnavailable(f"{self._where} did not answer within {self._timeout_s:g} s") from None
        except (RedisError, RedisClusterException, OSError) as err:
            # A server may repeat the arguments of a command it does not know: values, or the password.
            reason, repeated, _ = str(err).partition(", with args")
            raise self._failure(err, reason, whose) from (None if repeated else err)

    def _failure(self, err: Exception, reason: str, whose: str) -> Exception:
        if "same slot" in reason or "same key slot" in reason or reason.startswith("CROSSSLOT"):
            return ValueError(
                "the keys of one atomic step lie on different nodes of the redis cluster: give them the same hash tag,"
                " a part in braces such as {tenant-7}"
            )
        if isinstance(err, ResponseError):
            if "WRONGTYPE" in reason:
                return StoreCorrupt(f"{self._where} holds something that is not a string; find out who wrote it")
            if type(err) is ResponseError and "user_script" in reason and not _REFUSED.search(reason):
                return StoreError(f"{self._where}: the Lua script{whose} failed: {reason}")
        return StoreUnavailable(f"{self._where} cannot be used: {reason or type(err).__name__}")

    def _value(self, key: str, text: bytes | None) -> JSON:
        return None if text is None else encoding.decode(text, f"{self._where}: key {key!r}")

    def _means(self, key: str, text: bytes, expected: str | None) -> bool:
        """Say whether the text of a key is another spelling of the expected one."""
        if not text or expected is None:
            return False
        return encoding.encode(self._value(key, text)) == expected

    def _check_counters(self, reply: Any) -> None:
        if isinstance(reply, list) and isinstance(reply[0], bytes):
            key = reply[1].decode().removeprefix(self._prefix)
            raise ValueError(_REFUSALS[reply[0]](key))  # noqa: TRY004 - not the type is wrong but what redis holds


_REFUSALS: Final[Mapping[bytes, Callable[[str], str]]] = {
    lua.NOT_A_COUNTER: encoding.not_a_counter,
    lua.COUNTER_FULL: encoding.counter_full,
}


def _milliseconds(ttl_s: float | None) -> int | str:
    return "" if ttl_s is None else math.ceil(ttl_s * 1000)


def _literally(text: str) -> str:
    """Return a pattern of redis that matches the text itself."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)


def _place(client: redis.Redis) -> str:
    """Name the server for messages: without user and password."""
    settings = client.connection_pool.connection_kwargs
    if path := settings.get("path"):
        return f"redis at {path}"
    return f"redis at {settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"
