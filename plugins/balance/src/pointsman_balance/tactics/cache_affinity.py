"""The tactic ``cache_affinity``: the same session or prompt prefix goes to the same deployment.

Providers cache prompt prefixes per deployment; a request to another one pays for its prefix again and waits longer.
Consistent hashing keeps a key on its deployment while others come and go; the bound on the load moves a new one on to the
next on the ring while its own has more than its share: V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with
Bounded Loads" (SODA 2018). A conversation that has begun stays where its prompt is cached, within a wider bound; a retry or
a hedge of one turn does not move it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Final

from cachetools import FIFOCache
from pydantic import Field

from pointsman.config import Section

from ..tactic import Ask, Choice, Tactic

if TYPE_CHECKING:
    from pointsman.types import RequestContext

POINTS: Final = 64
MAX_RINGS: Final = 8
#: Conversations remembered at most; those unused for longest go first.
MAX_CONVERSATIONS: Final = 20_000
#: A conversation stays on its deployment until that has this multiple of its bound in flight, and always below this many:
#: its prompt is cached there, and a low bound is reached by chance.
STAY_RATIO: Final = 2
STAY_IN_FLIGHT: Final = 4
_TEXTS: Final = ("system", "instructions", "system_instruction", "systemInstruction")
_LISTS: Final = ("messages", "input", "contents")
_USER: Final = "user"


class AffinitySettings(Section):
    """Settings of ``cache_affinity``."""

    balance_factor: float = Field(
        default=1.25,
        gt=1,
        le=100,
        description="Largest load of a deployment that takes new conversations, as a multiple of its fair share of requests "
        "in flight; a conversation that it has already stays up to twice as much.",
    )
    prefix_chars: int = Field(
        default=1_024,
        ge=1,
        le=65_536,
        description="Leading characters of the system prompt, and as many of the first user message, that are hashed when "
        "there is no session.",
    )
    key: str = Field(
        default="session",
        pattern="^(session|user|prefix)$",
        description="What is kept together: 'session' (the beginning of the prompt without one), 'user' (the end user "
        "without a session), or always the 'prefix'.",
    )


class Ring:
    """Points of the deployments on a circle of hashes.

    Args:
        ids: The deployments.
    """

    __slots__ = ("_owners", "_points")

    def __init__(self, ids: Sequence[str]) -> None:
        points = sorted((hashed(f"{number}/{one}".encode()), one) for one in ids for number in range(POINTS))
        self._points = [point for point, _ in points]
        self._owners = [one for _, one in points]

    def walk(self, key: int) -> Iterator[str]:
        """Yield the deployments in the order in which they follow the key, each once."""
        owners, seen = self._owners, set[str]()
        start = bisect_left(self._points, key)
        for step in range(len(owners)):
            one = owners[(start + step) % len(owners)]
            if one not in seen:
                seen.add(one)
                yield one


class CacheAffinity(Tactic):
    """Keeps a key on its deployment while that is healthy and not overloaded."""

    Settings = AffinitySettings
    settings: AffinitySettings
    summary = "same session or prompt prefix to the same deployment, within bounds (consistent hashing)"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(settings)
        self._rings: FIFOCache[frozenset[str], Ring] = FIFOCache(MAX_RINGS)
        #: Key to the deployment of its latest turn, in the order of use.
        self._latest: FIFOCache[int, str] = FIFOCache(MAX_CONVERSATIONS)

    def choose(self, ask: Ask) -> Choice:
        """Return the deployment of the key's latest turn, or walk the ring to the first with room."""
        options = ask.options
        places = {option.id: index for index, option in enumerate(options)}
        flights = [option.in_flight for option in options]
        weights = [max(option.weight, 0.0) for option in options]
        total_weight = sum(weights) or float(len(options))
        room = self.settings.balance_factor * (sum(flights) + 1)
        bounds = [ceil(room * (weight or (0.0 if any(weights) else 1.0)) / total_weight) for weight in weights]
        scores: list[float | None] = [None] * len(options)
        key = self._key(ask.ctx)
        latest = self._latest.get(key)
        index = None if latest is None else places.get(latest)
        if index is not None and bounds[index] and flights[index] < max(STAY_RATIO * bounds[index], STAY_IN_FLIGHT):
            scores[index] = 1.0
            return self._remember(ask, key, options[index].id, Choice(index, scores, "stays"))
        first: str | None = None
        for rank, one in enumerate(self._ring(ask.known).walk(key)):
            first = first or one
            index = places.get(one)
            if index is None:
                continue
            scores[index] = 1.0 / (rank + 1)
            if flights[index] < bounds[index]:
                note = "at home" if one == first else f"home {first} is full or unhealthy"
                return self._remember(ask, key, one, Choice(index, scores, note))
        # Only weights of 0 get here: the bounds of all others add up to more than the requests in flight.
        return ask.best([-float(flight) for flight in flights], "none has room")

    def _remember(self, ask: Ask, key: int, deployment_id: str, choice: Choice) -> Choice:
        if not ask.again:
            # Put at the end: those unused for longest go first.
            self._latest.pop(key, None)
            self._latest[key] = deployment_id
        return choice

    def _ring(self, ids: tuple[str, ...]) -> Ring:
        # The gateway may list the same deployments in another order each time.
        which = frozenset(ids)
        ring = self._rings.get(which)
        if ring is None:
            ring = self._rings[which] = Ring(ids)
        return ring

    def _key(self, ctx: RequestContext) -> int:
        kind = self.settings.key
        if ctx.session_id and kind != "prefix":
            return hashed(ctx.session_id.encode("utf-8", "surrogatepass"))
        if kind == "user" and ctx.identity.end_user:
            return hashed(ctx.identity.end_user.encode("utf-8", "surrogatepass"))
        return hashed(prefix(ctx.body, self.settings.prefix_chars).encode("utf-8", "surrogatepass"))


def hashed(data: bytes) -> int:
    """Return a 64-bit hash that is the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def prefix(body: Mapping[str, object], most_chars: int) -> str:
    """Return the beginning of a prompt: what precedes the first user message, and that message, each shortened.

    Apart, so that conversations behind one long system prompt differ. It ends with the first user message, so that it
    stays the same throughout a conversation.
    """
    before, first = _beginning(body)
    return f"{_shortened(before, most_chars)}\0\0{_shortened(first, most_chars)}"


def _shortened(texts: Sequence[str], most_chars: int) -> str:
    gathered: list[str] = []
    left = most_chars
    for text in texts:
        gathered.append(text[:left])
        left -= len(gathered[-1])
        if left <= 0:
            break
    return "\0".join(gathered)


def _beginning(body: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Return the texts before the first user message, and those of that message."""
    before = [text for name in _TEXTS for text in _texts(body.get(name))]
    for name in _LISTS:
        value = body.get(name)
        if isinstance(value, str):
            return before, [value]
        if not isinstance(value, Sequence):
            continue
        for message in value:
            if not isinstance(message, Mapping):
                before.extend(_texts(message))
                continue
            texts = [*_texts(message.get("content")), *_texts(message.get("parts"))]
            if message.get("role") == _USER:
                return before, texts
            before.extend(texts)
    return before, []


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("text"))
        yield from _texts(value.get("parts"))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)
