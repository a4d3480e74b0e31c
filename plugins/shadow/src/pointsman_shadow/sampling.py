"""Which requests are mirrored: chosen by their id, the same way in every worker and at every look.

The id is hashed after the mirror's salt with BLAKE2b (RFC 7693) in 64 bits; a request is chosen when its hash is below
``rate * 2**64``. So a higher rate never drops a request that a lower one has chosen, and mirrors with different salts
choose independently of one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self

_SPACE: Final = 2**64
_MAX_KEY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses ids.

    Attributes:
        key: The salt as the hash's key.
        limit: Hashes below this are chosen.
    """

    key: bytes
    limit: int

    @classmethod
    def of(cls, salt: str, rate: float) -> Self:
        """Return a sampler.

        Args:
            salt: Any text.
            rate: The share of ids that are chosen, 0 to 1.
        """
        raw = salt.encode("utf-8", "surrogatepass")
        # Every salt is hashed, so that a long one is not cut and a short one never equals a hashed one.
        return cls(blake2b(raw, digest_size=_MAX_KEY_BYTES).digest(), round(rate * _SPACE))

    def chooses(self, unit: str) -> bool:
        """Say whether the id is chosen."""
        digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=self.key).digest()
        return int.from_bytes(digest, "big") < self.limit
