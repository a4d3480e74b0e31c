"""The tactic ``cache_affinity``: the same session, or the same beginning of a prompt, goes to the same deployment.

Providers keep the beginning of a prompt in a cache of each deployment; a request that comes to another one pays for it
again and waits longer. Consistent hashing keeps a key on its deployment while others come and go; the bound on the load
lets it move on to the next one on the ring while its own has more than its share: V. Mirrokni, M. Thorup,
M. Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA 2018).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Final

from pydantic import Field

from .tactic import Ask, Choice, Tactic
from .tactics import Settings

if TYPE_CHECKING:
    from pointsman.types import RequestContext

POINTS: Final = 64
MAX_RINGS: Final = 8
_TEXTS: Final = ("system", "instructions")
_LISTS: Final = ("messages", "input")
_USER: Final = "user"


class AffinitySettings(Settings):
    """Settings of ``cache_affinity``."""

    balance_factor: float = Field(
        default=1.25, gt=1, le=100, description="A deployment takes at most so many times its fair share in flight."
    )
    prefix_chars: int = Field(
        default=1_024,
        ge=1,
        le=65_536,
        description="Characters of the prompt's beginning that are hashed without a session.",
    )
    key: str = Field(
        default="session",
        pattern="^(session|prefix)$",
        description="'session', else the prefix; or always the 'prefix'.",
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
    """Keeps a key on its deployment while that is healthy and has no more than its share."""

    Settings = AffinitySettings
    settings: AffinitySettings
    summary = "same session or prompt prefix to the same deployment, within bounds (consistent hashing)"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(settings)
        self._rings: dict[frozenset[str], Ring] = {}

    def choose(self, ask: Ask) -> Choice:
        """Walk the ring to the first with room."""
        options = ask.options
        places = {option.id: index for index, option in enumerate(options)}
        flights = [option.in_flight for option in options]
        weights = [max(option.weight, 0.0) for option in options]
        total_weight = sum(weights) or float(len(options))
        room = self.settings.balance_factor * (sum(flights) + 1)
        scores: list[float | None] = [None] * len(options)
        first: str | None = None
        for rank, one in enumerate(self._ring(ask.known).walk(self._key(ask.ctx))):
            first = first or one
            index = places.get(one)
            if index is None:
                continue
            bound = ceil(room * (weights[index] or (1.0 if not any(weights) else 0.0)) / total_weight)
            scores[index] = 1.0 / (rank + 1)
            if flights[index] < bound:
                return Choice(index, scores, "at home" if one == first else f"home {first} is full or unhealthy")
        # Only weights of 0 get here: the bounds of all others add up to more than what is in flight.
        return ask.best([-float(flight) for flight in flights], "nobody has room")

    def _ring(self, ids: tuple[str, ...]) -> Ring:
        # The gateway may list the same deployments in another order each time.
        which = frozenset(ids)
        ring = self._rings.get(which)
        if ring is None:
            if len(self._rings) >= MAX_RINGS:
                del self._rings[next(iter(self._rings))]
            ring = self._rings[which] = Ring(ids)
        return ring

    def _key(self, ctx: RequestContext) -> int:
        if ctx.session_id and self.settings.key == "session":
            return hashed(ctx.session_id.encode("utf-8", "surrogatepass"))
        return hashed(prefix(ctx.body, self.settings.prefix_chars).encode("utf-8", "surrogatepass"))


def hashed(data: bytes) -> int:
    """Return a 64-bit hash that is the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def prefix(body: Mapping[str, object], most_chars: int) -> str:
    """Return the beginning of a prompt: what the system says and the first user's message, shortened.

    It ends with the first user's message so that it stays the same while a conversation goes on.
    """
    gathered: list[str] = []
    left = most_chars
    for text in _beginning(body):
        gathered.append(text[:left])
        left -= len(gathered[-1])
        if left <= 0:
            break
    return "\0".join(gathered)


def _beginning(body: Mapping[str, object]) -> Iterator[str]:
    for name in _TEXTS:
        yield from _texts(body.get(name))
    for name in _LISTS:
        value = body.get(name)
        if isinstance(value, str):
            yield value
        elif isinstance(value, Sequence):
            for message in value:
                if not isinstance(message, Mapping):
                    yield from _texts(message)
                    continue
                yield from _texts(message.get("content"))
                if message.get("role") == _USER:
                    return


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("text"))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)
