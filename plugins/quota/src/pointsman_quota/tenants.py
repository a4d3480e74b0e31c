"""Tenants, their keys, and how a caller is recognised as one of them. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from pointsman.config import Section
from pointsman.types import is_credential_header

from .limits import Limits

if TYPE_CHECKING:
    from pointsman.types import Credential, Identity

#: The claim that carries the name of the tenant's own key from ``authenticate`` to ``pre_route``.
KEY_CLAIM: Final = "pointsman.quota.key"

_SCHEME: Final = "hmac-sha256"
#: What ``hash_key`` returns: 8 to 64 bytes of salt, 32 of digest.
_KEY_HASH: Final = r"hmac-sha256\$(?:[0-9a-f]{2}){8,64}\$[0-9a-f]{64}"

#: How long a raw key may be. A short one could be found by trying.
_KEY_CHARS: Final = (16, 512)


def checked_key(api_key: str) -> str:
    """Return a raw key without white space around it.

    Raises:
        ValueError: it is too short, too long, or more than one word; the message does not show it.
    """
    key, (least, most) = api_key.strip(), _KEY_CHARS
    if not least <= len(key) <= most:
        raise ValueError(f"a key must have {least} to {most} characters, this one has {len(key)}")
    if len(key.split()) > 1:
        raise ValueError("a key must not contain white space; give one key")
    return key


def hash_key(api_key: str, salt: str) -> str:
    """Return the salted hash of an API key, ``hmac-sha256$SALT$DIGEST``.

    API keys are long and random, so a fast keyed hash is enough; it must be fast, for it is computed on every request.

    Args:
        api_key: The raw key.
        salt: Hexadecimal.
    """
    digest = hmac.digest(bytes.fromhex(salt), api_key.encode(), hashlib.sha256).hex()
    return f"{_SCHEME}${salt}${digest}"


def made_by_us(key_hash: str) -> str:
    """Return the hash if ``hash_key`` can have made it.

    Raises:
        ValueError: it is something else; the message does not show it, for it may be a raw key.
    """
    if re.fullmatch(_KEY_HASH, key_hash) is None:
        raise ValueError(
            "it is not the hash of a key (hmac-sha256$SALT$DIGEST); make one with 'pointsman quota hash-key'"
        )
    return key_hash


TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
KeyHash = Annotated[str, AfterValidator(made_by_us)]


class Key(Section):
    """An API key of a tenant. Only its salted hash is kept; ``pointsman quota hash-key`` makes one."""

    name: Text = Field(description="Name of the key, shown to people and used for the key's own limits.")
    hash: KeyHash = Field(description="hmac-sha256$SALT$DIGEST, both hexadecimal.")
    limits: Limits | None = Field(default=None, description="Limits of this key in addition to the tenant's.")
    priority: int | None = Field(default=None, ge=-1000, le=1000, description="Overrides the tenant's priority.")


class Match(Section):
    """How a tenant is recognised in addition to its own keys. The order of the fields is the order of precedence."""

    litellm_keys: tuple[Text, ...] = Field(default=(), description="LiteLLM's hashes of virtual keys.")
    claims: Mapping[Text, tuple[Text, ...]] = Field(
        default={}, description="Claims that authentication established (of a JWT, for example), and their values."
    )
    users: tuple[Text, ...] = Field(default=(), description="LiteLLM users.")
    teams: tuple[Text, ...] = Field(default=(), description="LiteLLM teams.")
    orgs: tuple[Text, ...] = Field(default=(), description="LiteLLM organisations.")
    header_values: tuple[Text, ...] = Field(default=(), description="Values of the trusted front's header.")


class Tenant(Section):
    """A tenant: how it is recognised, which models it may use, and how much."""

    id: TenantId = Field(description="Letters, digits, '.', '_' and '-'.")
    name: str = Field(default="", max_length=200, description="Name shown to people.")
    keys: tuple[Key, ...] = Field(default=(), max_length=1000, description="API keys of the tenant.")
    match: Match = Match()
    limits: Limits = Limits()
    models: tuple[Pattern, ...] = Field(
        default=(), description="Models that the tenant may use, as patterns with * ? and [...]; empty allows all."
    )
    model_limits: Mapping[Pattern, Limits] = Field(
        default={}, description="Further limits, each shared by all models that match its pattern."
    )
    priority: int = Field(default=0, ge=-1000, le=1000, description="Place in a queue; higher goes first.")
    dry_run: bool = Field(default=False, description="Count and mark, but never refuse.")

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name; name each one differently")
        return keys


class TrustedHeader(Section):
    """A header that a trusted proxy in front sets to the tenant's name."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,64}$", description="Lower case, for example x-tenant.")
    networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Networks of the peers that may set it, which needs custom_auth; empty trusts every peer.",
    )

    @field_validator("name")
    @classmethod
    def _visible(cls, name: str) -> str:
        if is_credential_header(name):
            raise ValueError(
                f"{name!r} carries credentials, which plugins never see; use a separate header, for example x-tenant"
            )
        return name


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """A recognised caller; the same object as long as its directory lasts, so that what is worked out can be kept.

    Attributes:
        tenant: The tenant.
        key: The tenant's own key that was used, or None.
    """

    tenant: Tenant
    key: Key | None = None

    @property
    def priority(self) -> int:
        """The place in a queue."""
        if self.key is not None and self.key.priority is not None:
            return self.key.priority
        return self.tenant.priority


class Directory:
    """Finds the tenant of a caller.

    Args:
        tenants: All tenants.
        default: Id of the tenant of unknown callers, or None.
        header: The trusted header, or None.

    Raises:
        ValueError: two tenants claim the same id, key, user, team, ...; the message names them.
    """

    def __init__(self, tenants: Iterable[Tenant], *, default: str | None, header: TrustedHeader | None) -> None:
        self._header = header
        self._default = default
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, dict[str, Caller]] = {}
        self._marks: dict[tuple[str, str], Caller] = {}
        #: By the tenant's id and the name of its key, None for the tenant itself.
        self._callers: dict[tuple[str, str | None], Caller] = {}
        for tenant in tenants:
            self.add(tenant)

    def add(self, tenant: Tenant) -> None:
        """Add a tenant.

        Raises:
            ValueError: another one claims the same id, key, user, team, ...; nothing was added.
        """
        if tenant.id in self._tenants:
            raise ValueError(f"there is a tenant {tenant.id!r} already; give each its own id")
        marks = list(_marks(tenant))
        for mark in marks:
            if (other := self._marks.get(mark)) is not None:
                raise ValueError(
                    f"tenants {other.tenant.id!r} and {tenant.id!r} both match {mark[0]} {mark[1]!r}; remove it from one"
                )
        for key in tenant.keys:
            if (caller := self._keys.get(_salt(key), {}).get(key.hash)) is not None:
                raise ValueError(
                    f"key {key.name!r} of tenant {tenant.id!r} is also a key of {caller.tenant.id!r}; remove it from one"
                )
        self._tenants[tenant.id] = tenant
        self._callers[tenant.id, None] = itself = Caller(tenant)
        self._marks.update(dict.fromkeys(marks, itself))
        for key in tenant.keys:
            caller = Caller(tenant, key)
            self._callers.setdefault((tenant.id, key.name), caller)
            self._keys.setdefault(_salt(key), {})[key.hash] = caller

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with this id, or None."""
        return self._tenants.get(tenant_id)

    def all(self) -> list[Tenant]:
        """Return all tenants by id."""
        return [self._tenants[name] for name in sorted(self._tenants)]

    def by_credential(self, credential: Credential) -> Caller | None:
        """Return the caller that presents this key, or that a trusted proxy names; None for an unknown caller."""
        if credential.api_key:
            for salt, callers in self._keys.items():
                if (caller := callers.get(hash_key(credential.api_key, salt))) is not None:
                    return caller
        if self._header and self._header.networks and _within(credential.client_host, self._header):
            return self._marks.get(("header value", credential.headers.get(self._header.name, "")))
        return None

    def by_identity(self, identity: Identity, headers: Mapping[str, str]) -> Caller | None:
        """Return the tenant of an authenticated caller; the default where there is one; else None.

        What the caller can choose freely (``end_user``, metadata) is never looked at.
        """
        if identity.tenant is not None and (itself := self._callers.get((identity.tenant, None))) is not None:
            name = identity.claims.get(KEY_CLAIM)
            return self._callers.get((identity.tenant, name), itself) if isinstance(name, str) else itself
        if self._marks:
            for mark in self._traits(identity, headers):
                if (found := self._marks.get(mark)) is not None:
                    return found
        return self._callers.get((self._default, None)) if self._default is not None else None

    def _traits(self, identity: Identity, headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        yield "LiteLLM key", identity.key_hash or ""
        for name, value in identity.claims.items():
            if isinstance(value, str):
                yield f"claim {name}", value
        yield "user", identity.user_id or ""
        yield "team", identity.team_id or ""
        yield "org", identity.org_id or ""
        if self._header and not self._header.networks:
            yield "header value", headers.get(self._header.name, "")


def _salt(key: Key) -> str:
    return key.hash.split("$")[1]


def _marks(tenant: Tenant) -> Iterator[tuple[str, str]]:
    match = tenant.match
    for kind, values in (
        ("LiteLLM key", match.litellm_keys),
        ("user", match.users),
        ("team", match.teams),
        ("org", match.orgs),
        ("header value", match.header_values),
    ):
        for value in values:
            yield kind, value
    for name, values in match.claims.items():
        for value in values:
            yield f"claim {name}", value


def _within(host: str | None, header: TrustedHeader) -> bool:
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    return any(address in network for network in header.networks)


def allowed(tenant: Tenant, names: Iterable[str]) -> bool:
    """Return whether a tenant may ask for all of these models."""
    return not tenant.models or all(
        name and any(fnmatchcase(name, pattern) for pattern in tenant.models) for name in names
    )


def limited_patterns(tenant: Tenant, names: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns with limits of their own that fit one of these models: the first that fits each."""
    if not tenant.model_limits:
        return ()
    found = (next((pattern for pattern in tenant.model_limits if fnmatchcase(name, pattern)), None) for name in names)
    return tuple(sorted({pattern for pattern in found if pattern is not None}))
