"""The tenants: those of the configuration, and those added at run time, which the store keeps."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Final, cast

from pydantic import ValidationError

from pointsman.errors import Conflict, NotFound, nearest
from pointsman.store.protocol import Put, Update
from pointsman.store.views import Snapshot

from .tenants import Directory, Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.plugin import Clock
    from pointsman.store.protocol import JSON, StateStore

    from .config import QuotaConfig

log: Final = logging.getLogger("pointsman.quota")

_PREFIX: Final = "{tenants}/"
_SALT_KEY: Final = "salt"
_SALT_BYTES: Final = 16
_WHAT: Final = "the list of tenants"


class TenantRepository:
    """All tenants, as of the last refresh.

    Args:
        config: The plugin's section.
        store: The plugin's part of the state store.
        clock: Time.

    Attributes:
        directory: Finds the tenant of a caller.
        problems: Why stored tenants are left out, if any are: the configuration wins over the store.
    """

    def __init__(self, config: QuotaConfig, store: StateStore, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._snapshot = Snapshot(store, _PREFIX, on_change=self._rebuild, clock=clock.monotonic)
        self._configured = frozenset(tenant.id for tenant in config.tenants)
        self.problems: tuple[str, ...] = ()
        self._rebuild({})

    def source(self, tenant_id: str) -> str:
        """Return where a tenant comes from: ``config`` or ``store``."""
        return "config" if tenant_id in self._configured else "store"

    @property
    def missing_default(self) -> str | None:
        """The problem if ``default_tenant`` names a tenant that does not exist; None otherwise."""
        default = self._config.default_tenant
        if default is None or self.directory.get(default) is not None:
            return None
        near = nearest(default, (tenant.id for tenant in self.directory.all()))
        return f"the default tenant {default!r} does not exist{near}: unknown callers are refused"

    async def refresh(self) -> None:
        """Read what other workers have changed.

        Raises:
            StoreError: the store failed; everything stays as it was.
        """
        await self._snapshot.refresh()

    async def add(self, tenant: Tenant, *, replace: bool) -> None:
        """Store a tenant.

        Raises:
            Conflict: the id, a key or a mark is taken, the tenant is one of the configuration, or others changed the tenants each time.
            StoreError: the store failed.
        """
        key = _PREFIX + tenant.id

        def added(items: Mapping[str, JSON]) -> tuple[Update, None]:
            self._check_stored(tenant.id)
            if key in items and not replace:
                raise Conflict(
                    f"there is a tenant {tenant.id!r} already; delete it first, or send replace=true", param="id"
                )
            trial, _ = self._build({name: value for name, value in items.items() if name != key})
            try:
                trial.add(tenant)
            except ValueError as err:
                raise Conflict(str(err)) from err
            return Update(puts={key: Put(cast("JSON", tenant.model_dump(mode="json", exclude_none=True)))}), None

        await self._snapshot.modify(added, what=_WHAT)

    async def remove(self, tenant_id: str) -> None:
        """Remove a stored tenant; what it has spent is kept until the end of the month.

        Raises:
            NotFound: there is no such tenant.
            Conflict: it is one of the configuration, or others changed the tenants each time.
            StoreError: the store failed.
        """
        key = _PREFIX + tenant_id

        def removed(items: Mapping[str, JSON]) -> tuple[Update, None]:
            self._check_stored(tenant_id)
            if key not in items:
                raise NotFound(f"there is no tenant {tenant_id!r}; see GET /pointsman/quota/tenants", param="id")
            return Update(deletes=[key]), None

        await self._snapshot.modify(removed, what=_WHAT)

    async def salt(self) -> str:
        """Return the salt for keys that are hashed here, in hexadecimal: one for all workers, created on first use.

        Raises:
            StoreError: the store failed.
        """
        present = await self._store.get(_SALT_KEY)
        if present is None:
            await self._store.compare_and_set(_SALT_KEY, None, secrets.token_hex(_SALT_BYTES))
            present = await self._store.get(_SALT_KEY)
        return str(present)

    def _check_stored(self, tenant_id: str) -> None:
        if tenant_id in self._configured:
            raise Conflict(f"tenant {tenant_id!r} is part of the configuration; change it there", param="id")

    def _rebuild(self, items: Mapping[str, JSON]) -> None:
        self.directory, self.problems = self._build(items)
        for problem in self.problems:
            log.warning("a stored tenant is left out: %s", problem)

    def _build(self, items: Mapping[str, JSON]) -> tuple[Directory, tuple[str, ...]]:
        config = self._config
        directory = Directory(config.tenants, default=config.default_tenant, header=config.trusted_header)
        problems = []
        for key, value in items.items():
            try:
                directory.add(Tenant.model_validate(value))
            except ValidationError as err:
                fields = ", ".join(".".join(map(str, detail["loc"])) for detail in err.errors())
                problems.append(f"{key.removeprefix(_PREFIX)!r}: not readable by this version ({fields})")
            except ValueError as err:
                problems.append(str(err))
        return directory, tuple(problems)
