"""The tenant that pays for a request. Keys are never used as names, only a short hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from pointsman.types import Identity

from .events import storable

_LABEL: Final = "tenant"
_KEY_CHARS: Final = 16


def tenant_of_request(labels: Mapping[str, str], identity: Identity, default: str) -> str:
    """Return the tenant that pays for a client request.

    In this order: the route's label ``tenant``, the tenant that authentication found, ``team:<id>``, ``user:<id>``,
    ``key:<hash>``, the default.
    """
    return storable(labels.get(_LABEL) or identity.tenant or "") or _of_gateway(identity) or default


def tenant_of_own_call(labels: Mapping[str, str], identity: Identity, default: str, *, payer: str | None = None) -> str:
    """Return the tenant that pays for an own call.

    The call names a payer itself, or has the identity of its parent. In this order: the payer, the identity's tenant, the
    label ``tenant``, then as for a client request.
    """
    return storable(payer or identity.tenant or labels.get(_LABEL) or "") or _of_gateway(identity) or default


def _of_gateway(identity: Identity) -> str:
    if identity.team_id:
        return storable(f"team:{identity.team_id}")
    if identity.user_id:
        return storable(f"user:{identity.user_id}")
    return _of_key(identity)


def key_of(identity: Identity) -> str:
    """Return a name of the caller's API key: its alias, else a short hash; empty when there is no key."""
    return storable(identity.key_alias or "") or _of_key(identity)


def _of_key(identity: Identity) -> str:
    if not identity.key_hash:
        return ""
    # Hashed again: a gateway with custom authentication may pass a raw key here.
    digest = hashlib.sha256(identity.key_hash.encode("utf-8", "replace")).hexdigest()
    return f"key:{digest[:_KEY_CHARS]}"
