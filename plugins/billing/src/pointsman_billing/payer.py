"""Who pays for a request. Never a key: what is left of one is a short hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from pointsman.types import Identity

from .words import clean

LABEL: Final = "tenant"
_KEY_CHARS: Final = 16


def of_request(labels: Mapping[str, str], identity: Identity, default: str) -> str:
    """Return who pays for a client request.

    In this order: the route's label ``tenant``, the tenant that authentication found, ``team:<id>``, ``user:<id>``,
    ``key:<hash>``, the default.
    """
    return clean(labels.get(LABEL) or identity.tenant or "") or _of_gateway(identity) or default


def of_own_call(labels: Mapping[str, str], identity: Identity, default: str) -> str:
    """Return who pays for a call of our own.

    Whoever made the call names a tenant in the request itself, or it is the parent's identity: in this order the
    tenant, the label ``tenant``, then as for a client request.
    """
    return clean(identity.tenant or labels.get(LABEL) or "") or _of_gateway(identity) or default


def _of_gateway(identity: Identity) -> str:
    if identity.team_id:
        return clean(f"team:{identity.team_id}")
    if identity.user_id:
        return clean(f"user:{identity.user_id}")
    if identity.key_hash:
        # Hashed again: with an authentication of its own, a gateway may hand on a raw key here.
        digest = hashlib.sha256(identity.key_hash.encode("utf-8", "replace")).hexdigest()
        return f"key:{digest[:_KEY_CHARS]}"
    return ""
