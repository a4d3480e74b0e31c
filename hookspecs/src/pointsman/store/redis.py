"""The state store of many machines: redis, alone or as a cluster, with one round trip per operation."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from .. import deadline
from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from . import json
from .protocol import JSON, MAX_COUNTER, AtomicOp, Update

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

_log = logging.getLogger(__name__)

_CONNECTIONS: Final = 50
_SCAN_KEYS: Final = 1000
#: Keys of earlier releases that are listed in one step.
_LIST_KEYS: Final = 500
_REFUSED: Final = re.compile(r"(^|-)(OOM|READONLY|MISCONF|NOREPLICAS|NOPERM|MASTERDOWN|LOADING|CLUSTERDOWN) ")
"""Errors of the server in the middle of a script that are not the script's fault."""


class RedisStore:
    """JSON texts in redis strings.

    A call takes one round trip, except ``scan`` and the first call of each Lua script. Next to the keys it keeps sorted sets
    of their names, so that ``scan`` reads what is ours and does not walk all keys of a server that others use, too. Nothing is sent twice by itself: a lost answer is ``StoreUnavailable``, not a second ``add``.

    Use ``open``. All calls come from the event loop that opened it.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster, where: str, prefix: str, timeout_s: float) -> None:
        self._client = client
        self._where = where
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._free_connections = asyncio.Semaphore(_CONNECTIONS)
        self._scripts: dict[str, AsyncScript] = {}
        self._names = _Names(prefix, cluster=isinstance(client, redis.RedisCluster))
        self._listing: asyncio.Task[None] | None = None
        self._closed = False
        #: Keys that each node has dropped since it was started, as last seen, by its run id; and all since the first look.
        self._evicted: dict[str, int] | None = None
        self._dropped = 0

    @classmethod
    async def open(
        cls, url: str, *, prefix: str = "pointsman:", timeout_s: float = 5.0, lists_older: bool = True
    ) -> Self:
        """Connect to the server, or to the cluster that it is part of.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database as redis-py reads them.
            prefix: Put before every key, so that others can use the same server.
            timeout_s: Longest time a call may take, in seconds.
            lists_older: Whether ``scan`` has to find the keys of earlier releases, too: they are listed once, and a key
                notes that. False leaves no trace.

        Raises:
            ValueError: the URL cannot be read.
            StoreUnavailable: the server does not answer, or refuses this user.
        """
        json.check_prefix(prefix)
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
                store._names = _Names(prefix, cluster=True)
            await store.ping()
            if lists_older:
                await store._list_older()
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
        json.check_key(key)
        async with self._asking():
            text = await self._client.execute_command("GET", self._prefix + key)
        return self._value(key, text)

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """See ``StateStore.get_many``. On a cluster, one round trip for each group of keys that lie together."""
        for key in keys:
            json.check_key(key)
        texts = await self._texts([self._prefix + key for key in keys])
        return [self._value(key, text) for key, text in zip(keys, texts, strict=True)]

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """See ``StateStore.put``."""
        json.check_key(key)
        json.check_ttl(ttl_s)
        await self._script(_PUT, [key], [json.encode(value), _milliseconds(ttl_s)])

    async def delete(self, key: str) -> bool:
        """See ``StateStore.delete``."""
        json.check_key(key)
        return bool(await self._script(_DELETE, [key], []))

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """See ``StateStore.compare_and_set``."""
        return await self.update(json.compare_and_set(key, expected, value, ttl_s))

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """See ``StateStore.add``."""
        json.check_key(key)
        json.check_amount(amount)
        json.check_ttl(ttl_s)
        total = await self._script(_ADD, [key], [amount, _milliseconds(ttl_s)])
        self._check_counters(total)
        return int(total)

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """See ``StateStore.scan``.

        Takes a time that grows with the number of our keys below the first part of the prefix, up to its first slash (on a
        cluster: with the same hash tag). For a prefix without a slash (on a cluster: without a hash tag) all keys of the server
        are walked.
        """
        json.check_prefix(prefix)
        index = self._names.index_of(prefix)
        if index is None:
            names = await self._walk(prefix)
        else:
            async with self._asking():
                found: list[Any] = await self._client.execute_command("ZRANGEBYSCORE", index, _now_ms(), "+inf")
            listed = [name.decode() for name in found]
            names = sorted(self._prefix + name for name in listed if name.startswith(prefix))
        pairs = []
        for start in range(0, len(names), _SCAN_KEYS):
            some = names[start : start + _SCAN_KEYS]
            for name, text in zip(some, await self._texts(some), strict=True):
                if text is not None:
                    key = name.removeprefix(self._prefix)
                    pairs.append((key, self._value(key, text)))
        return pairs

    async def _walk(self, prefix: str) -> list[str]:
        """Return the names of all keys below a prefix, with ours, by walking all keys of the server."""
        pattern = _literally(self._prefix + prefix) + "*"
        async with self._asking():
            found = {key async for key in self._client.scan_iter(match=pattern, count=_SCAN_KEYS)}
        try:
            names = sorted(key.decode() for key in found)
        except UnicodeDecodeError:
            raise StoreCorrupt(f"{self._where} has a key below {prefix!r} that is not text; delete it") from None
        return [name for name in names if not self._names.is_index(name)]

    async def _list_older(self) -> None:
        """List the keys of earlier releases: before the first use at once, later once for each start, in the background.

        Workers of an earlier release may still run next to this one for a while.
        """
        marker = self._prefix + _LISTED
        async with self._asking():
            listed = await self._client.execute_command("GET", marker)
        if listed is not None:
            self._listing = asyncio.create_task(self._list_all(), name="pointsman:list keys")
            return
        try:
            await self._list_all()
            async with self._asking():
                await self._client.execute_command("SET", marker, "1")
        except (RedisError, RedisClusterException, OSError) as err:
            raise self._failure(err, str(err), "") from err

    async def _listing_done(self) -> None:
        """Wait until the keys of earlier releases are listed."""
        if self._listing is not None:
            await self._listing

    async def _list_all(self) -> None:
        """Walk all keys of the server, however long it takes, and list ours."""
        pattern = _literally(self._prefix) + "*"
        lister = self._client.register_script(self._names.lua + _LIST)
        page: dict[str, list[bytes]] = {}
        async for name in self._client.scan_iter(match=pattern, count=_SCAN_KEYS):
            text = name.decode(errors="replace")
            if self._names.is_index(text):
                continue
            index = self._names.index_of(text.removeprefix(self._prefix))
            if index is None:
                continue
            # What one set lists lies together on a cluster, too.
            together = page.setdefault(index, [])
            together.append(name)
            if len(together) >= _LIST_KEYS:
                await lister(page.pop(index), [_now_ms()])
        for together in page.values():
            await lister(together, [_now_ms()])

    async def update(self, update: Update) -> bool:
        """See ``StateStore.update``."""
        checks, puts = json.encode_update(update)
        keys = [*checks, *puts, *update.deletes, *update.adds]
        if not keys:
            return True
        writes = [len(puts), len(update.deletes)]
        values = [word for text, ttl_s in puts.values() for word in (text, _milliseconds(ttl_s))]
        expected: dict[str, str | bytes] = {key: text or "" for key, text in checks.items()}
        while True:
            reply = await self._script(
                _UPDATE, keys, [len(checks), *writes, *expected.values(), *values, *update.adds.values()]
            )
            if reply == 1:
                return True
            self._check_counters(reply)
            present = {keys[number - 1]: text for number, text in zip(reply[::2], reply[1::2], strict=True)}
            if not all(self._means(key, text, checks[key]) for key, text in present.items()):
                return False
            # Lua may spell the same value differently. Only the exact text shows that nothing has changed since.
            expected.update(present)

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """See ``StateStore.run``."""
        json.check_keys(keys)
        text = json.encode_any(args)
        reply = await self._script(
            _LISTING.replace("OPERATION", op.lua) if op.scanned else op.lua,
            keys,
            [text],
            f" of {op.name!r}",
            prelude=_PRELUDE,
        )
        try:
            return json.decode_any(reply)
        except (ValueError, AttributeError, TypeError):
            raise StoreError(
                f"the Lua script of {op.name!r} did not return a JSON text; end it with json_encode"
            ) from None

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        async with self._asking():
            await self._client.execute_command("PING")

    async def dropped(self) -> str | None:
        """See ``DropsKeys.dropped``."""
        client = self._client
        async with self._asking():
            if isinstance(client, redis.RedisCluster):
                nodes = [await client.info(target_nodes=node) for node in client.get_primaries()]
            else:
                nodes = [await client.info()]
        # A server that was restarted counts from 0, under another id.
        evicted = {str(about.get("run_id")): int(about.get("evicted_keys", 0)) for about in nodes}
        if self._evicted is not None:
            self._dropped += sum(count - self._evicted.get(run, 0) for run, count in evicted.items())
        self._evicted = evicted if self._evicted is None else {**self._evicted, **evicted}
        if not self._dropped:
            return None
        return (
            f"{self._where} has dropped {self._dropped} keys because its memory is full, since this worker started: budgets may be too "
            "low, settlements that killed workers have left may be lost, and tenants, versions and experiments that were added over HTTP "
            "may be missing; set maxmemory-policy to noeviction and give it more memory"
        )

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._listing is not None:
            self._listing.cancel()
            await asyncio.gather(self._listing, return_exceptions=True)
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
            registered = self._scripts[script] = self._client.register_script(prelude + self._names.lua + script)
        async with self._asking(whose):
            return await registered([self._prefix + key for key in keys], [*args, _now_ms()])

    @asynccontextmanager
    async def _asking(self, whose: str = "") -> AsyncIterator[None]:
        """Bound the time of what is asked, and turn every failure into one of ours."""
        if self._closed:
            raise StoreUnavailable(f"{self._where}: the store has been closed")
        try:
            with deadline.Limit(self._timeout_s):
                async with self._free_connections:
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
        return None if text is None else json.decode(text, f"{self._where}: key {key!r}")

    def _means(self, key: str, text: bytes, expected: str | None) -> bool:
        """Return whether the text of a key is another spelling of the expected one."""
        if not text or expected is None:
            return False
        return json.encode(self._value(key, text)) == expected

    def _check_counters(self, reply: Any) -> None:
        if isinstance(reply, list) and isinstance(reply[0], bytes):
            key = reply[1].decode().removeprefix(self._prefix)
            raise ValueError(_REFUSALS[reply[0]](key))  # noqa: TRY004 - not the type is wrong but what redis holds


class _Names:
    """Where the names of keys are listed: sorted sets by the time in Unix milliseconds until which a key lives at least.

    One set for each first part of a key, up to its first slash. On a cluster one for each first part and hash tag, because a
    set and its keys must lie together; keys without a hash tag are not listed there.

    Args:
        prefix: What the store puts before every key.
        cluster: Whether it is a cluster.

    Attributes:
        lua: Functions for scripts: ``list_name(key, ttl)``, the time to live in milliseconds or '', and ``unlist_name(key)``.
            Every script that has them gets the present time as its last argument.
    """

    def __init__(self, prefix: str, *, cluster: bool) -> None:
        self._prefix = prefix
        self._cluster = cluster
        self._listable = not (cluster and "{" in prefix)
        quoted = "".join(f"\\{byte:03d}" for byte in prefix.encode())
        self.lua = _NAMES.replace("PREFIX", f"'{quoted}'").replace("CLUSTER", str(cluster and self._listable).lower())
        if not self._listable:
            self.lua = _NO_NAMES

    def index_of(self, prefix: str) -> str | None:
        """Return the set that has all keys below a prefix, or None."""
        scope, slash, _ = prefix.partition("/")
        if not slash or not self._listable:
            return None
        if not self._cluster:
            return f"{self._prefix}{_INDEX}{scope}"
        tag = re.match(r"[^{]*\{([^}]+)\}", prefix)
        return None if tag is None else f"{self._prefix}{_INDEX}{scope}/{{{tag[1]}}}"

    def is_index(self, name: str) -> bool:
        """Return whether a key of the server is one of the sets, or says that they are complete."""
        return name.startswith((self._prefix + _INDEX, self._prefix + _LISTED))


def _now_ms() -> int:
    return int(time.time() * 1000)


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


# -- scripts -----------------------------------------------------------------------------------------------------------

_NOT_A_COUNTER: Final = b"not a counter"
_COUNTER_FULL: Final = b"counter full"

_PRELUDE: Final = """
local json_decode = cjson.decode
local function json_encode(value)
  local kind = type(value)
  if kind == 'number' then
    if value ~= value or value == math.huge or value == -math.huge then
      error('not a finite number')
    end
    if value == math.floor(value) and math.abs(value) <= 2^53 then
      return string.format('%.0f', value + 0)
    end
    local text
    for digits = 15, 17 do
      text = string.format('%.' .. digits .. 'g', value)
      if tonumber(text) == value then break end
    end
    return text
  elseif kind == 'string' then
    return (string.gsub(cjson.encode(value), '\\\\/', '/'))
  elseif kind ~= 'table' then
    return cjson.encode(value)
  end
  local parts = {}
  if #value > 0 then
    for i = 1, #value do parts[i] = json_encode(value[i]) end
    return '[' .. table.concat(parts, ',') .. ']'
  end
  local names = {}
  for name in pairs(value) do names[#names + 1] = tostring(name) end
  table.sort(names)
  for i, name in ipairs(names) do parts[i] = json_encode(name) .. ':' .. json_encode(value[name]) end
  return '{' .. table.concat(parts, ',') .. '}'
end
"""
"""Put before the script of every ``AtomicOp``: ``json_decode`` and ``json_encode``."""

_INDEX: Final = "@keys/"
_LISTED: Final = "@listed"
#: How much longer a name is listed than its key lives, in milliseconds: clocks differ.
_SLACK_MS: Final = 86_400_000

_NAMES: Final = f"""
local function index_of(key)
  local prefix = PREFIX
  local name = string.sub(key, #prefix + 1)
  local scope = string.match(name, '^([^/]*)/')
  if not scope then return nil end
  if CLUSTER then
    local tag = string.match(name, '^[^{{]*{{([^}}]+)}}')
    return tag and (prefix .. '{_INDEX}' .. scope .. '/{{' .. tag .. '}}'), name
  end
  return prefix .. '{_INDEX}' .. scope, name
end
local function list_name(key, ttl)
  local index, name = index_of(key)
  if index then
    local now = tonumber(ARGV[#ARGV])
    redis.call('ZADD', index, ttl == '' and '+inf' or now + tonumber(ttl) + {_SLACK_MS}, name)
    if ttl ~= '' then redis.call('ZREMRANGEBYSCORE', index, '-inf', now) end
  end
end
local function unlist_name(key)
  local index, name = index_of(key)
  if index then redis.call('ZREM', index, name) end
end
"""
_NO_NAMES: Final = """
local function list_name(key, ttl) end
local function unlist_name(key) end
"""

_PUT: Final = """
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
list_name(KEYS[1], ARGV[2])
return 1
"""
_DELETE: Final = """
unlist_name(KEYS[1])
return redis.call('DEL', KEYS[1])
"""
_LIST: Final = """
for _, key in ipairs(KEYS) do
  local life = redis.call('PTTL', key)
  if life ~= -2 then list_name(key, life == -1 and '' or life) end
end
return 1
"""
_LISTING: Final = """
local function operate()
OPERATION
end
local result = operate()
for _, key in ipairs(KEYS) do
  local life = redis.call('PTTL', key)
  if life == -2 then unlist_name(key) else list_name(key, life == -1 and '' or life) end
end
return result
"""
"""Around the script of an ``AtomicOp`` whose keys ``scan`` finds."""

_SUM: Final = f"""
local function sum(key, amount)
  local text = redis.call('GET', key)
  local present = 0
  if text then
    present = string.match(text, '^%-?%d+$') and tonumber(text)
    if not present or math.abs(present) > {MAX_COUNTER} then
      return nil, {{'{_NOT_A_COUNTER.decode()}', key}}
    end
  end
  if math.abs(present + amount) > {MAX_COUNTER} then
    return nil, {{'{_COUNTER_FULL.decode()}', key}}
  end
  return present + amount, nil
end
"""

_ADD: Final = (
    _SUM
    + """
local total, refused = sum(KEYS[1], tonumber(ARGV[1]))
if refused then return refused end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], 0, 'PX', ARGV[2], 'NX') end
redis.call('INCRBY', KEYS[1], ARGV[1])
local life = redis.call('PTTL', KEYS[1])
list_name(KEYS[1], life == -1 and '' or life)
return total
"""
)
"""``KEYS``: the counter. ``ARGV``: the amount; the time to live in milliseconds or ''. Returns the sum, or the reason
(``_NOT_A_COUNTER`` or ``_COUNTER_FULL``) and the key.
"""

_UPDATE: Final = (
    _SUM
    + """
local checks, puts, deletes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local differing = {}
for i = 1, checks do
  local text = redis.call('GET', KEYS[i]) or ''
  if text ~= ARGV[3 + i] then
    differing[#differing + 1] = i
    differing[#differing + 1] = text
  end
end
if #differing > 0 then return differing end
local key, arg = checks + puts + deletes, 3 + checks + 2 * puts
while key < #KEYS do
  key, arg = key + 1, arg + 1
  local _, refused = sum(KEYS[key], tonumber(ARGV[arg]))
  if refused then return refused end
end
key, arg = checks, 3 + checks
for _ = 1, puts do
  key = key + 1
  if ARGV[arg + 2] == '' then
    redis.call('SET', KEYS[key], ARGV[arg + 1])
  else
    redis.call('SET', KEYS[key], ARGV[arg + 1], 'PX', ARGV[arg + 2])
  end
  list_name(KEYS[key], ARGV[arg + 2])
  arg = arg + 2
end
for _ = 1, deletes do
  key = key + 1
  redis.call('DEL', KEYS[key])
  unlist_name(KEYS[key])
end
while key < #KEYS do
  key, arg = key + 1, arg + 1
  redis.call('INCRBY', KEYS[key], ARGV[arg])
  local life = redis.call('PTTL', KEYS[key])
  list_name(KEYS[key], life == -1 and '' or life)
end
return 1
"""
)
"""An ``Update``.

``KEYS``: those of the checks, the puts, the deletes, the adds. ``ARGV``: how many checks, puts and deletes there are;
the expected text of each check ('' for none); text and time to live (milliseconds or '') of each put; the amount of
each add. Returns 1; or for every check that failed its number and the present text ('' for none); or the reason that
an add is impossible (``_NOT_A_COUNTER`` or ``_COUNTER_FULL``) and its key.
"""

_REFUSALS: Final[Mapping[bytes, Callable[[str], str]]] = {
    _NOT_A_COUNTER: json.not_a_counter,
    _COUNTER_FULL: json.counter_full,
}
